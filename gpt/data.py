"""Batches of ids: training batches as a pure function of (seed, number), and an exact pass over a whole split."""

import pkgutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from gpt.config import DataConfig
from gpt.errors import UserError, one_line
from gpt.text import Text, find_files, tiny_shakespeare_file
from gpt.tokenizer import Tokenizer, tokenizer_class

Batch = tuple[Tensor, Tensor]  # inputs (B, T) and targets (B, T), which are the inputs one position later

VALIDATION_BATCH = 32  # windows; fixed, so that no setting changes the order in which losses are added
IN_MEMORY = 2**26  # characters; the ids of a longer text are kept in a file
LARGE_TEXTS = "gpt.interop.large_texts:encode_into_file"  # imported when a text is longer than that


def batch_of(windows: np.ndarray) -> Batch:
    """Inputs and targets (B, T) from windows (B, T + 1)."""
    ids = torch.from_numpy(windows.astype(np.int64))
    return ids[:, :-1], ids[:, 1:]


class ShuffledWindows:
    """Training batches number `start` to `length` - 1. Batch k depends on (seed, k) alone.

    Batches go through the text epoch by epoch: it is cut into adjacent windows, at another place each time, and these are
    shuffled. So every character is read equally often. Windows from random places read some of them again and again and others
    never: an eighth of the text after two epochs, which costs 0.03 nats (dev/LOG.md, 2026-11-25).

    Places and order are drawn from a counter-based generator (Philox, keyed by seed and epoch; Salmon et al. 2011, "Parallel
    Random Numbers: As Easy as 1, 2, 3"), and each process takes its share of every batch. So any number of processes trains on
    the same windows, and training can be resumed at any step.
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
        world_size: int = 1,
    ) -> None:
        self.windows = sliding_window_view(
            np.asarray(ids), context_length + 1
        )  # (len(ids) - T, T + 1), a view
        self.context_length, self.batch_size, self.seed = context_length, batch_size, seed
        self.length, self.start, self.rank, self.world_size = length, start, rank, world_size
        self.per_epoch = max(1, len(self.windows) // context_length)
        self.current = -1, np.empty(0, np.int64)  # the epoch that was used last, and its order

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        for k in range(self.start, self.length):
            yield self.batch(k)

    def batch(self, k: int) -> Batch:
        """This process's share of batch number k."""
        numbers = np.arange(k * self.batch_size, (k + 1) * self.batch_size)[self.rank :: self.world_size]
        epochs, places = np.divmod(numbers, self.per_epoch)
        starts = [self.order(epoch)[places[epochs == epoch]] for epoch in np.unique(epochs)]
        return batch_of(self.windows[np.concatenate(starts)])

    def order(self, epoch: int) -> np.ndarray:
        """Where the windows of an epoch start, one after another."""
        if self.current[0] != epoch:
            generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            first = generator.integers(min(self.context_length, len(self.windows)))
            self.current = epoch, first + self.context_length * generator.permutation(self.per_epoch)
        return self.current[1]


class AllWindows:
    """Every non-overlapping window of `ids` once, in order. A rest that is shorter than a window is left out.

    With several processes each gets whole batches, so that every batch has the same loss as with a single process.
    """

    def __init__(
        self,
        ids: Tensor | np.ndarray,
        context_length: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        # The last target of a window is the first input of the next one
        windows = sliding_window_view(np.asarray(ids), context_length + 1)[::context_length]
        batches = [windows[start : start + batch_size] for start in range(0, len(windows), batch_size)]
        # With fewer batches than processes each takes all of them: a process without any would keep the others waiting
        self.batches = batches[rank::world_size] if len(batches) >= world_size else batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return map(batch_of, self.batches)


def encode(text: Text, tokenizer: Tokenizer, split: int, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The ids of the first `split` characters of a text and those of the rest, in the type of `id_type`.

    Those of a long text are kept in `folder` and mapped into memory.
    """
    if len(text) > IN_MEMORY:
        large: tuple[np.ndarray, np.ndarray] = pkgutil.resolve_name(LARGE_TEXTS)(
            text, tokenizer, split, folder
        )
        return large
    parts: dict[bool, list[np.ndarray]] = {True: [], False: []}
    for is_training, ids in encode_parts(text, tokenizer, split):
        parts[is_training].append(ids)
    return np.concatenate(parts[True]), np.concatenate(parts[False])


def encode_parts(text: Iterable[Any], tokenizer: Tokenizer, split: int) -> Iterator[tuple[bool, np.ndarray]]:
    """Read and encode a text part by part. Yields whether the ids (T,) belong to the training split, and the ids."""
    position, dtype = 0, id_type(tokenizer)
    for part in text:
        cut = min(max(split - position, 0), len(part))
        position += len(part)
        yield True, tokenizer.ids(part[:cut]).astype(dtype, copy=False)
        yield False, tokenizer.ids(part[cut:]).astype(dtype, copy=False)


def id_type(tokenizer: Tokenizer) -> np.dtype:
    """One byte if that is enough for the vocabulary, else two. The same on every machine, as ids are also kept in files."""
    return np.dtype("u1" if len(tokenizer) <= 2**8 else "<u2")


def open_text(config: DataConfig, raw: bool) -> Text:
    """The text that `config` names, as bytes if `raw`. Raises UserError if there is none."""
    return Text(
        [tiny_shakespeare_file(Path(config.folder))] if config.path is None else find_files(config.path), raw
    )


@rank_zero_only
def print_note(message: str) -> None:
    """Print a line on stderr, from one of the processes."""
    print(f"note: {one_line(message)}", file=sys.stderr)


class Data(L.LightningDataModule):
    """What any run trains on."""

    tokenizer: Tokenizer
    sha256: str  # of the text or file that it was made from
    unit: str  # what a token is
    characters_per_id: float  # the mean length of a token, in characters


class TextData(Data):
    """A text as ids, split in order into a training and a validation part.

    Without a `tokenizer` the one that `config` asks for is made for the text. `share_validation` divides the validation
    batches among the processes. Without it every process has all of them, which sharded weights need: they are gathered for
    each batch, so all processes must have equally many.
    Raises UserError if there is no such text or its characters are not in the vocabulary, if it has fewer than two
    different ones, or if a part is shorter than one window.
    """

    def __init__(
        self,
        config: DataConfig,
        context_length: int,
        seed: int,
        tokenizer: Tokenizer | None = None,
        share_validation: bool = True,
    ) -> None:
        super().__init__()
        self.config, self.context_length, self.seed, self.share_validation = (
            config,
            context_length,
            seed,
            share_validation,
        )
        folder, name = Path(config.folder), config.path or "null"
        kind = tokenizer_class(config.tokenizer) if tokenizer is None else type(tokenizer)
        text = open_text(config, raw=kind.reads_bytes)
        train_fraction = 1 - config.val_fraction
        self.tokenizer = (
            kind.fit(text, train_fraction, config.bpe_vocab_size) if tokenizer is None else tokenizer
        )
        if len(self.tokenizer) < 2:
            only = self.tokenizer.decode([0])
            raise UserError(
                f"data.path = {name}: only the character {only!r}, nothing to predict; give a text with more"
            )
        if self.tokenizer.remark:
            print_note(f"data.path = {name}: {self.tokenizer.remark}")
        split = int(len(text) * train_fraction)
        self.train_ids, self.val_ids = encode(text, self.tokenizer, split, folder)
        self.sha256, self.unit = text.sha256, self.tokenizer.unit
        self.characters_per_id = split / max(len(self.train_ids), 1)
        for part, ids in (("training", self.train_ids), ("validation", self.val_ids)):
            if len(ids) <= context_length:
                raise UserError(
                    f"data.path = {name}: its {part} split has {len(ids):,} {self.unit}, fewer than the {context_length + 1:,} "
                    "of one window; give a longer text, or set a smaller model.context_length"
                )

    def train_dataloader(self) -> ShuffledWindows:
        trainer = self.trainer
        assert trainer is not None
        batches_per_step = trainer.accumulate_grad_batches
        return ShuffledWindows(
            self.train_ids,
            self.context_length,
            self.config.batch_size,
            self.seed,
            length=trainer.max_steps * batches_per_step,
            start=trainer.global_step * batches_per_step,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
        )

    def val_dataloader(self) -> AllWindows:
        return self.exact(self.val_ids)

    def exact(self, ids: np.ndarray) -> AllWindows:
        """The batches over which the mean loss of `ids` (N,) is exact: every position once, shared among the processes."""
        rank, world_size = 0, 1
        if self.trainer is not None and self.share_validation:
            rank, world_size = self.trainer.global_rank, self.trainer.world_size
        return AllWindows(ids, self.context_length, VALIDATION_BATCH, rank, world_size)
