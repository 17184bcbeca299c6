"""The examples of a task as batches of sequences: training batches as a pure function of (seed, number)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from gpt.config import RunConfig
from gpt.data import VALIDATION_BATCH, Data, open_text, print_note
from gpt.errors import UserError
from gpt.finetune.inputs import Encoded, Inputs, collate, to_sequences
from gpt.finetune.task import Example, Task
from gpt.finetune.tasks import make_task
from gpt.text import Text
from gpt.tokenizer import Tokenizer, tokenizer_class

BATCHES_SORTED = 16  # so many batches at a time have their examples sorted by length: less padding


@dataclass
class ExampleBatches:
    """Training batches number `start` to `length` - 1. Batch k depends on (seed, k) alone, as in `gpt.data`.

    An epoch is a permutation of the examples, of which the last few are left out if they do not fill a batch.
    With several processes, each takes its share of a batch. Batches have few different lengths: in bfloat16
    on a CPU, oneDNN keeps the code and buffers that it makes for each new shape, some megabytes for each
    length (docs/log.md, 2026-11-25).
    """

    examples: Sequence[Encoded]
    batch_size: int
    seed: int
    length: int
    longest: int  # tokens, which no sequence exceeds
    start: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        self.batch_size = min(self.batch_size, len(self.examples))

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Inputs]:
        per_epoch = len(self.examples) // self.batch_size
        for epoch, numbers in groupby(range(self.start, self.length), key=lambda k: k // per_epoch):
            batches = self.epoch(epoch)
            for k in numbers:
                rows = batches[k % per_epoch][self.rank :: self.world_size]
                yield collate([self.examples[row] for row in rows], self.longest)

    def epoch(self, number: int) -> list[np.ndarray]:
        """The rows of each batch of an epoch, in an order of its own. Those of a batch are similarly long."""
        generator = np.random.Generator(np.random.Philox(key=[self.seed, number]))
        rows, sizes = generator.permutation(len(self.examples)), np.array(list(map(size, self.examples)))
        batches = []
        for start in range(0, len(rows), BATCHES_SORTED * self.batch_size):
            some = rows[start : start + BATCHES_SORTED * self.batch_size]
            some = some[np.argsort(sizes[some], kind="stable")]
            full = range(0, len(some) - self.batch_size + 1, self.batch_size)
            batches += [some[first : first + self.batch_size] for first in full]
        return [batches[n] for n in generator.permutation(len(batches))]


def size(example: Encoded) -> int:
    """The number of tokens of an example's longest sequence."""
    return max(map(len, example[0]))


class AllExamples:
    """Every example once, in batches of examples of similar length. No setting changes what is in a batch."""

    def __init__(self, examples: Sequence[Encoded]) -> None:
        self.examples = sorted(examples, key=size)

    def __len__(self) -> int:
        return math.ceil(len(self.examples) / VALIDATION_BATCH)

    def __iter__(self) -> Iterator[Inputs]:
        for start in range(0, len(self.examples), VALIDATION_BATCH):
            yield collate(self.examples[start : start + VALIDATION_BATCH])


class TaskData(Data):
    """A task as sequences of ids for training, for choosing the checkpoint, and for testing.

    The held-out examples are drawn from those for training, by the seed. The test part has no say in
    anything. Without a `tokenizer` the one that `config` asks for is made for the text that the task is made
    from. Raises UserError for a text that is missing or makes no task, or characters that the tokenizer does
    not know.
    """

    def __init__(self, config: RunConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        assert config.task is not None  # RunConfig has both or none
        assert config.finetune is not None
        self.config, self.drop_unknown, self.dropped = config, config.finetune.drop_unknown, set[str]()
        self.task, text = task_and_text(config)
        self.sha256 = text.sha256
        if tokenizer is None:
            kind, train_fraction = tokenizer_class(config.data.tokenizer), 1 - config.data.val_fraction
            tokenizer = kind.fit(text, train_fraction, config.data.bpe_vocab_size)
        self.tokenizer, self.unit = tokenizer, tokenizer.unit
        self.max_length = min(config.model.context_length, config.task.max_length)
        encoded, name = [self.encode(example) for example in self.task.train], self.task.name
        order = np.random.Generator(np.random.Philox(key=[config.seed, 2**63])).permutation(len(encoded))
        held_out = max(1, round(config.finetune.val_fraction * len(encoded)))
        if held_out >= len(encoded):
            raise UserError(f"task = {name}: {len(encoded)} training examples, too few; give more")
        self.train = [encoded[n] for n in order[held_out:]]
        self.val = [encoded[n] for n in order[:held_out]]
        self.test = [self.encode(example) for example in self.task.test]
        if self.dropped:
            names = ", ".join(map(repr, sorted(self.dropped)[:10])) + ", ..." * (len(self.dropped) > 10)
            print_note(f"task = {name}: left out {names}, which the tokenizer does not know")
        ids = np.concatenate([np.concatenate(sequences) for sequences, _ in self.val])
        lengths = tokenizer.lengths[0].numpy()[ids[ids < len(tokenizer)]]
        self.characters_per_id = int(lengths.sum()) / max(len(lengths), 1)
        steps_per_epoch = len(self.train) // min(config.data.batch_size, len(self.train))
        self.max_steps = max(1, round(config.finetune.epochs * steps_per_epoch))
        held_out_and_tested = f"{len(self.val):,} to choose the checkpoint, {len(self.test):,} for the test"
        self.description = f"{len(self.train):,} examples for training, {held_out_and_tested}"
        labels = {"labels": list(self.task.labels), "max_length": self.max_length}
        self.metadata = {"task": {"name": name, "kind": self.task.kind, **labels}}

    def encode(self, example: Example) -> Encoded:
        """Raises UserError for characters that the tokenizer does not know, unless they may be dropped."""
        if self.drop_unknown:
            known = tuple(self.tokenizer.drop_unknown(text) for text in example.texts)
            self.dropped |= set("".join(example.texts)) - set("".join(known))
            example = replace(example, texts=known)
        try:
            return to_sequences(example, self.task.kind, self.tokenizer, self.max_length), example.label
        except UserError as error:
            reason = str(error).rpartition(";")[0]
            advice = "set finetune.drop_unknown=true to leave them out, or pre-train with data.tokenizer=byte"
            raise UserError(f"{reason}; {advice}") from None

    def train_dataloader(self) -> ExampleBatches:
        trainer, batch_size = self.trainer, self.config.data.batch_size
        assert trainer is not None
        per_step = trainer.accumulate_grad_batches
        length, start = trainer.max_steps * per_step, trainer.global_step * per_step
        share = start, trainer.global_rank, trainer.world_size
        return ExampleBatches(self.train, batch_size, self.config.seed, length, self.max_length, *share)

    def val_dataloader(self) -> AllExamples:
        return AllExamples(self.val)


def task_and_text(config: RunConfig) -> tuple[Task, Text]:
    """The task of a run, and the text or file that it is made from. Raises UserError if they are missing."""
    task, data = config.task, config.data
    assert task is not None
    raw = tokenizer_class(data.tokenizer).reads_bytes
    if task.name == "csv":
        made = make_task(task, "", "", config.seed)
        return made, open_text(data.model_copy(update={"path": task.path}), raw)
    whole = "".join(open_text(data, raw=False))
    split = int(len(whole) * (1 - data.val_fraction))  # where pre-training splits it
    return make_task(task, whole[:split], whole[split:], config.seed), open_text(data, raw)
