"""Batches of characters: training batches as a pure function of (seed, step, rank), and an exact pass over a whole split."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import lightning as L
import numpy as np
from torch import Tensor

from gpt.corpus import own_text, tiny_shakespeare
from gpt.settings import UserError
from gpt.tokenizer import CharTokenizer

Batch = tuple[Tensor, Tensor]  # inputs (B, T) and targets (B, T), which are the inputs one position later


@dataclass(frozen=True)
class DataConfig:
    """`conf/data`. Raises ValueError for sizes that make no batch or no split."""

    path: str | None  # a UTF-8 text file; None: Tiny Shakespeare
    folder: str  # where a downloaded Tiny Shakespeare is kept
    val_fraction: float  # the end of the text, held out
    batch_size: int  # windows in a batch, over all processes together

    def __post_init__(self) -> None:
        if not 0 < self.val_fraction < 1:
            raise ValueError(f"val_fraction = {self.val_fraction}: leaves a split empty; set it between 0 and 1, such as 0.1")
        if self.batch_size < 1:
            raise ValueError(f"batch_size = {self.batch_size}: must be at least 1; set a positive number")


class RandomWindows:
    """Endless training batches of which number k depends on (seed, k) alone, cut short after `length`.

    The windows of the whole batch are drawn from a counter-based generator (Philox, keyed by seed and k), and each of
    `world` processes takes its share: any number of processes trains on the same windows, from any step on.
    """

    def __init__(
        self,
        ids: Tensor,
        context_length: int,
        batch_size: int,
        seed: int,
        length: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.windows = ids.unfold(0, context_length + 1, 1)  # (len(ids) - T, T + 1), a view
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
        windows = self.windows[picks]  # (B, T + 1)
        return windows[:, :-1], windows[:, 1:]


class AllWindows:
    """Every non-overlapping window of `ids` once, in order; a rest shorter than a window is left out."""

    def __init__(self, ids: Tensor, context_length: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        windows = ids.unfold(0, context_length + 1, context_length)  # targets of one window are inputs of the next
        self.batches = windows[rank::world].split(batch_size)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return ((windows[:, :-1], windows[:, 1:]) for windows in self.batches)


class CharData(L.LightningDataModule):
    """A text, split in order into a training and a validation part, as ids of its own characters or of a given tokenizer.

    Raises UserError if the text has fewer than two different characters, or a part is shorter than one window.
    """

    def __init__(self, config: DataConfig, context_length: int, seed: int, tokenizer: CharTokenizer | None = None) -> None:
        super().__init__()
        self.config, self.context_length, self.seed = config, context_length, seed
        text = own_text(Path(config.path)) if config.path else tiny_shakespeare(Path(config.folder))
        self.sha256 = hashlib.sha256(text.encode()).hexdigest()
        self.tokenizer = tokenizer or CharTokenizer.from_text(text)
        name = config.path or "null"
        if len(self.tokenizer) < 2:
            raise UserError(f"data.path = {name}: only the character {text[0]!r}, nothing to predict; give a text with more")
        split = int(len(text) * (1 - config.val_fraction))
        for part, size in (("training", split), ("validation", len(text) - split)):
            if size < context_length + 1:
                raise UserError(
                    f"data.path = {name}: its {part} split has {size:,} characters, fewer than the {context_length + 1:,} of one "
                    "window; give a longer text, or set a smaller model.context_length"
                )
        ids = self.tokenizer.encode(text)
        self.train_ids, self.val_ids = ids[:split], ids[split:]

    def train_dataloader(self) -> RandomWindows:
        trainer = self.trainer
        if self.config.batch_size % trainer.world_size:
            raise UserError(
                f"data.batch_size = {self.config.batch_size}: not divisible among {trainer.world_size} processes; set a multiple"
            )
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

    def exact(self, ids: Tensor) -> AllWindows:
        """The pass over `ids` that makes a loss exact: each position once, this process's share of it."""
        # Windows are small and nothing is kept for a backward pass: a fixed size, so that no setting changes the sum's order
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return AllWindows(ids, self.context_length, 32, rank, world)
