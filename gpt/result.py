"""The numbers of a run that has ended, which its result.json keeps."""

import math
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from gpt.errors import UserError
from gpt.files import read_json

# nan with data.val_fraction=0, which JSON does not have: it is null in the file
Loss = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


class Result(BaseModel):
    """The numbers of a run that has ended. Losses are in nats per token, which usually is a character.

    Of a run that was fine-tuned, they are those of the task, in nats per held-out example, and accuracies are
    shares of the test part, which had no say in anything. Other runs do not have the numbers of a test.
    """

    model_config = ConfigDict(frozen=True)

    # the best two and the speed are None if the configuration left out what measures them
    best_val_loss: float | None
    best_step: int | None
    final_val_loss: Loss
    final_bits_per_char: Loss
    step: int
    vocab_size: int
    parameters: int
    seconds: float
    chars_per_second: float | None
    stopped_early: bool = False  # it no longer improved, so more steps are not wanted
    test_accuracy: float = math.nan  # of the best checkpoint
    test_examples: int = 0
    macro_f1: float | None = None  # the mean of the labels' F1 (None and {}: written by an earlier version)
    recall: dict[str, float] = {}  # of each label, the share of its test examples that were found
    majority_accuracy: float = math.nan  # of the answer that is the most frequent in training
    naive_bayes_accuracy: float | None = None  # None where there is none, and until it is known

    @property
    def headline(self) -> str:
        """The number that matters most, in words."""
        return f"accuracy {self.test_accuracy:.4f}" if self.test_examples else f"val loss {self.loss:.4f}"

    @property
    def loss(self) -> float:
        """The validation loss by which runs are compared: the best one where it is known."""
        return self.final_val_loss if self.best_val_loss is None else self.best_val_loss

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises UserError if the file does not hold the numbers of a run."""
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            reason = f"{'.'.join(map(str, error.errors()[0]['loc']))} is missing or damaged"
            raise UserError(f"file = {path}: {reason}; remove it and resume the run") from None
