"""A model as others run it: the Hugging Face layout, GGUF, ONNX, a program of torch."""
