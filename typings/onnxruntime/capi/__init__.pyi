"""The native parts of ONNX Runtime."""
