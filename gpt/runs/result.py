"""The numbers of a run that has ended, as result.json holds them."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path

from gpt.errors import UserError, build, shorten
from gpt.files import read_json, write_json

LARGEST = 1e15  # of any number


@dataclass(frozen=True)
class Result:
    """Losses are in nats per token, which usually is a character. Raises ValueError for numbers that no run can have."""

    best_val_loss: (
        float | None
    )  # the best two and the speed are None if the configuration left out what measures them
    best_step: int | None
    final_val_loss: float
    final_bits_per_char: float
    step: int
    vocab_size: int
    parameters: int
    seconds: float
    chars_per_second: float | None

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value is not None and not 0 <= value <= LARGEST:
                raise ValueError(f"{name} = {shorten(value)}: not a number that a run can have")
        if self.final_val_loss < 1e-9:
            raise ValueError(f"final_val_loss = {self.final_val_loss}: nothing is predicted so well")
        if (self.best_val_loss is None) != (self.best_step is None):
            raise ValueError("best_val_loss, best_step = one of them: there are both or none")

    @property
    def headline(self) -> str:
        """The number that matters most, in words."""
        return f"val loss {self.loss:.4f}"

    @property
    def loss(self) -> float:
        """The validation loss by which runs are compared: the best one where it is known."""
        return self.final_val_loss if self.best_val_loss is None else self.best_val_loss

    @classmethod
    def read(cls, path: Path) -> "Result":
        """Raises UserError if the file does not hold the numbers of a run."""
        values = read_json(path)
        kind = TaskResult if "test_accuracy" in values else Result
        try:
            return build(kind, {field.name: values.get(field.name) for field in fields(kind)}, "result")
        except UserError as error:
            reason = str(error).removeprefix("result.").partition(";")[0]
            raise UserError(f"file = {path}: {reason}; restore it, or remove it and resume the run") from None

    def write(self, path: Path) -> None:
        write_json(path, asdict(self))


@dataclass(frozen=True)
class TaskResult(Result):
    """The numbers of a run that was fine-tuned: its losses are those of the task, in nats per example, on held-out examples.

    Accuracies are shares of the test part, which had no say in anything.
    """

    test_accuracy: float  # of the best checkpoint
    test_examples: int
    majority_accuracy: float  # of the answer that is the most frequent in training
    naive_bayes_accuracy: float | None  # None without scikit-learn, and for tasks that it cannot answer

    @property
    def headline(self) -> str:
        return f"accuracy {self.test_accuracy:.4f}"
