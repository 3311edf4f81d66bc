"""The dialects of the IR: `onnx`, `onnx_ml`, `onnx_preview`, `onnx_training` and `msft` from schemas, `q` by hand."""
