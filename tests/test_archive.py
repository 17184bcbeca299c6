"""Files that claim to be of `torch.save`: what is too much is refused before memory is allocated, and nothing is run."""

import ast
import os
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from conftest import ROOT
from gpt.archive import MOST_INSTRUCTIONS, Refused, read_archive

PLAIN = {
    "numbers": [1, -(2**40), 0.5, True, None, (1, 2)],
    "text": {"ü": "日本\n", 3: {}},
    "tensors": OrderedDict(a=torch.arange(6.0).view(2, 3), b=torch.tensor(3), c=torch.ones(2, dtype=torch.bfloat16)),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.pt"


def test_plain_values_and_tensors_are_read_as_they_were_written(path):
    tied = torch.randn(3, 4)
    view = torch.arange(10.0)[2:8:2]
    torch.save(PLAIN | {"tied": [tied, tied], "view": view, "transposed": tied.T}, path)
    content = read_archive(path)
    assert content["numbers"] == PLAIN["numbers"]
    assert content["text"] == PLAIN["text"]
    assert type(content["tensors"]) is dict
    assert all(torch.equal(content["tensors"][name], tensor) for name, tensor in PLAIN["tensors"].items())
    assert content["tied"][0].data_ptr() == content["tied"][1].data_ptr()
    assert torch.equal(content["view"], view)
    assert torch.equal(content["transposed"], tied.T)


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_malicious_pickle_is_refused_by_name_and_not_run(path, tmp_path, monkeypatch):
    marker = tmp_path / "it_ran"
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # the explicit weights_only=True is stronger
    torch.save({"a": [Evil(marker)]}, path)
    with pytest.raises(Refused, match=r"it asks to run (posix|nt|os)\.system"):
        read_archive(path)
    path.write_bytes(pickle.dumps(Evil(marker)))
    with pytest.raises(zipfile.BadZipFile):
        read_archive(path)
    assert not marker.exists()


def rewrite(path: Path, pickled: bytes | None = None, compression: int = zipfile.ZIP_STORED, extra: dict | None = None) -> None:
    """Write the archive again with another pickle, compressed, or with more members."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, pickled if pickled and name.endswith("/data.pkl") else data)
        for name, data in (extra or {}).items():
            archive.writestr(name, data)


def save_with_pickle(path: Path, pickled: bytes) -> None:
    torch.save({}, path)
    rewrite(path, pickled)


def test_compressed_archive_is_refused(path):
    torch.save({"a": torch.zeros(10**6)}, path)
    rewrite(path, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10**5
    with pytest.raises(Refused, match="more than its size"):
        read_archive(path)


def test_members_that_overlap_are_refused(path):
    """Two names for the same bytes, as in archives that unpack into petabytes."""
    torch.save({"a": torch.zeros(10**4)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.filelist.extend(archive.filelist * 3)
        archive._didModify = True
    with pytest.raises(Refused, match="more than its size"):
        read_archive(path)


def as_entry(name: bytes, offset: int, size: int, crc: int = 0) -> bytes:
    """An entry of the directory of an archive: `size` bytes, stored, of the member whose header is at `offset`."""
    return struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 33, crc, size, size, len(name), 0, 0, 0, 0, 0, offset) + name


def hide_twin(path: Path, name: str) -> None:
    """Python's zipfile finds no harm in archive/data.pkl, and PyTorch opens another member, which it takes for the same."""
    torch.save({}, path)
    with zipfile.ZipFile(path) as archive:
        members = [(member, archive.read(member)) for member in archive.namelist()]
    members.insert(1, ("a/DATA.PKL", PICKLES[name]))  # PyTorch finds it in this place, right after a/data.pkl
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in members:
            archive.writestr(member, data)


def hide_before_archive(path: Path) -> None:
    """The file begins in PyTorch's older format. In the archive, the beginning belongs to a member that nobody opens."""
    torch.save({"a": 1}, path, _use_new_zipfile_serialization=False)
    hidden, pickled = path.read_bytes(), b"\x80\x02}."
    crc = zlib.crc32(pickled)
    head = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 33, crc, 4, 4, 16, 0) + b"archive/data.pkl"
    entries = as_entry(b"archive/version", 0, len(hidden) - 50) + as_entry(b"archive/data.pkl", len(hidden), 4, crc)
    start = len(hidden) + len(head) + 4
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2, 2, len(entries), start, 0)
    path.write_bytes(hidden + head + pickled + entries + end)


def hide_directory(path: Path) -> None:
    """The record of large archives that Python reads is not the one to which the file points, which PyTorch reads."""
    torch.save({"a": 1}, path)
    content = path.read_bytes()
    record, where, end = content[-98:-42], content[-42:-22], content[-22:]
    elsewhere = where[:8] + struct.pack("<Q", len(content) - 98) + where[16:]
    length, offset = struct.unpack("<2Q", record[40:])
    directory = content[offset : offset + length]
    last = record[:40] + struct.pack("<2Q", length, len(content) - 42)
    path.write_bytes(content[:-42] + directory + last + elsewhere + end)


HIDDEN = {
    "twin that asks for 10 GB": lambda path: hide_twin(path, "bytearray of 10 GB"),
    "twin of nested tuples": lambda path: hide_twin(path, "nested tuples as key"),
    "older format before the archive": hide_before_archive,
    "two directories": hide_directory,
}


@pytest.mark.parametrize("how", HIDDEN)
def test_what_another_reader_would_find_is_not_read(path, how):
    """PyTorch would open something else than Python's zipfile. So nothing here may open the file with PyTorch."""
    HIDDEN[how](path)
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        visible = pickle.loads(archive.read(name))
    assert read_archive(path) == visible


def test_nothing_but_the_own_reader_opens_checkpoints():
    for source in (ROOT / "gpt").rglob("*.py"):
        calls = [node.func for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.Call)]
        assert not {ast.unparse(call) for call in calls} & {"torch.load", "pickle.load", "pickle.loads"}, source


TENSORS = {
    "stride 0": lambda: torch.zeros(1).expand(30_000, 30_000),
    "overlapping rows": lambda: torch.zeros(2000).as_strided((1000, 1000), (1, 1)),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "sparse csr": lambda: torch.eye(3).to_sparse_csr(),
    "meta": lambda: torch.zeros(10**6, 10**6, device="meta"),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "complex": lambda: torch.zeros(3, dtype=torch.complex64),
    "parameter": lambda: torch.nn.Parameter(torch.zeros(3)),
    "float8": lambda: torch.zeros(3).to(torch.float8_e4m3fn),
}


@pytest.mark.filterwarnings("ignore")  # some of these kinds are still called prototypes
@pytest.mark.parametrize("kind", TENSORS)
def test_tensor_that_is_not_plain_and_dense_is_refused(path, kind):
    torch.save({"a": TENSORS[kind]()}, path)
    with pytest.raises(Refused, match=r"it (holds|asks)"):
        read_archive(path)


def test_tensors_that_share_their_data_are_refused(path):
    data = torch.zeros(100_000)
    torch.save([data[offset:] for offset in range(1000)], path)
    with pytest.raises(Refused, match="together larger than the file"):
        read_archive(path)


def test_tensor_larger_than_its_data_is_refused(path):
    """PyTorch would enlarge the storage, to terabytes here."""
    torch.save({"a": torch.zeros(2, 2)}, path)
    with zipfile.ZipFile(path) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        pickled = archive.read(name)
    large = b"\x8a\x05" + (2**33).to_bytes(5, "little")  # an integer of five bytes
    assert pickled.count(b"K\x02K\x02\x86") == 1
    rewrite(path, pickled.replace(b"K\x02K\x02\x86", large + large + b"\x86"))
    with pytest.raises((Refused, RuntimeError)):
        read_archive(path)


STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\1tQ"
TENSOR = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\0%b)tR."
PICKLES = {
    "a function": b"\x80\x02ctorch._utils\n_rebuild_sparse_tensor\n.",
    "another module": b"\x80\x02cbuiltins\neval\n.",
    "tensor of a nested shape": TENSOR % (b")" + b"\x85" * 2**17),
    "tensor of 10,000 dimensions": TENSOR % (b"(" + b"K\1" * 10_000 + b"t"),
    "attribute of a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.",
    "bytearray of 10 GB": b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\xe4\x0b\x54\x02\x85R.",
    "a set": b"\x80\x02\x8f.",
    "a tuple as key": b"\x80\x02}K\x01\x85K\x01s.",
    "nested tuples as key": b"\x80\x02})" + b"\x85" * 2**17 + b"K\x01s.",
    "nested lists": b"\x80\x02" + b"]" * 10_000 + b"a" * 9_999 + b".",
    "a list in itself": b"\x80\x02]q\x00h\x00a.",
    "lists of the same list": b"\x80\x02]q\x00" + b"".join(b"](h%ch%ceq%c" % (n, n, n + 1) for n in range(30)) + b".",
    "many dictionaries": b"\x80\x02" + b"}" * MOST_INSTRUCTIONS + b".",
    "no end": b"\x80\x02}",
    "empty": b"\x80",
}


def test_memo_is_no_larger_than_the_pickle(path):
    """Python's unpickler would make room for 2**32 objects."""
    save_with_pickle(path, b"\x80\x02}r\xff\xff\xff\x7f.")
    assert read_archive(path) == {}


@pytest.mark.parametrize("name", PICKLES)
def test_pickle_that_asks_for_too_much_is_refused(path, name):
    save_with_pickle(path, PICKLES[name])
    with pytest.raises((Refused, pickle.UnpicklingError, ValueError, EOFError)):
        read_archive(path)


def test_attributes_of_a_dictionary_are_dropped(path):
    """A pickle can give an OrderedDict an attribute that hides one of its methods."""
    state = OrderedDict(a=1)
    state.values = "not callable"
    torch.save(state, path)
    assert read_archive(path) == {"a": 1}


def test_hostile_files_take_little_memory(tmp_path):
    """All of them together, take less than 200 MB on top of what Python and PyTorch need."""
    torch.save({"a": torch.zeros(1).expand(30_000, 30_000)}, tmp_path / "stride.pt")
    torch.save({"a": torch.zeros(10**8)}, tmp_path / "deflated.pt")
    rewrite(tmp_path / "deflated.pt", compression=zipfile.ZIP_DEFLATED)
    save_with_pickle(tmp_path / "bytearray.pt", PICKLES["bytearray of 10 GB"])
    code = """
import pathlib, resource, sys
from gpt.archive import Refused, read_archive
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    try:
        read_archive(path)
    except Refused:
        print(path.name)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    *names, kilobytes = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout.split()
    assert names == ["bytearray.pt", "deflated.pt", "stride.pt"]
    assert int(kilobytes) < 200_000
