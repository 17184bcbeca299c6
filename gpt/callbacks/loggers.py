"""Loggers that write into the run's folder: TensorBoard's event files, and metrics.csv, which a spreadsheet
opens.

| name in TensorBoard | what it shows | written by |
| --- | --- | --- |
| train/loss, val/loss, lr, ... | what is logged, a chart for each | the run itself |
| loss | training and validation loss in one chart | the run itself, and a run called train within it |
| val/perplexity | e to the validation loss | the run itself |
| HParams | settings, and the best result so far | a run called best within it |
"""

import csv
import io
import math
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from gpt.errors import shorten
from gpt.files import write_text
from gpt.module import is_training

# Of which a file can be chosen. A group that nobody chose from has a "-", or TensorBoard would not see that
# it differs
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
# by the run, within a run, that draws them in the chart called loss
LOSSES = {"train/loss": "train", "val/loss": ""}


class RunLogger(Logger):
    """A logger that writes into the run's folder, and continues where a checkpoint was taken."""

    def resume(self, step: int) -> None:
        """Drop what an earlier process has logged after the first `step` steps. Is called before anything is
        logged.
        """
        raise NotImplementedError

    def write(self) -> None:
        """Put everything that was logged on disk. Is called before each checkpoint is written."""
        raise NotImplementedError


class MetricsFile(RunLogger):
    """metrics.csv: a row for each call of `log`, with empty cells for other metrics. Steps count from 0.

    Lightning's CSVLogger deletes what it finds in its file. This one continues, and writes it whole each
    time.
    """

    name = version = None  # type: ignore[assignment]

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self.rows: list[dict[str, Any]] = []

    def resume(self, step: int) -> None:
        self.rows = []
        if step and self.path.exists():
            rows = csv.DictReader(io.StringIO(self.path.read_text(encoding="utf-8"), newline=""))
            kept = (row for row in rows if int(row["step"]) < step)
            self.rows = [{name: cell for name, cell in row.items() if cell} for row in kept]

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.rows.append({"step": step} | {name: value for name, value in metrics.items() if name != "epoch"})

    @rank_zero_only
    def write(self) -> None:
        columns = ["step", *sorted({key for row in self.rows for key in row} - {"step"})]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self.rows:
            self.write()

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: config.yaml has them."""


class LateWriter(SummaryWriter):
    """Makes its file when it first writes: Lightning asks for it before the first step, which may fail."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.may_write = False
        super().__init__(*args, **kwargs)
        self.may_write = True

    def _get_file_writer(self) -> Any:
        return super()._get_file_writer() if self.may_write else None


class TensorBoard(TensorBoardLogger, RunLogger):
    """Lightning's logger for TensorBoard, straight in the run's folder and without hparams.yaml.

    TensorBoard sorts its charts by the first word of their names, and draws two lines in one chart only if
    they come from two runs. So the losses are written once more under the name "loss": the training loss by a
    run called train.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir, name="", version="", default_hp_metric=False)
        self.writers: dict[str, SummaryWriter] = {}  # of this run, called "", and of the runs within it
        self.resume(0)

    def resume(self, step: int) -> None:
        # TensorBoard hides what earlier files hold of this step and later ones
        self._kwargs["purge_step"] = step

    def writer(self, name: str) -> SummaryWriter:
        """The writer of a run within this one, or of this one for ""."""
        if name not in self.writers:
            self.writers[name] = LateWriter(str(Path(self.log_dir, name)), **self._kwargs)
        return self.writers[name]

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        return self.writer("")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        super().log_metrics({name: value for name, value in metrics.items() if name != "epoch"}, step)
        for name in LOSSES.keys() & metrics.keys():
            self.writer(LOSSES[name]).add_scalar("loss", metrics[name], step)
        # the mean over the whole split; the mean of each batch's perplexity would differ
        if "val/loss" in metrics:
            loss = metrics["val/loss"]
            self.experiment.add_scalar("val/perplexity", math.exp(loss) if loss < 700 else math.inf, step)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: HParams shows them."""

    @property
    def log_dir(self) -> str:
        return self.save_dir  # Lightning would expand ~ and $NAMES in it

    @rank_zero_only
    def write(self) -> None:
        for writer in self.writers.values():
            writer.flush()

    def save(self) -> None:
        self.write()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        for writer in self.writers.values():
            writer.close()


class HParams(Callback):
    """TensorBoard's HParams tab: `settings`, the choices among `overrides`, and the best result so far.

    That is `val/best_bits_per_char`, the fewest, or for a run that is fine-tuned `val/best_accuracy`, the
    accuracy where `val/loss` was lowest. All belong to a run called best within this one: TensorBoard lists
    every number that a run with settings has logged, and runs on other texts or tokenizers have only this one
    in common. The columns are those of all runs together, as long as no run writes a list of columns
    ("experiment") itself. The number is logged after each validation, so a run that was killed has one too.
    """

    state_key = "hparams"

    def __init__(self, settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
        # TensorBoard shows the first five that differ, in the order of their names: arch comes before what it
        # sets
        shown = {key.rpartition("/")[2]: overrides.get(key, "-") for key in CHOICES} | dict(settings)
        self.settings = {key: v if isinstance(v, (int, float)) else shorten(v) for key, v in shown.items()}
        self.best: float | None = None  # the lowest val/loss, in nats per token
        self.has_settings = False  # whether this process has written them

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loss, bits = (trainer.callback_metrics[f"val/{name}"].item() for name in ("loss", "bits_per_char"))
        accuracy, is_lowest = (
            trainer.callback_metrics.get("val/accuracy"),
            self.best is None or loss < self.best,
        )
        if accuracy is not None and not is_lowest:
            return
        self.best = loss if self.best is None else min(self.best, loss)
        for logger in tensorboards(trainer):
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


def tensorboards(trainer: L.Trainer) -> Iterator[TensorBoard]:
    """The run's TensorBoard logger, if it has one, in the first process of a training run."""
    if trainer.is_global_zero and is_training(trainer):
        yield from (logger for logger in trainer.loggers if isinstance(logger, TensorBoard))


def writers(trainer: L.Trainer) -> Iterator[SummaryWriter]:
    """The writer of the run's TensorBoard logger, as `tensorboards` gives it."""
    yield from (logger.experiment for logger in tensorboards(trainer))
