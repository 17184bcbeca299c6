"""What runs while a model is trained. `conf/callbacks` and `conf/logger` name these classes by `_target_`.

Any other callback or logger of Lightning's kind can be added, its arguments next to its `_target_`:

    +callbacks.lr._target_=lightning.pytorch.callbacks.LearningRateMonitor
"""
# ruff: noqa: F401, I001 - names that are imported from here, several on a line

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from pydantic import ValidationError

from gpt.callbacks.checkpoints import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint, RunLogger
from gpt.callbacks.checkpoints import EMA, EarlyStopping, GracefulStop, MaxSteps, StepSeed
from gpt.callbacks.loggers import HParams, MetricsFile, TensorBoard
from gpt.callbacks.watching import AttentionMaps, ProgressBar, ProgressLines, Samples, Throughput, ZeroShot
from gpt.config import explain
from gpt.errors import UserError, one_line, shorten


def make_all(group: str, nodes: Mapping[str, Mapping[str, Any]], run_dir: Path) -> list[Any]:
    """The objects that each node names by its `_target_`. A save_dir of null is the run's folder.

    Raises UserError for what is no such class, and for arguments that it does not take.
    """
    made: list[Any] = []
    for name, node in nodes.items():
        place, target = f"{group}.{name}", node.get("_target_")
        if not isinstance(target, str):
            advice = f"write {place}._target_=module.Class, or {place}=null to leave it out"
            raise UserError(f"{place} = {shorten(node)}: names no class; {advice}")
        lacks_folder = node.get("save_dir", "") is None
        try:
            made.append(instantiate({**node} | ({"save_dir": str(run_dir)} if lacks_folder else {})))
        except InstantiationException as error:
            cause: BaseException = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            if isinstance(cause, ValidationError):
                raise explain(cause, place) from None
            reason = one_line(cause)[:300]
            if isinstance(cause, ModuleNotFoundError) and name in ("wandb", "mlflow"):
                reason = f'its library is not installed; pip install -e ".[{name}]"'
            raise UserError(f"{place} = {target}: {reason}") from None
        kind = Callback if group == "callbacks" else Logger
        if not isinstance(made[-1], kind):
            raise UserError(f"{place} = {target}: not a {kind.__name__} of Lightning")
    return made
