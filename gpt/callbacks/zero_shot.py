"""How much a language model knows of tasks that it was never trained for, while it is trained."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from gpt.errors import did_you_mean, shorten
from gpt.finetune.task import Task
from gpt.finetune.tasks import TASKS, make_examples, shuffled
from gpt.finetune.zero_shot import zero_shot_accuracy

SEED = 0  # of the examples, which are the same in every run


class ZeroShot(Callback):
    """Logs zero_shot/TASK at each validation: accuracy without fine-tuning ([G] section 5, figure 2, right).

    The examples are made from the validation split, which has to be a play.
    """

    def __init__(self, tasks: list[str], examples: int) -> None:
        if unknown := [name for name in tasks if name not in TASKS]:
            advice = did_you_mean(unknown[0], TASKS)
            raise ValueError(f"tasks = {shorten(unknown[0])}: no such task; {advice}")
        if not isinstance(examples, int) or examples < 1:
            raise ValueError(f"examples = {shorten(examples)}: must be at least 1; set for instance 200")
        self.names, self.examples = tasks, examples

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make the examples. Raises UserError for a text that is not a play."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined] # gpt.data.TextData
        text, self.tokenizer = data.tokenizer.decode(data.val_ids), data.tokenizer
        self.tasks = []
        for name in self.names:
            examples = shuffled(make_examples(name, text, [SEED, 1]), SEED, self.examples)
            self.tasks.append(Task(name, *TASKS[name][:2], train=[], test=examples))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        model: Any = pl_module.model  # gpt.model.GPT
        if trainer.state.fn == "fit":  # validating a finished model calls this too
            for task in self.tasks:
                accuracy = zero_shot_accuracy(model, self.tokenizer, task, self.examples)
                pl_module.log(f"zero_shot/{task.name}", accuracy)
