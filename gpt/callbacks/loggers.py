"""Loggers that write into the run's folder: metrics.csv, which a spreadsheet opens, and TensorBoard's files.

docs/usage.md lists the charts. Those of TensorBoard belong to the run itself, but for the training loss in
the chart "loss", which a run called train within it has, and HParams, which belongs to one called best.
"""

import csv
import io
import math
import os
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard import FileWriter, RecordWriter, SummaryWriter
from torch.utils.tensorboard.summary import hparams
from torch.utils.tensorboard.writer import Event, SessionLog

from gpt.callbacks.checkpoints import RunLogger, Stateful
from gpt.errors import UserError, shorten
from gpt.files import write_text
from gpt.module import is_training

# Groups of which a file can be chosen. Without a choice they are "-", or TensorBoard would see no difference
CHOICES = ["ablation", "callbacks", "data", "experiment", "model", "model/arch"]
CHOICES += ["optimizer", "scheduler", "trainer"]
EVENTS = "events.out.tfevents."  # begins the name of each of TensorBoard's files


class MetricsFile(RunLogger):
    """metrics.csv: a row for each call of `log`, with empty cells for other metrics. Steps count from 0.

    Lightning's CSVLogger deletes what it finds in its file. This one continues, and rewrites it whole.
    """

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

    def finalize(self, status: str) -> None:
        if self.rows and self.path.parent.exists():  # or a folder that was removed would come back
            self.write()


class EventFile:
    """One of TensorBoard's event files, in place of tensorboard's EventFileWriter. Events wait for `flush`.

    EventFileWriter has a thread, which prints a traceback of its own if the folder was removed or the disk is
    full, and an error that does not name the file.
    """

    def __init__(self, folder: str) -> None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        times = [path.name.removeprefix(EVENTS).split(".")[0] for path in Path(folder).glob(f"{EVENTS}*")]
        latest = max((int(second) for second in times if second.isdecimal()), default=0)
        # TensorBoard reads files in the order of their names. The clock may have been set back
        now = max(int(time.time()), latest + 1)
        self.path = Path(folder) / f"{EVENTS}{now:010d}.{socket.gethostname()}.{os.getpid()}"
        self.waiting = io.BytesIO()

    def add_event(self, event: Event) -> None:
        RecordWriter(self.waiting).write(event.SerializeToString())

    def flush(self) -> None:
        """Append what waits. Raises UserError if that fails, but FileNotFoundError if the folder is gone."""
        records, self.waiting = self.waiting.getvalue(), io.BytesIO()
        try:
            if records:
                with self.path.open("ab") as file:
                    file.write(records)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UserError(f"file = {self.path}: not written, {error.strerror}") from None

    close = flush


class EventWriter(FileWriter):
    """torch's writer of events, into an EventFile."""

    def __init__(self, folder: str) -> None:
        self.event_writer = EventFile(folder)


class LateWriter(SummaryWriter):
    """Makes its file when it first writes: Lightning asks for it before the first step, which may fail."""

    file_writer: Any  # torch's own annotations say None
    all_writers: Any

    def _get_file_writer(self) -> Any:
        if self.file_writer is None and hasattr(self, "default_bins"):  # which the constructor sets last
            self.file_writer = EventWriter(self.log_dir)
            self.all_writers = {self.log_dir: self.file_writer}
            self.file_writer.add_event(Event(file_version="brain.Event:2"))
            if self.purge_step is not None:
                start = SessionLog(status=SessionLog.START)
                self.file_writer.add_event(Event(step=self.purge_step, session_log=start))
                self.purge_step = None
        return self.file_writer


class TensorBoard(RunLogger):
    """TensorBoard's event files, straight in the run's folder.

    TensorBoard sorts charts by the first word of their names, and draws two lines in one only if they come
    from two runs. So the losses are written again as "loss", the training loss by a run called train.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.folder, self.first_step = Path(save_dir), 0
        self.writers: dict[str, SummaryWriter] = {}  # of this run, called "", and of the runs within it

    def resume(self, step: int) -> None:
        self.first_step = step

    def writer(self, name: str) -> SummaryWriter:
        """The writer of a run within this one, or of this one for ""."""
        if name not in self.writers:
            # TensorBoard hides what earlier files hold of the step to purge and of later ones
            self.writers[name] = LateWriter(str(self.folder / name), purge_step=self.first_step)
        return self.writers[name]

    @property
    @rank_zero_experiment
    def experiment(self) -> SummaryWriter:
        return self.writer("")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            if name != "epoch":
                self.experiment.add_scalar(name, value, step)
            if name in ("train/loss", "val/loss"):
                self.writer("train" if name == "train/loss" else "").add_scalar("loss", value, step)
        # the mean over the whole split; the mean of each batch's perplexity would differ
        if (loss := metrics.get("val/loss")) is not None:
            self.experiment.add_scalar("val/perplexity", math.exp(loss) if loss < 700 else math.inf, step)

    def save(self) -> None:
        for writer in self.writers.values():
            writer.flush()

    def finalize(self, status: str) -> None:
        for writer in self.writers.values():
            writer.close()


def writers(trainer: L.Trainer, name: str = "") -> Iterator[SummaryWriter]:
    """The writer `name` of the TensorBoard logger, if there is one, in the first process of a training."""
    loggers = trainer.loggers if trainer.is_global_zero and is_training(trainer) else ()
    yield from (logger.writer(name) for logger in loggers if isinstance(logger, TensorBoard))


class HParams(Stateful):
    """TensorBoard's HParams tab: `settings`, the choices among `overrides`, and the best result so far.

    That is `val/best_bits_per_char`, the fewest, or for a run that is fine-tuned `val/best_accuracy`, the
    accuracy where `val/loss` was lowest. All belong to a run called best within this one: TensorBoard lists
    every number that a run with settings has logged, and runs on other texts or tokenizers have only this one
    in common. The columns are those of all runs together, as long as no run writes a list of columns
    ("experiment") itself. The number is logged after each validation, so a run that was killed has one too.
    """

    state_key, kept = "hparams", ("best", "number")
    best: float | None = None  # the lowest val/loss, in nats per token
    number: float | None = None  # that is logged, when val/loss was lowest
    has_settings = False  # whether this process has written them

    def __init__(self, settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
        # TensorBoard shows the first five that differ, by their names: arch comes before what it sets
        shown = {key.rpartition("/")[2]: overrides.get(key, "-") for key in CHOICES} | dict(settings)
        self.settings = {key: v if isinstance(v, (int, float)) else shorten(v) for key, v in shown.items()}

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = trainer.callback_metrics
        if "val/loss" not in metrics:  # data.val_fraction=0
            return
        name = "accuracy" if "val/accuracy" in metrics else "bits_per_char"
        if self.best is None or self.number is None or metrics["val/loss"] < self.best:
            self.best, self.number = metrics["val/loss"].item(), metrics[f"val/{name}"].item()
        for writer in writers(trainer, "best"):
            if not self.has_settings:
                _, start, _ = hparams(self.settings, {})
                writer._get_file_writer().add_summary(start)
            # Lightning counts from 0 too
            writer.add_scalar(f"val/best_{name}", self.number, trainer.global_step - 1)
        self.has_settings = True
