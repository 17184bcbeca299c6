"""The part of a checkpoint that only training goes on from, checked before Lightning sees it.

Lightning copies what it finds into its own objects as it is. So the names, shapes and values of the optimizer's state are
compared with those of an optimizer that the metadata describe. What Lightning counts is not taken from a file at all: it
follows from the number of steps (gpt.callbacks.step_seed).
"""

import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gpt.config import ModelConfig
from gpt.errors import LARGEST_INT, UserError, build, shorten
from gpt.model import GPT
from gpt.optim import build_optimizer, optimizer_config

PREFIX = "model."  # of the names of the weights: they are attributes of GPTModule.model
REQUIRED = {"global_step", "state_dict", "callbacks", "gpt", "optimizer_states"}
UNUSED = {"epoch", "pytorch-lightning_version", "loops", "lr_schedulers"}  # Lightning writes them
CLASSIFIER = "gpt.finetune.model:describe_classifier"  # imported for the checkpoint of a fine-tuned model
OF_AVERAGES = {"current_model_state", "averaging_state"}  # what callbacks=ema adds, and checks itself


class Damaged(ValueError):
    """A part of the training state is not as training leaves it."""


def check_training_state(content: Mapping[str, Any]) -> None:
    """Raises UserError unless `content`, as `gpt.checkpoint.read` returns it, is what a run here can go on from.

    Callbacks check their states when they load them. Here these only have to be dictionaries.
    """
    try:
        missing, unknown = REQUIRED - content.keys(), content.keys() - REQUIRED - UNUSED - OF_AVERAGES
        require(not missing, f"it has no {', '.join(sorted(missing))}")
        require(not unknown, f"it has {shorten(next(iter(unknown), ''))}, which no run here has")
        metadata, step = content["gpt"], content["global_step"]
        require(type(step) is int and 0 <= step <= LARGEST_INT, f"global_step = {shorten(step)}: not a count")
        config, make, extra = describe_model(metadata)
        difference = compare_weights(content["state_dict"], config, make, extra)
        require(not difference, difference or "")
        with torch.device("meta"):  # shapes without memory
            model = make(config)
            optimizer = build_optimizer(model, optimizer_config(metadata["config"]["optimizer"]))
        (state,) = content["optimizer_states"]
        check_optimizer(state, model, optimizer, step)
        are_dictionaries = all(isinstance(state, dict) for state in content["callbacks"].values())
        require(are_dictionaries, "the state of a callback is not a dictionary")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{'damaged, ' if not isinstance(error, ValueError) else ''}{shorten(error, 200)}"
        raise UserError(
            f"checkpoint = (training state): cannot be resumed ({reason}); use a checkpoint that this project wrote"
        ) from None


def require(condition: bool, otherwise: str) -> None:
    """Raises Damaged, with `otherwise` as the reason, unless the condition holds."""
    if not condition:
        raise Damaged(otherwise)


def describe_model(metadata: Mapping[str, Any]) -> tuple[ModelConfig, Callable[[ModelConfig], GPT], int]:
    """The sizes of a checkpoint's model, what makes it, and how many parameters it has beside those of a language model.

    Raises UserError, or whatever wrong types lead to.
    """
    config = build(ModelConfig, metadata["model"], "model")
    if metadata.get("task") is None:
        return config, GPT, 0
    make, extra = pkgutil.resolve_name(CLASSIFIER)(metadata, config)
    return config, make, extra


def compare_weights(
    weights: Mapping[str, Any], config: ModelConfig, make: Callable[[ModelConfig], GPT] = GPT, extra: int = 0
) -> str | None:
    """How `weights` differ from finite weights of a GPTModule of these sizes. None if they don't.

    `make` and `extra` are as `describe_model` returns them. A model is made only for as many parameters as `weights` hold.
    """
    tensors = {str(name).removeprefix(PREFIX): tensor for name, tensor in weights.items()}
    if wrong := [
        name
        for name, tensor in tensors.items()
        if not (isinstance(tensor, Tensor) and tensor.is_floating_point())
    ]:
        return f"{shorten(wrong[0])} is no tensor of weights"
    unique = {
        (tensor.data_ptr(), tensor.shape): tensor.numel() for tensor in tensors.values()
    }  # a tied head counts once
    if (held := sum(unique.values())) != (needed := config.parameter_count() + extra):
        return f"holds {held:,} parameters, where its sizes ask for {needed:,}"
    # Not on the meta device, where drawing weights imports the compiler, which takes two seconds
    expected = {name: tensor.shape for name, tensor in make(config).state_dict().items()}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if different := sorted(name for name in {*expected, *shapes} if expected.get(name) != shapes.get(name)):
        return f"another architecture than its metadata says: {shorten(different[0])} does not fit"
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        return f"non-finite weights in {len(broken)} tensors, {broken[0]} first"
    return None


def check_tensors(tensors: Any, expected: Mapping[str, Tensor]) -> None:
    """Raises Damaged unless `tensors` has finite tensors with the names, shapes and types of the expected ones."""
    require(
        isinstance(tensors, dict) and tensors.keys() == expected.keys(),
        "it has other tensors than training leaves",
    )
    for name, like in expected.items():
        tensor = tensors[name]
        is_dense = isinstance(tensor, Tensor) and tensor.layout == torch.strided
        found = f"{tensor.dtype} {tuple(tensor.shape)}" if is_dense else tensor
        fits = is_dense and tensor.dtype == like.dtype and tensor.shape == like.shape
        require(fits, f"{shorten(name)} is {shorten(found)}, which does not fit")
        require(bool(tensor.isfinite().all()), f"{shorten(name)} has values that are not finite")


def check_optimizer(
    state: Mapping[str, Any], model: GPT, optimizer: torch.optim.Optimizer, steps: int
) -> None:
    """Raises Damaged unless `state` fits the optimizer of a model, both on the meta device, after so many steps."""
    require(set(state) == {"state", "param_groups"}, "the state of the optimizer has other parts")
    require(
        len(state["param_groups"]) == len(optimizer.param_groups), "the optimizer has other parameter groups"
    )
    numbers = find_numbers(state, model, optimizer)
    for group, expected in zip(state["param_groups"], optimizer.param_groups, strict=True):
        unknown = group.keys() - expected.keys() - {"initial_lr"}
        require(not unknown, f"a parameter group has {shorten(next(iter(unknown), ''))}")
        names = {"step", "exp_avg", "exp_avg_sq"} if "betas" in expected else {"momentum_buffer"}
        for parameter in expected["params"]:
            values = state["state"][numbers[parameter]]
            check_tensors(
                values, {name: torch.tensor(0.0) if name == "step" else parameter for name in names}
            )
            taken = int(values.get("step", steps))
            require(taken == steps, f"global_step = {steps}, but the optimizer has taken {taken} steps")
    require(len(state["state"]) == len(numbers), "the optimizer has states of other parameters")


def find_numbers(state: Mapping[str, Any], model: GPT, optimizer: torch.optim.Optimizer) -> dict[Tensor, int]:
    """The number by which `state` calls each parameter. Raises Damaged if a group has others than the optimizer's.

    Parameters are counted in the order of the groups, or in that of the model if processes have shared out the weights.
    """
    stored = [group["params"] for group in state["param_groups"]]
    require(all(type(number) is int for group in stored for number in group), "a parameter has no number")
    groups = [group["params"] for group in optimizer.param_groups]
    for order in ([parameter for group in groups for parameter in group], model.parameters()):
        numbers = {parameter: number for number, parameter in enumerate(order)}
        if stored == [sorted(numbers[parameter] for parameter in group) for group in groups]:
            return numbers
    raise Damaged("a group has other parameters")
