"""A text as ids: a small one in memory, a large one in a file that is mapped into memory and made only once."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from filelock import FileLock

from gpt.checkpoint import atomic, write_text
from gpt.corpus import Text
from gpt.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, Tokenizer

IN_MEMORY = 2**26  # characters; longer texts go into a file
BPE_SAMPLE = 2**26  # characters from which pairs are counted: more changes few of them, and takes minutes


def make_tokenizer(text: Text, kind: str, bpe_vocab_size: int, split: float) -> Tokenizer:
    """The tokenizer of a kind for a text; byte pairs are counted in its first part, up to `split`, that is trained on."""
    if kind == "char":
        return CharTokenizer.from_parts(text)
    if kind == "byte":
        return ByteTokenizer()
    return BPETokenizer.from_parts(text.first(min(int(len(text) * split), BPE_SAMPLE)), bpe_vocab_size)


def encode(text: Text, tokenizer: Tokenizer, split: int, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The ids of `text` up to character `split` and from there on, one byte each if that is enough, else two.

    Those of a large text are kept in `folder`, under the SHA-256 of text, tokenizer and split, and mapped into memory: what
    is never read takes none.
    """
    dtype = np.dtype("u1" if len(tokenizer) <= 2**8 else "<u2")

    def parts() -> Iterator[np.ndarray]:
        position = 0
        for part in text:
            cut = min(max(split - position, 0), len(part))  # where validation begins
            position += len(part)
            for n, piece in enumerate((part[:cut], part[cut:])):
                ids = tokenizer.ids(piece).astype(dtype, copy=False)
                counts[n] += len(ids)
                yield ids

    counts = [0, 0]
    if len(text) <= IN_MEMORY:
        whole = np.concatenate(list(parts()))
        return whole[: counts[0]], whole[counts[0] :]
    key = hashlib.sha256(json.dumps([text.sha256, tokenizer.state, split]).encode()).hexdigest()
    folder = folder / ".ids"  # hidden, so no part of a text that is in the same folder
    folder.mkdir(parents=True, exist_ok=True)
    ids, about = folder / f"{key}.ids", folder / f"{key}.json"
    with FileLock(folder / f"{key}.lock"):  # a second process waits, and finds it done
        train = intact(ids, about)
        if train is None:
            digest = hashlib.sha256()
            with atomic(ids) as file:
                for part in parts():
                    digest.update(part)
                    file.write(part)
            train = counts[0]
            write_text(about, json.dumps({"train": train, "sha256": digest.hexdigest()}))
    mapped = np.memmap(ids, dtype, mode="r")
    return mapped[:train], mapped[train:]


def intact(ids: Path, about: Path) -> int | None:
    """How many of the kept ids are for training; None if there are none or they are not as they were written."""
    try:
        said = json.loads(about.read_text(encoding="utf-8"))
        with open(ids, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        return said["train"] if found == said["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
