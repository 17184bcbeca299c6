"""Batches of ids: training batches as a function of (seed, number), and an exact pass over a split."""

import hashlib
import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_only
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor
from tqdm import tqdm

from gpt.config import DataConfig
from gpt.draft import count
from gpt.errors import UserError, one_line, shorten
from gpt.files import atomic, remove_staged
from gpt.sources import PART
from gpt.text import Text
from gpt.tokenizer import CharTokenizer, Tokenizer, tokenizer_class

Ids = Tensor | np.ndarray  # (N,), integers
Batch = tuple[Tensor, Tensor]  # inputs (B, T) and targets (B, T), which are the inputs one position later
Share = tuple[int, int]  # of a process: its rank, and how many there are
VALIDATION_BATCH = 32  # windows; fixed, so that no setting changes the order in which losses are added
IN_MEMORY = 2**26  # characters; the ids of a longer text are kept in a file
SHOWN = "encoding the text {percentage:.0f}% {bar} ETA {remaining}"
BAR: dict[str, Any] = {"bar_format": SHOWN, "leave": False, "dynamic_ncols": True}


def batch_of(windows: np.ndarray) -> Batch:
    """Inputs and targets (B, T) from windows (B, T + 1)."""
    ids = torch.from_numpy(windows.astype(np.int64))
    return ids[:, :-1], ids[:, 1:]


@dataclass(eq=False)
class ShuffledWindows:
    """Training batches number `start` to `length` - 1. Batch k depends on (seed, k) alone.

    Batches go through the text epoch by epoch: it is cut into adjacent windows, at another place each time,
    and these are shuffled, so that every character is read equally often. Windows from random places never
    read an eighth of the text in two epochs, which costs 0.03 nats (docs/log.md, 2026-11-25).

    Places and order are drawn from a counter-based generator (Philox, keyed by seed and epoch; Salmon et al.
    2011, "Parallel Random Numbers: As Easy as 1, 2, 3"), and each process takes its share of every batch.
    So any number of processes trains on the same windows, and training can be resumed at any step.
    """

    ids: Ids
    context_length: int
    batch_size: int
    seed: int
    length: int
    start: int = 0
    share: Share = (0, 1)

    def __post_init__(self) -> None:
        self.windows = sliding_window_view(np.asarray(self.ids), self.context_length + 1)  # (N - T, T + 1)
        self.per_epoch = max(1, len(self.windows) // self.context_length)
        self.current = -1, np.empty(0, np.int64)  # the epoch that was used last, and its order

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Batch]:
        return map(self.batch, range(self.start, self.length))

    def batch(self, k: int) -> Batch:
        """This process's share of batch number k."""
        rank, processes = self.share
        numbers = np.arange(k * self.batch_size, (k + 1) * self.batch_size)[rank::processes]
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

    With several processes each gets whole batches, so that every batch has the same loss as with one process.
    """

    def __init__(self, ids: Ids, context_length: int, batch_size: int, share: Share = (0, 1)) -> None:
        # The last target of a window is the first input of the next one
        windows = sliding_window_view(np.asarray(ids), context_length + 1)[::context_length]
        batches = [windows[start : start + batch_size] for start in range(0, len(windows), batch_size)]
        # With fewer batches than processes each takes all: one without any would make the others wait
        rank, processes = share
        self.batches = batches[rank::processes] if len(batches) >= processes else batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return map(batch_of, self.batches)


def encode(text: Text, tokenizer: Tokenizer, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """The ids of a text for training and those for validation, in the tokenizer's type.

    Those of a long text are written once into files below `folder`, which are mapped into memory and found by
    the SHA-256 of what they depend on. Processes that need the same files wait for the one that writes them.
    Raises UserError if they cannot be written.
    """
    if len(text) <= IN_MEMORY:
        train, val = zip(*encode_parts(text, tokenizer), strict=True)
        return np.concatenate(train), np.concatenate(val)
    dtype = tokenizer.ids("").dtype
    key = hashlib.sha256(json.dumps([text.sha256, tokenizer.state, text.split, dtype.str]).encode())
    place = folder / ".ids" / key.hexdigest()  # hidden, so that it is no part of a text in the same folder
    train_file, val_file = place / "train.ids", place / "val.ids"
    try:
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / "lock"):
            remove_staged(place)
            if not (train_file.exists() and val_file.exists()):
                with atomic(train_file) as train_ids, atomic(val_file) as val_ids:
                    for train, val in encode_parts(text, tokenizer):
                        train_ids.write(train.data)
                        val_ids.write(val.data)
        ids = np.memmap(train_file, dtype, mode="r")  # an empty file could not be mapped
        return ids, np.memmap(val_file, dtype, mode="r") if text.split < len(text) else ids[:0]
    except OSError as error:
        reason = f"the text's ids cannot be kept there ({error.strerror}); set another folder"
        raise UserError(f"data.folder = {folder}: {reason}") from None


def encode_parts(text: Text, tokenizer: Tokenizer) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Encode a text part by part: the ids (T,) for training and those for validation, with a progress bar."""
    position = 0
    is_hidden = None if len(text) > IN_MEMORY else True  # None: if stderr is not a terminal
    for part in tqdm(text, total=math.ceil(len(text) / PART), disable=is_hidden, **BAR):
        cut = min(max(text.split - position, 0), len(part))
        position += len(part)
        yield tokenizer.ids(part[:cut]), tokenizer.ids(part[cut:])


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
    description: str  # what there is to train on: "1,003,854 characters for training"
    metadata: Mapping[str, Any] = {}  # what else a checkpoint says about it
    max_steps: int | None = None  # the most steps that it allows
    draft: Mapping[str, Tensor] = {}  # the table of a `gpt.draft.Drafter`, if there can be one

    def span(self) -> tuple[int, int, Share]:
        """The number of batches of the run, of those that are done, and this process's share of each."""
        trainer = cast(L.Trainer, self.trainer)
        per_step = trainer.accumulate_grad_batches
        share = trainer.global_rank, trainer.world_size
        return trainer.max_steps * per_step, trainer.global_step * per_step, share


def adapted(tokenizer: Tokenizer, text: Text, config: DataConfig) -> Tokenizer:
    """The tokenizer of other weights for a text, of which it may not know all characters.

    Raises UserError if so, unless data.drop_unknown or data.extend_vocabulary says what to do with them.
    """
    known = tokenizer.vocabulary if isinstance(tokenizer, CharTokenizer) else None  # None: any text
    new = "" if known is None else "".join(sorted({*CharTokenizer.fit(text).vocabulary} - {*known}))
    if known is None or not new:
        return tokenizer
    if config.extend_vocabulary:
        return CharTokenizer(known + new)
    names = shorten(", ".join(map(repr, new)))
    if config.drop_unknown:
        print_note(f"{text.name}: left out {names}, which the model does not know")
        return CharTokenizer(known, drops_unknown=True)
    reason = f"{names} not among the {len(known)} characters that the model knows"
    advice = "data.extend_vocabulary=true teaches them, data.drop_unknown=true leaves them out"
    raise UserError(f"{text.name}: {reason}; {advice}")


class TextData(Data):
    """A text as ids for training and, if a part of it is held out, for validation.

    Without a `tokenizer` the one that `config` asks for is made for the text. Raises UserError if there is no
    text, if it has unknown characters or fewer than two, or if a part is shorter than one window.
    """

    def __init__(
        self, config: DataConfig, context_length: int, seed: int, tokenizer: Tokenizer | None = None
    ) -> None:
        super().__init__()
        self.config, self.context_length, self.seed = config, context_length, seed
        kind = tokenizer_class(config.tokenizer) if tokenizer is None else type(tokenizer)
        text = Text(config, kind.reads_bytes)
        fit = partial(kind.fit, text, config.bpe_vocab_size)
        self.tokenizer = fit() if tokenizer is None else adapted(tokenizer, text, config)
        if len(self.tokenizer) < 2:
            only = self.tokenizer.decode([0])
            raise UserError(f"{text.name}: only the character {only!r}, nothing to predict")
        if self.tokenizer.remark:
            print_note(f"{text.name}: {self.tokenizer.remark}")
        self.train_ids, self.val_ids = encode(text, self.tokenizer, Path(config.folder))
        self.sha256, self.unit = text.sha256, self.tokenizer.unit
        self.characters_per_id = text.split / max(len(self.train_ids), 1)
        self.description = f"{len(self.train_ids):,} {self.unit} for training"
        for part, ids in (("training", self.train_ids), ("validation", self.val_ids)):
            if len(ids) <= context_length and (part == "training" or text.split < len(text)):
                few = f"{len(ids):,} {self.unit}, fewer than the {context_length + 1:,} of one window"
                advice = "give a longer text, or set a smaller model.context_length"
                raise UserError(f"{text.name}: its {part} split has {few}; {advice}")

    @cached_property
    def draft(self) -> dict[str, Tensor]:  # type: ignore[override]
        return count(np.asarray(self.train_ids), len(self.tokenizer))

    def train_dataloader(self) -> ShuffledWindows:
        windows = self.train_ids, self.context_length, self.config.batch_size, self.seed
        return ShuffledWindows(*windows, *self.span())

    def val_dataloader(self) -> AllWindows:
        """All of the validation part. If there is none, an empty batch: a run is saved all the same."""
        windows = self.exact(self.val_ids if len(self.val_ids) else self.train_ids[: self.context_length + 1])
        if not len(self.val_ids):
            windows.batches = [batch[:0] for batch in windows.batches]
        return windows

    def exact(self, ids: np.ndarray) -> AllWindows:
        """The batches whose mean loss is that of `ids` (N,): every position once, shared among processes."""
        share = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return AllWindows(ids, self.context_length, VALIDATION_BATCH, share)
