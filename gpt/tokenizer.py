"""Text to ids and back, with one id for each character or byte; `gpt.interop.bpe` has pieces of words."""

import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from gpt.errors import UserError, shorten
from gpt.text import Text

KINDS = ("char", "byte", "bpe")  # the values of data.tokenizer
CODE_POINTS = 0x110000  # of Unicode


class Tokenizer(ABC):
    """Each id stands for one of `pieces`, which are bytes. A text is the pieces of its ids in a row."""

    kind: ClassVar[str]  # one of KINDS
    unit: ClassVar[str]  # what its ids are, for counting them: "characters", "bytes" or "tokens"
    loss_unit: ClassVar[str]  # what a loss is per: "character", "byte" or "token"
    reads_bytes: ClassVar[bool] = False  # whether it encodes a file's bytes rather than its decoded text
    pieces: list[bytes]
    remark: str = ""  # something about it that the user should know before training

    @classmethod
    def fit(cls, text: Text, vocab_size: int) -> Self:
        """The tokenizer for a text. Some kinds learn `vocab_size` pieces from what is for training."""
        return cls()

    @property
    def state(self) -> dict[str, Any]:
        """Its kind and the arguments that make it, as plain values. `restore` is the inverse."""
        return {"kind": self.kind}

    @abstractmethod
    def ids(self, text: str) -> np.ndarray:
        """The ids of a text (T,), in one small unsigned type. Raises UserError for unknown characters."""

    def knows(self, char: str) -> bool:
        """Whether a text that contains this character can be encoded, as any can if all bytes are pieces."""
        return True

    def __len__(self) -> int:
        return len(self.pieces)

    def encode(self, text: str) -> Tensor:
        """The ids of a text (T,), int64, ready for a model. Raises UserError for unknown characters."""
        return torch.from_numpy(self.ids(text).astype(np.int64))

    def decode_bytes(self, ids: Iterable[int] | Tensor) -> bytes:
        """The bytes of ids (T,). They may begin or end in the middle of a character."""
        return b"".join(self.pieces[i] for i in (ids.tolist() if isinstance(ids, Tensor) else ids))

    def decode(self, ids: Iterable[int] | Tensor) -> str:
        """The text of ids (T,). Bytes that are not UTF-8 become the replacement character."""
        return self.decode_bytes(ids).decode(errors="replace")

    def drop_unknown(self, text: str) -> str:
        """The text without those characters that cannot be encoded."""
        return text.translate({ord(char): None for char in set(text) if not self.knows(char)})

    @property
    def default_prompt(self) -> str:
        """What generation starts from without a prompt: a line break, or else the first piece."""
        return "\n" if self.knows("\n") else self.decode([0])

    @property
    def lengths(self) -> Tensor:
        """The numbers of characters and of bytes in each piece (2, V). A character counts where it begins."""
        # UTF-8 continues a character with bytes of the form 10xxxxxx
        characters = [sum(byte & 0xC0 != 0x80 for byte in piece) for piece in self.pieces]
        return torch.tensor([characters, list(map(len, self.pieces))])


def code_points(text: str) -> np.ndarray:
    """The numbers of the characters of a text (T,) in Unicode, uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


class CharTokenizer(Tokenizer):
    """One id for each character of the string `vocabulary`, in its order."""

    kind, unit, loss_unit = "char", "characters", "character"

    def __init__(self, vocabulary: str, drops_unknown: bool = False) -> None:
        """With `drops_unknown`, encoding leaves out other characters, in place of raising UserError.

        Raises UserError if a character occurs twice, or if there are more than two bytes can number."""
        if len(set(vocabulary)) != len(vocabulary):
            raise UserError(f"vocabulary = {shorten(repr(vocabulary))}: a character occurs twice")
        if len(vocabulary) >= 2**16:
            raise UserError(f"vocabulary = {len(vocabulary):,} characters: too many; set data.tokenizer=byte")
        self.vocabulary, self.drops_unknown = vocabulary, drops_unknown
        self.pieces = [char.encode() for char in vocabulary]
        # The id of every Unicode code point. Characters outside the vocabulary have the id V
        self.table = np.full(CODE_POINTS, len(vocabulary), np.uint8 if len(vocabulary) < 256 else np.uint16)
        self.table[code_points(vocabulary)] = np.arange(len(vocabulary))
        control = [char for char in vocabulary if unicodedata.category(char) == "Cc" and char not in "\t\n\r"]
        if control:
            self.remark = f"it contains control characters, which are kept: {''.join(control)!r}"
        elif "\r" in vocabulary:
            self.remark = "its lines end in \\r\\n, as on Windows, and the model will write both characters"

    @classmethod
    def from_text(cls, text: str) -> Self:
        """The tokenizer of the characters in a text, sorted by code point."""
        return cls.fit([text])

    @classmethod
    def fit(cls, text: Iterable[str], vocab_size: int = 0) -> Self:
        """As `from_text`, for a whole text in parts: characters for validation need ids, too."""
        occurs = np.zeros(CODE_POINTS, bool)
        for part in text:
            occurs[code_points(part)] = True
        return cls("".join(map(chr, np.flatnonzero(occurs))))

    @property
    def state(self) -> dict[str, Any]:
        return {"kind": self.kind, "vocabulary": self.vocabulary}

    def ids(self, text: str) -> np.ndarray:
        ids: np.ndarray = self.table[code_points(text)]
        if self.drops_unknown:
            return ids[ids < len(self)]
        if ids.max(initial=0) == len(self):
            unknown = ", ".join(repr(char) for char in sorted(set(text)) if not self.knows(char))
            reason = f"{shorten(unknown)} not among the {len(self)} characters that the model knows"
            raise UserError(f"text = {text[:20]!r}: {reason}; leave them out")
        return ids

    def knows(self, char: str) -> bool:
        return char in self.vocabulary


class ByteTokenizer(Tokenizer):
    """One id for each of the 256 bytes, which suits any file."""

    kind, unit, loss_unit, reads_bytes = "byte", "bytes", "byte", True

    def __init__(self) -> None:
        self.pieces = [bytes([byte]) for byte in range(256)]

    def ids(self, text: str | bytes) -> np.ndarray:
        """The bytes of a text (T,), or those of a file as they are."""
        return np.frombuffer(text.encode(errors="replace") if isinstance(text, str) else text, dtype=np.uint8)


def tokenizer_class(kind: str) -> type[Tokenizer]:
    """The class of one of KINDS."""
    if kind == "bpe":  # imported here, because it imports this module
        from gpt.interop.bpe import BPETokenizer

        return BPETokenizer
    return CharTokenizer if kind == "char" else ByteTokenizer


def restore(state: Any) -> Tokenizer:
    """The tokenizer that had this `state`. Raises UserError if it is damaged, or needs a missing library."""
    kind = state.get("kind") if isinstance(state, Mapping) else None
    if kind not in KINDS:
        raise UserError(f"tokenizer = {shorten(kind)}: not one of {', '.join(KINDS)}; use another checkpoint")
    try:
        return tokenizer_class(kind)(**{name: value for name, value in state.items() if name != "kind"})
    except UserError:
        raise
    except Exception as error:  # the library `tokenizers` raises nothing more specific
        reason = f"damaged ({shorten(repr(error), 100)}); use another checkpoint"
        raise UserError(f"tokenizer = {kind}: {reason}") from None
