"""The states that callbacks leave in a checkpoint, checked field by field before they are used.

A checkpoint may come from anybody. So a state holds plain values only, never a path, and nothing in it replaces a setting.
"""

from collections.abc import Mapping
from typing import Any

from gpt.errors import UserError, check_arguments


def check_state(name: str, state: object, kinds: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a callback's state, converted to the types in `kinds`.

    Raises UserError unless `state` is a dictionary with exactly these keys, and every number in it is finite and not negative.
    """
    try:
        if not isinstance(state, dict):
            raise UserError("not a dictionary")
        values = check_arguments(state, kinds, kinds, name)
        for key, value in values.items():
            if isinstance(value, (int, float)) and value < 0:
                raise UserError(f"{name}.{key} = {value}: is negative")
        return values
    except UserError as error:
        reason = str(error).split("; ")[0]
        raise UserError(
            f"checkpoint = (state of {name}): {reason}; use a checkpoint that this project wrote"
        ) from None
