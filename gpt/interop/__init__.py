"""Doors to other systems, which one may skip: byte pairs, Hugging Face, ONNX, sharded training, large texts."""
