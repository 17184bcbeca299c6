"""A text as ids: a small one in memory, a large one in a file that is mapped into memory and made only once."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

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
    return BPETokenizer.from_parts(text.span(0, min(int(len(text) * split), BPE_SAMPLE)), bpe_vocab_size)


def encode(text: Text, tokenizer: Tokenizer, split: int, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The ids of `text` up to character `split` and from there on, one byte each if that is enough, else two.

    Those of a large text are kept in `folder`, under the SHA-256 of text, tokenizer and split, and mapped into memory: what
    is never read takes none. Several processes may do this at once.
    """
    dtype = np.dtype("u1" if len(tokenizer) <= 2**8 else "<u2")

    def parts(start: int, end: int) -> Iterator[np.ndarray]:
        return (tokenizer.ids(part).astype(dtype, copy=False) for part in text.span(start, end))

    if len(text) <= IN_MEMORY:
        none = np.empty(0, dtype)
        return np.concatenate([none, *parts(0, split)]), np.concatenate([none, *parts(split, len(text))])
    key = hashlib.sha256(json.dumps([text.sha256, tokenizer.state, split]).encode()).hexdigest()
    ids, about = folder / f"{key}.ids", folder / f"{key}.json"
    train = intact(ids, about)
    if train is None:
        digest, count = hashlib.sha256(), 0
        with atomic(ids) as file:
            for start, end in ((0, split), (split, len(text))):
                train = count
                for part in parts(start, end):
                    digest.update(part)
                    count += len(part)
                    file.write(part)
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
