"""What runs beside training: speed, samples, and lines for a terminal that is none."""

import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, RichProgressBar
from torch import Tensor

from gpt.data import Batch
from gpt.generate import check_sampling, generate
from gpt.settings import UserError, convert
from gpt.tensorboard import writers


class Throughput(Callback):
    """Logs `perf/chars_per_second` of training, over all processes, since it was last logged; validation does not count.

    Where an id is not a character, their mean number is what counts."""

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
        self.new += batch[0].numel() * trainer.datamodule.characters_per_id
        if (batch_idx + 1) % (trainer.log_every_n_steps * trainer.accumulate_grad_batches) == 0:
            pl_module.log("perf/chars_per_second", self._count(trainer), prog_bar=True)

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
        if not isinstance(temperatures, Sequence) or isinstance(temperatures, str) or not temperatures:
            raise UserError(f"temperatures = {temperatures}: not a list; write [0.8] for one")
        self.prompt, self.tokens = convert(prompt, str, "prompt"), convert(tokens, int, "tokens")
        self.temperatures = [convert(temperature, float, "temperatures") for temperature in temperatures]
        self.top_k = convert(top_k, int | None, "top_k")
        for temperature in self.temperatures:
            check_sampling(temperature, self.top_k, None)
        self.latest = ""

    def state_dict(self) -> dict[str, str]:
        return {"latest": self.latest}

    def load_state_dict(self, state_dict: dict[str, str]) -> None:
        self.latest = state_dict["latest"]

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero or trainer.state.fn != "fit":
            return
        tokenizer, device = trainer.datamodule.tokenizer, pl_module.device
        prompt = tokenizer.known(self.prompt) or tokenizer.start
        ids = tokenizer.encode(prompt)[None].to(device)
        texts = []
        for temperature in self.temperatures:
            generator = torch.Generator(device).manual_seed(0)
            drawn = generate(pl_module.model, ids, self.tokens, temperature, self.top_k, generator=generator)
            texts.append(prompt + tokenizer.decode(int(i) for i in drawn))
            for writer in writers(trainer):  # TensorBoard renders Markdown: indented text is code and keeps its lines
                text = "    " + texts[-1].replace("\n", "\n    ")
                writer.add_text(f"sample/temperature {temperature:g}", text, trainer.global_step - 1)  # as losses are
        self.latest = texts[0]


class StepSeed(Callback):
    """Makes each batch a function of its number, resumed or not: seeds torch's random numbers from (seed, batch, rank)."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int) -> None:
        # The step that the loggers see: Lightning counts it up after it has saved it
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        accumulate = trainer.accumulate_grad_batches
        number = trainer.global_step * accumulate + batch_idx % accumulate  # batch_idx begins anew where max_steps was raised
        mixed = (self.seed * 1_000_003 + number) * 1_009 + trainer.global_rank
        torch.default_generator.manual_seed(mixed)  # torch.manual_seed asks all kinds of devices: a hundred times as long
        if pl_module.device.type == "cuda":
            torch.cuda.manual_seed(mixed)


class GracefulStop(Callback):
    """Lets SIGINT, SIGTERM and SIGUSR1 finish the step, save, and end the process with 128 + the signal.

    A second Ctrl-C ends it at once. The checkpoint is one of a step's end, never of a half-done one; what is due at that step,
    logging or a validation, still happens.
    """

    def __init__(self, checkpoint: Path, advice: str) -> None:
        self.checkpoint, self.advice = checkpoint, advice
        self.signal, self.stopping, self.step, self.former = None, False, 0, {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.step = trainer.global_step
        if threading.current_thread() is threading.main_thread():  # the only one that may
            signals = [number for name in ("SIGINT", "SIGTERM", "SIGUSR1") if (number := getattr(signal, name, None))]
            self.former = {number: signal.signal(number, self._note) for number in signals}

    def _note(self, number: int, frame: Any) -> None:
        self.signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Tensor, batch: Batch, batch_idx: int
    ) -> None:
        boundary, self.step = trainer.global_step != self.step, trainer.global_step
        if not boundary:
            return
        noted = self.signal
        if trainer.world_size > 1:  # of any process
            noted = int(trainer.strategy.reduce(torch.tensor(noted or 0, device=pl_module.device), reduce_op="max"))
        if noted:  # else one may have come since
            self.signal, self.stopping = noted, True
            due = (batch_idx + 1) % trainer.val_check_batch == 0 or trainer.global_step >= trainer.max_steps
            if not due:  # else the validation, which comes first, ends in a checkpoint
                trainer.save_checkpoint(self.checkpoint)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int) -> None:
        if self.stopping:
            if trainer.is_global_zero:
                print(f"stopped after {trainer.global_step:,} steps, all is saved; {self.advice}", flush=True)
            # Lightning kills the first process when another that it has started ends with anything but 0
            raise SystemExit(128 + self.signal if trainer.is_global_zero else 0)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        for number, handler in self.former.items():
            signal.signal(number, handler)
        self.former = {}


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
