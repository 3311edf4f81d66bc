"""The models that are damaged: shipped examples, node tests of the onnx package, and small ones for what those lack."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

REPOSITORY = Path(__file__).resolve().parents[2]

NODE_TESTS = (
    # subgraphs, sequences and optionals
    *(
        "if",
        "if_opt",
        "if_seq",
        "loop11",
        "loop13_seq",
        "loop16_seq_none",
        "scan_sum",
        "scan9_sum",
        "split_to_sequence_1",
    ),
    *("sequence_map_identity_1_sequence_1_tensor_expanded", "sequence_insert_at_back", "optional_get_element_sequence"),
    # strings and other domains
    *(
        "string_concat",
        "equal_string",
        "ai_onnx_ml_label_encoder_string_int",
        "ai_onnx_ml_tree_ensemble_set_membership",
    ),
    "adam_multiple",
    # quantized and narrow types
    *("quantizelinear_int4", "quantizelinear_blocked_asymmetric", "quantizelinear_e4m3fn", "dequantizelinear_int2"),
    *(
        "dequantizelinear_blocked",
        "qlinearconv",
        "qlinearmatmul_2D_uint8_float32",
        "cast_FLOAT_to_INT4",
        "constant_pad",
    ),
    *("bitcast_2d_float32_to_int32",),
    # shape rules with many attributes
    *(
        "basic_conv_with_padding",
        "convtranspose_pads",
        "reshape_allowzero_reordered",
        "constant",
        "lstm_with_peepholes",
    ),
    *("maxunpool_export_with_output_shape", "roialign_aligned_true", "deform_conv_with_mask_bias", "gridsample"),
    *("attention_4d_with_past_and_present_qk_matmul", "unsqueeze_two_axes", "top_k", "flexattention_diff_head_sizes"),
    *("nllloss_NCd1d2_expanded", "bernoulli_expanded", "squeeze", "gru_batchwise"),
    # opsets that the version converter raises
    *("resize_upsample_scales_linear", "upsample_nearest", "batchnorm_epsilon_training_mode", "einsum_batch_matmul"),
    *(
        "slice",
        "split_variable_parts_1d_opset18",
        "nonmaxsuppression_two_classes",
        "layer_normalization_2d_axis0_expanded",
    ),
)


@dataclass(frozen=True)
class Seed:
    """A valid model as bytes, and the files of external data beside it."""

    name: str
    model: bytes
    beside: tuple[tuple[str, bytes], ...] = ()
    large: bool = False
    """Too slow to read for more than a few mutants."""


def seeds() -> dict[str, Seed]:
    """Every seed by name; the model of an optional package only where that is installed."""
    return {seed.name: seed for seed in (*_shipped(), *_node_tests(), *_built())}


def _shipped() -> Iterator[Seed]:
    yield Seed("digits", (REPOSITORY / "examples" / "digits" / "digits.onnx").read_bytes(), large=True)
    package = importlib.util.find_spec("rapidocr_onnxruntime")
    for folder in package.submodule_search_locations or [] if package else []:
        file = Path(folder) / "models" / "ch_ppocr_mobile_v2.0_cls_infer.onnx"
        if file.is_file():
            yield Seed("ocr_cls", file.read_bytes(), large=True)


def _node_tests() -> Iterator[Seed]:
    root = Path(onnx.__file__).parent / "backend" / "test" / "data" / "node"
    for name in NODE_TESTS:
        yield Seed(name, (root / f"test_{name}" / "model.onnx").read_bytes())


def _built() -> Iterator[Seed]:
    yield Seed("contrib", _text(CONTRIB))
    yield Seed("functions", _text(FUNCTIONS))
    yield Seed("shape_arithmetic", _text(SHAPE_ARITHMETIC))
    yield Seed("branches", _text(BRANCHES))
    yield Seed("old", _text(OLD))
    yield _external()


def _text(text: str) -> bytes:
    return onnx.parser.parse_model(text).SerializeToString()


CONTRIB = """
<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
main (float[n, 32] x) => (float[n, 8] y)
<uint8[8, 1, 16] codes, float[8] scales = {1, 1, 1, 1, 1, 1, 1, 1}>
{
  a = com.microsoft.MatMulNBits <K: int = 32, N: int = 8, bits: int = 4, block_size: int = 32> (x, codes, scales)
  b = com.microsoft.Gelu (a)
  y = com.microsoft.FusedMatMul <alpha: float = 0.5, transB: int = 0> (b, square)
}
""".replace("float[8] scales", "float[8, 8] square = {" + "1," * 63 + "1}, float[8] scales").replace(
    "uint8[8, 1, 16] codes", "uint8[8, 1, 16] codes = {" + "7," * 127 + "7}"
)

FUNCTIONS = """
<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
main (float[2, 4] x) => (float[2, 4] y)
{
  h = local.twice <alpha: float = 0.1> (x)
  y = local.leaky <alpha = 0.3> (h)
}
<domain: "local", opset_import: ["" : 21, "local" : 1]>
twice <alpha> (x) => (y)
{
  h = local.leaky <alpha: float = @alpha> (x)
  y = Add (h, h)
}
<domain: "local", opset_import: ["" : 21]>
leaky <alpha> (x) => (y)
{
  y = LeakyRelu <alpha: float = @alpha> (x)
}
"""

SHAPE_ARITHMETIC = """
<ir_version: 10, opset_import: ["" : 21]>
main (float[b, 3, h, w] x) => (float[b, s, 3] y, float[a, c] z)
<int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] three = {3}, int64[1] last = {-1}>
{
  shape = Shape (x)
  batch = Slice (shape, zero, one)
  hw = Slice (shape, two, last)
  area = ReduceProd (hw)
  target = Concat <axis = 0> (batch, three, area)
  flat = Reshape (x, target)
  y = Transpose <perm = [0, 2, 1]> (flat)
  count = Size (x)
  big = Mul (target, three)
  gathered = Gather (big, zero)
  extents = Concat <axis = 0> (gathered, two)
  filled = ConstantOfShape <value = float[1] {2.0}> (extents)
  tiled = Tile (filled, extents)
  z = Expand (tiled, extents)
}
"""

BRANCHES = """
<ir_version: 10, opset_import: ["" : 21]>
main (float[2, 3] x, bool c, int64 n) => (float[2, 3] y)
{
  y = Loop (n, c, x) <body = step (int64 i, bool go, float[2, 3] state) => (bool keep, float[2, 3] next)
  {
    keep = Identity (go)
    next = If (go) <
      then_branch = grow () => (float[2, 3] grown) { grown = Add (state, x) },
      else_branch = hold () => (float[2, 3] held) { limit = Constant <value_float = 1.5> () held = Min (state, limit) }
    >
  }>
}
"""

OLD = """
<ir_version: 3, opset_import: ["" : 7]>
main (float[1, 4, 6, 6] x, float[4] gamma, float[4] beta, float[4] mean, float[4] variance) => (float[1, 576] y)
<float[4] gamma = {1, 1, 1, 1}, float[4] beta = {0, 0, 0, 0},
 float[4] mean = {0, 0, 0, 0}, float[4] variance = {1, 1, 1, 1}>
{
  a = BatchNormalization <epsilon = 0.001> (x, gamma, beta, mean, variance)
  b = Upsample <mode = "nearest", scales = [1.0, 1.0, 2.0, 2.0]> (a)
  c = Dropout <ratio = 0.5> (b)
  d = Reshape (c, shape)
  e = Softmax <axis = 1> (d)
  y = Pad <pads = [0, 0, 0, 0], mode = "constant", value = 0.0> (e)
}
""".replace("float[4] gamma,", "int64[2] shape, float[4] gamma,").replace(
    "<float[4] gamma", "<int64[2] shape = {1, 576}, float[4] gamma"
)


def _external() -> Seed:
    data = np.arange(32 * 64, dtype=np.float32)
    weight = _outside("weight", TensorProto.FLOAT, (32, 64), 0, data.nbytes)
    codes = _outside("codes", TensorProto.UINT4, (33,), data.nbytes, 17)
    scale = numpy_helper.from_array(np.float32(0.5), "scale")
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["product"]),
        helper.make_node("DequantizeLinear", ["codes", "scale"], ["bias"]),
        helper.make_node("Slice", ["bias", "first", "end"], ["cut"]),
        helper.make_node("Concat", ["cut", "cut"], ["both"], axis=0),
        helper.make_node("Add", ["product", "both"], ["y"]),
    ]
    bounds = [numpy_helper.from_array(np.array([v], np.int64), name) for v, name in ((0, "first"), (32, "end"))]
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 64])],
        [weight, codes, scale, *bounds],
    )
    model: ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return Seed("external", model.SerializeToString(), (("weights.bin", data.tobytes() + bytes(range(17))),))


def _outside(name: str, element: int, dims: tuple[int, ...], offset: int, length: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=element, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "weights.bin"), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor
