"""Options of the programs that Hydra does not compose, and the runs that are meant where none is named."""

import argparse
import contextlib
import csv
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from gpt.errors import UserError, one_line, shorten

if TYPE_CHECKING:
    from gpt.ensemble import Ensemble
    from gpt.model import GPT
    from gpt.tokenizer import Tokenizer

LARGEST = 2**31 - 1
OUTPUTS = Path("outputs")
# From which surprise on, in nats, a character has which of a terminal's 256 colours: black on ever darker red
TINTS = ((5.0, "48;5;203;30"), (3.0, "48;5;210;30"), (1.5, "48;5;217;30"), (0.5, "48;5;224;30"))
ENOUGH = 500  # steps: a run of fewer is passed over if there is a longer one


class Parser(argparse.ArgumentParser):
    """Shows the program's docstring as it is, and reports wrong options on one line, as any mistake."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.register("action", None, Once)

    def error(self, message: str) -> NoReturn:
        given, what = shorten(" ".join(sys.argv[1:])), shorten(message, 200)
        raise UserError(f"options = {given}: {what}; --help lists all options")


class Once(argparse.Action):
    """Stores the value of an option. Of one that is given twice, none is dropped silently."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        given = vars(namespace).setdefault("given", set())
        if option and self.dest in given:
            parser.error(f"{option} is given twice, and only one of the two can count")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


def add_checkpoint(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """Add the argument `checkpoint`, which says what model is meant, or with `several` a list of them.

    It is for `find_checkpoint` and `load_models`.
    """
    which = parser.add_mutually_exclusive_group()
    what = "a run folder, of which the best checkpoint is taken, or a .safetensors file; "
    what += "by default the newest run of at least 500 steps" + "; several are averaged" * several
    # Suppressed, or else an argument that is not given would overwrite what --pretrained has set
    missing, number = argparse.SUPPRESS, "*" if several else "?"
    which.add_argument("checkpoint", nargs=number, metavar="RUN", default=missing, help=what)
    shipped = ["pretrained"] if several else "pretrained"
    ships = "the small model that comes with this project, trained on Tiny Shakespeare"
    which.add_argument("--pretrained", dest="checkpoint", action="store_const", const=shipped, help=ships)


def whole_number(smallest: int) -> Callable[[str], int]:
    """For argparse's `type`: whole numbers from `smallest` on, which may be written as 1e3."""

    def parse(text: str) -> int:
        with contextlib.suppress(ValueError):
            if (number := float(text)).is_integer() and smallest <= number <= LARGEST:
                return int(number)
        reason = f"{shorten(text)!r} is not a whole number from {smallest} to {LARGEST:,}"
        raise argparse.ArgumentTypeError(reason)

    return parse


def typed_text(text: str) -> str:
    r"""For argparse's `type`: a text as it was typed, in which \n is a line break."""
    text = text.encode(errors="surrogateescape").decode(errors="replace")  # of a locale without UTF-8
    return text.replace("\\n", "\n")


def tint(char: str, surprise: float) -> str:
    """The character in the colours for its surprise. Line breaks have none: they would colour whole lines."""
    color = next((color for least, color in TINTS if surprise >= least), None)
    return char if color is None or char in ("", "\n") else f"\x1b[{color}m{char}\x1b[0m"


def find_checkpoint(place: str | None) -> Path:
    """The checkpoint of a run or file, or of the newest run for None. Raises UserError if it is missing."""
    from gpt.checkpoint import find

    return find(newest_run() if place is None else place)


def load_models(places: Sequence[str]) -> tuple["GPT | Ensemble", "Tokenizer", dict[str, Any]]:
    """The model that a place means, or the ensemble of several, with tokenizer and metadata of the first.

    Without any place it is the newest run. Raises UserError if there is none, or if two have other texts.
    """
    from gpt.checkpoint import load
    from gpt.ensemble import Ensemble

    checkpoints = [*map(find_checkpoint, places)] or [find_checkpoint(None)]
    models, tokenizers, metadata = zip(*map(load, checkpoints), strict=True)
    for checkpoint, tokenizer, of_this in zip(checkpoints, tokenizers, metadata, strict=True):
        if tokenizer.state != tokenizers[0].state or of_this["text_sha256"] != metadata[0]["text_sha256"]:
            reason = f"has seen another text than {checkpoints[0]}, or has another tokenizer"
            raise UserError(f"checkpoint = {checkpoint}: {reason}; average runs on one text")
    return models[0] if len(models) == 1 else Ensemble(models).eval(), tokenizers[0], metadata[0]


def find_runs(outputs: Path = OUTPUTS, pattern: str = "checkpoints/*.safetensors") -> dict[Path, float]:
    """The runs that have such a file, and when each was last at work, in seconds since 1970, latest first."""
    times = {}
    for run in [path.parent for path in outputs.glob("**/config.yaml")]:
        if any(run.glob(pattern)):
            touched = [*run.glob("checkpoints"), *run.glob("run.json")]  # with a checkpoint, and to begin
            times[run] = max(path.stat().st_mtime for path in touched)
    return dict(sorted(times.items(), key=lambda item: item[1], reverse=True))


def find_unfinished(place: str) -> Path:
    """The run that `resume=place` means; `last` is the newest one under outputs/ that has been interrupted.

    Raises UserError if there is no such run.
    """
    if place == "last":
        from filelock import FileLock, Timeout  # which takes longer to import than all else here

        unfinished = [run for run in find_runs(pattern="run.json") if not has_ended(run)]
        for run in unfinished:
            with contextlib.suppress(Timeout), FileLock(run / ".lock", timeout=0):  # nobody trains there
                return run
        others = f", and another process is training {unfinished[0]}" if unfinished else ""
        reason = f"no unfinished run under outputs/{others}"
        raise UserError(f"resume = last: {reason}; name one: resume=outputs/RUN")
    is_file = Path(place).name == "last.safetensors"
    folder = Path(place).parent.parent if is_file else Path(place)
    if not os.path.isfile(folder / "config.yaml"):
        raise UserError(f"resume = {shorten(place)}: no run there; give a run folder, such as outputs/RUN")
    return folder


def has_ended(run: Path) -> bool:
    return any((run / name).exists() for name in ("result.json", "error.txt"))


def newest_run(outputs: Path = OUTPUTS, fine_tuned: bool = False) -> str:
    """The newest run of a language model with at least 500 steps, or the newest of all if none has as many.

    With `fine_tuned` it is the newest run that was fine-tuned for a task. It is named on stderr, and why.
    Raises UserError if there is none.
    """
    runs = [run for run in find_runs(outputs) if is_fine_tuned(run) == fine_tuned]
    if not runs:
        kind, advice = "run", "train one first: python scripts/train.py, or take ours: --pretrained, "
        advice += "init=pretrained"
        if fine_tuned:
            kind, advice = f"fine-tuned {kind}", "python scripts/finetune.py init=last task=mark makes one"
        raise UserError(f"checkpoint = (newest): no {kind} under {outputs}/; {advice}")
    newest = next((run for run in runs if fine_tuned or progress(run)[0] >= ENOUGH), runs[0])
    passed = "" if newest == runs[0] else f" of at least {ENOUGH} steps; {one_line(runs[0])} is shorter"
    print(f"note: {one_line(newest)} is the newest run{passed}", file=sys.stderr)
    return str(newest)


def is_fine_tuned(run: Path) -> bool:
    return b"\ntask:\n" in (run / "config.yaml").read_bytes()


def progress(run: Path) -> tuple[int, float | None]:
    """The steps of a run up to its end or last validation, and its lowest loss in nats per character."""
    result, metrics = run / "result.json", run / "metrics.csv"
    with contextlib.suppress(OSError, ValueError, LookupError):
        if result.exists():
            numbers = json.loads(result.read_text(encoding="utf-8"))
            loss = numbers["best_val_loss"]
            if loss is not None:  # it is per token
                loss *= numbers["final_bits_per_char"] * math.log(2) / numbers["final_val_loss"]
            return numbers["step"], loss
        with metrics.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["val/loss"]]
        return int(rows[-1]["step"]) + 1, min(float(row["val/bits_per_char"]) for row in rows) * math.log(2)
    return 0, None
