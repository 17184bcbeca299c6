"""What runs beside training, by name. A configuration chooses from these two tables and can name nothing else.

To add a callback called `example`:
1. Write a class that extends `lightning.pytorch.callbacks.Callback` in a new file of this folder. The keyword arguments of
   its constructor are its settings: their type hints are checked, and it raises ValueError(`name = value: why; what to do`)
   for values outside their range.
2. Add one line to CALLBACKS below. Callbacks run in the order of this table.
3. Add one line to conf/callbacks/default.yaml, with a value for every setting: `example: {every: 10}`.
If it keeps a state from one process to the next, read gpt/callbacks/state.py first: a checkpoint may come from anybody.

A logger extends `RunLogger`, and its constructor takes the run's folder before its settings.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import RunningStage

from gpt.callbacks.attention_maps import AttentionMaps
from gpt.callbacks.averaging import EMA
from gpt.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from gpt.callbacks.metrics_file import MetricsFile
from gpt.callbacks.run_logger import RunLogger
from gpt.callbacks.samples import Samples
from gpt.callbacks.state import check_state
from gpt.callbacks.stopping import EarlyStopping
from gpt.callbacks.tensorboard import HParams, TensorBoard
from gpt.callbacks.throughput import Throughput
from gpt.callbacks.zero_shot import ZeroShot
from gpt.errors import UserError, build, did_you_mean, shorten

T = TypeVar("T")

CALLBACKS: dict[str, type[Callback]] = {
    "best": BestCheckpoint,  # before last, so that last.ckpt knows the newest best score
    "last": LastCheckpoint,
    "throughput": Throughput,
    "samples": Samples,
    "attention": AttentionMaps,
    "zero_shot": ZeroShot,
    "early_stopping": EarlyStopping,
    "ema": EMA,  # after samples and attention, which then show the averaged weights
}
LOGGERS: dict[str, type[RunLogger]] = {"csv": MetricsFile, "tensorboard": TensorBoard}


def make_callbacks(settings: Mapping[str, Mapping[str, Any]]) -> list[Callback]:
    """The callbacks that `settings` name, in the order of CALLBACKS.

    Raises UserError for unknown names and for settings that a callback refuses.
    """
    return make_all(CALLBACKS, settings, "callbacks")


def make_loggers(settings: Mapping[str, Mapping[str, Any]], run_dir: Path) -> list[RunLogger]:
    """The loggers that `settings` name, which write into `run_dir`. Raises UserError as `make_callbacks` does."""
    return make_all(LOGGERS, settings, "logger", run_dir)


def make_all(
    kinds: Mapping[str, type[T]], settings: Mapping[str, Any], group: str, *positional: Any
) -> list[T]:
    """One object per name in `settings`, made with `positional` and its own settings as arguments, in the order of `kinds`."""
    for name, values in settings.items():
        if name not in kinds:
            raise UserError(f"{group}.{name} = {shorten(values)}: no such name; {did_you_mean(name, kinds)}")
    return [
        build(kinds[name], settings[name], f"{group}.{name}", *positional)
        for name in kinds
        if name in settings
    ]


def check_states(callbacks: Iterable[Callback], states: object) -> None:
    """Check the callback states of a checkpoint before a run goes on from it, by loading each into its callback.

    Lightning loads them once more when training starts. States of callbacks that the run has left out are not used.
    Raises UserError if `states` is not a dictionary, belongs to unknown callbacks, or holds something that none of them saves.
    """
    known = {*CALLBACKS, HParams.state_key, "Timer"}  # the last is Lightning's own, for trainer.max_time
    if not isinstance(states, dict) or not all(isinstance(state, dict) for state in states.values()):
        raise UserError("checkpoint = (callbacks): damaged; use a checkpoint that this project wrote")
    if unknown := [key for key in states if key not in known]:
        raise UserError(
            f"checkpoint = {shorten(unknown[0])}: no callback of this project; use a checkpoint that it wrote"
        )
    if "Timer" in states:
        check_state(
            "Timer", states["Timer"].get("time_elapsed"), {stage.value: float for stage in RunningStage}
        )
    for callback in callbacks:
        if callback.state_key in states and callback.state_key != "Timer":
            callback.load_state_dict(states[callback.state_key])


__all__ = ["CALLBACKS", "LOGGERS", "RunLogger", "check_states", "make_callbacks", "make_loggers"]
