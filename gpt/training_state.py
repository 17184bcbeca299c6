"""The part of a checkpoint that only training goes on from, checked before Lightning sees it.

Lightning copies counters and settings from a checkpoint into its own objects as they are. So each is checked here: its place,
its type and its range, and for tensors the shape and that every number is finite.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gpt.model import GPT, GPTConfig
from gpt.optim import build_optimizer, optimizer_config
from gpt.settings import LARGEST_INT, UserError, build, shorten

REQUIRED = {"epoch", "global_step", "pytorch-lightning_version", "state_dict", "loops", "callbacks", "gpt"}
REQUIRED |= {"optimizer_states", "lr_schedulers"}
OF_AVERAGES = {"current_model_state", "averaging_state"}  # what callbacks=ema adds, and checks itself
COUNTERS = {"ready", "completed", "started", "processed"}
COUNTED = {"optimizer", "step", "zero_grad"}  # what Lightning counts within one another


class Damaged(ValueError):
    """A part of the training state is not as training leaves it."""


def check_training_state(content: Mapping[str, Any]) -> None:
    """Raises UserError unless `content`, as `gpt.checkpoint.read` returns it, is what a run here can go on from.

    Callbacks check their states when they load them. Here these only have to be dictionaries.
    """
    try:
        missing, unknown = REQUIRED - content.keys(), content.keys() - REQUIRED - OF_AVERAGES
        require(not missing, f"it has no {', '.join(sorted(missing))}")
        require(not unknown, f"it has {shorten(next(iter(unknown), ''))}, which no run here has")
        metadata = content["gpt"]
        with torch.device("meta"):  # shapes without memory
            model = GPT(build(GPTConfig, metadata["model"], "model"))
            optimizer = build_optimizer(model, optimizer_config(metadata["config"]["optimizer"]))
        check_progress(content)
        check_weights(content["state_dict"], model)
        (state,) = content["optimizer_states"]
        check_optimizer(state, model, optimizer, metadata)
        (schedule,) = content["lr_schedulers"]
        for state in (schedule, *content["callbacks"].values()):
            require(isinstance(state, dict), "the state of a callback or schedule is not a dictionary")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{'damaged, ' if not isinstance(error, ValueError) else ''}{shorten(error, 200)}"
        raise UserError(
            f"checkpoint = (training state): cannot be resumed ({reason}); use a checkpoint that this project wrote"
        ) from None


def require(condition: bool, otherwise: str) -> None:
    """Raises Damaged, with `otherwise` as the reason, unless the condition holds."""
    if not condition:
        raise Damaged(otherwise)


def check_count(value: Any, name: str) -> None:
    require(type(value) is int and 0 <= value <= LARGEST_INT, f"{shorten(name)} = {shorten(value)}: not a count")


def check_progress(content: Mapping[str, Any]) -> None:
    """Raises Damaged, or what a wrong type leads to, unless all counters are counts and agree about the number of steps."""
    for name in ("epoch", "global_step"):
        check_count(content[name], name)
    version = content["pytorch-lightning_version"]
    require(bool(re.fullmatch(r"[2-9]\.\d{1,3}\.\d{1,3}[\w.+]{0,20}", version)), f"it is of Lightning {shorten(version)}")
    for loop, state in content["loops"].items():
        for name, value in state.items():
            if name.endswith("state_dict"):
                require(set(value) <= {"_batches_that_stepped"}, f"{shorten(loop)} has an unknown counter")
                for count in value.values():
                    check_count(count, name)
            else:
                check_counters(value, name)
    steps = content["loops"]["fit_loop"]["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]
    step = content["global_step"]
    require(steps["completed"] == step, f"global_step = {step}, but the optimizer has taken {steps['completed']} steps")


def check_counters(value: Mapping[str, Any], name: str) -> None:
    """Raises Damaged unless `value` has Lightning's counters of everything and of the current epoch, or several of these."""
    if "total" not in value:
        require(bool(value) and set(value) <= COUNTED, f"{shorten(name)} has no counters")
        for part, inner in value.items():
            check_counters(inner, part)
        return
    require({"total", "current"} <= set(value) <= {"total", "current", "is_last_batch"}, f"{shorten(name)} has other counters")
    require(type(value.get("is_last_batch", False)) is bool, "is_last_batch is not true or false")
    for counters in (value["total"], value["current"]):
        require({"ready", "completed"} <= set(counters) <= COUNTERS, f"{shorten(name)} counts something else")
        for counter, count in counters.items():
            check_count(count, counter)


def check_tensor(tensor: Any, shape: torch.Size, name: str) -> None:
    """Raises Damaged unless this is a tensor of finite floating-point numbers and has the shape."""
    require(isinstance(tensor, Tensor) and tensor.is_floating_point(), f"{shorten(name)} is not a tensor of numbers")
    require(tensor.shape == shape, f"{shorten(name)} has the shape {tuple(tensor.shape)} instead of {tuple(shape)}")
    require(bool(tensor.isfinite().all()), f"{shorten(name)} has values that are not finite")


def check_weights(weights: Mapping[str, Any], model: GPT) -> None:
    """Raises Damaged unless these are the weights of such a model, as a part of GPTModule."""
    expected = {f"model.{name}": tensor.shape for name, tensor in model.state_dict().items()}
    require(weights.keys() == expected.keys(), "its weights are not those of the model in its metadata")
    for name, shape in expected.items():
        check_tensor(weights[name], shape, name)


def check_optimizer(state: Mapping[str, Any], model: GPT, optimizer: torch.optim.Optimizer, metadata: Mapping[str, Any]) -> None:
    """Raises Damaged unless `state` fits the optimizer of a model, both of which may be on the meta device.

    A state calls parameters by their number: in the order of the optimizer's groups, or in that of the
    model if the strategy shares out the weights.
    """
    require(set(state) == {"state", "param_groups"}, "the state of the optimizer has other parts")
    require(len(state["param_groups"]) == len(optimizer.param_groups), "the optimizer has other parameter groups")
    in_groups = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    is_sharded = metadata["config"]["trainer"]["strategy"] not in ("auto", "ddp")
    numbers = {parameter: number for number, parameter in enumerate(model.parameters() if is_sharded else in_groups)}
    for group, expected in zip(state["param_groups"], optimizer.param_groups, strict=True):
        unknown = group.keys() - expected.keys() - {"initial_lr"}
        require(not unknown, f"a parameter group has {shorten(next(iter(unknown), ''))}")
        has_numbers = all(type(number) is int for number in group["params"])
        is_same = has_numbers and group["params"] == sorted(numbers[p] for p in expected["params"])
        require(is_same, "a group has other parameters")
        names = {"step", "exp_avg", "exp_avg_sq"} if "betas" in expected else {"momentum_buffer"}
        for parameter in expected["params"]:
            values = state["state"][numbers[parameter]]
            require(values.keys() == names, f"the optimizer has other values for parameter {numbers[parameter]}")
            for name, tensor in values.items():
                check_tensor(tensor, torch.Size() if name == "step" else parameter.shape, name)
    require(len(state["state"]) == len(numbers), "the optimizer has states of other parameters")
