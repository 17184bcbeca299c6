"""A fine-tuned model at work: from its checkpoint alone to the probabilities of its labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from gpt.checkpoint import assemble, read
from gpt.errors import UserError, shorten
from gpt.finetune.inputs import collate, to_sequences
from gpt.finetune.model import Classifier
from gpt.finetune.task import KINDS, Example
from gpt.tokenizer import Tokenizer


@dataclass(frozen=True)
class Answerer:
    """A fine-tuned model in eval mode with what it takes to ask it."""

    model: Classifier
    tokenizer: Tokenizer
    name: str
    labels: list[str]
    max_length: int  # tokens of a sequence

    def probabilities(self, texts: Sequence[str]) -> dict[str, float]:
        """What the model gives to each label of one example, in order, or to each candidate of a choice.

        Raises UserError for another number of texts than the task has, and for unknown characters.
        """
        least, most = KINDS[self.model.kind]
        if not least <= len(texts) <= most or not all(text.strip() for text in texts):
            wanted = {1: "one text", 2: "two texts"}.get(most, "a text and its candidates")
            given = shorten("\t".join(texts).replace("\t", " | ")) or "(empty)"
            advice = "separate several by tabs, none of them empty"
            raise UserError(f"text = {given}: {self.name} is about {wanted}; {advice}")
        sequences = to_sequences(Example(tuple(texts), 0), self.model.kind, self.tokenizer, self.max_length)
        scores = self.model.exact_scores(collate([(sequences, 0)]))[0]
        candidates = [str(number) for number in range(1, len(scores) + 1)]
        names = candidates if self.model.kind == "choice" else self.labels
        return dict(zip(names, scores.softmax(dim=0).tolist(), strict=True))


def load_answerer(path: Path) -> Answerer:
    """The fine-tuned model of a checkpoint. Raises UserError for a language model, and as `assemble` does."""
    content = read(path)
    if (task := content["gpt"].get("task")) is None:
        advice = "fine-tune it first: python scripts/finetune.py init=RUN task=mark"
        reason = "a language model, which answers no questions about texts"
        raise UserError(f"checkpoint = {path}: {reason}; {advice}")
    model, tokenizer, _ = assemble(path, content)
    longest = min(task["max_length"], model.config.context_length)
    return Answerer(cast(Classifier, model), tokenizer, shorten(task["name"]), task["labels"], longest)
