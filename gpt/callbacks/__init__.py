"""What runs while a model is trained. `conf/callbacks` and `conf/logger` name these classes by `_target_`.

Any other callback or logger of Lightning's kind can be added from the command line or a file in `conf/`, its
arguments next to its `_target_`:

    +callbacks.lr._target_=lightning.pytorch.callbacks.LearningRateMonitor
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from pydantic import ValidationError

from gpt.callbacks.attention_maps import AttentionMaps
from gpt.callbacks.averaging import EMA
from gpt.callbacks.checkpoints import AtomicCheckpointIO, BestCheckpoint, LastCheckpoint, StoreMetadata
from gpt.callbacks.loggers import HParams, MetricsFile, RunLogger, TensorBoard
from gpt.callbacks.progress import ProgressBar, ProgressLines
from gpt.callbacks.samples import Samples
from gpt.callbacks.step_seed import ResumeAtStep, StepSeed
from gpt.callbacks.stopping import EarlyStopping, GracefulStop, ValidateAtEnd
from gpt.callbacks.throughput import Throughput
from gpt.callbacks.zero_shot import ZeroShot
from gpt.errors import UserError, explain, one_line, shorten

__all__ = [
    "EMA",
    "AtomicCheckpointIO",
    "AttentionMaps",
    "BestCheckpoint",
    "EarlyStopping",
    "GracefulStop",
    "HParams",
]
__all__ += [
    "LastCheckpoint",
    "MetricsFile",
    "ProgressBar",
    "ProgressLines",
    "ResumeAtStep",
    "RunLogger",
    "Samples",
]
__all__ += ["StepSeed", "StoreMetadata", "TensorBoard", "Throughput", "ValidateAtEnd", "ZeroShot", "make_all"]

EXTRAS = {"wandb": "wandb", "mlflow": "mlflow"}  # what installs a library, if one of these modules is missing


def make_all(group: str, nodes: Mapping[str, Mapping[str, Any]], run_dir: Path) -> list[Any]:
    """The objects that the `_target_` of each node names, in their order.

    An argument called save_dir that is null becomes the run's folder, and so does one that a node leaves out
    although its class asks for it. Raises UserError for a class that cannot be found, and for arguments that
    it does not take.
    """
    return [make_one(f"{group}.{name}", dict(node), run_dir) for name, node in nodes.items()]


def make_one(name: str, node: dict[str, Any], run_dir: Path) -> Any:
    target = node.get("_target_")
    if not isinstance(target, str):
        advice = f"write {name}._target_=module.Class, or {name}=null to leave it out"
        raise UserError(f"{name} = {shorten(node)}: names no class; {advice}")
    if "save_dir" in node and node["save_dir"] is None:
        node["save_dir"] = str(run_dir)
    try:
        return instantiate(node)
    except InstantiationException as error:
        cause = error.__cause__
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, ValidationError):
            raise explain(cause, name) from None
        if isinstance(cause, ModuleNotFoundError) and (extra := name.partition(".")[2]) in EXTRAS:
            advice = f'pip install -e ".[{EXTRAS[extra]}]"'
            raise UserError(f"{name} = {target}: its library is not installed; {advice}") from None
        reason = one_line(cause or error)[:300]
        raise UserError(f"{name} = {target}: {reason}; see what this class takes") from None
