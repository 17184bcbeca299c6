"""What runs beside training: speed, samples, and lines for a terminal that is none."""

import time
from collections.abc import Callable

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from gpt.data import Batch
from gpt.generate import check_sampling, generate


class Throughput(Callback):
    """Logs `perf/chars_per_second` of training, over all processes, since it was last logged; validation does not count."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.characters, self.seconds = 0, 0.0  # of the whole run

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.since, self.new = None, 0  # None: the clock stands still until the next batch

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int) -> None:
        if self.since is None:
            self.since = self.clock()

    def _count(self, trainer: L.Trainer) -> float:
        """Add what is new to the run's totals; return its characters per second."""
        now = self.clock()
        new, seconds = self.new * trainer.world_size, now - self.since
        self.characters, self.seconds = self.characters + new, self.seconds + seconds
        self.since, self.new = now, 0
        return new / seconds if seconds > 0 else 0.0

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Tensor, batch: Batch, batch_idx: int
    ) -> None:
        self.new += batch[0].numel()
        if (batch_idx + 1) % (trainer.log_every_n_steps * trainer.accumulate_grad_batches) == 0:
            pl_module.log("perf/chars_per_second", self._count(trainer))

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.since is not None:
            self._count(trainer)
            self.since = None  # samples and checkpoints come after the validation and are no training either


class Samples(Callback):
    """At each validation, lets the model write on from `prompt`: into TensorBoard, and `latest` for whoever asks.

    The same prompt and random numbers each time, from a generator of its own: samples compare, and training does not notice.
    """

    def __init__(self, prompt: str, tokens: int, temperature: float, top_k: int | None = None) -> None:
        check_sampling(temperature, top_k, None)
        self.prompt, self.tokens, self.temperature, self.top_k = prompt, tokens, temperature, top_k
        self.latest = ""

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero or trainer.state.fn != "fit":
            return
        tokenizer, device = trainer.datamodule.tokenizer, pl_module.device
        prompt = "".join(char for char in self.prompt if char in tokenizer.ids) or tokenizer.start
        ids = tokenizer.encode(prompt)[None].to(device)
        generator = torch.Generator(device).manual_seed(0)
        drawn = generate(pl_module.model, ids, self.tokens, self.temperature, self.top_k, generator=generator)
        self.latest = prompt + tokenizer.decode(int(i) for i in drawn)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):  # it renders Markdown: indented text is code and keeps its lines
                text = "    " + self.latest.replace("\n", "\n    ")
                logger.experiment.add_text("sample", text, trainer.global_step)


class ValidateAtEnd(Callback):
    """Makes the last step end in a validation (so in checkpoints), also where `val_check_interval` does not divide max_steps."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Tensor, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.global_step >= trainer.max_steps:
            trainer.should_stop = True  # Lightning validates before it stops


class ProgressBar(RichProgressBar):
    """Lightning's, without what means nothing here: the number of the one epoch, the version of a logger that has none."""

    def _get_train_description(self, current_epoch: int) -> str:
        return "training"

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict:
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}


class ProgressLines(Callback):
    """One line for each validation, where no bar can be drawn: in a file, in a pipe."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero and trainer.state.fn == "fit":
            metrics = trainer.callback_metrics
            losses = "  ".join(f"{name} {metrics[name]:.4f}" for name in ("train/loss", "val/loss") if name in metrics)
            print(f"step {trainer.global_step:,} of {trainer.max_steps:,}  {losses}", flush=True)
