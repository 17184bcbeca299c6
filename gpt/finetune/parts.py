"""What a run that fine-tunes is made of. `gpt.train` tells the rest of its story, which all runs have in common."""

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

    The module takes over the weights of the language model `source`, and draws those that it lacks, or all without one.
    Raises UserError for settings that do not go with fine-tuning, and as `TaskData` does.
    """
    check_supported(config)
    data = TaskData(config, tokenizer)

    def make_module(resolved: RunConfig) -> ClassifierModule:
        finetune, task = resolved.finetune, data.task
        assert finetune is not None
        model = Classifier(resolved.model, task.kind, len(task.labels), finetune.dropout)
        if source is not None:
            model.take_over(source, finetune.layers)
        lengths = data.tokenizer.lengths
        return ClassifierModule(model, resolved.optimizer, resolved.scheduler, lengths, finetune.lm_weight)

    return data, make_module


def check_supported(config: RunConfig) -> None:
    """Raises UserError for settings that do not go with fine-tuning."""
    assert config.finetune is not None
    layers, n_layer = config.finetune.layers, config.model.n_layer
    if layers is not None and layers > n_layer:
        advice = "set at most so many, or null for all"
        raise UserError(f"finetune.layers = {layers}: the model has {n_layer} layers; {advice}")
    if layers is not None and config.init is None:
        raise UserError(
            f"finetune.layers = {layers}: there are no weights to take over; set init=outputs/RUN"
        )
    if config.trainer.compile:
        raise UserError("trainer.compile = true: not for sequences of many lengths; leave it out")
    for name in FOR_LANGUAGE_MODELS:
        if name in config.callbacks:
            advice = "leave it out, as callbacks=finetune does"
            raise UserError(f"callbacks.{name} = (set): it is for language models; {advice}")
