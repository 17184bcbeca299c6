"""TensorBoard: the event files of a run, the chart of its losses, and its line in the HParams tab."""

import math
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from gpt.callbacks.context import is_training
from gpt.callbacks.run_logger import RunLogger
from gpt.callbacks.state import check_state
from gpt.errors import UserError, shorten

# Of which a file can be chosen. A group that nobody chose from has a "-", or TensorBoard would not see that it differs
CHOICES = (
    "ablation",
    "callbacks",
    "data",
    "experiment",
    "model",
    "model/arch",
    "optimizer",
    "scheduler",
    "trainer",
)
LOSSES = {
    "train/loss": "train",
    "val/loss": "",
}  # by the run, within a run, that draws them in the chart called loss


class TensorBoard(TensorBoardLogger, RunLogger):
    """Lightning's logger for TensorBoard, straight in the run's folder and without hparams.yaml, which repeats config.yaml.

    TensorBoard sorts its charts by the first word of their names, and draws two lines in one chart only if they come from two
    runs. So the losses are written once more under the name "loss": the training loss by a run called train, within this one.
    """

    def __init__(self, run_dir: Path) -> None:
        # Nobody can foresee the name of the file, and so nobody can place a link there that it would be written through
        suffix = f".{secrets.token_hex(8)}"
        super().__init__(
            run_dir.absolute(), name="", version="", default_hp_metric=False, filename_suffix=suffix
        )
        for path in (run_dir / "train", run_dir / "best"):
            if path.exists() and not path.is_dir():
                raise UserError(f"file = {path}: not a folder, which TensorBoard needs there; move it away")
        self.writers: dict[str, SummaryWriter] = {}  # of the runs within this one
        self.resume(0)

    def resume(self, step: int) -> None:
        self._kwargs["purge_step"] = (
            step  # TensorBoard hides what earlier files hold of this step and later ones
        )

    def writer(self, name: str) -> SummaryWriter:
        """The writer of a run within this one, or of this one for "". It makes its folder when it is first asked for."""
        if name and name not in self.writers:
            self.writers[name] = SummaryWriter(str(Path(self.log_dir, name)), **self._kwargs)
        return self.writers[name] if name else self.experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics(
            {name: value for name, value in metrics.items() if name != "epoch"}, step
        )  # there is only one
        for name in LOSSES.keys() & metrics.keys():
            self.writer(LOSSES[name]).add_scalar("loss", metrics[name], step)
        if (
            "val/loss" in metrics
        ):  # which is the mean over the whole split; the mean of each batch's perplexity would differ
            loss = metrics["val/loss"]
            self.experiment.add_scalar("val/perplexity", math.exp(loss) if loss < 700 else math.inf, step)

    @property
    def log_dir(self) -> str:
        return self.save_dir  # Lightning would expand ~ and $NAMES in it

    @rank_zero_only
    def write(self) -> None:
        for writer in (self.experiment, *self.writers.values()):
            writer.flush()

    def save(self) -> None:
        self.write()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        super().finalize(status)
        for writer in self.writers.values():
            writer.close()


class HParams(Callback):
    """The HParams tab: `settings`, the choices among `overrides`, and `val/best_bits_per_char`, the fewest so far.

    For a run that is fine-tuned, that is `val/best_accuracy`, the accuracy where `val/loss` was lowest.

    All belong to a run called best within this one: TensorBoard lists every number that a run with settings has logged, and
    runs on other texts or tokenizers have only this one in common. The columns are those of all runs together, as long as no
    run writes a list of columns ("experiment") itself. The number is logged after each validation, so a run that was killed
    has one too.
    """

    state_key = "hparams"

    def __init__(self, settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
        # TensorBoard shows the first five that differ, in the order of their names: arch comes before what it sets
        choices = {key.rpartition("/")[2]: overrides.get(key, "-") for key in CHOICES}
        shown = choices | dict(settings)
        self.settings = {
            key: value if isinstance(value, (int, float)) else shorten(value) for key, value in shown.items()
        }
        self.best: float | None = None  # the lowest val/loss, in nats per token
        self.has_settings = False  # whether this process has written them

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = check_state("hparams", state_dict, {"best": float | None})["best"]

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loss, bits = (trainer.callback_metrics[f"val/{name}"].item() for name in ("loss", "bits_per_char"))
        accuracy, is_lowest = (
            trainer.callback_metrics.get("val/accuracy"),
            self.best is None or loss < self.best,
        )
        if accuracy is not None and not is_lowest:
            return
        self.best = loss if self.best is None else min(self.best, loss)
        for logger in loggers(trainer):
            writer = logger.writer("best")
            if not self.has_settings:
                _, start, _ = hparams(self.settings, {})
                writer._get_file_writer().add_summary(start)
            if accuracy is None:  # a text has the same number of characters in each validation
                name, best = "val/best_bits_per_char", self.best * bits / loss if loss else 0.0
            else:
                name, best = "val/best_accuracy", accuracy.item()
            writer.add_scalar(name, best, trainer.global_step - 1)  # Lightning counts from 0 too
        self.has_settings = True


def loggers(trainer: L.Trainer) -> Iterator[TensorBoard]:
    """The run's TensorBoard logger, if it has one, in the first process of a training run."""
    if trainer.is_global_zero and is_training(trainer):
        yield from (logger for logger in trainer.loggers if isinstance(logger, TensorBoard))


def writers(trainer: L.Trainer) -> Iterator[SummaryWriter]:
    """The writer of the run's TensorBoard logger, as `loggers` gives it."""
    yield from (logger.experiment for logger in loggers(trainer))
