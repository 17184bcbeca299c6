"""From values that somebody typed to checked dataclasses; and the one kind of error that users see."""

import contextlib
import dataclasses
import difflib
import math
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

T = TypeVar("T")
DECISIVE = ("model", "data", "optimizer", "scheduler", "trainer", "seed")  # the parts of a configuration that decide a result


class UserError(ValueError):
    """Something the user can put right, worded as `what = value: why; what to do instead`. Shown as one line."""


def build(cls: type[T], values: Mapping[str, Any], group: str) -> T:
    """Make the dataclass `cls` from `values`, all of its fields and no others; a whole number may be written 1e3.

    Raises UserError for unknown or missing keys, wrong types, and for what the dataclass itself refuses with ValueError;
    names are given as the user would override them: `group.key`.
    """
    hints = typing.get_type_hints(cls)
    fields = [field.name for field in dataclasses.fields(cls)]
    for key, value in values.items():
        if key not in fields:
            known = [f"{group}.{field}" for field in fields]
            raise UserError(f"{group}.{key} = {value}: no such setting; {did_you_mean(f'{group}.{key}', known)}")
    for key in fields:
        if key not in values:
            raise UserError(f"{group}.{key} = (missing): needed; set {group}.{key}=...")
    converted = {key: convert(values[key], hints[key], f"{group}.{key}") for key in fields}
    try:
        return cls(**converted)
    except ValueError as error:
        raise UserError(f"{group}.{error}") from None


def convert(value: Any, kind: Any, name: str) -> Any:
    """`value` as the type `kind` (int, float, bool, str, tuple[...], or a union of these); UserError if it is none."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        if value is None and type(None) in typing.get_args(kind):
            return None
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    if typing.get_origin(kind) is tuple:
        kinds = typing.get_args(kind)
        if not isinstance(value, (list, tuple)) or len(value) != len(kinds):
            raise UserError(f"{name} = {value}: not a list of {len(kinds)}; write {name}=[a,b]")
        return tuple(convert(part, part_kind, name) for part, part_kind in zip(value, kinds, strict=True))
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and kind is float and math.isfinite(value):
        return float(value)
    if number and kind is int and value == value // 1:  # neither nan nor inf equals its floor
        return int(value)
    if kind in (bool, str) and isinstance(value, kind):
        return value
    if kind is str and number:  # YAML reads name=7 and precision=32 as numbers
        return str(value)
    wanted = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}[kind]
    raise UserError(f"{name} = {value}: not {wanted}; set {name} to {wanted}")


def decisive(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a result, flat: {"model.n_layer": 5, ..., "seed": 1}."""
    flat = {}
    for part in DECISIVE:
        value = settings.get(part)
        flat |= {f"{part}.{key}": inner for key, inner in value.items()} if isinstance(value, Mapping) else {part: value}
    for name in ("ema", "early_stopping"):  # callbacks that change what is validated, or when a run ends
        node = (settings.get("callbacks") or {}).get(name) or {}
        flat |= {f"callbacks.{name}.{key}": inner for key, inner in node.items()}
    return flat


def did_you_mean(word: str, known: typing.Iterable[str]) -> str:
    """Advice that names the nearest of `known`, or all of them."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {near[0]}?" if near else f"choose one of {', '.join(known)}"


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """End the program with one line on stderr and exit code 2 if the block raises UserError."""
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without UTF-8 gets what it can show
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
