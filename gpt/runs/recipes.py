"""The two kinds of run, and everything in which they differ: pre-training a language model, and fine-tuning one for a task."""

from abc import ABC, abstractmethod
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from gpt.checkpoint import read
from gpt.config import FinetuneConfig, RunConfig, TaskConfig
from gpt.data import Data, TextData, open_text
from gpt.errors import UserError
from gpt.finetune.baselines import majority_accuracy, naive_bayes_accuracy
from gpt.finetune.data import AllExamples, TaskData, source_text
from gpt.finetune.model import Classifier
from gpt.finetune.module import ClassifierModule
from gpt.finetune.predict import count_correct
from gpt.model import GPT
from gpt.module import GPTModule
from gpt.runs.init import Weights
from gpt.runs.result import Result, TaskResult
from gpt.runs.strategies import distribution_of
from gpt.text import Text
from gpt.tokenizer import Tokenizer, tokenizer_class
from gpt.training_state import PREFIX


class Recipe(ABC):
    """What a kind of run does in its own way. `gpt.runs.train` tells what all runs have in common."""

    @abstractmethod
    def text(self, config: RunConfig) -> Text:
        """The text or the file that the data is made from, which is read without being shown to anybody."""

    @abstractmethod
    def make_data(self, config: RunConfig, tokenizer: Tokenizer | None) -> Data:
        """The data, with the tokenizer that `config` asks for unless one is given. Raises UserError."""

    def limit(self, config: RunConfig, data: Data) -> RunConfig:
        """The configuration with as many steps as the data allows."""
        return config

    @abstractmethod
    def make_module(self, config: RunConfig, data: Data, weights: Weights | None) -> GPTModule:
        """The model as Lightning trains it, with the given weights where there are any, and random ones elsewhere."""

    def metadata(self, data: Data) -> dict[str, Any]:
        """What a checkpoint says about itself beside what all say."""
        return {}

    @abstractmethod
    def describe(self, data: Data) -> str:
        """What there is to train on, in words."""

    def complete(
        self, result: Result, config: RunConfig, data: Data, module: GPTModule, best: Path | None
    ) -> Result:
        """The result with what is measured once, at the end, with the checkpoint `best` or else the last weights."""
        return result


class PreTraining(Recipe):
    """A language model learns to go on with a text ([G] section 3.1)."""

    def text(self, config: RunConfig) -> Text:
        return open_text(config.data, tokenizer_class(config.data.tokenizer).reads_bytes)

    def make_data(self, config: RunConfig, tokenizer: Tokenizer | None) -> TextData:
        shares = not distribution_of(config.trainer.strategy).shares_weights
        return TextData(
            config.data, config.model.context_length, config.seed, tokenizer, share_validation=shares
        )

    def make_module(self, config: RunConfig, data: Data, weights: Weights | None) -> GPTModule:
        model = GPT(config.model)
        if weights is not None:
            model.load_state_dict(weights.model.state_dict())
        if config.trainer.compile:
            model.compile()  # in place, so that the names in checkpoints stay as they are
        kind = distribution_of(config.trainer.strategy).module
        return kind(model, config.optimizer, config.scheduler, data.tokenizer.lengths)

    def describe(self, data: Data) -> str:
        return f"{len(cast(TextData, data).train_ids):,} {data.unit} for training"


class FineTuning(Recipe):
    """A language model learns a task from examples ([G] section 3.2)."""

    def text(self, config: RunConfig) -> Text:
        return source_text(settings_of(config)[0], config.data)

    def make_data(self, config: RunConfig, tokenizer: Tokenizer | None) -> TaskData:
        task, finetune = settings_of(config)
        check_supported(config, finetune)
        return TaskData(task, finetune, config.data, config.model.context_length, config.seed, tokenizer)

    def limit(self, config: RunConfig, data: Data) -> RunConfig:
        _, finetune = settings_of(config)
        steps = max(1, round(finetune.epochs * cast(TaskData, data).steps_per_epoch))
        trainer = replace(config.trainer, max_steps=min(config.trainer.max_steps, steps))
        return replace(config, trainer=trainer)

    def make_module(self, config: RunConfig, data: Data, weights: Weights | None) -> ClassifierModule:
        _, finetune = settings_of(config)
        task = cast(TaskData, data).task
        model = Classifier(config.model, task.kind, len(task.labels), finetune.dropout)
        if weights is not None:
            model.take_over(weights.model, finetune.layers)
        return ClassifierModule(
            model, config.optimizer, config.scheduler, data.tokenizer.lengths, finetune.lm_weight
        )

    def metadata(self, data: Data) -> dict[str, Any]:
        found = cast(TaskData, data)
        task = found.task
        of_task = {
            "name": task.name,
            "kind": task.kind,
            "labels": list(task.labels),
            "max_length": found.max_length,
        }
        return {"task": of_task}

    def describe(self, data: Data) -> str:
        found = cast(TaskData, data)
        held_out, tested = len(found.val), len(found.test)
        return f"{len(found.train):,} examples for training, {held_out:,} to choose the checkpoint, {tested:,} for the test"

    def complete(
        self, result: Result, config: RunConfig, data: Data, module: GPTModule, best: Path | None
    ) -> TaskResult:
        found, model = cast(TaskData, data), cast(Classifier, module.model)
        if best is not None:
            weights = read(best)["state_dict"]
            model.load_state_dict({name.removeprefix(PREFIX): tensor for name, tensor in weights.items()})
        return TaskResult(
            **asdict(result),
            test_accuracy=count_correct(model, AllExamples(found.test)) / len(found.test),
            test_examples=len(found.test),
            majority_accuracy=majority_accuracy(found.task),
            naive_bayes_accuracy=naive_bayes_accuracy(found.task),
        )


def recipe_of(config: RunConfig) -> Recipe:
    """A run with a task fine-tunes, and one without pre-trains. Nothing else asks which of the two a run is."""
    return PreTraining() if config.task is None else FineTuning()


def settings_of(config: RunConfig) -> tuple[TaskConfig, FinetuneConfig]:
    """The two groups that a run has if it fine-tunes."""
    assert config.task is not None  # RunConfig.from_dict allows both or none
    assert config.finetune is not None
    return config.task, config.finetune


def check_supported(config: RunConfig, finetune: FinetuneConfig) -> None:
    """Raises UserError for settings that do not go with fine-tuning."""
    layers, trainer = config.model.n_layer, config.trainer
    if finetune.layers is not None and finetune.layers > layers:
        raise UserError(
            f"finetune.layers = {finetune.layers}: the model has {layers} layers; set at most so many, or null for all"
        )
    if finetune.layers is not None and config.init is None:
        raise UserError(
            f"finetune.layers = {finetune.layers}: there are no weights to take over; set init=outputs/RUN"
        )
    if trainer.compile:
        raise UserError("trainer.compile = true: not for sequences of many lengths; leave it out")
    if distribution_of(trainer.strategy).shares_weights:
        raise UserError(
            f"trainer.strategy = {trainer.strategy}: not for fine-tuning, which it does not pay for; use trainer=ddp"
        )
    for name in ("samples", "attention", "zero_shot"):
        if name in config.callbacks:
            raise UserError(
                f"callbacks.{name} = (set): it is for language models; leave it out, as callbacks=finetune does"
            )
