"""`gpt.convert.from_hf` and `gpt.convert.to_hf`, the public names of what `gpt/extras/huggingface.py` does."""

from gpt.extras.huggingface import from_hf, to_hf

__all__ = ["from_hf", "to_hf"]
