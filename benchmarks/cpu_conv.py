"""Generated int8 convolutions on this processor, beside ONNX Runtime's, layer by layer of two networks.

    python -m benchmarks.cpu_conv [--rounds 20] [--parts layers,networks] [--threads 1,2] [--json FILE]

PP-OCRv4 rec    the convolutions of the model file, for a line of 48 x 320 pixels
ResNet-50       those of the usual network (He et al., arXiv 1512.03385, with the stride in the 3 x 3), 224 x 224

u8 activations with one scale, s8 weights with a scale for each channel, results rounded to u8: QLinearConv. ONNX
Runtime gets the operator of ONNX on NCHW and its own on NHWC, which spares it two transpositions; the faster counts.
Ours reads and writes NCHW16c with a halo, and fills the halo of its result as if the same padding followed. The limit
is the dot product of the instruction set from registers, in the same rounds. All results are compared, bit for bit,
before anything is timed.

layers      one thread: a round goes through all layers of both networks in order, the sides of a layer in turn, so that
            weights come from where a network would find them. A layer that takes less than 300 us is computed several
            times a run, with other weights each time, so that entering a library is not what is measured.
networks    all convolutions of a network one after the other, each as often as it is there and with its own weight: one
            session of ONNX Runtime, one call of ours for each. The second of two such passes is timed, in turns.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnxruntime import InferenceSession, OrtValue
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

from benchmarks.peers import REST_SECONDS
from benchmarks.peers.onnxruntime_matmul import options_for
from benchmarks.workloads import ocr
from qcc.backends.native import conv, isa, probe
from qcc.backends.native.conv import Scales
from qcc.backends.native.conv_spec import ConvSpec
from qcc.ir import target

RESULTS = Path(__file__).parent / "results"
REACH = 1.0
"""ONNX Runtime's time over ours, of a whole network."""
RUN_SECONDS, GOPS, MOST = 300e-6, 300.0, 24
X_ZERO, Y_ZERO = 7, 3
Run = Callable[[], None]


@dataclass(frozen=True)
class Layer:
    """A convolution, how often a network has it, and how often a run computes it."""

    network: str
    spec: ConvSpec
    count: int
    copies: int

    @staticmethod
    def of(network: str, spec: ConvSpec, count: int) -> Layer:
        """A layer that is computed as often as fills a run."""
        return Layer(network, spec, count, max(1, min(MOST, round(RUN_SECONDS * GOPS * 1e9 / (2 * spec.macs)))))

    def weights(self) -> list[np.ndarray]:
        """A weight for each copy, int8."""
        rng = np.random.default_rng(self.spec.macs)
        return [rng.integers(-127, 128, self.spec.weight).astype(np.int8) for _ in range(self.copies)]

    def scales(self) -> Scales:
        """Scales that spread the results over their codes."""
        spread = 128 * 74 * np.sqrt(self.spec.products)
        return Scales(
            0.02, np.linspace(0.5, 1.5, self.spec.channels, dtype=np.float32), float(0.02 * spread / 64), X_ZERO, Y_ZERO
        )

    def bias(self) -> np.ndarray:
        """int32 [channels]."""
        return np.random.default_rng(1).integers(-2000, 2000, self.spec.channels).astype(np.int32)

    def x(self) -> np.ndarray:
        """u8 [1, C, H, W]."""
        x = self.spec.x
        return np.random.default_rng(2).integers(0, 256, (1, x.channels, x.height, x.width)).astype(np.uint8)


def ocr_layers() -> list[Layer]:
    """The convolutions of PP-OCRv4's recognition network."""
    model = onnx.load(ocr.model_path("rec"))
    for dimension, value in zip(model.graph.input[0].type.tensor_type.shape.dim, (1, 3, 48, 320), strict=True):
        dimension.Clear()
        dimension.dim_value = value
    graph = SymbolicShapeInference.infer_shapes(model, auto_merge=True).graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.value_info, *graph.input)}
    found: Counter[ConvSpec] = Counter()
    for node in graph.node:
        if node.op_type == "Conv":
            _, channels, height, width = shapes[node.input[0]]
            a = {each.name: helper.get_attribute_value(each) for each in node.attribute}
            pads = tuple(a["pads"])
            out = shapes[node.output[0]][1]
            sizes = (tuple(a[key]) for key in ("kernel_shape", "strides"))
            found[_spec((channels, height, width), out, *sizes, pads, a["group"])] += 1
    return [Layer.of("PP-OCRv4 rec", spec, count) for spec, count in found.items()]


def resnet_layers() -> list[Layer]:
    """The convolutions of ResNet-50."""
    found: Counter[ConvSpec] = Counter([_spec((3, 224, 224), 64, (7, 7), (2, 2), (3, 3, 3, 3), 1)])
    channels, size = 64, 56
    for inner, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            by = stride if block == 0 else 1
            found[_spec((channels, size, size), inner, (1, 1), (1, 1), (0,) * 4, 1)] += 1
            found[_spec((inner, size, size), inner, (3, 3), (by, by), (1,) * 4, 1)] += 1
            found[_spec((inner, size // by, size // by), 4 * inner, (1, 1), (1, 1), (0,) * 4, 1)] += 1
            if block == 0:
                found[_spec((channels, size, size), 4 * inner, (1, 1), (by, by), (0,) * 4, 1)] += 1
            channels, size = 4 * inner, size // by
    return [Layer.of("ResNet-50", spec, count) for spec, count in found.items()]


def _spec(image: tuple[int, int, int], channels: int, kernel: Any, strides: Any, pads: Any, groups: int) -> ConvSpec:
    """Any: tuples of the lengths that `ConvSpec` states."""
    return ConvSpec.of(image, channels, kernel, strides, pads, groups=groups, halo=pads)


def ours(layers: Sequence[Layer], threads: int) -> tuple[Run, list[np.ndarray]]:
    """Generated kernels in their default schedules: what runs them all, and the last result of each layer as NCHW."""
    calls, last = list[conv.ConvCall](), list[conv.ConvCall]()
    for layer in layers:
        kernel = conv.build(layer.spec, isa.best(target.load("cpu")))
        x = layer.spec.x.pack(layer.x(), X_ZERO)
        for weight in layer.weights():
            calls.append(kernel.prepared(x, kernel.pack(weight, layer.scales(), layer.bias()), threads=threads))
        last.append(calls[-1])

    def run() -> None:
        for call in calls:
            call()

    run()
    return run, [layer.spec.y.unpack(call.y) for layer, call in zip(layers, last, strict=True)]


def theirs(layers: Sequence[Layer], threads: int, nhwc: bool) -> tuple[Run, list[np.ndarray]]:
    """One session of ONNX Runtime with all of them: what runs it, and the last result of each layer as NCHW."""
    session = InferenceSession(_model(layers, nhwc), options_for(threads), providers=["CPUExecutionProvider"])
    binding, held, last = session.io_binding(), list[OrtValue](), list[OrtValue]()
    for i, layer in enumerate(layers):
        held.append(OrtValue.ortvalue_from_numpy(np.ascontiguousarray(turned(layer.x(), nhwc))))
        binding.bind_ortvalue_input(f"x{i}", held[-1])
        shape = turned(np.empty((1, layer.spec.channels, *layer.spec.size), np.uint8), nhwc).shape
        for copy in range(layer.copies):
            held.append(OrtValue.ortvalue_from_numpy(np.zeros(shape, np.uint8)))
            binding.bind_ortvalue_output(f"y{i}.{copy}", held[-1])
        last.append(held[-1])

    def run(held: object = held) -> None:
        session.run_with_iobinding(binding)

    run()
    return run, [value.numpy().transpose(0, 3, 1, 2) if nhwc else value.numpy() for value in last]


def turned(images: np.ndarray, nhwc: bool) -> np.ndarray:
    """NCHW as NHWC, where that is asked for."""
    return images.transpose(0, 2, 3, 1) if nhwc else images


def _model(layers: Sequence[Layer], nhwc: bool) -> bytes:
    """A node for each copy of each layer; the copies read one image."""
    nodes, inputs, outputs = list[NodeProto](), list[ValueInfoProto](), list[ValueInfoProto]()
    held: dict[str, Any] = {"xz": np.uint8(X_ZERO), "yz": np.uint8(Y_ZERO)}
    for i, layer in enumerate(layers):
        spec, s = layer.spec, layer.scales()
        held |= {f"xs{i}": np.float32(s.x), f"ws{i}": s.weight, f"wz{i}": np.zeros(spec.channels, np.int8)}
        held |= {f"ys{i}": np.float32(s.y), f"b{i}": layer.bias()}
        inputs.append(helper.make_tensor_value_info(f"x{i}", TensorProto.UINT8, turned(layer.x(), nhwc).shape))
        attributes: dict[str, Any] = {"domain": "com.microsoft", "channels_last": 1} if nhwc else {}
        attributes |= {"kernel_shape": spec.kernel, "strides": spec.strides, "pads": spec.pads, "group": spec.groups}
        for copy, weight in enumerate(layer.weights()):
            held[f"w{i}.{copy}"], y = weight, f"y{i}.{copy}"
            names = [f"x{i}", f"xs{i}", "xz", f"w{i}.{copy}", f"ws{i}", f"wz{i}", f"ys{i}", "yz", f"b{i}"]
            nodes.append(helper.make_node("QLinearConv", names, [y], **attributes))
            outputs.append(helper.make_tensor_value_info(y, TensorProto.UINT8, [f"{y}.{d}" for d in range(4)]))
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in held.items()]
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "layers", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


SIDES: dict[str, Callable[[Sequence[Layer], int], tuple[Run, list[np.ndarray]]]] = {
    "qcc": ours,
    "ort nchw": lambda layers, threads: theirs(layers, threads, nhwc=False),
    "ort nhwc": lambda layers, threads: theirs(layers, threads, nhwc=True),
}


def checked(layers: Sequence[Layer], threads: int) -> dict[str, Run]:
    """All sides of some layers, whose results are the same bits."""
    made = {name: side(layers, threads) for name, side in SIDES.items()}
    for name, (_, results) in made.items():
        for layer, y, mine in zip(layers, results, made["qcc"][1], strict=True):
            if not np.array_equal(y, mine):
                raise SystemExit(f"{layer.spec}: {name} differs in {np.count_nonzero(y != mine)} of {y.size} codes")
    return {name: run for name, (run, _) in made.items()}


def layer_rows(layers: Sequence[Layer], rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each layer on one thread; microseconds of one convolution. Any: JSON."""
    sides = [checked([layer], 1) for layer in layers]
    best, rates = isa.best(target.load("cpu")), list[float]()
    times = [{name: list[float]() for name in SIDES} for _ in layers]
    for index in range(rounds + 1):
        rates.append(probe.dot_gops(best.name, 1))
        for layer, runs, found in zip(layers, sides, times, strict=True):
            for name in list(SIDES)[:: 1 if index % 2 else -1]:
                found[name].append(seconds(runs[name]) / layer.copies)
    for layer, found in zip(layers, times, strict=True):
        us = {name: spread(each[1:], 1e6) for name, each in found.items()}
        gops, limit = 2e-3 * layer.spec.macs / us["qcc"][1], float(np.median(rates))
        yield {
            "part": "layers", "network": layer.network, "conv": _name(layer.spec), "count": layer.count, "us": us,
            "gops": gops, "limit_gops": limit, "share": gops / limit, "ratio": ratio(us),
        }  # fmt: skip


def network_rows(layers: Sequence[Layer], rounds: int, threads: Sequence[int]) -> Iterator[dict[str, Any]]:
    """A row for each network and number of threads; milliseconds of all its convolutions. Any: JSON."""
    best = isa.best(target.load("cpu"))
    for network, count in product(dict.fromkeys(layer.network for layer in layers), threads):
        mine = [replace(layer, copies=layer.count) for layer in layers if layer.network == network]
        runs, found, rates = checked(mine, count), {name: list[float]() for name in SIDES}, list[float]()
        for index in range(rounds):
            rates.append(probe.dot_gops(best.name, count))
            for name in list(SIDES)[:: 1 if index % 2 else -1]:
                runs[name]()  # which wakes its threads
                found[name].append(seconds(runs[name]))
                time.sleep(REST_SECONDS)
        ms = {name: spread(each, 1e3) for name, each in found.items()}
        gops, limit = 2e-6 * sum(m.count * m.spec.macs for m in mine) / ms["qcc"][1], float(np.median(rates))
        yield {
            "part": "networks", "network": network, "threads": count, "ms": ms, "gops": gops, "limit_gops": limit,
            "share": gops / limit, "ratio": ratio(ms),
        }  # fmt: skip


def seconds(run: Run) -> float:
    """What a run takes."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def spread(times: Sequence[float], unit: float) -> list[float]:
    """10th percentile, median and 90th."""
    return [float(t) * unit for t in np.percentile(times, [10, 50, 90])]


def ratio(times: dict[str, list[float]]) -> float:
    """The better of ONNX Runtime's medians over ours."""
    return min(median for name, (_, median, _) in times.items() if name != "qcc") / times["qcc"][1]


def _name(spec: ConvSpec) -> str:
    """The layer in a few words."""
    x, stride = spec.x, f" / {spec.strides[0]}x{spec.strides[1]}" if spec.strides != (1, 1) else ""
    kind = " depthwise" if spec.depthwise else ""
    return f"{spec.kernel[0]}x{spec.kernel[1]}{stride}{kind}, {x.channels}x{x.height}x{x.width} to {spec.channels}"


def show(row: dict[str, Any]) -> str:
    """A row as a person reads it. Any: JSON."""
    unit = "us" if row["part"] == "layers" else "ms"
    sides = [f"{name} {m:.4g} ({low:.4g} to {high:.4g})" for name, (low, m, high) in row[unit].items()]
    what = f"{row['count']} x {row['conv']}" if unit == "us" else f"{row['threads']} threads, all"
    missed = "" if row["ratio"] >= REACH else "  MISS"
    return (
        f"{row['network']}, {what}: {', '.join(sides)} {unit}; {row['share']:.0%} of the dot limit, "
        f"{row['ratio']:.2f}x{missed}"
    )


def main() -> None:
    """Measure, print a line each, and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--parts", default="layers,networks")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--json", type=Path, default=RESULTS / "cpu_conv.json", help="write the result here")
    options = parser.parse_args()
    host = target.load("cpu")
    layers, rows, parts = [*ocr_layers(), *resnet_layers()], list[dict[str, Any]](), options.parts.split(",")
    threads = [int(t) for t in options.threads.split(",") if int(t) <= host.cores]
    made = layer_rows(layers, options.rounds) if "layers" in parts else iter(())
    for row in chain(made, network_rows(layers, options.rounds, threads) if "networks" in parts else ()):
        rows.append(row)
        print(show(row), flush=True)
    result = {
        "machine": f"{host.machine}, {host.cores} cores, {isa.best(host).summary}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in ("numpy", "onnxruntime")},
        "rounds": options.rounds,
        "reach": REACH,
        "rows": rows,
    }
    options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
