"""The numbers of a run that has ended, which its result.json keeps."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from gpt.errors import UserError
from gpt.files import read_json


class Result(BaseModel):
    """The numbers of a run that has ended. Losses are in nats per token, which usually is a character."""

    model_config = ConfigDict(frozen=True)

    # the best two and the speed are None if the configuration left out what measures them
    best_val_loss: float | None
    best_step: int | None
    final_val_loss: float
    final_bits_per_char: float
    step: int
    vocab_size: int
    parameters: int
    seconds: float
    chars_per_second: float | None
    stopped_early: bool = False  # it no longer improved, so more steps are not wanted

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
        try:
            return (TaskResult if "test_accuracy" in values else Result).model_validate(values)
        except ValidationError as error:
            place = ".".join(map(str, error.errors()[0]["loc"]))
            raise UserError(
                f"file = {path}: {place} is missing or damaged; remove it and resume the run"
            ) from None


class TaskResult(Result):
    """The numbers of a run that was fine-tuned: its losses are those of the task, in nats per held-out
    example.

    Accuracies are shares of the test part, which had no say in anything.
    """

    test_accuracy: float  # of the best checkpoint
    test_examples: int
    macro_f1: float | None = None  # the mean of the labels' F1 (None and {}: written by an earlier version)
    recall: dict[str, float] = {}  # of each label, the share of its test examples that were found
    majority_accuracy: float  # of the answer that is the most frequent in training
    naive_bayes_accuracy: float | None = None  # None without scikit-learn, and until it is known

    @property
    def headline(self) -> str:
        return f"accuracy {self.test_accuracy:.4f}"
