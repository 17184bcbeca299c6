"""The ids of a text that is too long to keep in memory: they are written into a file once, and mapped into memory."""

import contextlib
import hashlib
import json
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from gpt.data import encode_parts, id_type
from gpt.errors import UserError
from gpt.files import atomic, check_replaceable, read_json, remove_staged, write_json
from gpt.text import Text
from gpt.tokenizer import Tokenizer


def encode_into_file(
    text: Text, tokenizer: Tokenizer, split: int, folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """The ids of the first `split` characters of a text and those of the rest, from a file below `folder`.

    The file is named after the SHA-256 of text, tokenizer and split. It is made anew if its content is not what was written.
    Processes that need the same file wait for the one that writes it.
    Raises UserError if the file cannot be written.
    """
    key = hashlib.sha256(json.dumps([text.sha256, tokenizer.state, split]).encode()).hexdigest()
    place = folder / ".ids"  # hidden, so that it is no part of a text in the same folder
    ids_file, record = place / f"{key}.ids", place / f"{key}.json"
    try:
        place.mkdir(parents=True, exist_ok=True)
        remove_leftovers(place)
        with lock_of(place, key):
            train_length = read_record(record, ids_file)
            if train_length is None:
                train_length = write(text, tokenizer, split, ids_file, record)
        ids = np.memmap(ids_file, id_type(tokenizer), mode="r")
    except OSError as error:
        raise UserError(
            f"data.folder = {folder}: the text's ids cannot be kept there ({error.strerror}); "
            "make room or set data.folder to another folder"
        ) from None
    return ids[:train_length], ids[train_length:]


def write(text: Text, tokenizer: Tokenizer, split: int, ids_file: Path, record: Path) -> int:
    """Encode the text into `ids_file`, and note in `record` what was written. Returns the number of training ids."""
    train_length, digest = 0, hashlib.sha256()
    with (
        atomic(ids_file) as file,
        contextlib.closing(show_progress(text)) as parts,
    ):  # errors find the line erased
        for is_training, ids in encode_parts(parts, tokenizer, split):
            train_length += len(ids) if is_training else 0
            digest.update(ids.data)
            file.write(ids.data)
    write_json(record, {"train": train_length, "sha256": digest.hexdigest()})
    return train_length


def show_progress(text: Text) -> Generator[Any, None, None]:
    """The parts of a text. Where stderr is a terminal, a line says how much of it was used, and is erased at the end."""
    shown = "{desc} {percentage:.0f}% {bar} ETA {remaining}"
    # None: there is no bar without a terminal
    with tqdm(
        total=len(text),
        desc="encoding the text",
        disable=None,
        leave=False,
        dynamic_ncols=True,
        bar_format=shown,
    ) as line:
        for part in text:
            yield part
            line.update(len(part))


def read_record(record: Path, ids_file: Path) -> int | None:
    """The number of training ids in `ids_file`. None if it is missing or not as it was written."""
    try:
        content = read_json(record)
        with open(ids_file, "rb") as file:
            intact = hashlib.file_digest(file, "sha256").hexdigest() == content.get("sha256")
    except (UserError, OSError):
        return None
    train_length = content.get("train")
    return train_length if intact and isinstance(train_length, int) else None


def lock_of(place: Path, key: str, timeout: float = -1) -> FileLock:
    """The lock that a process holds while it checks or writes the files of `key`. -1 waits for it without limit."""
    path = place / f"{key}.lock"
    check_replaceable(path)  # opening the lock would empty the file that a link leads to
    return FileLock(path, timeout=timeout)


def remove_leftovers(place: Path) -> None:
    """Remove what killed processes have left half written, unless another process is at work on the same file."""
    staged = [re.match(r"\.([0-9a-f]{64})\.(ids|json)\.tmp-", path.name) for path in place.iterdir()]
    for key in {match[1] for match in staged if match}:
        with contextlib.suppress(Timeout), lock_of(place, key, timeout=0):
            remove_staged(place, (f"{key}.ids", f"{key}.json"))
