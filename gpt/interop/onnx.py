"""Writing a model as ONNX, for any program that runs such files. This needs the extra called onnx."""

import logging
import warnings
from pathlib import Path

import torch

from gpt.errors import UserError
from gpt.model import GPT, plain_attention


def write_onnx(model: GPT, path: Path) -> None:
    """Write a model of any architecture: `ids` (B, T) give `logits` (B, T, V), where B and T stay free.

    Raises UserError if the library for it is missing.
    """
    try:
        import onnxscript  # noqa: F401
    except ImportError:
        how = "it is needed to write ONNX; pip install -e '.[onnx]'"
        raise UserError(f"onnxscript = (missing): {how}") from None
    logging.getLogger("torch.onnx").setLevel(
        logging.ERROR
    )  # it warns that torchvision's operators are missing
    longest = model.config.context_length
    sizes = {"ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim("position", max=longest)}}
    example = (torch.zeros(2, min(2, longest), dtype=torch.int64),)
    # By its formula, attention has no choice between kernels that would depend on the sizes of the example
    with plain_attention(model), warnings.catch_warnings(action="ignore"):
        program = torch.onnx.export(
            model, example, input_names=["ids"], output_names=["logits"], dynamic_shapes=sizes, verbose=False
        )
    assert program is not None  # as it is for exporters of older versions
    path.write_bytes(program.model_proto.SerializeToString())
