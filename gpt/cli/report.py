"""What a person sees when a run has ended: the play, the numbers, and what to type next."""

import os
import shlex
import sys
from pathlib import Path
from typing import Any

from gpt.cli.overrides import quote_override
from gpt.config import RunConfig
from gpt.files import read_text
from gpt.settings import printable
from gpt.tokenizer import tokenizer_class


def report(folder: Path, result: dict[str, Any], config: RunConfig) -> None:
    """Print the last sample, the losses, the run's folder, and commands that go on from here."""
    run = shlex.quote(printable(os.path.relpath(folder)))
    if (sample := folder / "sample.txt").exists():
        print(f"\n{printable(read_text(sample))}\n")
    print(describe_result(result, config.data.tokenizer))
    print(f"run folder: {run}\n\nnext:")
    if not (sys.prefix == sys.base_prefix or "VIRTUAL_ENV" in os.environ):  # the shell does not find this Python by itself
        print(f"  source {shlex.quote(os.path.relpath(sys.prefix))}/bin/activate")
    print(f'  python scripts/sample.py {run} --prompt "ROMEO:"')
    print(f"  python scripts/evaluate.py {run}")
    print("  tensorboard --logdir outputs", flush=True)


def describe_result(result: dict[str, Any], tokenizer: str) -> str:
    """The losses on one or two lines, by the unit that they are means over."""
    bits = result["final_bits_per_char"]
    unit = tokenizer_class(tokenizer).loss_unit
    per_character = "" if unit == "character" else f" ({bits:.4f} bits per character)"
    text = f"val loss {result['final_val_loss']:.4f} nats per {unit}{per_character}"
    text += f" after {result['step']:,} steps, {result['seconds']:,.0f} s"
    if (best := result["best_val_loss"]) is not None:
        text += f"; the best was {best:.4f} at step {result['best_step']:,}"
    return text


def describe_resuming(folder: Path) -> str:
    """The command that goes on with a run, quoted for the shell."""
    path = os.path.relpath(folder)
    override = quote_override("resume", path) if path[0] in "'\"" else f"resume={path}"
    return f"To continue: python scripts/train.py {shlex.quote(override)}"
