"""Reading a file of `torch.save` that may come from anybody: nothing is executed, and its tensors are no larger than the file.

`torch.load(weights_only=True)` executes nothing, but a file of a few kilobytes may still ask it for gigabytes: by compressed
members, by functions that build quantised or sparse tensors, or by tensors whose strides repeat a single number. So the
archive and the pickle in it are inspected first, then the tensors are read without their data, and only then with it.
Python's reader of archives inspects and PyTorch's loads. So whatever they could understand differently is refused.
"""

import os
import pickletools
import re
import struct
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

DTYPES = {torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8}
DTYPES |= {torch.uint8, torch.bool}
STORAGES = ("Float", "Double", "BFloat16", "Half", "Long", "Int", "Short", "Char", "Byte", "Bool")
# All that a pickle of plain values and dense tensors needs to name
ALLOWED_NAMES = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", *(f"torch {name}Storage" for name in STORAGES)}
# All that torch.save writes. PyTorch looks names up without regard to case: DATA.PKL would do for data.pkl
MEMBER = re.compile(
    r"[^/]+/(data\.pkl|data/[0-9]+|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id)"
)
LARGEST_PICKLE = 2**24  # bytes of everything but the tensors' data. The largest vocabulary takes a tenth of it
MOST_INSTRUCTIONS = 2**21  # each may make an object that takes many times its own byte
MOST_TUPLES = 2**16  # a tensor takes four. Python crashes on a dictionary key of more tuples nested in one another
MOST_VALUES = 2**20  # a vocabulary of 2**16 pieces and its merges takes a quarter of them
DEEPEST = 32


class Refused(ValueError):
    """The file asks for more than plain values and dense tensors."""


def read_archive(path: Path) -> Any:
    """The content of a file that `torch.save` wrote: dictionaries, lists, tuples, plain values, and tensors on the CPU.

    Raises Refused for a file that asks for anything else or for more memory than its own size, OSError if it cannot be
    opened, and any other exception if it is damaged.
    """
    with open(path, "rb") as file:
        inspect_archive(file)
        for device in ("meta", "cpu"):  # on the meta device, tensors have shapes and no memory
            file.seek(0)
            content = torch.load(file, map_location=device, weights_only=True)
            plain = PlainCopy(os.fstat(file.fileno()).st_size)
            result = plain.copy(content)
    return result


def inspect_archive(file: IO[bytes]) -> None:
    """Raises Refused unless the zip archive is as torch.save writes it and its pickle names only what is allowed."""
    size = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        is_stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        unpacked = sum(max(member.file_size, member.compress_size) for member in members)
        if not is_stored or unpacked > size:
            raise Refused("it would unpack into more than its size")
        names = [member.filename for member in members]
        is_known = all(MEMBER.fullmatch(name) for name in names) and len({name.lower() for name in names}) == len(names)
        if not is_known or not is_unambiguous(file, size):
            raise Refused("it is not an archive as torch.save writes it")
        (pickle_member,) = [member for member in members if member.filename.endswith("/data.pkl")]
        if pickle_member.file_size > LARGEST_PICKLE:
            raise Refused(f"it has {pickle_member.file_size:,} bytes beside its tensors")
        pickled = archive.read(pickle_member)
    tuples = 0
    for number, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):  # reads them and follows none
        if number >= MOST_INSTRUCTIONS:
            raise Refused(f"it has more than {MOST_INSTRUCTIONS:,} instructions")
        if opcode.name == "GLOBAL" and argument not in ALLOWED_NAMES:
            raise Refused(f"it asks to run {str(argument).replace(' ', '.')}")
        tuples += opcode.name.startswith("TUPLE")
    if tuples > MOST_TUPLES:
        raise Refused(f"it has more than {MOST_TUPLES:,} tuples")


def is_unambiguous(file: IO[bytes], size: int) -> bool:
    """Whether every reader takes the file for an archive and finds the same directory: at the end, with nothing behind it.

    PyTorch takes what begins otherwise for its older format. And readers differ in where they look for the directory if there
    is a comment, if there are other bytes in between, or if the record of large archives (zip64) is not the one at the end.
    """
    file.seek(0)
    start = file.read(4)
    file.seek(max(size - 98, 0))
    tail = file.read().rjust(98, b"\0")  # zip64 record (56 bytes), where that is (20), and the end record (22)
    if tail[56:60] == b"PK\6\7":
        end, (length, offset), (record,) = size - 98, struct.unpack_from("<2Q", tail, 40), struct.unpack_from("<Q", tail, 64)
        is_plain = tail[:4] == b"PK\6\6" and record == end
    else:
        end, (length, offset), is_plain = size - 22, struct.unpack_from("<2L", tail, 88), True
    ends_well = tail[76:80] == b"PK\5\6" and tail[96:] == b"\0\0"  # without a comment
    return start == b"PK\3\4" and ends_well and is_plain and offset + length == end


class PlainCopy:
    """Copies nested values into new containers, and checks each of them. The tensors together must fit into `size` bytes."""

    def __init__(self, size: int) -> None:
        self.free_bytes = size
        self.free_values = MOST_VALUES
        self.seen: set[tuple[Any, ...]] = set()

    def copy(self, value: Any, depth: int = 0) -> Any:
        """The same values, without what a pickle can attach to a container. Raises Refused."""
        self.free_values -= 1
        if depth > DEEPEST or self.free_values < 0:  # also if a value contains itself
            raise Refused("it is nested too deeply or holds too many values")
        if value is None or type(value) in (bool, int, float, str):
            return value
        if type(value) is Tensor:
            return self.check_tensor(value.detach())
        if isinstance(value, dict):
            items = dict.items(value)  # rather than value.items(), which an OrderedDict's attributes could replace
            return {self.copy_key(key): self.copy(inner, depth + 1) for key, inner in items}
        if type(value) in (list, tuple):
            return type(value)(self.copy(inner, depth + 1) for inner in value)
        raise Refused(f"it holds a {type(value).__name__}")

    @staticmethod
    def copy_key(key: Any) -> str | int:
        if type(key) not in (str, int):
            raise Refused(f"it has a {type(key).__name__} as a key")
        return key

    def check_tensor(self, tensor: Tensor) -> Tensor:
        """The tensor itself. Raises Refused unless it is dense and lies within its storage, and all of them fit into the file."""
        if tensor.layout != torch.strided or tensor.dtype not in DTYPES or tensor.is_neg():
            raise Refused(f"it holds a tensor of {tensor.dtype}, {tensor.layout}")
        last = tensor.storage_offset() + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride(), strict=True))
        capacity = tensor.untyped_storage().nbytes() // tensor.itemsize
        if tensor.numel() and (tensor.numel() > capacity or last >= capacity):
            raise Refused(f"it holds a tensor of shape {tuple(tensor.shape)} and data for {capacity:,} numbers")
        view = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
        if view not in self.seen:  # tied weights are the same view of the same storage
            self.seen.add(view)
            self.free_bytes -= tensor.nbytes
        if self.free_bytes < 0:
            raise Refused("its tensors are together larger than the file")
        return tensor
