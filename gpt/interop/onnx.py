"""A model of any architecture as an ONNX file, which reads a window at once, or a text step by step."""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from gpt.attention import KVCache
from gpt.interop import library
from gpt.model import GPT, plain_attention


def write_onnx(model: GPT, path: Path, cache: bool = False) -> None:
    """Write a model: `ids` (B, T) give `logits` (B, T, V), B and T free (extra onnx).

    With `cache`, the ids continue what has been read: `keys_values` (L, 2, B, H, S, D) of S positions and
    `conv_inputs` (2 L or 0, B, width, C), zeros at first. These are inputs and, as `next_...`, outputs.
    """
    library("onnxscript", "onnx")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is missing
    config, batch = model.config, 2
    example: tuple[Tensor, ...] = (torch.zeros(batch, min(2, config.context_length), dtype=torch.int64),)
    names, sizes = ["ids"], [{0: "batch", 1: "position"}]
    if cache:
        convs = sum(name.endswith("conv") for name, _ in model.named_modules())
        keys_values = torch.zeros(config.n_layer, 2, batch, config.n_head, 1, config.head_size)
        example += (keys_values, torch.zeros(convs, batch, config.conv_width, config.n_embd))
        names += ["keys_values", "conv_inputs"]
        sizes += [{2: "batch", 4: "past"}, {1: "batch"}]
    outputs = ["logits", *(f"next_{name}" for name in names[1:])]
    settings: dict[str, Any] = {"input_names": names, "output_names": outputs, "dynamic_shapes": tuple(sizes)}
    # By its formula, attention has no choice between kernels that would depend on the sizes of the example
    with plain_attention(model), warnings.catch_warnings(action="ignore"):
        whole = Continuing(model) if cache else model
        program = torch.onnx.export(whole, example, verbose=False, **settings)
    path.write_bytes(program.model_proto.SerializeToString())  # type: ignore[union-attr]


class Continuing(nn.Module):
    """A model whose cache is a value that it takes and returns."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, keys_values: Tensor, conv_inputs: Tensor) -> tuple[Tensor, ...]:
        cache = GrowingCache(keys_values, conv_inputs)
        logits = self.model.forward(ids, cache)
        convs = torch.stack([*cache.conv_inputs.values()]) if len(conv_inputs) else conv_inputs
        return logits, torch.stack([*cache.keys_values.values()]), convs


class GrowingCache(KVCache):
    """What a model has read, by layer in the order of reading. Nothing is written in place."""

    def __init__(self, keys_values: Tensor, conv_inputs: Tensor) -> None:
        super().__init__(capacity=0)
        self.length = keys_values.size(-2)
        self.before, self.convs_before = iter(keys_values), iter(conv_inputs)

    def append(self, layer: nn.Module, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        grown = torch.cat((next(self.before), torch.stack((k, v))), dim=-2)
        self.keys_values[layer] = grown
        return grown[0], grown[1]

    def prepend_conv_inputs(self, layer: nn.Module, x: Tensor, width: int) -> Tensor:
        x = torch.cat((next(self.convs_before), x), dim=1)
        self.conv_inputs[layer] = x[:, -width:]
        return x
