"""What runs beside training: speed, samples, and lines for a terminal that is none."""

import time
from collections.abc import Callable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from torch import Tensor

from gpt.data import Batch
from gpt.generate import check_sampling, generate
from gpt.tensorboard import writers


class Throughput(Callback):
    """Logs `perf/chars_per_second` of training, over all processes, since it was last logged; validation does not count."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.characters, self.seconds = 0, 0.0  # of the whole run
        self.began, self.since, self.new = clock(), None, 0  # None: the clock stands still until the next batch

    @property
    def elapsed(self) -> float:
        """Seconds since the start, validation and all, without the time between a stop and a resumption."""
        return self.clock() - self.began

    def state_dict(self) -> dict[str, Any]:
        return {"characters": self.characters, "seconds": self.seconds, "elapsed": self.elapsed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.characters, self.seconds = state_dict["characters"], state_dict["seconds"]
        self.began = self.clock() - state_dict["elapsed"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.since, self.new = None, 0

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
    """At each validation, lets the model write on from `prompt`, once for each of `temperatures`: into TensorBoard.

    `latest` is the last text at the first temperature. The same prompt and random numbers each time, from a generator of its
    own: samples compare, and training does not notice.
    """

    def __init__(self, prompt: str, tokens: int, temperatures: list[float], top_k: int | None = None) -> None:
        for temperature in temperatures:
            check_sampling(temperature, top_k, None)
        self.prompt, self.tokens, self.temperatures, self.top_k = prompt, tokens, temperatures, top_k
        self.latest = ""

    def state_dict(self) -> dict[str, str]:
        return {"latest": self.latest}

    def load_state_dict(self, state_dict: dict[str, str]) -> None:
        self.latest = state_dict["latest"]

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero or trainer.state.fn != "fit":
            return
        tokenizer, device = trainer.datamodule.tokenizer, pl_module.device
        prompt = "".join(char for char in self.prompt if char in tokenizer.ids) or tokenizer.start
        ids = tokenizer.encode(prompt)[None].to(device)
        texts = []
        for temperature in self.temperatures:
            generator = torch.Generator(device).manual_seed(0)
            drawn = generate(pl_module.model, ids, self.tokens, temperature, self.top_k, generator=generator)
            texts.append(prompt + tokenizer.decode(int(i) for i in drawn))
            for writer in writers(trainer):  # TensorBoard renders Markdown: indented text is code and keeps its lines
                text = "    " + texts[-1].replace("\n", "\n    ")
                writer.add_text(f"sample/temperature {temperature}", text, trainer.global_step)
        self.latest = texts[0]


class StepSeed(Callback):
    """Seeds torch's random numbers anew for each batch: dropout is a function of (seed, batch, rank), resumed or not."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int) -> None:
        mixed = (self.seed * 1_000_003 + batch_idx) * 1_009 + trainer.global_rank
        torch.default_generator.manual_seed(mixed)  # torch.manual_seed asks all kinds of devices: a hundred times as long
        if pl_module.device.type == "cuda":
            torch.cuda.manual_seed(mixed)


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
