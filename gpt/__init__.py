"""A GPT from scratch (Radford et al. 2018; Vaswani et al. 2017), trained on characters with Lightning.

Read the modules of this folder in this order: model, attention, tokenizer, text, data, optim, muon, module,
config, generate, checkpoint, run, train. `model.py` needs PyTorch and its configuration alone. The folders
are for later: `callbacks/` runs during training, `finetune/` is the paper's second half, `interop/` speaks to
other systems, `analysis/` compares runs, and `cli/` knows Hydra.

    model, tokenizer, metadata = gpt.load("outputs/RUN")  # a run folder, a file, or "pretrained"
    print(gpt.generate_text(model, tokenizer, "ROMEO:", 300, temperature=0.8, seed=1))
"""

from typing import Any

__all__ = ["generate_text", "load"]


def __getattr__(name: str) -> Any:
    """Import what is asked for only then: `import gpt.errors` needs no PyTorch."""
    if name == "load":
        from gpt.checkpoint import load

        return load
    if name == "generate_text":
        from gpt.generate import generate_text

        return generate_text
    raise AttributeError(f"module 'gpt' has no attribute {name!r}")
