"""Text <-> ids: by characters, by bytes, or by pieces that byte-pair encoding has found to be frequent."""

import json
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt.settings import UserError

KINDS = ("char", "byte", "bpe")


class Tokenizer(ABC):
    """One id for each of `pieces`, which are bytes: a text is what its ids' pieces make, one behind the other."""

    pieces: list[bytes]

    def __len__(self) -> int:
        return len(self.pieces)

    @property
    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All there is to it, in plain types; `restore` makes it again."""

    @abstractmethod
    def ids(self, text: str) -> np.ndarray:
        """Ids (T,) of a text or of a part of it. Raises UserError that names the characters which are not in the vocabulary."""

    def encode(self, text: str) -> Tensor:
        """Ids (T,), int64. Raises UserError as `ids` does."""
        return torch.from_numpy(self.ids(text).astype(np.int64))

    def join(self, ids: Iterable[int] | Tensor) -> bytes:
        """The bytes of ids (T,), which may end within a character."""
        return b"".join(self.pieces[i] for i in (ids.tolist() if isinstance(ids, Tensor) else ids))

    def decode(self, ids: Iterable[int] | Tensor) -> str:
        """The text of ids (T,), with a replacement character for bytes that make none."""
        return self.join(ids).decode(errors="replace")

    def known(self, text: str) -> str:
        """What is left of a text without the characters that have no id."""
        return "".join(char for char in text if self.knows(char))

    @abstractmethod
    def knows(self, char: str) -> bool:
        """Whether a text may have this character in it."""

    def unknown(self, text: str) -> UserError:
        chars = [char for char in sorted(set(text)) if not self.knows(char)]
        shown = ", ".join(map(repr, chars[:10])) + (", ..." if len(chars) > 10 else "")
        return UserError(
            f"text = {text[:20]!r}: {shown} not among the {len(self)} characters that the model knows; leave them out"
        )

    @property
    def start(self) -> str:
        """What to write on from when there is no prompt: a new line, or the first piece where the text has none."""
        return "\n" if self.knows("\n") else self.decode([0])

    @property
    def lengths(self) -> Tensor:
        """Characters and bytes of each piece (2, V); a character counts where it begins."""
        characters = [sum(byte & 0xC0 != 0x80 for byte in piece) for piece in self.pieces]
        return torch.tensor([characters, [len(piece) for piece in self.pieces]])


class CharTokenizer(Tokenizer):
    """One id for each character of `vocabulary`, in its order: the whole state is that string."""

    def __init__(self, vocabulary: str) -> None:
        if len(set(vocabulary)) != len(vocabulary):
            raise UserError(f"vocabulary = {vocabulary!r:.60}: a character appears twice; give each once")
        if len(vocabulary) >= 2**16:
            raise UserError(f"vocabulary = {len(vocabulary):,} characters: too many; choose data.tokenizer=bpe or byte")
        self.vocabulary = vocabulary
        self.pieces = [char.encode() for char in vocabulary]

    @classmethod
    def from_text(cls, text: str) -> "CharTokenizer":
        """The characters of a text, sorted by code point."""
        return cls.from_parts([text])

    @classmethod
    def from_parts(cls, parts: Iterable[str]) -> "CharTokenizer":
        """As `from_text`, for a text that is read part by part."""
        seen: set[str] = set()
        for part in parts:
            if part.isascii():  # thirty times as fast as a set of all its characters
                part = part.encode().translate(None, "".join(filter(str.isascii, seen)).encode()).decode()
            seen.update(part)
        return cls("".join(sorted(seen)))

    @property
    def state(self) -> dict[str, Any]:
        return {"kind": "char", "vocabulary": self.vocabulary}

    @property
    def control(self) -> str:
        """Its characters that no text should have."""
        return "".join(char for char in self.vocabulary if unicodedata.category(char) == "Cc" and char not in "\t\n\r")

    @cached_property
    def table(self) -> np.ndarray:
        """The id of each code point there is; V for those that have none."""
        table = np.full(0x110000, len(self), dtype=np.uint16)
        table[[ord(char) for char in self.vocabulary]] = np.arange(len(self))
        return table

    def ids(self, text: str) -> np.ndarray:
        if text.isascii() and len(self) < 256:  # twice as fast as the table in numpy
            ids = np.frombuffer(text.encode().translate(self.table[:256].astype(np.uint8).tobytes()), dtype=np.uint8)
        else:
            ids = self.table[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)]
        if ids.max(initial=0) == len(self):
            raise self.unknown(text)
        return ids

    def knows(self, char: str) -> bool:
        return char in self.vocabulary


class ByteTokenizer(Tokenizer):
    """One id for each byte, so for any file."""

    def __init__(self) -> None:
        self.pieces = [bytes([byte]) for byte in range(256)]

    @property
    def state(self) -> dict[str, Any]:
        return {"kind": "byte"}

    def ids(self, text: str | bytes) -> np.ndarray:
        return np.frombuffer(text.encode(errors="replace") if isinstance(text, str) else text, dtype=np.uint8)

    def knows(self, char: str) -> bool:
        return True


class BPETokenizer(Tokenizer):
    """Byte-pair encoding (Sennrich et al. 2016; Radford et al. 2018, section 4.1) by Hugging Face's `tokenizers` (extra hf).

    Over bytes, as in GPT-2: all 256 are pieces, so any text has ids. `vocabulary`: all pieces as `byte_letters` write them, in
    the order of their ids; `merges`: which two make a new one, most frequent first.
    """

    def __init__(self, vocabulary: list[str], merges: list[tuple[str, str]]) -> None:
        hf, letters = load_tokenizers(), byte_letters()
        if len(vocabulary) > 2**16:
            raise UserError(f"data.bpe_vocab_size = {len(vocabulary):,}: too many; set {2**16:,} or less")
        self.vocabulary, self.merges = vocabulary, [tuple(pair) for pair in merges]
        self.pieces = [bytes(letters[letter] for letter in piece) for piece in vocabulary]
        self.bpe = hf.Tokenizer(hf.models.BPE({piece: i for i, piece in enumerate(vocabulary)}, self.merges))
        self.bpe.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
        self.bpe.decoder = hf.decoders.ByteLevel()

    @classmethod
    def from_parts(cls, parts: Iterable[str], vocab_size: int) -> "BPETokenizer":
        """All bytes, and the pairs that are most frequent in a text, merged until there are `vocab_size` pieces."""
        hf, empty = load_tokenizers(), cls(list(byte_letters()), [])
        trainer = hf.trainers.BpeTrainer(vocab_size=vocab_size, initial_alphabet=list(byte_letters()), show_progress=False)
        empty.bpe.train_from_iterator(parts, trainer)
        made = json.loads(empty.bpe.to_str())["model"]
        return cls(sorted(made["vocab"], key=made["vocab"].get), made["merges"])

    @property
    def state(self) -> dict[str, Any]:
        return {"kind": "bpe", "vocabulary": self.vocabulary, "merges": [list(pair) for pair in self.merges]}

    def ids(self, text: str) -> np.ndarray:
        lines = re.split(r"(?<=\S)(?=\n)", text.encode(errors="replace").decode())  # where no piece is cut; on all cores
        return np.array([i for line in self.bpe.encode_batch_fast(lines) for i in line.ids], dtype=np.uint16)

    def knows(self, char: str) -> bool:
        return True


def byte_letters() -> dict[str, int]:
    """The letters by which bytes are written in tokenizer.json: a byte's own where it can be seen, else one from 256 on."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


def load_tokenizers() -> ModuleType:
    try:
        import tokenizers
    except ImportError:
        raise UserError("data.tokenizer = bpe: needs a library; pip install -e '.[hf]', or choose char or byte") from None
    return tokenizers


def restore(state: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of a `state`. Raises UserError for what is none."""
    kind = state.get("kind") if isinstance(state, Mapping) else None
    try:
        if kind == "char" and isinstance(state["vocabulary"], str):
            return CharTokenizer(state["vocabulary"])
        if kind == "byte":
            return ByteTokenizer()
        if kind == "bpe":
            return BPETokenizer(state["vocabulary"], state["merges"])
    except UserError:
        raise
    except Exception as error:  # tokenizers raises no other kind
        raise UserError(f"tokenizer = {kind}: damaged ({error!r:.100}); use a checkpoint that this project wrote") from None
    raise UserError(f"tokenizer = {kind}: none that this version has; choose one of {', '.join(KINDS)}")
