"""How fast a run trains."""

from time import perf_counter
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from gpt.data import Batch
from gpt.module import data_of


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

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
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
