"""The examples of a task as batches of sequences: training batches as a pure function of (seed, number)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from gpt.config import FinetuneConfig, TaskConfig
from gpt.data import VALIDATION_BATCH, Data, DataConfig, open_text, print_note
from gpt.errors import UserError
from gpt.finetune.inputs import Inputs, collate, to_sequences
from gpt.finetune.task import Example, Task
from gpt.finetune.tasks import make_task
from gpt.text import Text
from gpt.tokenizer import Tokenizer, tokenizer_class

Encoded = tuple[list[list[int]], int]  # the sequences of an example, and its label
BATCHES_SORTED = 16  # so many batches at a time have their examples sorted by length: less padding


def source_text(task: TaskConfig, config: DataConfig) -> Text:
    """The text that a task is made from: its own file, or that of the run. Raises UserError if there is none."""
    raw = tokenizer_class(config.tokenizer).reads_bytes
    if not is_from_file(task):
        return open_text(config, raw)
    try:
        return open_text(replace(config, path=task.path), raw)
    except UserError as error:
        reason = str(error).replace("data.path", "task.path", 1).rpartition(";")[0]
        raise UserError(f"{reason}; give a CSV or TSV file in UTF-8") from None


def is_from_file(task: TaskConfig) -> bool:
    """Whether the examples are in a file of their own, rather than made from the text of the run."""
    return task.name == "csv" and task.path is not None


class ExampleBatches:
    """Training batches number `start` to `length` - 1. Batch k depends on (seed, k) alone, as in `gpt.data.ShuffledWindows`.

    An epoch is a permutation of the examples, of which the last few are left out if they do not fill a batch. With several
    processes, each takes its share of a batch. Batches have few different lengths: in bfloat16 on a CPU, oneDNN keeps the
    code and buffers that it makes for each new shape, some megabytes for each length (dev/LOG.md, 2026-11-25).
    """

    def __init__(
        self,
        examples: Sequence[Encoded],
        batch_size: int,
        seed: int,
        length: int,
        longest: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.examples, self.batch_size, self.seed = examples, min(batch_size, len(examples)), seed
        self.length, self.longest, self.start, self.rank, self.world_size = (
            length,
            longest,
            start,
            rank,
            world_size,
        )
        self.sizes = np.array([max(map(len, sequences)) for sequences, _ in examples])

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Inputs]:
        per_epoch = len(self.examples) // self.batch_size
        epoch, batches = -1, []
        for k in range(self.start, self.length):
            if k // per_epoch != epoch:
                epoch = k // per_epoch
                batches = self.epoch(epoch)
            rows = batches[k % per_epoch][self.rank :: self.world_size]
            yield collate([self.examples[row] for row in rows], self.longest)

    def epoch(self, number: int) -> list[np.ndarray]:
        """The rows of each batch of an epoch, in an order of its own: examples of similar length meet in a batch."""
        generator = np.random.Generator(np.random.Philox(key=[self.seed, number]))
        rows = generator.permutation(len(self.examples))
        batches = []
        for start in range(0, len(rows), BATCHES_SORTED * self.batch_size):
            some = rows[start : start + BATCHES_SORTED * self.batch_size]
            some = some[np.argsort(self.sizes[some], kind="stable")]
            full = range(0, len(some) - self.batch_size + 1, self.batch_size)
            batches += [some[first : first + self.batch_size] for first in full]
        return [batches[n] for n in generator.permutation(len(batches))]


class TaskData(Data):
    """A task as sequences of ids for training, for choosing the checkpoint, and for testing.

    The held-out examples are drawn from those for training, by the seed. The test part takes no part in choosing anything.
    Without a `tokenizer` the one that `config` asks for is made for the text that the task is made from.
    Raises UserError for a text that is missing, makes no task, or has characters that the tokenizer does not know.
    """

    def __init__(
        self,
        task: TaskConfig,
        finetune: FinetuneConfig,
        config: DataConfig,
        context_length: int,
        seed: int,
        tokenizer: Tokenizer | None = None,
    ) -> None:
        super().__init__()
        self.batch_size, self.seed, self.drop_unknown = config.batch_size, seed, finetune.drop_unknown
        text, train_fraction = source_text(task, config), 1 - config.val_fraction
        self.sha256 = text.sha256
        if tokenizer is None:
            tokenizer = tokenizer_class(config.tokenizer).fit(text, train_fraction, config.bpe_vocab_size)
        self.tokenizer, self.unit, self.max_length = (
            tokenizer,
            tokenizer.unit,
            min(context_length, task.max_length),
        )
        train_text = test_text = ""
        if not is_from_file(task):
            whole = "".join(open_text(config, raw=False))
            split = int(len(whole) * train_fraction)  # where pre-training splits it
            train_text, test_text = whole[:split], whole[split:]
        self.task: Task = make_task(task, train_text, test_text, seed)
        self.dropped: set[str] = set()
        encoded = [self.encode(example) for example in self.task.train]
        order = np.random.Generator(np.random.Philox(key=[seed, 2**63])).permutation(len(encoded))
        held_out = max(1, round(finetune.val_fraction * len(encoded)))
        if held_out >= len(encoded):
            raise UserError(f"task = {self.task.name}: {len(encoded)} training examples, too few; give more")
        self.train = [encoded[n] for n in order[held_out:]]
        self.val = [encoded[n] for n in order[:held_out]]
        self.test = [self.encode(example) for example in self.task.test]
        if self.dropped:
            names = ", ".join(map(repr, sorted(self.dropped)[:10])) + (
                ", ..." if len(self.dropped) > 10 else ""
            )
            print_note(f"task = {self.task.name}: left out {names}, which the tokenizer does not know")
        self.steps_per_epoch = len(self.train) // min(self.batch_size, len(self.train))
        lengths = tokenizer.lengths[0].tolist()
        texts = [sequence for sequences, _ in self.val for sequence in sequences]
        ids = [id for sequence in texts for id in sequence if id < len(tokenizer)]
        self.characters_per_id = sum(lengths[id] for id in ids) / max(len(ids), 1)

    def encode(self, example: Example) -> Encoded:
        """The sequences and the label of an example. Raises UserError for unknown characters, unless they may be dropped."""
        if self.drop_unknown:
            known = tuple(self.tokenizer.drop_unknown(text) for text in example.texts)
            for text, kept in zip(example.texts, known, strict=True):
                self.dropped |= set(text) - set(kept)
            example = replace(example, texts=known)
        try:
            return to_sequences(example, self.task.kind, self.tokenizer, self.max_length), example.label
        except UserError as error:
            reason = str(error).rpartition(";")[0]
            advice = "set finetune.drop_unknown=true to leave them out, or pre-train with data.tokenizer=byte"
            raise UserError(f"{reason}; {advice}") from None

    def train_dataloader(self) -> ExampleBatches:
        trainer = self.trainer
        assert trainer is not None
        per_step = trainer.accumulate_grad_batches
        length, start = trainer.max_steps * per_step, trainer.global_step * per_step
        share = trainer.global_rank, trainer.world_size
        return ExampleBatches(self.train, self.batch_size, self.seed, length, self.max_length, start, *share)

    def val_dataloader(self) -> "AllExamples":
        return AllExamples(self.val)


class AllExamples:
    """Every example once, in batches of examples of similar length. No setting changes what is in a batch."""

    def __init__(self, examples: Sequence[Encoded]) -> None:
        self.examples = sorted(examples, key=lambda example: max(map(len, example[0])))

    def __len__(self) -> int:
        return math.ceil(len(self.examples) / VALIDATION_BATCH)

    def __iter__(self) -> Iterator[Inputs]:
        for start in range(0, len(self.examples), VALIDATION_BATCH):
            yield collate(self.examples[start : start + VALIDATION_BATCH])
