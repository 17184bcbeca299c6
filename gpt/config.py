"""The settings of a run as one frozen, typed tree. `conf/` holds the values, this file their names, types and checks.

`RunConfig.from_dict` makes it from plain values, `resolve` fills in what depends on the text and the machine, and from
then on the same object is used, compared when a run is resumed, and stored in its folder and checkpoints.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from gpt.data import Data, DataConfig, why_no_file_name
from gpt.files import read_text
from gpt.finetune.config import FinetuneConfig
from gpt.finetune.task import TaskConfig
from gpt.hardware import choose_compilation, choose_precision, device_type, has_compiler
from gpt.model import GPTConfig, flops_per_token
from gpt.optim import AdamWConfig, SchedulerConfig, optimizer_config
from gpt.settings import UserError, build, convert, did_you_mean, shorten

GROUPS = ("model", "data", "optimizer", "scheduler", "trainer")  # that every run needs
OF_FINE_TUNING = ("task", "finetune")  # groups that a run has if it fine-tunes
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
# float16 would need a scaled loss, and in pure bfloat16 a loss has only three significant digits
PRECISIONS = ("auto", "32-true", "bf16-mixed")
PROFILERS = ("simple", "advanced")
# Callbacks that change what is validated, or when a run ends. All others only watch
DECISIVE_CALLBACKS = ("ema", "early_stopping")


@dataclass(frozen=True)
class TrainerConfig:
    """`conf/trainer`. Everything is counted in optimizer steps. Raises ValueError for values outside their range."""

    accelerator: str
    devices: str  # a number, or auto
    num_nodes: int
    strategy: str  # how several devices share the work; gpt.runs.strategies lists the choices
    precision: str
    compile: bool | None  # None here and below, like "auto" above, is decided by RunConfig.resolve
    max_steps: int
    max_time: str | None  # DD:HH:MM:SS, after which a run ends early
    val_check_interval: int | None  # None: an eighth of max_steps
    log_every_n_steps: int
    gradient_clip_val: float  # the largest total norm; 0: no clipping
    accumulate_grad_batches: int
    deterministic: bool
    detect_anomaly: bool
    profiler: str | None

    def __post_init__(self) -> None:
        limits = {"max_steps": 10**9, "val_check_interval": 10**9, "log_every_n_steps": 10**9}
        for field, largest in (limits | {"accumulate_grad_batches": 10**6, "num_nodes": 10**5}).items():
            value = getattr(self, field)
            if value is not None and not 1 <= value <= largest:
                raise ValueError(f"{field} = {value}: must be from 1 to {largest:,}; set a number in this range")
        if self.gradient_clip_val < 0:
            raise ValueError(f"gradient_clip_val = {self.gradient_clip_val}: must not be negative; set 0 for no clipping")
        choices = {"accelerator": ACCELERATORS, "precision": PRECISIONS, "profiler": (None, *PROFILERS)}
        for field, allowed in choices.items():
            if (value := getattr(self, field)) not in allowed:
                words = ", ".join("null" if choice is None else choice for choice in allowed)
                raise ValueError(f"{field} = {shorten(value)}: not supported; choose one of {words}")
        if not re.fullmatch(r"auto|[1-9]\d{0,4}", self.devices):
            raise ValueError(f"devices = {shorten(self.devices)}: not a number of devices; set a whole number from 1, or auto")
        if self.max_time is not None and not re.fullmatch(r"\d\d:\d\d:\d\d:\d\d", self.max_time):
            raise ValueError(f"max_time = {shorten(self.max_time)}: not a duration; write it as '00:01:30:00' for 90 minutes")


@dataclass(frozen=True)
class RunConfig:
    """Everything that a run is made of. The same configuration, text and machine give the same result, to the last bit."""

    name: str
    seed: int
    model: GPTConfig
    data: DataConfig
    optimizer: AdamWConfig
    scheduler: SchedulerConfig
    trainer: TrainerConfig
    callbacks: dict[str, dict[str, Any]]  # a callback's name and its settings, as gpt.callbacks knows them
    logger: dict[str, dict[str, Any]]
    init: str | None  # the weights that it starts from; gpt.runs.init says what it may name. None: random ones
    task: TaskConfig | None  # a run with a task fine-tunes; one without pre-trains
    finetune: FinetuneConfig | None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunConfig":
        """Raises UserError for a setting or group that is unknown, missing, of the wrong type or outside its range."""
        known = [field.name for field in fields(cls)]
        for key, value in values.items():
            if key not in known:
                raise UserError(f"{key} = {shorten(value)}: no such setting; {did_you_mean(str(key), known)}")
        for group in GROUPS:
            if not isinstance(values.get(group), Mapping):
                given = "(missing)" if values.get(group) is None else shorten(values[group])
                raise UserError(f"{group} = {given}: a run needs this group; choose a file of conf/{group}/")
        has_task = any(values.get(group) is not None for group in OF_FINE_TUNING)
        for group in OF_FINE_TUNING if has_task else ():
            if not isinstance(values.get(group), Mapping):
                advice = "choose a file of conf/task/" if group == "task" else "start scripts/finetune.py"
                raise UserError(f"{group} = {shorten(values.get(group))}: fine-tuning needs this group; {advice}")
        return cls(
            name=check_name(values.get("name")),
            seed=check_seed(values.get("seed")),
            model=build(GPTConfig, values["model"], "model"),
            data=build(DataConfig, values["data"], "data"),
            optimizer=optimizer_config(values["optimizer"]),
            scheduler=build(SchedulerConfig, values["scheduler"], "scheduler"),
            trainer=build(TrainerConfig, normalise_precision(values["trainer"]), "trainer"),
            callbacks=check_named_settings(values.get("callbacks"), "callbacks"),
            logger=check_named_settings(values.get("logger"), "logger"),
            init=check_init(values.get("init")),
            task=build(TaskConfig, values["task"], "task") if has_task else None,
            finetune=build(FinetuneConfig, values["finetune"], "finetune") if has_task else None,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` takes: dictionaries, lists, numbers, text."""
        values: dict[str, Any] = to_plain(asdict(self))
        return {key: value for key, value in values.items() if not (value is None and key in ("init", *OF_FINE_TUNING))}

    def flat(self) -> dict[str, Any]:
        """The settings that affect the result, under their command-line names: {"model.n_layer": 5, ..., "seed": 1}."""
        return flatten(self.to_dict())

    def resolve(self, data: Data) -> tuple["RunConfig", list[str]]:
        """This configuration with everything decided, and the reasons for the precision and compilation that were chosen.

        Raises UserError if the text has another vocabulary than was asked for.
        """
        vocab_size = len(data.tokenizer)
        if self.model.vocab_size not in (None, vocab_size):
            raise UserError(f"model.vocab_size = {self.model.vocab_size}: the text has {vocab_size} {data.unit}; leave it out")
        model, reasons = replace(self.model, vocab_size=vocab_size), []
        precision, compiled = self.trainer.precision, self.trainer.compile
        device = device_type(self.trainer.accelerator)
        if precision == "auto":
            precision, reason = choose_precision(device)
            reasons.append(reason)
        if compiled is None:
            batches = self.trainer.max_steps * self.trainer.accumulate_grad_batches
            flops = flops_per_token(model) * self.tokens_per_batch * batches
            has_masks = model.activation == "relu" or (model.dropout > 0 and model.attention_dropout)
            compiled, reason = choose_compilation(device, precision, flops, has_masks)
            reasons.append(reason)
        elif compiled and not has_compiler(device):
            compiled = False
            reasons.append("not compiled: there is no C++ compiler")
        interval = self.trainer.val_check_interval or max(1, self.trainer.max_steps // 8)
        trainer = replace(self.trainer, precision=precision, compile=compiled, val_check_interval=interval)
        return replace(self, model=model, trainer=trainer), reasons

    @property
    def tokens_per_batch(self) -> int:
        """Tokens in one batch, over all processes together."""
        return self.model.context_length * self.data.batch_size


def flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide a result, from the plain values of a configuration, whatever else is in them."""
    flat: dict[str, Any] = {}
    for group in (*GROUPS, *OF_FINE_TUNING):
        values = config.get(group)
        flat |= {f"{group}.{key}": value for key, value in values.items()} if isinstance(values, Mapping) else {}
    callbacks = config.get("callbacks")
    for name in DECISIVE_CALLBACKS:
        values = callbacks.get(name) if isinstance(callbacks, Mapping) else None
        flat |= {f"callbacks.{name}.{key}": value for key, value in values.items()} if isinstance(values, Mapping) else {}
    flat |= {} if config.get("init") is None else {"init": config["init"]}
    return flat | {"seed": config.get("seed")}


def normalise_precision(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """The trainer's settings with Lightning's full name for float32: 32 and 32-true are not two kinds of run."""
    return dict(trainer) | ({"precision": "32-true"} if str(trainer.get("precision")) == "32" else {})


def check_name(value: Any) -> str:
    """A run's name, which ends the name of its folder. Raises UserError unless it is one path component."""
    name = convert(value, str, "name")
    if not 1 <= len(name.encode()) <= 100 or not name.isprintable() or re.search(r"[/\\:]|^\.", name):
        raise UserError(f"name = {shorten(name)}: it becomes part of a folder's name; choose a word such as name=first_try")
    return name


def check_init(value: Any) -> str | None:
    """Where the weights come from. Raises UserError for what names no file or folder."""
    if value is None:
        return None
    place = convert(value, str, "init")
    if why := why_no_file_name(place):
        raise UserError(f"init = {shorten(place) or '(empty)'}: {why}; give a run folder or a .ckpt file, or null for none")
    return place


def check_seed(value: Any) -> int:
    """The seed. Raises UserError unless it is a whole number from 0 to 2**32 - 1."""
    if value is None:
        raise UserError("seed = (missing): a run needs one; set for instance seed=1")
    if not isinstance(value, bool) and isinstance(value, int) and 2**31 <= value < 2**32:
        return value  # beyond what `convert` takes for a count
    seed = convert(value, int, "seed")
    if seed < 0:
        raise UserError(f"seed = {seed}: must be at least 0 and below 2**32; set for instance seed=1")
    return seed


def check_named_settings(values: Any, group: str) -> dict[str, dict[str, Any]]:
    """The callbacks or loggers that are not left out, each with its settings. Their own constructors check the settings."""
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise UserError(
            f"{group} = {shorten(values)}: not a group; choose a file of conf/{group}/, or leave it out with ~{group}"
        )
    for name, settings in values.items():
        if settings is not None and not isinstance(settings, Mapping):
            advice = f"write {group}.{name}=null to leave it out"
            raise UserError(f"{group}.{name} = {shorten(settings)}: not a group of settings; {advice}")
    return {str(name): dict(settings) for name, settings in values.items() if settings is not None}


def to_plain(value: Any) -> Any:
    """The same value with lists for tuples, as YAML and JSON have them."""
    if isinstance(value, dict):
        return {key: to_plain(inner) for key, inner in value.items()}
    return [to_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


class PlainLoader(yaml.SafeLoader):
    """YAML as this project writes it: without aliases, which can make a small file a huge configuration."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias")
        return super().compose_node(parent, index)


def read_config_file(path: Path) -> dict[str, Any]:
    """The plain values in a run's config.yaml. Raises UserError if it is missing or damaged."""
    try:
        content = yaml.load(read_text(path, largest=2**16), PlainLoader)  # PlainLoader is a SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        content = None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UserError(f"file = {path}: missing or damaged; restore it, or begin anew in another folder")
    return content
