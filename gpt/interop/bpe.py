"""Byte-pair encoding (data.tokenizer=bpe) by Hugging Face's library `tokenizers`, of the extra `hf`."""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from gpt.errors import UserError
from gpt.interop import library
from gpt.text import Text
from gpt.tokenizer import Tokenizer

LARGEST_VOCABULARY = 2**16  # ids are stored in two bytes
SAMPLE = 2**26  # characters in which pairs are counted; more would take minutes and change few of the pairs
LONGEST_RUN = 2**10  # characters; no word of a natural language comes near it
LONG_RUN = re.compile(rf"(\S{{{LONGEST_RUN}}}|\s{{{LONGEST_RUN}}})")


class BPETokenizer(Tokenizer):
    """Byte-pair encoding (Sennrich et al. 2016; Radford et al. 2018, section 4.1) over bytes, as in GPT-2.

    All 256 bytes are in the vocabulary, so any text can be encoded. `vocabulary` lists the pieces by id, in
    the letters of `byte_letters`. `merges` lists the pairs of pieces to join, most frequent first.
    """

    kind, unit, loss_unit = "bpe", "tokens", "token"

    def __init__(self, vocabulary: list[str], merges: Iterable[Iterable[str]]) -> None:
        """Raises UserError without the library or for too many pieces, ValueError for a damaged state."""
        hf, letters = library("tokenizers", "hf"), byte_letters()
        if len(vocabulary) > LARGEST_VOCABULARY:
            limit = f"too many; set {LARGEST_VOCABULARY:,} or less"
            raise UserError(f"data.bpe_vocab_size = {len(vocabulary):,}: {limit}")
        ids = {piece: id for id, piece in enumerate(vocabulary)}
        if not letters.keys() <= ids.keys() or len(ids) != len(vocabulary) or "" in ids:
            raise ValueError("a byte is not in the vocabulary, or a piece is empty or occurs twice")
        self.vocabulary, self.merges = list(vocabulary), [(left, right) for left, right in merges]
        self.pieces = [bytes(letters[letter] for letter in piece) for piece in vocabulary]
        self.bpe = hf.Tokenizer(hf.models.BPE(ids, self.merges))
        self.bpe.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
        self.bpe.decoder = hf.decoders.ByteLevel()

    @classmethod
    def fit(cls, text: Text, vocab_size: int) -> "BPETokenizer":
        """Join the most frequent pairs in the training part, of which at most SAMPLE characters are read."""
        count = min(text.split, SAMPLE)
        tokenizer = cls.from_parts(first_characters(text, count), vocab_size)
        if (found := len(tokenizer)) < vocab_size:
            wanted = f"data.bpe_vocab_size = {vocab_size}"
            tokenizer.remark = f"only {found} pieces were found in it, not {wanted}"
        return tokenizer

    @classmethod
    def from_parts(cls, parts: Iterable[str], vocab_size: int) -> "BPETokenizer":
        """Join the most frequent pairs in a text, from the 256 bytes on, until there are `vocab_size` pieces.

        The library's time grows with the square of the length of a word, and of a run of spaces. So a run
        that is all whitespace, or none of it, is cut after every LONGEST_RUN characters, and the pairs across
        a cut are not counted. Encoding needs no cut.
        """
        untrained = cls(list(byte_letters()), [])
        settings = {"initial_alphabet": untrained.vocabulary, "show_progress": False}
        trainer = library("tokenizers", "hf").trainers.BpeTrainer(vocab_size=vocab_size, **settings)
        untrained.bpe.train_from_iterator((run for part in parts for run in LONG_RUN.split(part)), trainer)
        model = json.loads(untrained.bpe.to_str())["model"]
        return cls(sorted(model["vocab"], key=model["vocab"].get), model["merges"])

    @property
    def state(self) -> dict[str, Any]:
        merges = [list(pair) for pair in self.merges]
        return {"kind": self.kind, "vocabulary": self.vocabulary, "merges": merges}

    def ids(self, text: str) -> np.ndarray:
        # Lines are encoded on all cores. No piece reaches from a non-space across a line break
        lines = re.split(r"(?<=\S)(?=\n)", text.encode(errors="replace").decode())
        return np.array([i for line in self.bpe.encode_batch_fast(lines) for i in line.ids], dtype=np.uint16)


def first_characters(parts: Iterable[str], count: int) -> Iterator[str]:
    """The first `count` characters of a text that is read in parts."""
    for part in parts:
        yield part[:count]
        count -= len(part)
        if count <= 0:
            return


def byte_letters() -> dict[str, int]:
    """The letter for each byte in a tokenizer.json: its own character if visible, or else one from 256 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(others)}
