"""Every mistake of a user becomes one clear line, worded as `what = value: why; what to do instead`."""

import contextlib
import difflib
import math
import os
import sys
import traceback
import typing
import unicodedata
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

# What other projects call a setting, and what it is called here
ELSEWHERE = {
    "block_size": "model.context_length",
    "seq_len": "model.context_length",
    "max_iters": "trainer.max_steps",
    "learning_rate": "optimizer.lr",
    "lr": "optimizer.lr",
    "eval_interval": "trainer.val_check_interval",
    "gradient_accumulation_steps": "trainer.accumulate_grad_batches",
    "grad_clip": "trainer.gradient_clip_val",
    "ckpt_path": "resume",
    "batch_size": "data.batch_size",
}


class UserError(ValueError):
    """A mistake that the user can correct, worded as `what = value: why; what to do instead`. It is shown as
    one line.
    """


def shorten(value: Any, width: int = 60) -> str:
    """`value` on one line of at most `width` characters, for a message."""
    if isinstance(value, int) and abs(value) > 10**15:  # str() refuses integers of more than 4,300 digits
        digits = value.bit_length() * math.log10(2)
        return f"{'-' if value < 0 else ''}(a number of about {digits:.0f} digits)"
    text = one_line(value)
    return text if len(text) <= width else f"{text[: width - 3]}..."


def one_line(value: object) -> str:
    """The text of a value or an error on one line, with control characters escaped."""
    text = " ".join(str(value).split())
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def printable(text: str) -> str:
    """A text for a terminal: control characters other than tabs and line breaks, which could command it, are
    escaped.
    """
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf") else ascii(char)[1:-1]
        for char in text
    )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Advice that names the closest of `known`, or lists them if they are few, or says where to find them."""
    known = sorted(known)
    if word in ELSEWHERE:
        return f"it is called {ELSEWHERE[word]} here"
    if inner := [name for name in known if name.replace("/", ".").endswith(f".{word}")]:
        return f"did you mean {' or '.join(inner[:3])}?"  # n_layer for model.n_layer
    if close := difflib.get_close_matches(word, known, n=1, cutoff=0.6):
        return f"did you mean {close[0]}?"
    return (
        f"choose one of {', '.join(known)}"
        if len(known) <= 20
        else "python scripts/train.py --cfg job lists all settings"
    )


def explain(error: "ValidationError", group: str = "", known: Iterable[str] = ()) -> UserError:
    """The first mistake that pydantic has found in a configuration or a group of it, on one line.

    `known` are the settings among which an unknown one may have been meant.
    """
    first = error.errors()[0]
    place = [*filter(None, [group]), *map(str, first["loc"])]
    if place[:1] == ["optimizer"] and len(place) > 2:
        del place[1]  # the name by which pydantic has chosen the class
    value = "null" if first["input"] is None else first["input"]
    name, reason = ".".join(place), first["msg"].removeprefix("Input ")
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        reason = f"no such setting; {did_you_mean(name, known)}"
    elif first["type"] == "value_error":
        reason = str(first["ctx"]["error"])
        # raised about a whole group, and names the setting itself
        if not isinstance(value, (bool, int, float, str)):
            return UserError(f"{name}.{reason}" if name else reason)
    elif first["type"] in ("dict_type", "model_type", "model_attributes_type"):
        reason = "not a group of settings"
    return UserError(f"{name} = {shorten(value)}: {reason}")


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Run a program's main function: mistakes of the user end it with one line on stderr and exit code 2.

    A reader that closes the pipe (`| head`) ends it quietly, Ctrl-C ends it with exit code 130. Anything else
    is a bug of this project: its traceback is shown, and the exit code is 1.
    """
    for stream, descriptor in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, stream) is None:  # closed by the caller: `>&-`
            # noqa: SIM115
            setattr(sys, stream, open(os.devnull, "r" if descriptor == 0 else "w", encoding="utf-8"))
    for output in (sys.stdout, sys.stderr):
        if hasattr(output, "reconfigure"):
            output.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 gets what it can show
    try:
        yield
        sys.stdout.flush()
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        discard_output()
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        if (
            error.filename is not None or error.errno is None
        ):  # a named file is the business of whoever opened it
            report_bug()
        print(
            f"error: output = (standard output): {error.strerror}; make room, or write somewhere else",
            file=sys.stderr,
        )
        discard_output()
        sys.exit(2)
    except Exception:
        report_bug()


def report_bug() -> typing.NoReturn:
    """Show the traceback of an error that no user has made, and say what to do with it."""
    traceback.print_exc()
    print(
        "This is a bug of this project. Please report it with the lines above and the command.",
        file=sys.stderr,
    )
    sys.exit(1)


def discard_output() -> None:
    """Send what is still buffered for standard output nowhere, so that the interpreter's last flush cannot
    fail.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
