"""What watches a training, or changes what is seen of it: speed, samples, attention, averaged weights."""

import math
import warnings
from collections.abc import Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from pydantic import Field, validate_call
from torch import Tensor

from gpt.callbacks.loggers import writers
from gpt.data import Batch
from gpt.generate import generate
from gpt.model import attention_weights
from gpt.module import data_of, is_training, model_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_KEPT = 100  # texts in the history of samples, which is part of every checkpoint
MOST_TOKENS = 24  # of a picture of attention; more of them could not be read


class Throughput(Callback):
    """Logs `perf/chars_per_second`: characters trained on by all processes, per second, since it was last
    logged.

    The time for validation, samples and checkpoints does not count. If tokens are not characters, the mean
    number of characters per token is used. `characters` and `seconds` are the totals of the whole run.
    """

    state_key = "throughput"

    def __init__(self) -> None:
        self.characters, self.seconds = 0.0, 0.0
        self.start = perf_counter()
        self.running_since: float | None = None  # None: the clock is stopped until the next batch
        self.new_characters = 0.0  # of this process, since running_since

    @property
    def elapsed(self) -> float:
        """Seconds since the run began, validation included, without the time between a stop and a resumption."""
        return perf_counter() - self.start

    @property
    def mean(self) -> float | None:
        """Characters per second over the whole run. None if nothing was measured."""
        return round(self.characters / self.seconds, 1) if self.seconds else None

    def state_dict(self) -> dict[str, Any]:
        return {"characters": self.characters, "seconds": self.seconds, "elapsed": self.elapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.characters, self.seconds = state_dict["characters"], state_dict["seconds"]
        self.start = perf_counter() - state_dict["elapsed"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.running_since, self.new_characters = None, 0.0

    def on_train_batch_start(self, *args: Any) -> None:
        if self.running_since is None:
            self.running_since = perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self.new_characters += batch[0].numel() * data_of(trainer).characters_per_id
        is_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if is_step and trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            pl_module.log("perf/chars_per_second", self.count(trainer), prog_bar=True)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.running_since is not None:
            self.count(trainer)
            self.running_since = None

    def count(self, trainer: L.Trainer) -> float:
        """Add what is new to the totals, and return its rate in characters per second."""
        assert self.running_since is not None
        now = perf_counter()
        characters, seconds = self.new_characters * trainer.world_size, now - self.running_since
        self.characters, self.seconds = self.characters + characters, self.seconds + seconds
        self.running_since, self.new_characters = now, 0.0
        return characters / seconds if seconds > 0 else 0.0


class Samples(Callback):
    """After each validation, has the model continue `prompt` by `tokens` tokens at each of `temperatures`.

    `history` holds the steps taken and the texts at the first temperature. Of more than 100 texts, every
    second one is dropped. Prompt and random numbers are the same each time, so that samples can be compared.
    The random numbers come from generators of their own, so that training is not affected.
    """

    state_key = "samples"

    @validate_call
    def __init__(
        self,
        prompt: Annotated[str, Field(max_length=10_000)],
        tokens: Annotated[int, Field(ge=0, le=100_000)],
        temperatures: Annotated[
            list[Annotated[float, Field(ge=0, le=1e6)]], Field(min_length=1, max_length=20)
        ],
        top_k: Annotated[int, Field(ge=1)] | None = None,
    ) -> None:
        self.prompt, self.tokens, self.temperatures, self.top_k = prompt, tokens, temperatures, top_k
        self.history: list[tuple[int, str]] = []

    @property
    def latest(self) -> str:
        """The newest text, which is empty before the first validation."""
        return self.history[-1][1] if self.history else ""

    def state_dict(self) -> dict[str, Any]:
        return {"history": self.history}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = [(step, text) for step, text in state_dict["history"]]

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not (trainer.is_global_zero and is_training(trainer)):
            return
        texts = self.sample(trainer, pl_module)
        for temperature, text in zip(self.temperatures, texts, strict=True):
            # TensorBoard renders Markdown, in which indented text is code and keeps its line breaks
            markdown = "    " + text.replace("\n", "\n    ")
            for writer in writers(trainer):  # at the step that losses have
                writer.add_text(f"sample/temperature {temperature:g}", markdown, trainer.global_step - 1)
        self.history.append((trainer.global_step, texts[0]))
        if len(self.history) > MOST_KEPT:
            del self.history[1::2]

    def sample(self, trainer: L.Trainer, pl_module: L.LightningModule) -> list[str]:
        """The prompt and its continuation at each temperature, drawn as one batch.

        Characters of the prompt that the tokenizer does not know are left out.
        """
        tokenizer, device, rows = data_of(trainer).tokenizer, pl_module.device, len(self.temperatures)
        prompt = tokenizer.drop_unknown(self.prompt) or tokenizer.default_prompt
        ids = tokenizer.encode(prompt)[None].expand(rows, -1).to(device)
        generators = [torch.Generator(device).manual_seed(0) for _ in range(rows)]
        temperatures = torch.tensor(self.temperatures, device=device)
        drawn = generate(
            model_of(pl_module), ids, self.tokens, temperatures, self.top_k, generator=generators
        )
        columns = [column.tolist() for column in drawn]
        return [prompt + tokenizer.decode(column[row] for column in columns) for row in range(rows)]


class AttentionMaps(Callback):
    """Draws the attention weights of each layer and head on the first tokens of `text`, for TensorBoard.

    Drawing takes seconds, so it happens after one validation in `every`, and after the last one. It needs
    matplotlib (the extra called analysis); without it, there are no pictures.
    """

    state_key = "attention"

    @validate_call
    def __init__(
        self, text: Annotated[str, Field(max_length=1_000)], every: Annotated[int, Field(ge=1)]
    ) -> None:
        self.text, self.every = text, every
        self.validations = 0

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self.validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validations = state_dict["validations"]

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.validations += 1
        if self.validations % self.every and trainer.global_step < trainer.max_steps:
            return
        tokenizer, model = data_of(trainer).tokenizer, model_of(pl_module)
        ids = tokenizer.encode(tokenizer.drop_unknown(self.text))[None]
        ids = ids[:, : min(model.config.context_length, MOST_TOKENS)]
        tokens = [tokenizer.decode([id]) for id in ids[0].tolist()]
        for writer in writers(trainer) if tokens else ():
            weights = attention_weights(model, ids.to(pl_module.device))[:, 0].cpu()
            for layer, heads in enumerate(weights, start=1):
                try:
                    figure = draw_attention(heads, tokens, f"layer {layer}")
                except ImportError:
                    return
                # By this name it comes after all numbers. Steps are counted as for losses
                writer.add_figure(f"weights/attention_layer_{layer}", figure, trainer.global_step - 1)


def draw_attention(weights: Tensor, tokens: Sequence[str], title: str) -> "Figure":
    """One layer's weights (H, T, T), a panel for each head. A row is the token that attends; darker means
    more.

    Raises ImportError without matplotlib.
    """
    import matplotlib.style
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a text may have any characters
    heads, size = weights.shape[:2]
    columns = math.ceil(math.sqrt(heads))
    rows = math.ceil(heads / columns)
    names = [token.replace("\n", "\u23ce").replace(" ", "\u2423") for token in tokens]
    ticks = {"ticks": range(size), "labels": names, "family": "DejaVu Sans Mono"}
    panel = 0.14 * size  # inches: a line of 8 points for each token
    with matplotlib.style.context(["default", "gpt.style"]):
        figure = Figure((panel * columns + 1.6, panel * rows + 0.4 * rows + 0.9), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes in panels.flat[heads:]:
            axes.set_visible(False)
        for head, axes in enumerate(panels.flat[:heads]):
            # The square root brings out small weights, such as those of a head that looks at many tokens
            image = axes.imshow(weights[head].numpy(), cmap="Blues", norm=PowerNorm(0.5, vmin=0, vmax=1))
            axes.set_title(f"head {head + 1}")
            axes.set_xticks(**ticks, rotation=90 if max(map(len, names)) > 1 else 0)
            axes.set_yticks(**ticks)
            axes.tick_params(length=0, labelbottom=head + columns >= heads)
            axes.grid(visible=False)
        marks = [0, 0.01, 0.1, 0.5, 1]
        figure.colorbar(image, ax=panels, ticks=marks, format="%g", label="attention weight", aspect=40)
        figure.suptitle(title)
        figure.supxlabel("attended to", fontsize=9)
        figure.supylabel("attending", fontsize=9)
    return figure


class EMA(EMAWeightAveraging):
    """Validates, samples and saves an exponential moving average of the weights.

    average <- decay * average + (1 - decay) * weights. Training continues with the weights themselves, which
    a checkpoint holds in addition to the average.
    """

    state_key = "ema"

    @validate_call
    def __init__(self, decay: Annotated[float, Field(gt=0, lt=1)]) -> None:
        super().__init__(decay=decay, use_buffers=False)  # the buffers are constants

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._latest_update_step = trainer.global_step  # every step updates the average
