"""Plain values become checked dataclasses here, and every mistake of a user becomes one clear line."""

import contextlib
import difflib
import inspect
import math
import os
import sys
import traceback
import types
import typing
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
LARGEST_INT = 2**31 - 1  # no count in this project comes near it, and torch and numpy overflow beyond


class UserError(ValueError):
    """A mistake that the user can correct, worded as `what = value: why; what to do instead`. It is shown as one line."""


def build(cls: type[T], values: Mapping[str, Any], group: str, *positional: Any) -> T:
    """Make `cls(*positional, **values)`. `values` must hold the other parameters of its constructor and nothing else.

    A parameter with a default may be missing. Whole numbers may be written as 1e3.
    Raises UserError for unknown or missing keys, for values that do not have the annotated types, and for whatever the class
    itself refuses with a ValueError. Names are given as the user would override them: `group.key`.
    """
    parameters = list(inspect.signature(cls, eval_str=True).parameters.values())[len(positional) :]
    required = [parameter.name for parameter in parameters if parameter.default is parameter.empty]
    arguments = check_arguments(values, {p.name: p.annotation for p in parameters}, required, group)
    try:
        return cls(*positional, **arguments)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{group}.{error}") from None


def check_arguments(values: Mapping[str, Any], hints: Mapping[str, Any], required: Iterable[str], group: str) -> dict[str, Any]:
    """The values converted to the types in `hints`. Raises UserError for a key that is unknown or missing."""
    for key, value in values.items():
        if key not in hints:
            known = [f"{group}.{name}" for name in hints]
            advice = did_you_mean(f"{group}.{key}", known) if known else "it has no settings"
            raise UserError(f"{group}.{key} = {shorten(value)}: no such setting; {advice}")
    for key in required:
        if key not in values:
            raise UserError(f"{group}.{key} = (missing): it is needed; set {group}.{key}=...")
    return {key: convert(value, hints[key], f"{group}.{key}") for key, value in values.items()}


def convert(value: Any, kind: Any, name: str) -> Any:
    """`value` as the type `kind`: int, float, bool, str, list[...], tuple[...], or a union of one of these and None.

    Raises UserError if it has another type, is not finite, or is a whole number beyond LARGEST_INT.
    """
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        if value is None and type(None) in typing.get_args(kind):
            return None
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    if typing.get_origin(kind) in (tuple, list):
        return convert_sequence(value, kind, name)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    is_finite = is_number and abs(value) <= sys.float_info.max  # false for nan, infinity, and integers that no float can hold
    if is_finite and kind is float:
        return float(value)
    if is_number and kind is int and (isinstance(value, int) or (is_finite and value == value // 1)):
        if abs(value) > LARGEST_INT:
            raise UserError(f"{name} = {shorten(value)}: too large; set it to at most {LARGEST_INT:,}")
        return int(value)
    if kind in (bool, str) and isinstance(value, kind):
        return value
    if kind is str and is_finite:  # YAML reads name=7 and precision=32 as numbers
        return shorten(value)
    wanted = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}[kind]
    raise UserError(f"{name} = {shorten(value)}: not {wanted}; set {name} to {wanted}")


def convert_sequence(value: Any, kind: Any, name: str) -> Any:
    """`value` as a list of any length, or as a tuple with the length that `kind` asks for."""
    kinds = typing.get_args(kind)
    if not isinstance(value, (list, tuple)):
        raise UserError(f"{name} = {shorten(value)}: not a list; write {name}=[{','.join('ab'[: len(kinds)])}]")
    if typing.get_origin(kind) is list:
        return [convert(part, kinds[0], name) for part in value]
    if len(value) != len(kinds):
        raise UserError(f"{name} = {shorten(value)}: not a list of {len(kinds)}; write {name}=[a,b]")
    return tuple(convert(part, part_kind, name) for part, part_kind in zip(value, kinds, strict=True))


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
    """A text for a terminal: control characters other than tabs and line breaks, which could command it, are escaped."""
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cf") else ascii(char)[1:-1] for char in text
    )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Advice that names the closest of `known`, or lists them if they are few, or says where to find them."""
    known = sorted(known)
    if inner := [name for name in known if name.replace("/", ".").endswith(f".{word}")]:
        return f"did you mean {' or '.join(inner[:3])}?"  # n_layer for model.n_layer
    if close := difflib.get_close_matches(word, known, n=1, cutoff=0.6):
        return f"did you mean {close[0]}?"
    return f"choose one of {', '.join(known)}" if len(known) <= 20 else "python scripts/train.py --cfg job lists all settings"


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Run a program's main function: mistakes of the user end it with one line on stderr and exit code 2.

    A reader that closes the pipe (`| head`) ends it quietly, Ctrl-C ends it with exit code 130. Anything else is a bug of
    this project: its traceback is shown, and the exit code is 1.
    """
    for stream, descriptor in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, stream) is None:  # closed by the caller: `>&-`
            setattr(sys, stream, open(os.devnull, "r" if descriptor == 0 else "w", encoding="utf-8"))  # noqa: SIM115
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
        if error.filename is not None or error.errno is None:  # a named file is the business of whoever opened it
            report_bug()
        print(f"error: output = (standard output): {error.strerror}; make room, or write somewhere else", file=sys.stderr)
        discard_output()
        sys.exit(2)
    except Exception:
        report_bug()


def report_bug() -> typing.NoReturn:
    """Show the traceback of an error that no user has made, and say what to do with it."""
    traceback.print_exc()
    print("This is a bug of this project. Please report it with the lines above and the command.", file=sys.stderr)
    sys.exit(1)


def discard_output() -> None:
    """Send what is still buffered for standard output nowhere, so that the interpreter's last flush cannot fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
