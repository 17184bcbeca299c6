"""Every setting of a run with its type, range, default and meaning. `conf/` lists what a choice changes.

A setting that is unknown, of the wrong type or outside its range is refused with a pydantic.ValidationError,
which is a ValueError. `RunConfig.from_dict` makes it a UserError that names it as the command line does.

[A] is Vaswani et al. 2017, *Attention Is All You Need*, [G] is Radford et al. 2018, *Improving Language
Understanding by Generative Pre-Training*.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import pydantic
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, field_validator, model_validator

from gpt.errors import UserError, did_you_mean, shorten

# The groups of settings that decide a result. Callbacks other than these two only watch
DECISIVE = ["model", "data", "optimizer", "scheduler", "trainer", "task", "finetune"]
DECISIVE += ["callbacks.ema", "callbacks.early_stopping"]
# Settings that may differ between two parts of one run: where a text is, as its SHA-256 is known, and
# what only watches
INDIFFERENT = {"task.path", "data.path", "data.val_path", "data.separator", "data.column", "data.folder"}
INDIFFERENT |= {"trainer.log_every_n_steps", "trainer.profiler", "trainer.detect_anomaly"}

Count = Annotated[int, Field(ge=1, le=10**9)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]  # leaves none of two parts empty
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=1e6)]  # of learning, at its peak


def check_run_name(name: str) -> str:
    """The same name. Raises ValueError unless it is one path component."""
    if not 1 <= len(name.encode()) <= 100 or not name.isprintable() or re.search(r"[/\\:]|^\.", name):
        raise ValueError("becomes part of a folder's name; choose a word such as name=first_try")
    return name


FileName = Annotated[str, Field(min_length=1)]
Places = FileName | list[FileName]
in_full = BeforeValidator(lambda name: "32-true" if str(name) == "32" else name)  # not two kinds of run
Precision = Annotated[Literal["auto", "32-true", "bf16-mixed"], in_full]


class Settings(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True):
    """A group of settings, which cannot be changed once it is made."""

    @model_validator(mode="before")
    @classmethod
    def no_truth_value_for_a_number(cls, values: Any) -> Any:
        """pydantic takes True for 1. Whoever writes `true` for a number has made a mistake."""
        for name, field in cls.model_fields.items() if isinstance(values, dict) else ():
            if isinstance(values.get(name), bool) and re.search(r"\b(int|float)\b", str(field.annotation)):
                raise ValueError(f"{name} = {values[name]}: is true or false, where a number is needed")
        return values


class ModelConfig(Settings):
    """What decides which tensors a model has and what it computes. The default size is `model=small`."""

    vocab_size: Annotated[int, Field(ge=1, le=2**20)] | None = None  # None: as many as the text has
    context_length: int = Field(256, ge=1, le=2**17)
    n_layer: int = Field(5, ge=1, le=2**10)
    n_head: int = Field(2, ge=1, le=2**10)  # at this size, more cost more and learn no more (docs/log.md)
    n_embd: int = Field(160, ge=1, le=2**16)
    dropout: Probability = 0.0  # on embeddings and both residual branches, [G] section 4.1
    # post: norm(x + f(x)), as in [A] and [G]; pre: x + f(norm(x)) and a final norm, as in GPT-2
    norm_position: Literal["pre", "post"] = "pre"
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"  # which is one kernel on a CPU, and RMSNorm is not
    positions: Literal["learned", "rotary"] = "rotary"
    activation: Literal["gelu", "relu", "relu2"] = "relu2"
    bias: bool = False  # in linear layers and norms; the output head never has one
    tied_head: bool = False  # the output head is the token embedding, [G] equation 2
    attention_dropout: bool = False  # on attention weights too, [G] section 4.1; a CPU is a quarter slower
    qk_norm: bool = True  # normalise queries and keys, per head and by one shared norm, before they meet
    conv_width: int = Field(3, ge=0, le=2**8)  # how many earlier positions each branch mixes into its input

    @model_validator(mode="after")
    def heads_divide_the_width(self) -> Self:
        step = 2 if self.positions == "rotary" else 1
        if self.n_embd % (step * self.n_head):
            fitting = [n for n in range(1, min(self.n_embd, 64) + 1) if self.n_embd % (step * n) == 0]
            reason = f"n_embd = {self.n_embd} is not divisible by it"
            reason += " into heads of even size, as positions=rotary needs them" if step == 2 else ""
            advice = f"try one of {fitting}" if fitting else "set an even n_embd, or model.positions=learned"
            raise ValueError(f"n_head = {self.n_head}: {reason}; {advice}")
        return self

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head

    def known_vocab_size(self) -> int:
        """`vocab_size`. Raises ValueError while it is None."""
        if self.vocab_size is None:
            raise ValueError("vocab_size = None: not known before the text is read")
        return self.vocab_size

    def parameter_count(self) -> int:
        """How many trainable numbers `GPT(config)` holds, without building it. A tied head counts once."""
        C, bias = self.n_embd, self.bias
        norm = 2 if self.norm == "layernorm" and bias else 1  # per number that is normalised
        block = 12 * C * C + 9 * C * bias + 2 * norm * C + 2 * self.conv_width * C
        block += norm * self.head_size * self.qk_norm
        embeddings = self.known_vocab_size() * C * (1 if self.tied_head else 2)
        positions = self.context_length * C * (self.positions == "learned")
        return embeddings + positions + self.n_layer * block + norm * C * (self.norm_position == "pre")

    def flops_per_token(self) -> int:
        """Floating-point operations to train on one position, forward and backward.

        6 for each weight of a matrix product and 12 n_layer C T for attention, including what the causal
        mask throws away (Chowdhery et al. 2022, *PaLM*, appendix B).
        """
        C = self.n_embd
        weights = 12 * self.n_layer * C * C + self.known_vocab_size() * C
        return 6 * weights + 12 * self.n_layer * C * self.context_length


class DataConfig(Settings):
    """Which text is read, how it becomes ids, and how many of them make a batch."""

    path: Places | None = None  # a file, folder or pattern ('texts/*.txt'), or [a,b]; None: Tiny Shakespeare
    val_path: Places | None = None  # likewise, for validation; None: the end of `path`
    val_fraction: Probability = 0.1  # the share of the text, at its end, for validation; 0: there is none
    separator: str = "\n"  # stands between two files or rows, unless the first ends with it
    column: str | None = None  # of .jsonl, .csv, .tsv and .parquet files, the one with the text
    folder: FileName = "data"  # keeps Tiny Shakespeare if it is downloaded, and the ids of large texts
    batch_size: Count = 4  # windows of context_length tokens, over all processes together
    tokenizer: Literal["char", "byte", "bpe"] = "char"  # byte suits any file; bpe (of words) needs extra hf
    bpe_vocab_size: int = Field(512, ge=2**8, le=2**16)  # the number of pieces, for tokenizer=bpe alone
    # With init=, what becomes of characters that its model does not know, which are refused otherwise
    drop_unknown: bool = False  # leave them out
    extend_vocabulary: bool = False  # give them new rows of the embedding and the head


class AdamWConfig(Settings):
    """AdamW for all parameters (Loshchilov and Hutter 2019)."""

    name: Literal["adamw"] = "adamw"
    lr: Rate = 2e-3
    betas: tuple[Probability, Probability] = (0.9, 0.99)
    weight_decay: float = Field(0.1, ge=0)  # of matrices; norms, biases and convolutions don't decay


class MuonConfig(AdamWConfig):
    """Muon for the matrices of the blocks, AdamW for embeddings, head and norms (lr, betas, weight_decay)."""

    name: Literal["muon"] = "muon"  # type: ignore[assignment]
    lr: Rate = 8e-3
    muon_lr: Rate = 0.01
    muon_momentum: Probability = 0.9


class SchedulerConfig(Settings):
    """Warm-up, plateau and decay of the learning rate, as shares of all steps: shorter runs look alike."""

    shape: Literal["linear", "cosine"] = "linear"  # of the decay
    warmup_ratio: Share = 0.02
    decay_ratio: Share = 0.6  # at most what the warm-up leaves
    min_lr_ratio: Share = 0.0  # the rate at the end, as a share of the peak


class TrainerConfig(Settings, extra="allow"):
    """On what and for how long a run trains. Everything is counted in optimizer steps.

    Any other argument of Lightning's Trainer may be added (`+trainer.limit_val_batches=2`): it is handed on.
    """

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    devices: str = Field("1", pattern=r"^(auto|[1-9]\d{0,4})$")  # a number, or auto
    num_nodes: int = Field(1, ge=1, le=10**5)  # machines
    strategy: Literal["auto", "ddp"] = "auto"  # ddp: each of several devices has a share of the batch
    # auto: bf16-mixed where the hardware computes it. float16 would need a scaled loss, and pure bfloat16 has
    # only three significant digits
    precision: Precision = "auto"
    compile: bool | None = None  # torch.compile; None: where it pays
    max_steps: Count = 2000
    max_time: str | None = Field(None, pattern=r"^\d\d:\d\d:\d\d:\d\d$")  # '00:01:30:00': 90 minutes
    val_check_interval: Count | None = None  # steps between validations; None: an eighth of max_steps
    log_every_n_steps: Count = 10
    gradient_clip_val: float = Field(1.0, ge=0)  # the largest total norm of the gradient; 0: no clipping
    accumulate_grad_batches: int = Field(1, ge=1, le=10**6)  # batches for one step
    deterministic: bool = False  # true: torch refuses operations that give other bits each time (on GPUs)
    detect_anomaly: bool = False
    profiler: Literal["simple", "advanced"] | None = None  # print where the time goes


class TaskConfig(Settings):
    """Examples with labels, for fine-tuning: made from a play, or from a table of one's own (task=csv)."""

    name: str = "csv"  # a task of gpt.finetune.tasks, or csv
    path: FileName | None = None  # a CSV or TSV file in UTF-8 whose first line names the columns
    # one: classification; two: entailment; more: a context and the candidates to choose from
    columns: list[str] = []
    label: str | None = None  # the column with the label; of a choice, the right candidate's column or number
    symmetric: bool = False  # true: two texts that may be exchanged (similarity)
    # None: by the number of columns
    kind: Literal["classification", "entailment", "similarity", "choice"] | None = None
    split_column: str | None = None  # says train or test; None: the seed decides, for each label alike
    test_fraction: Fraction = 0.2
    max_length: int = Field(256, ge=5, le=10**9)  # tokens of a sequence; longer texts are cut
    max_train: int = Field(0, ge=0, le=10**9)  # at most so many examples for training; 0: all
    max_test: int = Field(400, ge=0, le=10**9)


class FinetuneConfig(Settings):
    """How a pre-trained model is fine-tuned, whatever the task ([G] section 3.2)."""

    lm_weight: float = Field(0.5, ge=0, le=1e6)  # of the auxiliary objective: L3 = L2 + lm_weight * L1
    dropout: Probability = 0.1  # on what the new head reads
    # true: the answer also reads how likely the text is; false: the extract token's activation, as in [G]
    surprise: bool = True
    class_weights: Literal["balanced"] | None = None  # of L2; balanced: labels count alike, however rare
    layers: Annotated[int, Field(ge=0)] | None = None  # how many pre-trained ones are taken over; None: all
    epochs: float = Field(3, gt=0, le=1e6)
    val_fraction: Fraction = 0.1  # the share of the training examples by which the checkpoint is chosen
    drop_unknown: bool = False  # true: leave out characters that the tokenizer does not know


class RunConfig(Settings):
    """A whole run. The same configuration, text and machine give the same result, bit by bit."""

    name: Annotated[str, AfterValidator(check_run_name)] = "run"  # part of the run folder's name
    seed: int = Field(1337, ge=0, lt=2**32)
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optimizer: Annotated[AdamWConfig | MuonConfig, Field(discriminator="name")] = MuonConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    trainer: TrainerConfig = TrainerConfig()
    callbacks: dict[str, dict[str, Any]] = {}  # what runs while it trains: `_target_` and arguments, by name
    logger: dict[str, dict[str, Any]] = {}  # where its numbers go, likewise
    init: FileName | None = None  # a run, file or Hugging Face folder with first weights; None: random ones
    task: TaskConfig | None = None  # a run with a task fine-tunes; one without pre-trains
    finetune: FinetuneConfig | None = None

    @field_validator("callbacks", "logger", mode="before")
    @classmethod
    def without_those_left_out(cls, value: Any) -> Any:
        """callbacks.samples=null leaves one out, and ~callbacks all of them."""
        if isinstance(value, Mapping):
            return {name: settings for name, settings in value.items() if settings is not None}
        return {} if value is None else value

    @model_validator(mode="after")
    def groups_agree(self) -> Self:
        if (self.task is None) != (self.finetune is None):
            missing = "task" if self.task is None else "finetune"
            reason = "fine-tuning needs this group; start scripts/finetune.py"
            raise ValueError(f"{missing} = (missing): {reason}")
        is_validated = self.data.val_fraction or self.data.val_path or self.task
        for name in {"early_stopping", "zero_shot"} & self.callbacks.keys() if not is_validated else ():
            reason = f"callbacks.{name} needs a part for validation; leave one out"
            raise ValueError(f"data.val_fraction = 0: {reason}")
        return self

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Raises UserError for the first setting that is unknown, of the wrong type or outside its range."""
        try:
            return cls.model_validate(values)
        except pydantic.ValidationError as error:
            raise explain(error, known=setting_names()) from None

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` takes: dictionaries, lists, numbers, text."""
        return {key: value for key, value in self.model_dump(mode="json").items() if value is not None}

    def flat(self) -> dict[str, Any]:
        """The settings that affect the result, as they are typed: {"model.n_layer": 5, ..., "seed": 1}."""
        values = self.to_dict()
        groups = values | {f"callbacks.{name}": one for name, one in values["callbacks"].items()}
        settings = [(group, groups.get(group, {})) for group in DECISIVE]
        flat = {f"{group}.{key}": one[key] for group, one in settings for key in one if key != "_target_"}
        return flat | {key: values[key] for key in ("init", "seed") if key in values}

    @property
    def tokens_per_batch(self) -> int:
        """Tokens in one batch, over all processes together."""
        return self.model.context_length * self.data.batch_size


def explain(error: pydantic.ValidationError, group: str = "", known: Iterable[str] = ()) -> UserError:
    """The first mistake that pydantic has found in a group. An unknown setting may mean one of `known`."""
    first = error.errors()[0]
    # Without the names that pydantic gives to the types of a union
    place = [part for part in (group, *map(str, first["loc"])) if not re.search(r"^$|\[|^constrained-", part)]
    if place[:1] == ["optimizer"] and place[1:2] in (["adamw"], ["muon"]):
        del place[1]  # the name by which pydantic has chosen the class
    name, value = ".".join(place), "null" if first["input"] is None else first["input"]
    reason = first["msg"].removeprefix("Input ").removeprefix("String ")
    if first["type"].startswith("union_tag_"):  # invalid, or not found
        name, value = f"{name}.name", first["ctx"].get("tag", "(missing)")
        reason = "set optimizer=adamw or optimizer=muon"
    elif first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        reason = f"no such setting; {did_you_mean(name, known)}"
    elif first["type"] == "value_error":
        reason = str(first["ctx"]["error"])
        if not isinstance(value, (int, float, str)):  # about a whole group, and names the setting itself
            return UserError(f"{name}.{reason}" if name else reason)
    return UserError(f"{name} = {shorten(value)}: {reason}")


def setting_names() -> list[str]:
    """The names of all settings, as they are typed: ["name", "seed", "model.vocab_size", ...]."""
    values = RunConfig(task=TaskConfig(), finetune=FinetuneConfig()).model_dump()
    inner = {name: isinstance(value, dict) and list(value) for name, value in values.items()}
    return [f"{name}.{key}" if key else name for name, keys in inner.items() for key in keys or [""]]


def short_names(keys: Sequence[str]) -> list[str]:
    """n_head for model.n_head, unless another key ends so too."""
    dotted = [key.lstrip("+").replace("/", ".") for key in keys]
    last = [key.rpartition(".")[2] for key in dotted]
    return [short if last.count(short) == 1 else key for short, key in zip(last, dotted, strict=True)]
