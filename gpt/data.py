"""Batches of ids: training batches as a pure function of (seed, step, rank), and an exact pass over a whole split."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_only
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from gpt.corpus import Text, find_files, tiny_shakespeare_file
from gpt.encode import encode, make_tokenizer
from gpt.settings import UserError
from gpt.tokenizer import KINDS, CharTokenizer, Tokenizer

Batch = tuple[Tensor, Tensor]  # inputs (B, T) and targets (B, T), which are the inputs one position later


@dataclass(frozen=True)
class DataConfig:
    """`conf/data`. Raises ValueError for sizes that make no batch or no split."""

    path: str | None  # a text file, a folder of them, or a pattern with *; None: Tiny Shakespeare
    folder: str  # where a downloaded Tiny Shakespeare and the ids of large texts are kept
    val_fraction: float  # the end of the text, held out
    batch_size: int  # windows in a batch, over all processes together
    tokenizer: str = "char"  # char, byte, or bpe
    bpe_vocab_size: int = 512

    def __post_init__(self) -> None:
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction = {self.val_fraction}: leaves a split empty; set it between 0 and 1, such as 0.1")
        if self.batch_size < 1:
            raise ValueError(f"batch_size = {self.batch_size}: must be at least 1; set a positive number")
        if self.tokenizer not in KINDS:
            raise ValueError(f"tokenizer = {self.tokenizer}: unknown; choose one of {', '.join(KINDS)}")
        if not 2**8 <= self.bpe_vocab_size <= 2**16:
            raise ValueError(f"bpe_vocab_size = {self.bpe_vocab_size}: must be from {2**8} to {2**16}; set for instance 512")


def batch_of(windows: np.ndarray) -> Batch:
    """Inputs and targets, from windows (B, T + 1)."""
    ids = torch.from_numpy(windows.astype(np.int64))
    return ids[:, :-1], ids[:, 1:]


class RandomWindows:
    """Endless training batches of which number k depends on (seed, k) alone, cut short after `length`.

    The windows of the whole batch are drawn from a counter-based generator (Philox, keyed by seed and k), and each of
    `world` processes takes its share: any number of processes trains on the same windows, from any step on.
    """

    def __init__(
        self,
        ids: Tensor | np.ndarray,
        context_length: int,
        batch_size: int,
        seed: int,
        length: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.windows = sliding_window_view(np.asarray(ids), context_length + 1)  # (len(ids) - T, T + 1), nothing is copied
        self.batch_size, self.seed, self.length, self.start = batch_size, seed, length, start
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        for k in range(self.start, self.length):
            yield self.batch(k)

    def batch(self, k: int) -> Batch:
        """Batch number k, this process's share."""
        generator = np.random.Generator(np.random.Philox(key=[self.seed, k]))
        picks = generator.integers(len(self.windows), size=self.batch_size)[self.rank :: self.world]
        return batch_of(self.windows[picks])


class AllWindows:
    """Every non-overlapping window of `ids` once, in order; a rest shorter than a window is left out.

    Each of `world` processes gets whole batches, so that every batch has the loss that it has for one process.
    """

    def __init__(self, ids: Tensor | np.ndarray, context_length: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        windows = sliding_window_view(np.asarray(ids), context_length + 1)[::context_length]  # the last target begins the next
        batches = [windows[start : start + batch_size] for start in range(0, len(windows), batch_size)]
        self.batches = batches[rank::world] if len(batches) >= world else batches  # none left without, or others would wait

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return map(batch_of, self.batches)


class CharData(L.LightningDataModule):
    """A text, split in order into a training and a validation part, as ids of its own characters, or of bytes, or of pieces
    found in its training part, or of a given tokenizer.

    Raises UserError if the text has fewer than two different characters, or a part is shorter than one window.
    """

    def __init__(self, config: DataConfig, context_length: int, seed: int, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        self.config, self.context_length, self.seed = config, context_length, seed
        files = find_files(config.path) if config.path else [tiny_shakespeare_file(Path(config.folder))]
        text, name = Text(files, raw=config.tokenizer == "byte"), config.path or "null"
        share = 1 - config.val_fraction
        self.tokenizer = tokenizer or make_tokenizer(text, config.tokenizer, config.bpe_vocab_size, share)
        if len(self.tokenizer) < 2:
            raise UserError(
                f"data.path = {name}: only the character {self.tokenizer.start!r}, nothing to predict; give a text with more"
            )
        if isinstance(self.tokenizer, CharTokenizer) and (control := self.tokenizer.control):
            rank_zero_only(print)(f"note: data.path = {name}: control characters in it, kept: {control!r}", file=sys.stderr)
        if tokenizer is None and config.tokenizer == "bpe" and (found := len(self.tokenizer)) < config.bpe_vocab_size:
            rank_zero_only(print)(f"note: data.bpe_vocab_size = {config.bpe_vocab_size}: {found} pieces found", file=sys.stderr)
        split = int(len(text) * share)
        self.train_ids, self.val_ids = encode(text, self.tokenizer, split, Path(config.folder))
        self.sha256, self.characters_per_id = text.sha256, split / max(len(self.train_ids), 1)
        self.unit = {"char": "characters", "byte": "bytes", "bpe": "tokens"}[config.tokenizer]
        for part, ids in (("training", self.train_ids), ("validation", self.val_ids)):
            if len(ids) < context_length + 1:
                raise UserError(
                    f"data.path = {name}: its {part} split has {len(ids):,} {self.unit}, fewer than the {context_length + 1:,} "
                    "of one window; give a longer text, or set a smaller model.context_length"
                )

    def train_dataloader(self) -> RandomWindows:
        trainer = self.trainer
        accumulate = trainer.accumulate_grad_batches
        return RandomWindows(
            self.train_ids,
            self.context_length,
            self.config.batch_size,
            self.seed,
            length=trainer.max_steps * accumulate,
            start=trainer.global_step * accumulate,
            rank=trainer.global_rank,
            world=trainer.world_size,
        )

    def val_dataloader(self) -> AllWindows:
        return self.exact(self.val_ids)

    def exact(self, ids: np.ndarray) -> AllWindows:
        """The pass over `ids` that makes a loss exact: each position once, this process's share of it."""
        # Windows are small and nothing is kept for a backward pass: a fixed size, so that no setting changes the sum's order
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if self.trainer and isinstance(self.trainer.strategy, ModelParallelStrategy):
            rank, world = 0, 1  # weights are gathered for each batch: all must have equally many
        return AllWindows(ids, self.context_length, 32, rank, world)
