"""Reading a file of `torch.save` that may come from anybody: nothing is executed, and its tensors are no larger than the file.

Such a file is a zip archive with a pickle, and beside it the numbers of each tensor. `torch.load(weights_only=True)` executes
nothing either, but a file of a few kilobytes may ask it for gigabytes: by compressed members, by functions that build quantised
or sparse tensors, or by tensors whose strides repeat a single number. Python's unpickler can be made to allocate any amount of
memory, or to crash, even where it may call nothing. So the pickle is followed here, one instruction after the other, and of
these only those exist that plain values and dense tensors need.
"""

import math
import os
import pickletools
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STORAGES = {
    "Float": "float32",
    "Double": "float64",
    "BFloat16": "bfloat16",
    "Half": "float16",
    "Bool": "bool",
}
STORAGES |= {"Long": "int64", "Int": "int32", "Short": "int16", "Char": "int8", "Byte": "uint8"}
DTYPES = {f"torch {name}Storage": getattr(torch, dtype) for name, dtype in STORAGES.items()}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
COUNTS = {
    "TUPLE1": 1,
    "TUPLE2": 2,
    "TUPLE3": 3,
    "APPEND": 1,
    "SETITEM": 2,
}  # values that an instruction takes
LARGEST_PICKLE = (
    2**24
)  # bytes of everything but the tensors' data. The largest vocabulary takes a tenth of it
MOST_INSTRUCTIONS = 2**21  # each may make an object that takes many times its own byte
MOST_VALUES = 2**20  # a vocabulary of 2**16 pieces and its merges takes a quarter of them
MOST_DIMENSIONS = 8
DEEPEST = 32


class Refused(ValueError):
    """The file asks for more than plain values and dense tensors."""


def read_archive(path: Path) -> Any:
    """The content of a file that `torch.save` wrote: dictionaries, lists, tuples, plain values, and tensors on the CPU.

    Raises Refused for a file that asks for anything else or for more memory than its own size, OSError if it cannot be
    opened, and any other exception if it is damaged.
    """
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        size, members = os.fstat(file.fileno()).st_size, archive.infolist()
        is_stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not is_stored or sum(max(member.file_size, member.compress_size) for member in members) > size:
            raise Refused("it would unpack into more than its size")
        (pickle_member,) = [member for member in members if member.filename.endswith("/data.pkl")]
        if pickle_member.file_size > LARGEST_PICKLE:
            raise Refused(f"it has {pickle_member.file_size:,} bytes beside its tensors")
        tensors = Tensors(archive, pickle_member.filename.removesuffix("data.pkl"), size)
        content = follow(archive.read(pickle_member), tensors.make)
    check_values(content)
    return content


class Tensors:
    """The tensors in an archive whose members begin with `folder`. Together they must fit into `size` bytes."""

    def __init__(self, archive: zipfile.ZipFile, folder: str, size: int) -> None:
        self.archive, self.folder, self.free_bytes = archive, folder, size
        self.storages: dict[str, bytearray] = {}
        self.views: dict[Any, Tensor] = {}
        byte_order = f"{folder}byteorder"
        if byte_order in archive.namelist() and archive.read(byte_order) != sys.byteorder.encode():
            raise Refused("its numbers are in the byte order of another kind of machine")

    def make(
        self, storage: tuple[Any, ...], offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any
    ) -> Tensor:
        """A tensor from the arguments of `torch._utils._rebuild_tensor_v2`. Tied weights, which are the same view, are one.

        Raises Refused unless it lies within its storage, and all tensors so far fit into the file.
        """
        dtype, key = storage[1:3]
        numbers: Any = (offset, *shape, *stride) if len(shape) == len(stride) <= MOST_DIMENSIONS else (None,)
        if not (type(key) is str and all(type(number) is int and 0 <= number < 2**48 for number in numbers)):
            raise Refused("it holds a tensor without a proper shape")
        view = (dtype, key, offset, shape, stride)
        if view in self.views:
            return self.views[view]
        if key not in self.storages:
            self.storages[key] = bytearray(self.archive.read(f"{self.folder}data/{key}"))
        data = self.storages[key]
        capacity, count = len(data) // dtype.itemsize, math.prod(shape)
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if count and max(count, last + 1) > capacity:
            raise Refused(f"it holds a tensor of shape {shape} and data for {capacity:,} numbers")
        self.free_bytes -= count * dtype.itemsize
        if self.free_bytes < 0:
            raise Refused("its tensors are together larger than the file")
        flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        self.views[view] = flat.as_strided(shape, stride, offset)
        return self.views[view]


def follow(pickled: bytes, make_tensor: Callable[..., Tensor]) -> Any:
    """The value that a pickle describes. Raises Refused for an instruction or a name that torch.save has no need for.

    `make_tensor` takes the arguments of `torch._utils._rebuild_tensor_v2`. Attributes of dictionaries are dropped.
    """
    names = DTYPES | {"collections OrderedDict": lambda: {}, "torch._utils _rebuild_tensor_v2": make_tensor}
    stack: list[Any] = []
    outer: list[list[Any]] = []  # the stacks that a MARK has put aside
    memo: dict[Any, Any] = {}
    for number, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        if number >= MOST_INSTRUCTIONS:
            raise Refused(f"it has more than {MOST_INSTRUCTIONS:,} instructions")
        match opcode.name:
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE":
                stack.append(argument)
            case name if name in CONSTANTS:
                stack.append(CONSTANTS[name])
            case name if name in EMPTY:
                stack.append(EMPTY[name]())
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "MARK":
                outer.append(stack)
                stack = []
            case "TUPLE" | "APPENDS" | "SETITEMS" as name:
                values, stack = stack, outer.pop()
                combine(name, values, stack)
            case name if name in COUNTS:
                values = stack[-COUNTS[name] :]
                del stack[-COUNTS[name] :]
                combine(name, values, stack)
            case "GLOBAL":
                if argument not in names:
                    raise Refused(f"it asks to run {str(argument).replace(' ', '.')}")
                stack.append(names[argument])
            case "REDUCE" if type(stack[-1]) is tuple:
                arguments = stack.pop()
                stack.append(stack.pop()(*arguments))
            case "BUILD":
                stack.pop()
            case (
                "PROTO" | "BINPERSID"
            ):  # the description of a storage stands for it until a tensor is made of it
                pass
            case "STOP":
                return stack.pop()
            case name:
                raise Refused(f"it has the instruction {name}")


def combine(name: str, values: list[Any], stack: list[Any]) -> None:
    """Make a tuple of `values`, or put them into the list or the dictionary on top of the stack."""
    if name.startswith("TUPLE"):
        stack.append(tuple(values))
    elif name.startswith("APPEND"):
        stack[-1].extend(values)
    else:
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) not in (str, int):  # Python crashes on a key of many tuples nested in one another
                raise Refused(f"it has a {type(key).__name__} as a key")
            stack[-1][key] = value


def check_values(content: Any) -> None:
    """Raises Refused for anything but plain values, containers and tensors, and for too many of them or too deep ones."""
    for count, (value, depth) in enumerate(walk(content)):
        if depth > DEEPEST or count >= MOST_VALUES:  # also if a value contains itself
            raise Refused("it is nested too deeply or holds too many values")
        if value is not None and type(value) not in (bool, int, float, str, tuple, list, dict, Tensor):
            raise Refused(f"it holds a {type(value).__name__}")


def walk(value: Any, depth: int = 0) -> Iterator[tuple[Any, int]]:
    """A value and all values inside its dictionaries, lists and tuples, each with how deep it lies."""
    yield value, depth
    if isinstance(value, (dict, list, tuple)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from walk(inner, depth + 1)
