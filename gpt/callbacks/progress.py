"""What a run shows on its terminal while it trains."""

import lightning as L
from lightning.pytorch.callbacks import Callback, RichProgressBar

from gpt.callbacks.context import is_training


class ProgressBar(RichProgressBar):
    """Lightning's progress bar, without the number of the only epoch and without the version of a logger that has none."""

    def _get_train_description(self, current_epoch: int) -> str:
        return "training"

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict:
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}


class ProgressLines(Callback):
    """Plain progress lines when stdout is not a terminal: one per validation."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero and is_training(trainer):
            metrics = trainer.callback_metrics
            losses = "  ".join(f"{name} {metrics[name]:.4f}" for name in ("train/loss", "val/loss") if name in metrics)
            print(f"step {trainer.global_step:,} of {trainer.max_steps:,}  {losses}", flush=True)
