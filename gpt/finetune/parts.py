"""What a run that fine-tunes is made of. `gpt.train` tells what all runs have in common."""

from collections.abc import Callable

from gpt.config import RunConfig
from gpt.errors import UserError
from gpt.finetune.data import TaskData
from gpt.finetune.model import Classifier
from gpt.finetune.module import ClassifierModule
from gpt.model import GPT
from gpt.tokenizer import Tokenizer

FOR_LANGUAGE_MODELS = ("samples", "attention", "zero_shot")  # callbacks


def finetuning_parts(
    config: RunConfig, source: GPT | None, tokenizer: Tokenizer | None
) -> tuple[TaskData, Callable[[RunConfig], ClassifierModule]]:
    """The data of a run with a task, and what makes its module once the configuration is resolved.

    The module takes over the weights of the language model `source`, if there is one, and draws all others.
    Raises UserError for settings that do not go with fine-tuning, and as `TaskData` does.
    """
    finetune = config.finetune
    assert finetune is not None
    check_supported(config, finetune.layers)
    data = TaskData(config, tokenizer)

    def make_module(resolved: RunConfig) -> ClassifierModule:
        model = Classifier(resolved.model, data.task.kind, len(data.task.labels), finetune.dropout)
        if source is not None:
            model.take_over(source, finetune.layers)
        training = resolved.optimizer, resolved.scheduler, data.tokenizer.lengths
        return ClassifierModule(model, *training, lm_weight=finetune.lm_weight)

    return data, make_module


def check_supported(config: RunConfig, layers: int | None) -> None:
    """Raises UserError for settings that do not go with fine-tuning."""
    if layers is not None and layers > (has := config.model.n_layer):
        advice = "set at most so many, or null for all"
        raise UserError(f"finetune.layers = {layers}: the model has {has} layers; {advice}")
    if layers is not None and config.init is None:
        reason = "there are no weights to take over; set init=outputs/RUN"
        raise UserError(f"finetune.layers = {layers}: {reason}")
    if config.trainer.compile:
        raise UserError("trainer.compile = true: not for sequences of many lengths; leave it out")
    for name in FOR_LANGUAGE_MODELS:
        if name in config.callbacks:
            advice = "leave it out, as callbacks=finetune does"
            raise UserError(f"callbacks.{name} = (set): it is for language models; {advice}")
