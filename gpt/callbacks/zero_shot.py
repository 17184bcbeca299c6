"""How much a language model knows of tasks that it was never trained for, while it is trained."""

from typing import Annotated, Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Callback
from pydantic import Field, validate_call

from gpt.finetune.predict import zero_shot_accuracy
from gpt.finetune.tasks import TASKS, Task, make_examples, shuffled
from gpt.module import data_of, is_training, model_of

SEED = 0  # of the examples, which are the same in every run


class ZeroShot(Callback):
    """Logs zero_shot/TASK at each validation: accuracy without fine-tuning ([G] section 5, figure 2, right).

    The examples are made from the validation split, which has to be a play.
    """

    @validate_call
    def __init__(self, tasks: list[Literal[*TASKS]], examples: Annotated[int, Field(ge=1)]) -> None:  # type: ignore[valid-type]
        self.names, self.examples = tasks, examples
        self.tasks: list[Task] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make the examples. Raises UserError for a text that is not a play."""
        data: Any = data_of(trainer)  # a TextData
        text = data.tokenizer.decode(data.val_ids)
        for name in self.names:
            examples = shuffled(make_examples(name, text, [SEED, 1]), SEED, self.examples)
            self.tasks.append(Task(name, *TASKS[name][:2], train=[], test=examples))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for task in self.tasks if is_training(trainer) else ():
            model, tokenizer = model_of(pl_module), data_of(trainer).tokenizer
            pl_module.log(f"zero_shot/{task.name}", zero_shot_accuracy(model, tokenizer, task))
