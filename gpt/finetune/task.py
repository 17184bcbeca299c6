"""What a task with labels is: its settings, and its examples."""

from dataclasses import dataclass

from gpt.settings import shorten

KINDS = ("classification", "entailment", "similarity", "choice")


@dataclass(frozen=True)
class TaskConfig:
    """The settings in `conf/task`. Raises ValueError for values outside their range."""

    name: str  # a task of TASKS, or csv
    kind: str | None  # for csv: one of KINDS; None: by the number of columns
    path: str | None  # for csv: the file
    columns: list[str]  # for csv: those that hold the texts
    label: str | None  # for csv: the column that holds the label
    symmetric: bool  # for csv: whether two texts may be exchanged, as in similarity
    split_column: str | None  # for csv: the column that says train or test; None: the seed decides
    test_fraction: float  # for csv without a split column
    max_length: int  # tokens of a sequence, if the model's context allows as many; longer texts are cut
    max_train: int  # the most examples; 0: all there are
    max_test: int

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in KINDS:
            raise ValueError(f"kind = {shorten(self.kind)}: unknown; choose one of {', '.join(KINDS)}")
        if not 0 < self.test_fraction < 1:
            raise ValueError(f"test_fraction = {self.test_fraction}: leaves a part empty; set it between 0 and 1, such as 0.2")
        if self.max_length < 5:  # two tokens beside start, delimiter and extract
            raise ValueError(f"max_length = {self.max_length}: must be at least 5; set for instance 256")
        for field in ("max_train", "max_test"):
            if (value := getattr(self, field)) < 0:
                raise ValueError(f"{field} = {value}: must not be negative; set 0 for all examples")


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
