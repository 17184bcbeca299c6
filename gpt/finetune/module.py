"""What a run that fine-tunes is made of: its data, and a classifier that learns L3 = L2 + lm_weight * L1."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from statistics import mode
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_recall

from gpt.checkpoint import read
from gpt.config import RunConfig
from gpt.data import VALIDATION_BATCH, Data, Share, print_note
from gpt.errors import UserError, shorten
from gpt.finetune.model import Classifier, Encoded, Inputs, collate, to_sequences
from gpt.finetune.tasks import Example, make_task
from gpt.model import GPT
from gpt.module import GPTModule
from gpt.result import Result
from gpt.text import Text
from gpt.tokenizer import Tokenizer, tokenizer_class

BATCHES_SORTED = 16  # so many batches at a time have their examples sorted by length: less padding


def size(example: Encoded) -> int:
    """The number of tokens of an example's longest sequence."""
    return max(map(len, example[0]))


@dataclass
class ExampleBatches:
    """Training batches number `start` to `length` - 1. Batch k depends on (seed, k) alone, as in `gpt.data`.

    An epoch is a permutation of the examples without a last, smaller batch. Processes share each batch. Few
    lengths occur: in bfloat16 on a CPU, oneDNN keeps megabytes for each new one (docs/log.md, 2026-11-25).
    """

    examples: Sequence[Encoded]
    batch_size: int  # at most the number of examples
    seed: int
    longest: int  # tokens, which no sequence exceeds
    length: int
    start: int = 0
    share: Share = (0, 1)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Inputs]:
        (rank, processes), per_epoch = self.share, len(self.examples) // self.batch_size
        for epoch, numbers in groupby(range(self.start, self.length), key=lambda k: k // per_epoch):
            batches = self.epoch(epoch)
            for k in numbers:
                rows = batches[k % per_epoch][rank::processes]
                yield collate([self.examples[row] for row in rows], self.longest)

    def epoch(self, number: int) -> list[np.ndarray]:
        """The rows of each batch of an epoch, in an order of its own. Those of a batch are similarly long."""
        generator = np.random.Generator(np.random.Philox(key=[self.seed, number]))
        rows, many = generator.permutation(len(self.examples)), BATCHES_SORTED * self.batch_size
        batches: list[np.ndarray] = []
        for some in np.split(rows, range(many, len(rows), many)):
            by_size = some[np.argsort([size(self.examples[row]) for row in some], kind="stable")]
            batches += np.split(by_size, range(self.batch_size, len(by_size) + 1, self.batch_size))[:-1]
        return [batches[n] for n in generator.permutation(len(batches))]


def all_examples(examples: Sequence[Encoded]) -> DataLoader[Inputs]:
    """Every example once, in batches of similar length. No setting changes what is in a batch."""
    return DataLoader(sorted(examples, key=size), VALIDATION_BATCH, collate_fn=collate)  # type: ignore[arg-type]


class TaskData(Data):
    """A task as sequences of ids for training, for choosing the checkpoint, and for testing.

    Those that choose are drawn from the training examples, by the seed. The test part has no say in anything.
    Raises UserError for a text or table that is missing, makes no task, or has unknown characters.
    """

    def __init__(self, config: RunConfig, tokenizer: Tokenizer | None = None) -> None:
        super().__init__()
        task, finetune, source = config.task, config.finetune, config.data
        assert task is not None  # RunConfig has both or none
        assert finetune is not None
        kind, is_table = tokenizer_class(source.tokenizer), task.name == "csv"
        play, split = ("", 0) if is_table else ("".join(text := Text(source)), text.split)
        self.task = make_task(task, play[:split], play[split:], config.seed)
        table = source.model_copy(update={"path": task.path, "val_path": None, "column": None})
        text = Text(table, kind.reads_bytes, "task.path") if is_table else Text(source, kind.reads_bytes)
        if tokenizer is None:
            tokenizer = kind.fit(text, source.bpe_vocab_size)
        self.tokenizer, self.unit, self.sha256 = tokenizer, tokenizer.unit, text.sha256
        self.max_length = min(config.model.context_length, task.max_length)
        name, texts = self.task.name, {text for it in self.task.train + self.task.test for text in it.texts}
        if unknown := "".join(sorted({*"".join(texts)} - {*tokenizer.drop_unknown("".join(texts))})):
            names = shorten(", ".join(map(repr, unknown)))
            if not finetune.drop_unknown:
                reason = f"{names} not among the {len(tokenizer)} characters that the model knows"
                advice = "finetune.drop_unknown=true leaves them out; or pre-train with data.tokenizer=byte"
                raise UserError(f"task = {name}: {reason}; {advice}")
            print_note(f"task = {name}: left out {names}, which the tokenizer does not know")
        train, self.test = (list(map(self.encode, part)) for part in (self.task.train, self.task.test))
        held_out = max(1, round(finetune.val_fraction * len(train)))
        if held_out >= len(train):
            raise UserError(f"task = {name}: {len(train)} training examples, too few; give more")
        order = np.random.Generator(np.random.Philox(key=[config.seed, 2**63])).permutation(len(train))
        self.val, self.train = ([train[n] for n in part] for part in np.split(order, [held_out]))
        ids = np.concatenate([np.concatenate(sequences) for sequences, _ in self.val])
        lengths = tokenizer.lengths[0].numpy()[ids[ids < len(tokenizer)]]
        self.characters_per_id = int(lengths.sum()) / max(len(lengths), 1)
        self.seed, self.batch_size = config.seed, min(source.batch_size, len(self.train))
        self.max_steps = max(1, round(finetune.epochs * (len(self.train) // self.batch_size)))
        rest = f"{len(self.val):,} to choose the checkpoint, {len(self.test):,} for the test"
        self.description = f"{len(self.train):,} examples for training, {rest}"
        kept = {"kind": self.task.kind, "labels": list(self.task.labels), "max_length": self.max_length}
        kept |= {"surprise": finetune.surprise, "drop_unknown": finetune.drop_unknown}
        self.metadata = {"task": {"name": name, **kept}}

    def encode(self, example: Example) -> Encoded:
        """The sequences of an example without unknown characters. Raises UserError if a text has no other."""
        known = example._replace(texts=tuple(map(self.tokenizer.drop_unknown, example.texts)))
        if not all(known.texts):
            reason = "a text has no character that the tokenizer knows; remove it"
            raise UserError(f"task = {self.task.name}: {reason}, or pre-train with data.tokenizer=byte")
        return to_sequences(known, self.task.kind, self.tokenizer, self.max_length), known.label

    def train_dataloader(self) -> ExampleBatches:
        return ExampleBatches(self.train, self.batch_size, self.seed, self.max_length, *self.span())

    def val_dataloader(self) -> DataLoader[Inputs]:
        return all_examples(self.val)


class ClassifierModule(GPTModule):
    """A Classifier and how to fine-tune it. Its `val/loss`, which chooses checkpoints, is L2, the task's."""

    model: Classifier
    class_weights: Tensor | None  # (L,), 1 on average; None: labels count by their number

    def __init__(self, model: Classifier, *training: Any, lm_weight: float, weights: Tensor | None) -> None:
        super().__init__(model, *training)  # its optimizer, scheduler and lengths
        self.lm_weight = lm_weight
        self.register_buffer("class_weights", weights, persistent=False)
        self.step_parts: dict[str, Tensor] = {}  # of the latest batch, for the log

    def measure(self, batch: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        """The activations (N, T, C) of a batch, L2 in nats per example, and the share of right answers."""
        activations = self.model.activations(batch.ids)
        scores = self.model.scores(activations, batch).float()
        accuracy = (scores.argmax(dim=-1) == batch.labels).float().mean()
        losses = F.cross_entropy(scores, batch.labels, reduction="none")
        if self.class_weights is not None:
            losses = losses * self.class_weights[batch.labels]
        return activations, losses.mean(), accuracy

    def loss(self, batch: Inputs) -> Tensor:  # type: ignore[override]
        """L3 of a batch in nats: the mean over examples, and lm_weight times the mean over tokens."""
        activations, task_loss, accuracy = self.measure(batch)
        # With a weight of 0, too: resuming, and several processes, need a gradient of the output head
        lm_loss, _ = language_loss(self.model, activations, batch)
        parts = {"task_loss": task_loss, "accuracy": accuracy, "lm_loss": lm_loss}
        self.step_parts = {name: part.detach() for name, part in parts.items()}
        return task_loss + self.lm_weight * lm_loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        if self.is_logged(batch_idx):
            self.log_dict({f"train/{name}": it for name, it in self.step_parts.items()}, sync_dist=True)

    def validation_step(self, batch: Inputs, batch_idx: int) -> None:  # type: ignore[override]
        with torch.autocast(batch.ids.device.type, enabled=False):
            activations, loss, accuracy = self.measure(batch)
            lm_loss, targets = language_loss(self.model, activations, batch)
        if not loss.isfinite():  # raised before the weights can become a checkpoint
            raise self.diverged("val/loss", loss)
        examples, characters = len(batch.labels), max(int(self.lengths[0, targets].sum()), 1)
        average = partial(self.log, on_epoch=True, sync_dist=True)
        average("val/loss", loss, prog_bar=True, batch_size=examples)
        average("val/accuracy", accuracy, prog_bar=True, batch_size=examples)
        average("val/lm_loss", lm_loss, batch_size=len(targets))
        bits = lm_loss / math.log(2) * (len(targets) / characters)
        average("val/bits_per_char", bits, batch_size=characters)

    def complete(self, result: Result, data: TaskData, best: Path | None) -> Result:  # type: ignore[override]
        """The result with what the test part says of the checkpoint `best`, or else of the last weights."""
        if best is not None:
            self.model.load_state_dict(read(best)["state_dict"])
        self.model.eval()
        each = [(self.model.exact_scores(it).argmax(dim=1), it.labels) for it in all_examples(data.test)]
        found, right = map(torch.cat, zip(*each, strict=True))
        names, counts = data.task.labels, right.bincount(minlength=len(data.task.labels)).tolist()
        usual = mode(example.label for example in data.task.train)
        recall = multiclass_recall(found, right, len(names), average="none").tolist()
        of_test = {
            "test_accuracy": (found == right).double().mean().item(),
            "test_examples": len(data.test),
            "macro_f1": multiclass_f1_score(found, right, len(names), average="macro").item(),
            "recall": {name: share for name, share, n in zip(names, recall, counts, strict=True) if n},
            "majority_accuracy": (right == usual).double().mean().item(),
            "naive_bayes_accuracy": None,
        }
        return result.model_copy(update=of_test)


def language_loss(model: Classifier, activations: Tensor, batch: Inputs) -> tuple[Tensor, Tensor]:
    """L1, the mean cross-entropy in nats per token ([G] equation 1), and the texts' own tokens (M,)."""
    log_p, is_text = model.log_likelihoods(activations, batch)
    return -log_p.sum() / is_text.sum().clamp(min=1), batch.ids[:, 1:][is_text]


def finetuning_parts(
    config: RunConfig, source: GPT | None, tokenizer: Tokenizer | None
) -> tuple[TaskData, Callable[[RunConfig], ClassifierModule]]:
    """The data of a run, and what makes its module. Raises UserError for wrong settings."""
    finetune = config.finetune
    assert finetune is not None
    layers, has = finetune.layers, config.model.n_layer
    if layers is not None and (layers > has or config.init is None):
        reason = f"the model has {has} layers" if layers > has else "there are none; set init=outputs/RUN"
        raise UserError(f"finetune.layers = {layers}: {reason}")
    if config.trainer.compile:
        raise UserError("trainer.compile = true: not for sequences of many lengths")
    for name in sorted({"samples", "attention", "zero_shot"} & config.callbacks.keys()):
        raise UserError(f"callbacks.{name} = (set): it is for language models; set callbacks=finetune")
    data = TaskData(config, tokenizer)
    weights: Tensor | None = None
    if finetune.class_weights is not None:
        if data.task.kind == "choice":
            raise UserError("finetune.class_weights = balanced: not for a choice; leave it out")
        counts = torch.tensor([label for _, label in data.train]).bincount(minlength=len(data.task.labels))
        weights = len(data.train) / (len(counts) * counts.clamp(min=1))

    def make_module(resolved: RunConfig) -> ClassifierModule:
        reads = finetune.surprise, finetune.dropout
        model = Classifier(resolved.model, data.task.kind, len(data.task.labels), *reads)
        if source is not None:
            model.take_over(source, layers, data.tokenizer)
        training = resolved.optimizer, resolved.scheduler, data.tokenizer.lengths
        return ClassifierModule(model, *training, lm_weight=finetune.lm_weight, weights=weights)

    return data, make_module
