"""Going on with a run: the configuration it had, what may change, and what would make it another run."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L

from gpt.checkpoint import check_training_state
from gpt.config import RunConfig, flatten
from gpt.errors import UserError, shorten
from gpt.files import read_json
from gpt.runs.folder import Run, read_run_config
from gpt.runs.machine import describe_machine
from gpt.runs.strategies import distribution_of
from gpt.text import Text

# Settings that may change on resume. None of them changes the batches or the model. Other devices change the last digits.
MAY_CHANGE_ON_RESUME = {
    "trainer.max_steps",
    "trainer.max_time",
    "trainer.log_every_n_steps",
    "trainer.profiler",
}
MAY_CHANGE_ON_RESUME |= {
    "trainer.detect_anomaly",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
}
MAY_CHANGE_ON_RESUME |= {"trainer.strategy"}  # unless the optimizer's state is stored in another order
MAY_CHANGE_ON_RESUME |= {
    "data.path",
    "data.folder",
    "task.path",
}  # where the text is. That it is the same text is checked by its SHA-256


def find_run(place: str) -> Path:
    """The folder meant by `resume=place`; `last` means the newest run under outputs/ that has not ended.

    Raises UserError if there is no such run.
    """
    if place == "last":
        begun = sorted(Path("outputs").glob("**/run.json"), key=lambda path: path.stat().st_mtime)
        ended = ("result.json", "error.txt")
        folders = [path.parent for path in begun if not any((path.parent / name).exists() for name in ended)]
        if not folders:
            raise UserError(
                "resume = last: no run under outputs/ that has not ended; name one: resume=outputs/RUN"
            )
        return folders[-1]
    if not (Path(place) / "config.yaml").is_file():
        raise UserError(f"resume = {shorten(place)}: no run there; give a run folder, such as outputs/RUN")
    return Path(place)


def load_run_config(folder: Path, overrides: Mapping[str, Any], default_folder: str) -> RunConfig:
    """The configuration of the run in `folder`, with single values replaced by `overrides` ({"trainer.max_steps": 10}).

    Where data may be written (`data.folder`) comes from `default_folder` or the overrides, never from the run: its folder
    may be a stranger's. Raises UserError if an override is more than a single value of a group.
    """
    values = read_run_config(folder / "config.yaml")
    if isinstance(values.get("data"), dict):
        values["data"]["folder"] = default_folder
    for key, value in overrides.items():
        *groups, setting = key.split(".")
        node: Any = values if groups else None
        for group in groups:
            node = node.get(group) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            reason = "a run that is resumed goes on with its own"
            raise UserError(f"{key} = {shorten(value)}: not with resume, because {reason}; leave it out")
        node[setting] = value
    return RunConfig.from_dict(values)


def keep_resolved(config: RunConfig, stored: RunConfig) -> RunConfig:
    """`config` with what was decided when the run began: another machine, or more steps, might decide otherwise."""
    values, kept = config.to_dict(), stored.to_dict()
    for key, undecided in (("precision", "auto"), ("compile", None), ("val_check_interval", None)):
        if values["trainer"][key] == undecided:
            values["trainer"][key] = kept["trainer"][key]
    return RunConfig.from_dict(values)


def check_same_text(run: Run, text: Text) -> None:
    """Raises UserError if the run in the folder has seen another text.

    This comes before the text is encoded: a stranger's configuration may name any file, which must not be copied or shown.
    """
    if read_json(run.folder / "run.json").get("text_sha256") != text.sha256:
        raise UserError(
            f"data.path = {text.files[0]}: not the text that the run in {run.folder} has seen; use that one"
        )


def check_resumable(run: Run, config: RunConfig, stored: RunConfig, text_sha256: str) -> None:
    """Raises UserError if going on with `config` would make another run than the one in the folder.

    config.yaml can be edited and files can be swapped, so the configuration inside the checkpoint is compared as well.
    """
    check_same(run.folder, config.flat(), stored.flat())
    before, asked = stored.trainer.max_steps, config.trainer.max_steps
    if before > asked and run.result:
        raise UserError(
            f"trainer.max_steps = {asked}: the run in {run.folder} has taken {before} steps; set more"
        )
    checkpoint, content = run.checkpoint, run.content
    if checkpoint is None or content is None:
        if run.result and run.result.step < config.trainer.max_steps:
            raise UserError(
                f"resume = {run.folder}: it has ended and has no checkpoint to go on from; begin anew elsewhere"
            )
        return
    metadata = content["gpt"]
    if not content.get("optimizer_states"):
        raise UserError(
            f"resume = {checkpoint}: weights alone, no optimizer state; begin anew in another folder"
        )
    check_training_state(content)
    if metadata.get("text_sha256") != text_sha256 or not isinstance(metadata.get("config"), dict):
        raise UserError(f"resume = {checkpoint}: the checkpoint of another run; restore this run's own")
    check_same(checkpoint, config.flat(), flatten(metadata["config"] | {"model": metadata["model"]}))
    if (step := content["global_step"]) > config.trainer.max_steps:
        raise UserError(
            f"trainer.max_steps = {config.trainer.max_steps}: {checkpoint} has already taken {step} steps; set a larger value"
        )


def check_same(place: Path, asked: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Raises UserError that names the settings in which `asked` differs from what is `stored` at a place."""
    orders = {
        distribution_of(str(values.get("trainer.strategy"))).shares_weights for values in (asked, stored)
    }
    may_change = MAY_CHANGE_ON_RESUME - ({"trainer.strategy"} if len(orders) > 1 else set())
    keys = [
        key
        for key in dict.fromkeys((*asked, *stored))
        if key not in may_change and asked.get(key) != stored.get(key)
    ]
    if keys:
        now, before = (", ".join(shorten(values.get(key)) for key in keys[:5]) for values in (asked, stored))
        raise UserError(
            f"{', '.join(keys[:5])} = {now}: the run in {place} has {before}; leave it out, or choose another folder"
        )


def note_differences(run: Run, trainer: L.Trainer) -> None:
    """Print a line for each thing by which this machine may change the last digits of the run."""
    began = read_json(run.folder / "run.json").get("machine")
    if not (trainer.is_global_zero and isinstance(began, dict)):
        return
    for what, now in describe_machine(trainer).items():
        if what in began and began[what] != now:
            before = shorten(began[what])
            print(
                f"note: {what} {now} where the run began with {before}: its last digits may differ",
                file=sys.stderr,
            )
