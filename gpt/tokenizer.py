"""Text to ids and back, with one id for each character or each byte. KINDS says where every kind of tokenizer lives."""

import pkgutil
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from gpt.errors import UserError, shorten

if TYPE_CHECKING:
    from gpt.text import Text

KINDS = {  # the values of data.tokenizer; a module is imported when its kind is used for the first time
    "char": "gpt.tokenizer:CharTokenizer",
    "byte": "gpt.tokenizer:ByteTokenizer",
    "bpe": "gpt.interop.bpe:BPETokenizer",
}


class Tokenizer(ABC):
    """Each id stands for one of `pieces`, which are bytes. A text is the concatenation of the pieces of its ids."""

    kind: ClassVar[str]  # its name in KINDS
    unit: ClassVar[str]  # what its ids are, for counting them: "characters", "bytes" or "tokens"
    loss_unit: ClassVar[str]  # what a loss is per: "character", "byte" or "token"
    reads_bytes: ClassVar[bool] = False  # whether it encodes a file's bytes rather than its decoded text
    pieces: list[bytes]
    remark: str = ""  # something about it that the user should know before training

    @classmethod
    @abstractmethod
    def fit(cls, text: "Text", train_fraction: float, vocab_size: int) -> "Tokenizer":
        """The tokenizer for a text of which the first `train_fraction` is for training.

        Only kinds that can have a vocabulary of any size heed `vocab_size`.
        """

    @classmethod
    @abstractmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Tokenizer":
        """The tokenizer that had this `state`. Raises any exception for a damaged one: see `restore`."""

    @property
    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Everything that makes this tokenizer, as plain values. `restore` is the inverse."""

    @abstractmethod
    def ids(self, text: str) -> np.ndarray:
        """The ids of a text (T,), in a small unsigned type. Raises UserError if a character is not in the vocabulary."""

    @abstractmethod
    def knows(self, char: str) -> bool:
        """Whether a text that contains this character can be encoded."""

    def __len__(self) -> int:
        return len(self.pieces)

    def encode(self, text: str) -> Tensor:
        """The ids of a text (T,), int64, ready for a model. Raises UserError as `ids` does."""
        return torch.from_numpy(self.ids(text).astype(np.int64))

    def decode_bytes(self, ids: Iterable[int] | Tensor) -> bytes:
        """The bytes of ids (T,). They may begin or end in the middle of a character."""
        return b"".join(self.pieces[i] for i in (ids.tolist() if isinstance(ids, Tensor) else ids))

    def decode(self, ids: Iterable[int] | Tensor) -> str:
        """The text of ids (T,). Bytes that are not UTF-8 become the replacement character."""
        return self.decode_bytes(ids).decode(errors="replace")

    def drop_unknown(self, text: str) -> str:
        """The text without those characters that cannot be encoded."""
        return "".join(char for char in text if self.knows(char))

    def unknown_characters(self, text: str) -> UserError:
        """The error that names the characters of `text` that cannot be encoded."""
        chars = [char for char in sorted(set(text)) if not self.knows(char)]
        names = ", ".join(map(repr, chars[:10])) + (", ..." if len(chars) > 10 else "")
        return UserError(
            f"text = {text[:20]!r}: {names} not among the {len(self)} characters that the model knows; leave them out"
        )

    @property
    def default_prompt(self) -> str:
        """What generation starts from without a prompt: a line break, or the first piece if the text has no line break."""
        return "\n" if self.knows("\n") else self.decode([0])

    @property
    def lengths(self) -> Tensor:
        """The numbers of characters and of bytes in each piece (2, V). A character counts for the piece that begins it."""
        characters = [
            sum(byte & 0xC0 != 0x80 for byte in piece) for piece in self.pieces
        ]  # UTF-8 goes on with 10xxxxxx
        return torch.tensor([characters, [len(piece) for piece in self.pieces]])


class CharTokenizer(Tokenizer):
    """One id for each character of the string `vocabulary`, in its order."""

    kind, unit, loss_unit = "char", "characters", "character"

    def __init__(self, vocabulary: str) -> None:
        """Raises UserError if a character occurs twice or there are more than two bytes can number."""
        if len(set(vocabulary)) != len(vocabulary):
            raise UserError(
                f"vocabulary = {shorten(repr(vocabulary))}: a character occurs twice; give each character once"
            )
        if len(vocabulary) >= 2**16:
            raise UserError(
                f"vocabulary = {len(vocabulary):,} characters: too many; set data.tokenizer=bpe or byte"
            )
        self.vocabulary = vocabulary
        self.pieces = [char.encode() for char in vocabulary]
        if control := [
            char for char in vocabulary if unicodedata.category(char) == "Cc" and char not in "\t\n\r"
        ]:
            self.remark = f"it contains control characters, which are kept: {''.join(control)!r}"

    @classmethod
    def from_text(cls, text: str) -> "CharTokenizer":
        """The tokenizer of the characters in a text, sorted by code point."""
        return cls.from_parts([text])

    @classmethod
    def fit(cls, text: "Text", train_fraction: float, vocab_size: int) -> "CharTokenizer":
        return cls.from_parts(text)  # the characters of the validation part need ids, too

    @classmethod
    def from_parts(cls, parts: Iterable[str]) -> "CharTokenizer":
        """As `from_text`, for a text that is read in parts."""
        seen: set[str] = set()
        for part in parts:
            if (
                part.isascii()
            ):  # removing the known characters first is thirty times as fast as a set of the whole part
                part = part.encode().translate(None, "".join(filter(str.isascii, seen)).encode()).decode()
            seen.update(part)
        return cls("".join(sorted(seen)))

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "CharTokenizer":
        if not isinstance(state["vocabulary"], str):
            raise TypeError("its vocabulary is not a string")
        return cls(state["vocabulary"])

    @property
    def state(self) -> dict[str, Any]:
        return {"kind": self.kind, "vocabulary": self.vocabulary}

    @cached_property
    def table(self) -> np.ndarray:
        """The id of every Unicode code point (0x110000,). Characters outside the vocabulary have the id V."""
        table = np.full(0x110000, len(self), dtype=np.uint16)
        table[[ord(char) for char in self.vocabulary]] = np.arange(len(self))
        return table

    def ids(self, text: str) -> np.ndarray:
        if text.isascii() and len(self) < 256:  # translating bytes is twice as fast as indexing with numpy
            ids = np.frombuffer(
                text.encode().translate(self.table[:256].astype(np.uint8).tobytes()), dtype=np.uint8
            )
        else:
            ids = self.table[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)]
        if ids.max(initial=0) == len(self):
            raise self.unknown_characters(text)
        return ids

    def knows(self, char: str) -> bool:
        return char in self.vocabulary


class ByteTokenizer(Tokenizer):
    """One id for each of the 256 bytes, which suits any file."""

    kind, unit, loss_unit = "byte", "bytes", "byte"
    reads_bytes = True

    def __init__(self) -> None:
        self.pieces = [bytes([byte]) for byte in range(256)]

    @classmethod
    def fit(cls, text: "Text", train_fraction: float, vocab_size: int) -> "ByteTokenizer":
        return cls()

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "ByteTokenizer":
        return cls()

    @property
    def state(self) -> dict[str, Any]:
        return {"kind": self.kind}

    def ids(self, text: str | bytes) -> np.ndarray:
        """The bytes of a text (T,), or those of a file as they are."""
        return np.frombuffer(text.encode(errors="replace") if isinstance(text, str) else text, dtype=np.uint8)

    def knows(self, char: str) -> bool:
        return True


def tokenizer_class(kind: str) -> type[Tokenizer]:
    """The class of a kind that KINDS lists."""
    found: type[Tokenizer] = pkgutil.resolve_name(KINDS[kind])
    return found


def restore(state: Any) -> Tokenizer:
    """The tokenizer that had this `state`, which may come from anybody's checkpoint. Raises UserError if it is damaged."""
    kind = state.get("kind") if isinstance(state, Mapping) else None
    if not isinstance(kind, str) or kind not in KINDS:
        known = ", ".join(KINDS)
        raise UserError(
            f"tokenizer = {shorten(kind)}: unknown to this version, which has {known}; use another checkpoint"
        )
    try:
        return tokenizer_class(kind).from_state(state)
    except UserError:
        raise
    except (
        Exception
    ) as error:  # whatever wrong content leads to; the library `tokenizers` raises nothing more specific
        detail = shorten(repr(error), 100)
        raise UserError(
            f"tokenizer = {kind}: damaged ({detail}); use a checkpoint that this project wrote"
        ) from None
