"""What watches a training and shows how it goes: progress, speed, samples, attention, tasks."""

import sys
from time import perf_counter
from typing import Annotated, Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from pydantic import Field
from pydantic.dataclasses import dataclass
from tqdm import tqdm

from gpt.callbacks.checkpoints import STRICT, Stateful
from gpt.callbacks.loggers import writers
from gpt.data import Batch
from gpt.drawing import draw_attention
from gpt.finetune.predict import zero_shot_accuracy
from gpt.finetune.tasks import TASKS, Task, make_examples, shuffled
from gpt.generate import generate
from gpt.machine import waiting_seconds
from gpt.model import attention_weights
from gpt.module import data_of, is_training, model_of

MOST_KEPT = 100  # texts in the history of samples, which is part of every checkpoint
MOST_TOKENS = 24  # of a picture of attention; more of them could not be read
LONG_ENOUGH = 5  # seconds, after which the speed of a run can be judged
WORTH_TELLING = 30  # seconds: of the time that is left
MUCH_WAITING = 0.2  # the share of them that is worth a note
SEED = 0  # of the examples of ZeroShot, which are the same in every run


class ProgressBar(Callback):
    """A run on one line of the terminal: optimizer steps of all of it, ETA, losses and speed.

    `prefix` stands before the line. It stays when the run ends if `leave` is set, and is erased otherwise.
    """

    def __init__(self, prefix: str = "", leave: bool = True) -> None:
        self.prefix, self.leave = prefix, leave
        self.line = tqdm(disable=True)  # until training starts

    def line_format(self, trainer: L.Trainer) -> str:
        """The counts, the bar, and as many of the numbers known by now as there is room for.

        The time that is left is judged by all steps, validations included.
        """
        metrics, splits = trainer.callback_metrics, ("train", "val")
        losses = [f"{split} {metrics[f'{split}/loss']:.3f}" for split in splits if f"{split}/loss" in metrics]
        facts = ["ETA {remaining}", *losses]
        if (speed := metrics.get("perf/chars_per_second")) is not None:
            facts.append(f"{speed / 1000:,.0f}k chars/s" if speed >= 1000 else f"{speed:.0f} chars/s")
        counts = f"{self.prefix}{trainer.max_steps:,}/{trainer.max_steps:,} "
        room = (self.line.format_dict["ncols"] or 80) - len(counts) - 5  # for the bar itself
        while len(facts) > 1 and len("  ".join(facts)) > room:
            facts.pop()
        return f"{{desc}}{{n:,}}/{{total:,}} {{bar}}  {'  '.join(facts)}"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        steps: Any = {"initial": trainer.global_step, "total": trainer.max_steps, "miniters": 1}
        shown: Any = {"bar_format": self.line_format(trainer), "file": sys.stdout, "dynamic_ncols": True}
        shown |= {"desc": self.prefix, "leave": self.leave, "disable": not trainer.is_global_zero}
        self.line = tqdm(**steps, **shown, smoothing=0)  # by the mean speed of all steps so far

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if self.line.update(trainer.global_step - self.line.n):  # it was drawn
            self.line.bar_format = self.line_format(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.line.bar_format = self.line_format(trainer)
        self.line.refresh()

    def on_train_end(self, *args: Any) -> None:
        """Leave the cursor at the beginning of a line. From now on nothing is drawn."""
        self.line.close()

    def on_exception(self, *args: Any) -> None:
        """Erase the line: the time that it says is left is no longer true."""
        self.line.leave = False
        self.line.close()


class ProgressLines(Callback):
    """Plain progress lines when stdout is not a terminal: one per validation, and how long the steps take."""

    measured_from: tuple[int, float] | None = None  # the first step's end, since that one may have compiled
    has_estimated = False

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        now, step, last = perf_counter(), trainer.global_step, trainer.max_steps
        first, began = self.measured_from = self.measured_from or (step, now)
        has_told = self.has_estimated or not trainer.is_global_zero
        if first < step < last and now - began > LONG_ENOUGH and not has_told:
            self.has_estimated = True
            left = (last - step) * (now - began) / (step - first)
            if left > WORTH_TELLING:
                needed = f"about {tqdm.format_interval(left)}, and validations some more"
                print(f"the other {last - step:,} steps take {needed}", flush=True)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero and is_training(trainer):
            # the loss of this step, which need not be one of those that are logged
            losses = [f"train/loss {pl_module.step_loss:.4f}"]
            if (loss := trainer.callback_metrics.get("val/loss")) is not None:
                losses.append(f"val/loss {loss:.4f}")
            print(f"step {trainer.global_step:,} of {trainer.max_steps:,}  {'  '.join(losses)}", flush=True)


class Throughput(Stateful):
    """Logs `perf/chars_per_second`: characters that all processes train on, per second, since the last time.

    The time for validation, samples and checkpoints does not count. If tokens are not characters, the mean
    number of characters per token is used. `characters` and `seconds` are the totals of the whole run. A note
    says once if the threads of a CPU wait for each other, because other work takes a part of the machine.
    """

    state_key, kept = "throughput", ("characters", "seconds")
    characters, seconds = 0.0, 0.0
    counted_until: float | None = None  # None: the clock is stopped until the next batch
    has_noted = False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.began, self.waited = perf_counter(), waiting_seconds()
        self.has_noted = torch.get_num_threads() == 1 or pl_module.device.type != "cpu"

    def on_train_batch_start(self, *args: Any) -> None:
        if self.counted_until is None:
            self.counted_until, self.logged = perf_counter(), (self.characters, self.seconds)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Batch, *args: Any
    ) -> None:
        assert self.counted_until is not None
        now = perf_counter()
        self.seconds, self.counted_until = self.seconds + now - self.counted_until, now
        self.characters += batch[0].numel() * data_of(trainer).characters_per_id * trainer.world_size
        if pl_module.is_logged(*args):
            speed = (self.characters - self.logged[0]) / (self.seconds - self.logged[1])
            pl_module.log("perf/chars_per_second", speed, prog_bar=True)
            self.logged = self.characters, self.seconds
            self.note_other_work(now, speed)

    def note_other_work(self, now: float, speed: float) -> None:
        share = (waiting_seconds() - self.waited) / (now - self.began)
        if not self.has_noted and now - self.began > LONG_ENOUGH and share > MUCH_WAITING:
            self.has_noted = True
            reason = f"threads wait for each other, because other work has the cores {share:.0%} of the time"
            advice = "one thread may be faster: stop with Ctrl-C, and continue with OMP_NUM_THREADS=1"
            tqdm.write(f"note: {speed:,.0f} characters/s: {reason}; {advice}", file=sys.stderr)

    def on_validation_start(self, *args: Any) -> None:
        self.counted_until = None


@dataclass(config=STRICT, eq=False)
class Samples(Stateful):
    """After each validation, has the model continue `prompt` by `tokens` tokens at each of `temperatures`.

    `history` holds [step, text at the first temperature]. Of more than 100, every second one is dropped.
    Prompt and random numbers, which training does not share, are the same each time, for comparison.
    """

    state_key, kept = "samples", ("history",)
    prompt: Annotated[str, Field(max_length=10_000)]
    tokens: Annotated[int, Field(ge=0, le=100_000)]
    temperatures: Annotated[list[Annotated[float, Field(ge=0, le=1e6)]], Field(min_length=1, max_length=20)]
    top_k: Annotated[int, Field(ge=1)] | None = None
    history: list[Any] = Field(default_factory=list, init=False)

    @property
    def latest(self) -> str:
        """The newest text, which is empty before the first validation."""
        return self.history[-1][1] if self.history else ""

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not (trainer.is_global_zero and is_training(trainer)):
            return
        texts = self.sample(trainer, pl_module)
        for temperature, text in zip(self.temperatures, texts, strict=True):
            # TensorBoard renders Markdown, in which indented text is code and keeps its line breaks
            markdown = "    " + text.replace("\n", "\n    ")
            for writer in writers(trainer):  # at the step that losses have
                writer.add_text(f"sample/temperature {temperature:g}", markdown, trainer.global_step - 1)
        self.history.append([trainer.global_step, texts[0]])
        if len(self.history) > MOST_KEPT:
            del self.history[1::2]

    def sample(self, trainer: L.Trainer, pl_module: L.LightningModule) -> list[str]:
        """The prompt, without characters that the tokenizer does not know, continued at each temperature."""
        tokenizer, device, rows = data_of(trainer).tokenizer, pl_module.device, len(self.temperatures)
        prompt = tokenizer.drop_unknown(self.prompt) or tokenizer.default_prompt
        ids = tokenizer.encode(prompt)[None].expand(rows, -1).to(device)
        generators = [torch.Generator(device).manual_seed(0) for _ in range(rows)]
        settings = {"temperature": torch.tensor(self.temperatures, device=device), "top_k": self.top_k}
        drawn = generate(model_of(pl_module), ids, self.tokens, generators, **settings)
        columns = [column.tolist() for column in drawn]
        return [prompt + tokenizer.decode(column[row] for column in columns) for row in range(rows)]


@dataclass(config=STRICT, eq=False)
class AttentionMaps(Stateful):
    """Draws the attention weights of each layer and head on the first tokens of `text`, for TensorBoard.

    It takes seconds, so it is done after one validation in `every` and the last one, if matplotlib is there.
    """

    state_key, kept = "attention", ("validations",)
    text: Annotated[str, Field(max_length=1_000)]
    every: Annotated[int, Field(ge=1)]
    validations = 0

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validations += 1
        if self.validations % self.every and trainer.global_step < trainer.max_steps:
            return
        tokenizer, model = data_of(trainer).tokenizer, model_of(pl_module)
        ids = tokenizer.encode(tokenizer.drop_unknown(self.text))
        ids = ids[: min(model.config.context_length, MOST_TOKENS)]
        tokens = [tokenizer.decode([id]) for id in ids.tolist()]
        for writer in writers(trainer) if tokens else ():
            weights = attention_weights(model, ids[None].to(pl_module.device))[:, 0].cpu()
            for layer, heads in enumerate(weights, start=1):
                try:
                    figure = draw_attention(heads, tokens, f"layer {layer}")
                except ImportError:
                    return
                # By this name it comes after all numbers. Steps are counted as for losses
                writer.add_figure(f"weights/attention_layer_{layer}", figure, trainer.global_step - 1)


@dataclass(config=STRICT, eq=False)
class ZeroShot(Callback):
    """Logs zero_shot/TASK at each validation: accuracy without fine-tuning ([G] section 5, figure 2, right).

    The examples are made from the validation split, which has to be a play.
    [G] is Radford et al. 2018, *Improving Language Understanding by Generative Pre-Training*.
    """

    tasks: list[Literal[*TASKS]]  # type: ignore[valid-type]
    examples: Annotated[int, Field(ge=1)]
    heuristic: Literal["paper", "gain"] = "paper"  # see gpt.finetune.predict.zero_shot_accuracy

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make the examples. Raises UserError for a text that is not a play."""
        data: Any = data_of(trainer)  # a TextData
        text, self.asked = data.tokenizer.decode(data.val_ids), []
        for name in self.tasks:
            examples = shuffled(make_examples(name, text, [SEED, 1]), SEED, self.examples)
            self.asked.append(Task(name, *TASKS[name][:2], train=[], test=examples))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for task in self.asked if is_training(trainer) else ():
            model, tokenizer = model_of(pl_module), data_of(trainer).tokenizer
            accuracy = zero_shot_accuracy(model, tokenizer, task, self.heuristic)
            pl_module.log(f"zero_shot/{task.name}", accuracy)
