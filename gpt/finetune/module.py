"""A classifier as Lightning fine-tunes it: L3 = L2 + lm_weight * L1 ([G] section 3.2)."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt.checkpoint import read
from gpt.finetune.baselines import majority_accuracy, naive_bayes_accuracy
from gpt.finetune.data import AllExamples, TaskData
from gpt.finetune.inputs import Inputs
from gpt.finetune.model import Classifier
from gpt.module import GPTModule
from gpt.run import Result, TaskResult

IGNORED = -100  # a target that has no part in a loss


class ClassifierModule(GPTModule):
    """A Classifier and how to fine-tune it. Its `val/loss`, which chooses checkpoints, is L2, the task's."""

    model: Classifier

    def __init__(self, model: Classifier, *training: Any, lm_weight: float) -> None:
        """`training` stands for the optimizer, scheduler and lengths of GPTModule."""
        super().__init__(model, *training)
        self.lm_weight = lm_weight
        self.step_parts: dict[str, Tensor] = {}  # of the latest batch, for the log

    def loss(self, batch: Inputs) -> Tensor:  # type: ignore[override]
        """L3 of a batch in nats: the mean over examples, and lm_weight times the mean over tokens."""
        activations = self.model.activations(batch.ids)
        scores = self.model.scores(activations, batch)
        task_loss = F.cross_entropy(scores.float(), batch.labels)
        self.step_parts = {"task_loss": task_loss.detach(), "accuracy": accuracy(scores, batch.labels)}
        if not self.lm_weight:
            # A gradient of zero for the output head, so that the optimizer has a state of every parameter: a
            # resumed run needs them all, and so do several processes
            return task_loss + 0 * self.model.head.weight.sum()
        lm_loss, _ = language_loss(self.model, activations, batch)
        self.step_parts["lm_loss"] = lm_loss.detach()
        return task_loss + self.lm_weight * lm_loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        if self.is_logged(batch_idx):
            for name, value in self.step_parts.items():
                self.log(f"train/{name}", value, sync_dist=True)

    def validation_step(self, batch: Inputs, batch_idx: int) -> None:  # type: ignore[override]
        with torch.autocast(batch.ids.device.type, enabled=False):
            activations = self.model.activations(batch.ids)
            scores = self.model.scores(activations, batch)
            lm_loss, targets = language_loss(self.model, activations, batch)
        loss = F.cross_entropy(scores, batch.labels)
        if not loss.isfinite():  # raised before the weights can become a checkpoint
            raise self.diverged("val/loss", loss)
        examples, characters = len(batch.labels), max(int(self.lengths[0, targets].sum()), 1)
        average = partial(self.log, on_epoch=True, sync_dist=True)
        average("val/loss", loss, prog_bar=True, batch_size=examples)
        average("val/accuracy", accuracy(scores, batch.labels), prog_bar=True, batch_size=examples)
        average("val/lm_loss", lm_loss, batch_size=len(targets))
        bits = lm_loss / math.log(2) * (len(targets) / characters)
        average("val/bits_per_char", bits, batch_size=characters)

    def complete(self, result: Result, data: TaskData, best: Path | None) -> TaskResult:  # type: ignore[override]
        """The result with what the test part says of the checkpoint `best`, or else of the last weights."""
        if best is not None:
            self.model.load_state_dict(read(best)["state_dict"])
        self.model.eval()
        scored = [(self.model.exact_scores(batch), batch.labels) for batch in AllExamples(data.test)]
        scores, labels = (torch.cat(part) for part in zip(*scored, strict=True))
        return TaskResult(
            **result.model_dump(),
            test_accuracy=int((scores.argmax(dim=1) == labels).sum()) / len(labels),
            test_examples=len(data.test),
            majority_accuracy=majority_accuracy(data.task),
            naive_bayes_accuracy=naive_bayes_accuracy(data.task),
        )


def accuracy(scores: Tensor, labels: Tensor) -> Tensor:
    return (scores.argmax(dim=-1) == labels).float().mean()


def language_loss(model: Classifier, activations: Tensor, batch: Inputs) -> tuple[Tensor, Tensor]:
    """L1, the mean cross-entropy in nats per token ([G] equation 1), and the tokens (M,) that it covers.

    These are the texts' own. The three special tokens are not in the output head, and padding is none at all.
    """
    targets = batch.ids[:, 1:]
    positions = torch.arange(targets.size(1), device=targets.device)
    is_text = (targets < model.config.known_vocab_size()) & (positions + 1 < batch.extract[:, None])
    # Logits of all positions, since their number depends on the batch's shape alone (see gpt.finetune.data)
    logits = model.head(activations[:, :-1])  # (N, T - 1, V)
    masked = targets.masked_fill(~is_text, IGNORED).flatten()
    loss = F.cross_entropy(logits.flatten(0, 1).float(), masked, ignore_index=IGNORED)
    return loss, targets[is_text]
