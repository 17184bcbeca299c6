"""Writing a model as ONNX, for any program that runs such files. This needs the extra called onnx."""

import logging
import warnings
from pathlib import Path

import torch

from gpt.interop import library
from gpt.model import GPT, plain_attention


def write_onnx(model: GPT, path: Path) -> None:
    """Write a model of any architecture: `ids` (B, T) give `logits` (B, T, V), where B and T stay free."""
    library("onnxscript", "onnx")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is missing
    longest = model.config.context_length
    sizes = {"ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim("position", max=longest)}}
    example = (torch.zeros(2, min(2, longest), dtype=torch.int64),)
    names = {"input_names": ["ids"], "output_names": ["logits"]}
    # By its formula, attention has no choice between kernels that would depend on the sizes of the example
    with plain_attention(model), warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(model, example, dynamic_shapes=sizes, verbose=False, **names)
    assert program is not None  # as it is for exporters of older versions
    path.write_bytes(program.model_proto.SerializeToString())
