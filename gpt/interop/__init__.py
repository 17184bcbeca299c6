"""Optional integrations: byte pairs, Hugging Face, ONNX, and the page."""

from importlib import import_module
from types import ModuleType

from gpt.errors import UserError


def library(name: str, extra: str) -> ModuleType:
    """A library that need not be installed. Raises UserError, which names the extra that brings it."""
    try:
        return import_module(name)
    except ImportError:
        raise UserError(f"{name} = (missing): not installed; pip install -e '.[{extra}]'") from None
