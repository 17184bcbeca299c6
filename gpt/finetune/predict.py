"""A fine-tuned model at work: from its checkpoint alone to the probabilities of its labels."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from gpt.checkpoint import assemble, read, refusal
from gpt.errors import UserError, shorten
from gpt.finetune.inputs import Inputs, collate, to_sequences
from gpt.finetune.model import Classifier, check_task
from gpt.finetune.module import task_scores
from gpt.finetune.task import Example
from gpt.tokenizer import Tokenizer

TEXTS_NEEDED = {
    "classification": (1, 1),
    "entailment": (2, 2),
    "similarity": (2, 2),
    "choice": (2, 1000),
}  # least and most


@dataclass(frozen=True)
class Answerer:
    """A fine-tuned model with what it takes to ask it."""

    model: Classifier
    tokenizer: Tokenizer
    name: str
    kind: str
    labels: list[str]
    max_length: int  # tokens of a sequence

    def probabilities(self, texts: Sequence[str]) -> dict[str, float]:
        """What the model gives to each label of one example, in the order of the labels. Of a choice: to each candidate.

        Raises UserError for another number of texts than the task has, and for characters that the model does not know.
        """
        least, most = TEXTS_NEEDED[self.kind]
        if not least <= len(texts) <= most or not all(text.strip() for text in texts):
            wanted = {1: "one text", 2: "two texts"}.get(most, "a text and its candidates")
            given = shorten("\t".join(texts).replace("\t", " | ")) or "(empty)"
            raise UserError(
                f"text = {given}: {self.name} is about {wanted}; separate several by tabs, none of them empty"
            )
        sequences = to_sequences(Example(tuple(texts), 0), self.kind, self.tokenizer, self.max_length)
        (scores,) = scores_of(self.model, [collate([(sequences, 0)])])
        names = (
            self.labels if self.kind != "choice" else [str(number) for number in range(1, scores.size(1) + 1)]
        )
        return dict(zip(names, scores[0].softmax(dim=0).tolist(), strict=True))


def load_answerer(path: Path) -> Answerer:
    """The fine-tuned model of a checkpoint. Raises UserError for that of a language model, and as `assemble` does."""
    content = read(path)
    if content["gpt"].get("task") is None:
        advice = "fine-tune it first: python scripts/finetune.py init=RUN task=mark"
        raise refusal(path, "a language model, which answers no questions about texts", advice)
    model, tokenizer, metadata = assemble(path, content)
    kind, labels, length = check_task(metadata["task"])
    length = min(length, model.config.context_length)
    return Answerer(
        cast(Classifier, model), tokenizer, shorten(metadata["task"].get("name")), kind, labels, length
    )


@torch.no_grad()
def scores_of(model: Classifier, batches: Iterable[Inputs]) -> list[Tensor]:
    """The scores (B, L) of each batch, in float32 and without dropout, on the CPU."""
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        moved = (Inputs(*(part.to(device) for part in batch)) for batch in batches)
        return [task_scores(model, model.activations(batch.ids), batch).float().cpu() for batch in moved]
    finally:
        model.train(was_training)


def count_correct(model: Classifier, batches: Iterable[Inputs]) -> int:
    """How many examples the model answers correctly. The batches can be read twice."""
    scores = scores_of(model, batches)
    return sum(
        int((found.argmax(dim=1) == batch.labels).sum()) for found, batch in zip(scores, batches, strict=True)
    )
