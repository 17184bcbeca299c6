"""What a task with labels is: its settings, and its examples."""

from dataclasses import dataclass

KINDS = ("classification", "entailment", "similarity", "choice")


@dataclass(frozen=True)
class Example:
    """One or two texts, or for a choice the context and its candidates, and the number of the right label or candidate."""

    texts: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Task:
    name: str
    kind: str  # one of KINDS, which says how an example becomes sequences (gpt.finetune.inputs)
    labels: tuple[str, ...]
    train: list[Example]
    test: list[Example]
