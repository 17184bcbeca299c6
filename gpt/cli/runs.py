"""Which runs there are under outputs/, and which of them is meant if none is named."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt.cli.records import RunRecord, read_run, read_runs
from gpt.errors import UserError, one_line

if TYPE_CHECKING:
    from gpt.ensemble import Ensemble
    from gpt.model import GPT
    from gpt.tokenizer import Tokenizer

OUTPUTS = Path("outputs")
TRIAL = 500  # steps. A run of fewer is taken for a mere trial if there is a longer one


def find_checkpoint(place: str | None) -> Path:
    """The checkpoint file of a run or .ckpt file, or of `newest_run` for None. Raises UserError if there is none."""
    from gpt.checkpoint import find

    return find(newest_run() if place is None else place)


def load_models(places: Sequence[str]) -> tuple["GPT | Ensemble", "Tokenizer", dict[str, Any]]:
    """The model that a place means, or the ensemble of several, with the tokenizer and the metadata of the first.

    Without any place it is the newest run. Raises UserError if there is no checkpoint, or if they don't go together.
    """
    from gpt.checkpoint import load
    from gpt.ensemble import Ensemble

    checkpoints = [find_checkpoint(place) for place in places] or [find_checkpoint(None)]
    models, tokenizers, metadata = zip(*map(load, checkpoints), strict=True)
    for checkpoint, tokenizer, of_this in zip(checkpoints, tokenizers, metadata, strict=True):
        if tokenizer.state != tokenizers[0].state or of_this["text_sha256"] != metadata[0]["text_sha256"]:
            reason = f"has seen another text than {checkpoints[0]}, or has another tokenizer"
            raise UserError(f"checkpoint = {checkpoint}: {reason}; average runs on one text")
    return models[0] if len(models) == 1 else Ensemble(models).eval(), tokenizers[0], metadata[0]


def newest_run(outputs: Path = OUTPUTS, fine_tuned: bool = False) -> str:
    """The newest run of at least TRIAL steps, or the newest of all if none has as many. It is named on stderr, with the reason.

    It is one of a language model, or else one that was fine-tuned for a task.

    Raises UserError if there is no run.
    """
    names = ("best.ckpt", "last.ckpt")
    found = {path.parents[1] for name in names for path in outputs.glob(f"**/checkpoints/{name}")}
    runs = [run for run in found if is_fine_tuned(run) == fine_tuned]
    if not runs and fine_tuned:
        advice = "fine-tune one first: python scripts/finetune.py init=last task=mark"
        raise UserError(f"checkpoint = (newest): no fine-tuned run under {outputs}/; {advice}")
    if not runs:
        shipped = "--pretrained, or init=gpt/pretrained/shakespeare.ckpt"
        advice = f"train one first: python scripts/train.py, or take the one that comes with this project: {shipped}"
        raise UserError(f"checkpoint = (newest): no run under {outputs}/; {advice}")
    newest, *others = sorted(runs, key=trained_at, reverse=True)
    if steps_taken(newest) < TRIAL and not fine_tuned:
        for run in others:
            if (steps := steps_taken(run)) >= TRIAL:
                why = f"the newest run of at least {TRIAL} steps ({steps:,}); {one_line(newest)} is newer, but shorter"
                print(f"note: {one_line(run)} is {why}", file=sys.stderr)
                return str(run)
    print(f"note: {one_line(newest)} is the newest run", file=sys.stderr)
    return str(newest)


def is_fine_tuned(run: Path) -> bool:
    """Whether a run has a task, as far as its folder tells."""
    return any(key.startswith("task.") for key in read_run(run, run.name).settings)


def trained_at(run: Path) -> float:
    """When a run last wrote a checkpoint, in seconds since 1970, or 0 if it has none."""
    checkpoints = run / "checkpoints"  # writing one touches the folder that it is in
    return checkpoints.stat().st_mtime if checkpoints.is_dir() else 0


def steps_taken(run: Path | RunRecord) -> int:
    """How many steps a run has taken up to its end or, if it has not finished, its last validation."""
    record = read_run(run, run.name) if isinstance(run, Path) else run
    return record.result.step if record.result else max((step for step, _ in record.curve), default=0)


def list_runs(outputs: Path = OUTPUTS) -> str:
    """A table of the runs from which one can sample, newest first. Raises UserError if no run has finished."""
    lines = [f"{'loss':>6}  {'steps':>7}  {'age':>7}  run"]
    for run in sorted(read_runs(outputs), key=lambda run: trained_at(outputs / run.name), reverse=True):
        if written := trained_at(outputs / run.name):
            losses = [loss for _, loss in run.curve]
            lowest = (run.result and run.result.best_val_loss) or min(losses, default=None)
            loss = "-" if lowest is None else f"{lowest:.4f}"
            lines.append(
                f"{loss:>6}  {steps_taken(run):>7,}  {age(time.time() - written):>7}  {outputs / run.name}"
            )
    return "\n".join([*lines, "loss: the lowest validation loss, in nats per character"])


def age(seconds: float) -> str:
    """A time span in its largest unit: "5 min"."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
