"""What a task with labels is."""

from dataclasses import dataclass

# How many texts an example of each kind has, at least and at most
KINDS = {"classification": (1, 1), "entailment": (2, 2), "similarity": (2, 2), "choice": (2, 1000)}


@dataclass(frozen=True)
class Example:
    """One or two texts, or of a choice the context and its candidates, and the number of the right label."""

    texts: tuple[str, ...]
    label: int


@dataclass(frozen=True)
class Task:
    """Examples for training and for testing. An example's label is the place of its name in `labels`."""

    name: str
    kind: str  # one of KINDS
    labels: tuple[str, ...]
    train: list[Example]
    test: list[Example]
