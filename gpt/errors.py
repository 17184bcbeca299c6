"""Every mistake of a user becomes one clear line, worded as `what = value: why; what to do instead`."""

import contextlib
import difflib
import errno
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn

# What other projects call a setting, and what it is called here
ELSEWHERE = {
    "block_size": "model.context_length",
    "seq_len": "model.context_length",
    "batch_size": "data.batch_size",
    "max_iters": "trainer.max_steps",
    "eval_interval": "trainer.val_check_interval",
    "ckpt_path": "resume",
    "learning_rate": "optimizer.lr",
    "grad_clip": "trainer.gradient_clip_val",
    "gradient_accumulation_steps": "trainer.accumulate_grad_batches",
    "warmup_iters": "scheduler.warmup_ratio",
    "device": "trainer.accelerator",
    "dtype": "trainer.precision",
    "out_dir": "hydra.run.dir",
    "dataset": "data.path",
}
# What a user can mend about a file or folder. That one is missing may be a bug
OF_USERS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP}
OF_USERS |= {errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EMFILE}
# Control characters but tab and line break, half surrogate pairs, what reverses the direction of a text
UNSAFE = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


class UserError(ValueError):
    """A mistake that the user can correct. It is shown as one line."""


def shorten(value: Any, width: int = 60) -> str:
    """`value` on one line of at most `width` characters, for a message."""
    text = one_line(value)
    return text if len(text) <= width else f"{text[: width - 3]}..."


def one_line(value: object) -> str:
    """The text of a value or an error on one line, with control characters escaped."""
    return printable(" ".join(str(value).split()))


def printable(text: str) -> str:
    """A text for a terminal. What could command it, or turn the text around, is escaped.

    Line breaks, tabs and the joiners of Persian or Hindi stay. Of a line break of Windows, \\r is left out.
    """
    return UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text.replace("\r", ""))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Advice that names the closest of `known`, lists them if they are few, or says where to find them."""
    known = sorted(known)
    if (elsewhere := word.rpartition(".")[2]) in ELSEWHERE:
        return f"it is called {ELSEWHERE[elsewhere]} here"
    inner = [name for name in known if name.replace("/", ".").endswith(f".{word}")]
    if close := inner[:3] or difflib.get_close_matches(word, known, n=1, cutoff=0.6):
        return f"did you mean {' or '.join(close)}?"
    return f"choose one of {', '.join(known)}" if 0 < len(known) <= 20 else "--cfg job lists all settings"


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Run a program's main function: mistakes of the user end it with one line on stderr and exit code 2.

    A reader that closes the pipe (`| head`) ends it quietly, Ctrl-C ends it with exit code 130. Anything else
    is a bug of this project: its traceback is shown, and the exit code is 1.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by the caller: `>&-`
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
        elif mode == "w" and hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")  # where there is no UTF-8
    try:
        yield
        sys.stdout.flush()
    except UserError as error:
        fail(f"error: {one_line(error)}", 2)
    except KeyboardInterrupt:
        fail("interrupted", 130)
    except Exception as error:
        number: Any = getattr(error, "errno", None)
        place = getattr(error, "filename", None)
        if number and place is None:  # of standard output, whose last flush would fail again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if isinstance(error, BrokenPipeError):
                sys.exit(1)
            fail(f"error: output = (standard output): {os.strerror(number)}; make room", 2)
        if number in OF_USERS:
            fail(f"error: file = {shorten(place, 200)}: {os.strerror(number)}; choose another place", 2)
        traceback.print_exc()
        fail("This is a bug of this project. Please report it with the lines above and the command.", 1)


def fail(message: str, code: int) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(code)


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Let Ctrl-C wait until the end of imports: some libraries take it for a missing module, and continue."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
