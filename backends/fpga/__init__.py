"""Fixed-point networks for FPGA tool chains, as two ONNX files: QDQ, which ONNX Runtime runs as well, and QONNX."""
