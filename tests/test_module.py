import math

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger

from conftest import make_model
from gpt.config import AdamWConfig, SchedulerConfig
from gpt.data import AllWindows, ShuffledWindows
from gpt.machine import has_compiler
from gpt.module import Diverged, GPTModule, cross_entropy

# Lightning's advice on worker processes, logging intervals and validation, which these small runs do without
pytestmark = pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
ADAMW = AdamWConfig(lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1)
LINEAR = SchedulerConfig(shape="linear", warmup_ratio=0.3, decay_ratio=0.5, min_lr_ratio=0.0)
QUIET = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
QUIET |= {"accelerator": "cpu", "devices": 1}
IDS = np.random.default_rng(0).integers(11, size=2000, dtype=np.uint8)


class Recorder(DummyLogger):
    """Keeps what Lightning logs, by step."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics, step=None) -> None:
        self.rows.setdefault(step, {}).update(metrics)


class StopAfter(L.Callback):
    """Tells Lightning to stop after some steps, as a limit on the time would."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        trainer.should_stop = trainer.global_step >= self.steps


def fit(module: GPTModule, steps: int = 10, accumulate: int = 1, **settings) -> Recorder:
    """Train on batches of four random windows."""
    logger = Recorder()
    settings = {"log_every_n_steps": 1, "accumulate_grad_batches": accumulate} | QUIET | settings
    trainer = L.Trainer(max_steps=steps, max_epochs=-1, logger=logger, **settings)
    trainer.fit(module, ShuffledWindows(IDS, 16, 4, seed=1, length=steps * accumulate))
    return logger


def make_module(**changes) -> GPTModule:
    return GPTModule(make_model(**changes), ADAMW, LINEAR)


def validate(module: GPTModule, precision: str = "32-true") -> dict[str, float]:
    trainer = L.Trainer(precision=precision, logger=False, **QUIET)
    return trainer.validate(module, AllWindows(IDS, 16, 32), verbose=False)[0]


def test_every_logged_row_holds_the_numbers_of_its_step_also_where_training_is_stopped():
    """Lightning writes the step at which it stops, due or not. It would repeat values of an earlier one."""
    every, some = fit(make_module()).rows, fit(make_module(), log_every_n_steps=4).rows
    stopped = fit(make_module(), log_every_n_steps=4, callbacks=[StopAfter(6)]).rows
    assert (sorted(some), sorted(stopped)) == ([3, 7], [3, 5])
    for rows in (some, stopped):
        for step, row in rows.items():
            assert all(row[name] == every[step][name] for name in ("train/loss", "train/grad_norm", "lr"))


def test_training_loss_is_the_mean_over_accumulated_batches():
    logged = fit(make_module(), steps=1, accumulate=3).rows[0]["train/loss"]
    module, windows = make_module(), ShuffledWindows(IDS, 16, 4, seed=1, length=3)
    assert logged == pytest.approx(sum(module.loss(windows.batch(k)).item() for k in range(3)) / 3, abs=1e-6)


def test_gradient_norm_is_that_before_clipping():
    free, clipped = (fit(make_module(), gradient_clip_val=limit).rows for limit in (None, 1e-3))
    assert free[0]["train/grad_norm"] == clipped[0]["train/grad_norm"] > 1e-3


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_validation_loss_is_the_mean_over_every_position_in_float32(precision):
    module = make_module()
    metrics = validate(module, precision)
    windows = AllWindows(IDS, 16, 1)
    losses = [cross_entropy(module.model(inputs), targets).item() for inputs, targets in windows]
    assert len(losses) == (len(IDS) - 1) // 16
    assert metrics["val/loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-6)
    bits = metrics["val/loss"] / math.log(2)
    assert metrics["val/bits_per_char"] == metrics["val/bits_per_byte"] == pytest.approx(bits)


def test_validation_is_the_same_to_the_last_digit_in_any_precision_and_compiled():
    reference = validate(make_module())
    assert validate(make_module(), "bf16-mixed") == reference
    if has_compiler("cpu"):
        module = make_module()
        module.model.compile()
        assert validate(module, "bf16-mixed") == reference


def test_bits_count_the_characters_and_bytes_of_tokens():
    """Each token stands for two characters of three bytes each."""
    module = GPTModule(make_model(), lengths=torch.tensor([[2] * 11, [6] * 11]))
    metrics = validate(module)
    assert metrics["val/bits_per_char"] == pytest.approx(metrics["val/loss"] / math.log(2) / 2)
    assert metrics["val/bits_per_byte"] == pytest.approx(metrics["val/loss"] / math.log(2) / 6)


def spoiled() -> GPTModule:
    module = make_module()
    with torch.no_grad():
        module.model.head.weight[0, 0] = math.inf
    return module


def test_gradient_or_validation_loss_that_is_not_finite_is_refused():
    place = r"at step 0 \(train/loss nan, lr 0\.0025\), the run"
    with pytest.raises(Diverged, match=rf"^train/grad_norm = nan: not finite {place}"):
        fit(spoiled())
    with pytest.raises(Diverged, match=r"^val/loss = nan: not finite; use an earlier checkpoint$"):
        validate(spoiled())


def test_validating_needs_no_optimizer_and_training_does():
    assert validate(GPTModule(make_model()))["val/loss"] > 0
    with pytest.raises(ValueError, match="needs the settings of an optimizer"):
        fit(GPTModule(make_model()), steps=1)
