"""QDQ to QONNX: each pair of QuantizeLinear and DequantizeLinear becomes one `Quant` of float values.

    DQ(Q(x, s, 0), s, 0)  ->  Quant(x, s, 0, 8)          DQ(codes, s, 0)  ->  Quant(s codes, s, 0, 8)

`Quant(x) = s clip(round(x / s), -128, 127)`, rounded half to even: the same numbers. (Pappalardo et al. 2022, "QONNX:
Representing Arbitrary-Precision Quantized Neural Networks"; the operator is specified in the repository of qonnx,
docs/qonnx-custom-ops.) Constants are float initializers, rounded already, behind a Quant that names their grid, as
Brevitas exports them. Names become identifiers of C, `Conv_0_out0`, because HLS tools write them into source code.
"""

from __future__ import annotations

import re

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from qcc.ir.errors import NotSupported

DOMAIN = "qonnx.custom_op.general"
_VERSION = 1


def to_qonnx(model: ModelProto) -> ModelProto:
    """Rewrite a QDQ model of int8 in place, and give it.

    Raises `NotSupported` for control flow, which QONNX tools do not read.
    """
    graph = model.graph
    inner = [n.op_type for n in graph.node if any(a.HasField("g") for a in n.attribute)]
    if inner:
        raise NotSupported(f"QONNX has no form for {inner[0]}, which chooses at run time what to compute")
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    quantizers = {n.output[0]: n for n in graph.node if n.op_type == "QuantizeLinear"}
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.op_type == "DequantizeLinear":
            nodes.append(_quant(node, quantizers, constants, graph))
        elif node.op_type != "QuantizeLinear":
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused(graph)
    _rename(graph)
    if any(n.domain == DOMAIN for n in graph.node):
        model.opset_import.append(helper.make_opsetid(DOMAIN, _VERSION))
    return model


def _quant(
    node: NodeProto, quantizers: dict[str, NodeProto], constants: dict[str, np.ndarray], graph: GraphProto
) -> NodeProto:
    codes, scale = node.input[0], constants[node.input[1]]
    if codes in quantizers:
        source = quantizers[codes].input[0]
    else:
        source = f"{codes}_value"
        graph.initializer.append(numpy_helper.from_array(constants[codes].astype(np.float32) * scale, source))
    parameters = {"scale": scale.astype(np.float32), "zero": np.float32(0), "bits": np.float32(8)}
    names = [f"{node.output[0]}_{which}" for which in parameters]
    for name, value in zip(names, parameters.values(), strict=True):
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return helper.make_node(
        "Quant", [source, *names], [node.output[0]], domain=DOMAIN, signed=1, narrow=0, rounding_mode="ROUND"
    )


def _drop_unused(graph: GraphProto) -> None:
    read = {name for node in graph.node for name in node.input}
    kept = [t for t in graph.initializer if t.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    made = {name for node in graph.node for name in node.output}
    shapes = [v for v in graph.value_info if v.name in made]
    del graph.value_info[:]
    graph.value_info.extend(shapes)


def _rename(graph: GraphProto) -> None:
    """Nodes by operator and place, tensors by the node that gives or first reads them; ports by their own names."""
    names: dict[str, str] = {"": ""}
    ports = [*graph.input, *graph.output]
    for port in ports:
        names.setdefault(port.name, _free(re.sub(r"\W", "_", port.name), set(names.values())))
    counts: dict[str, int] = {}
    constants = {t.name for t in graph.initializer}
    for node in graph.node:
        place = counts.get(node.op_type, 0)
        counts[node.op_type] = place + 1
        node.name = f"{node.op_type}_{place}"
        for index, name in enumerate(node.input):
            if name in constants:
                names.setdefault(name, f"{node.name}_param{index}")
        for index, name in enumerate(node.output):
            names.setdefault(name, f"{node.name}_out{index}")
    for node in graph.node:
        node.input[:], node.output[:] = [names[n] for n in node.input], [names[n] for n in node.output]
    for port in (*ports, *graph.value_info):
        port.name = names[port.name]
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]


def _free(name: str, taken: set[str]) -> str:
    name = f"_{name}" if name[:1].isdigit() else name
    while name in taken:
        name += "_"
    return name
