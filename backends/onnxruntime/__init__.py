"""The ONNX Runtime backend: one `model.onnx` over the packed weights, for the CPU."""
