"""Run the QDQ model of an FPGA artifact on ONNX Runtime's CPU provider: the arithmetic that hardware is to match."""

from ..onnxruntime.run import open_folder

__all__ = ["open_folder"]
