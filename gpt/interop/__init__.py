"""Optional integrations: byte pairs, Hugging Face, ONNX, a decoder in numpy for sampling, and the page."""
