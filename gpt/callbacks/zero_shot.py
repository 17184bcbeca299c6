"""How much a language model knows of tasks that it was never trained for, while it is trained."""

from typing import cast

import lightning as L
from lightning.pytorch.callbacks import Callback

from gpt.data import TextData
from gpt.errors import did_you_mean, shorten
from gpt.finetune.task import Task
from gpt.finetune.tasks import TASKS, make_examples, shuffled
from gpt.finetune.zero_shot import zero_shot_accuracy
from gpt.module import data_of, is_training, model_of

SEED = 0  # of the examples, which are the same in every run


class ZeroShot(Callback):
    """Logs zero_shot/TASK at each validation: accuracy without fine-tuning, as in [G] section 5, figure 2,
    right.

    The examples are made from the validation split, which has to be a play.
    """

    state_key = "zero_shot"

    def __init__(self, tasks: list[str], examples: int) -> None:
        if unknown := [name for name in tasks if name not in TASKS]:
            raise ValueError(
                f"tasks = {shorten(unknown[0])}: no such task; {did_you_mean(unknown[0], TASKS)}"
            )
        if examples < 1:
            raise ValueError(f"examples = {examples}: must be at least 1; set for instance 200")
        self.names, self.examples = tasks, examples
        self.tasks: list[Task] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make the examples. Raises UserError for a text that is not a play."""
        data = cast(TextData, data_of(trainer))
        text = data.tokenizer.decode(data.val_ids)
        for name in self.names:
            examples = shuffled(make_examples(name, text, [SEED, 1]), SEED, self.examples)
            self.tasks.append(Task(name, *TASKS[name][:2], train=[], test=examples))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if is_training(trainer):
            for task in self.tasks:
                accuracy = zero_shot_accuracy(
                    model_of(pl_module), data_of(trainer).tokenizer, task, self.examples
                )
                pl_module.log(f"zero_shot/{task.name}", accuracy)
