"""Characters <-> ids."""

from collections.abc import Iterable

import torch
from torch import Tensor

from gpt.settings import UserError


class CharTokenizer:
    """One id for each character of `vocabulary`, in its order: the whole state is that string."""

    def __init__(self, vocabulary: str) -> None:
        if len(set(vocabulary)) != len(vocabulary):
            raise UserError(f"vocabulary = {vocabulary!r:.60}: a character appears twice; give each once")
        self.vocabulary = vocabulary
        self.ids = {char: i for i, char in enumerate(vocabulary)}

    @classmethod
    def from_text(cls, text: str) -> "CharTokenizer":
        """The characters of `text`, sorted by code point."""
        return cls("".join(sorted(set(text))))

    @property
    def start(self) -> str:
        """What to write on from when there is no prompt: a new line, or the first character where the text has none."""
        return "\n" if "\n" in self.ids else self.vocabulary[0]

    def __len__(self) -> int:
        return len(self.vocabulary)

    def encode(self, text: str) -> Tensor:
        """Ids (len(text),), int64. Raises UserError that names the characters which are not in the vocabulary."""
        unknown = sorted(set(text) - set(self.ids))
        if unknown:
            shown = ", ".join(map(repr, unknown[:10])) + (", ..." if len(unknown) > 10 else "")
            raise UserError(
                f"text = {text[:20]!r}: {shown} not among the {len(self)} characters that the model knows; leave them out"
            )
        return torch.tensor([self.ids[char] for char in text], dtype=torch.int64)

    def decode(self, ids: Iterable[int] | Tensor) -> str:
        """The text of ids (T,)."""
        return "".join(self.vocabulary[i] for i in (ids.tolist() if isinstance(ids, Tensor) else ids))
