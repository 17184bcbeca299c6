"""TensorBoard: the event files of a run, its hyperparameters, and the best loss so far."""

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

LOSSES = {"train/loss": "loss/train", "val/loss": "loss/val"}  # TensorBoard sorts its cards by their names
BEST = "loss/val_best_bits_per_char"  # HParams shows the first five names of the alphabet unless it is asked for more


class TensorBoard(TensorBoardLogger, RunLogger):
    """Lightning's logger for TensorBoard, straight in the run's folder and without hparams.yaml, which repeats config.yaml."""

    def __init__(self, run_dir: Path) -> None:
        # Nobody can foresee the name of the file, and so nobody can place a link there that it would be written through
        suffix = f".{secrets.token_hex(8)}"
        super().__init__(run_dir.absolute(), name="", version="", default_hp_metric=False, filename_suffix=suffix)
        self.resume(0)

    def resume(self, step: int) -> None:
        self._kwargs["purge_step"] = step  # TensorBoard hides what earlier files hold of this step and later ones

    @property
    def log_dir(self) -> str:
        return self.save_dir  # Lightning would expand ~ and $NAMES in it

    @rank_zero_only
    def write(self) -> None:
        self.experiment.flush()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log all metrics but Lightning's `epoch`, which is always 0. The losses are named so that their cards come first."""
        names = {name: LOSSES.get(name, name) for name in metrics if name != "epoch"}
        super().log_metrics({shown: metrics[name] for name, shown in names.items()}, step)

    def save(self) -> None:
        self.write()


class HParams(Callback):
    """The HParams tab: `settings`, and the best bits per character so far. Also a chart of both losses in Custom Scalars.

    Bits per character compare between tokenizers. They are logged after each validation, so a run that was killed has them too.
    """

    state_key = "hparams"

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = {key: value if type(value) in (int, float) else str(value) for key, value in settings.items()}
        self.best: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = check_state("hparams", state_dict, {"best": float | None})["best"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for writer in writers(trainer):
            writer.add_custom_scalars({"loss": {"train and validation": ["Multiline", [*LOSSES.values()]]}})
            # Without the summary of an experiment, TensorBoard shows the settings of all runs rather than those of the first
            _, session, _ = hparams(self.settings, {})
            writer._get_file_writer().add_summary(session)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loss = trainer.callback_metrics["val/loss"].item()
        self.best = loss if self.best is None else min(self.best, loss)
        bits = trainer.callback_metrics["val/bits_per_char"].item()  # a multiple of the loss
        best_bits = bits * self.best / loss if loss else bits
        for writer in writers(trainer):
            writer.add_scalar(BEST, best_bits, trainer.global_step - 1)  # Lightning counts losses from 0 too


def writers(trainer: L.Trainer) -> Iterator[SummaryWriter]:
    """The writer of the run's TensorBoard logger, if it has one, in the first process of a training run."""
    if trainer.is_global_zero and is_training(trainer):
        yield from (logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoard))
