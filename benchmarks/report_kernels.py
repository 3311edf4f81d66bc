"""The tables of docs/performance.md: kernels beside their peers, and whole networks."""

from __future__ import annotations

from typing import Any


def matmul_section(result: dict[str, Any]) -> str:
    """What `docs/performance.md` says of the generated kernels. Any: the JSON of `benchmarks/cpu_matmul.py`."""
    rows = result["rows"]
    reach = result["reach"]
    return f"""`python -m benchmarks.cpu_matmul`, {result["machine"]}: medians of {result["rounds"]} interleaved rounds.

One row of activations, a weight of 4096 x 4096. The limit is memory read in the same rounds; of A16 the lesser of that
and the same kernel on a weight in the cache. The aims: {reach["A8"]:.0%} of it with A8, {reach["A16"]:.0%} with A16.

| bits | group | activations | threads | us (10th to 90th percentile) | GB/s | limit | share |
|---:|---:|---|---:|---:|---:|---:|---:|
{_decode_lines(rows)}

4-bit weights in groups of 32, int8 activations, one row, beside the fastest 4-bit form of each peer. The aims:
{reach["runtime"]}x ONNX Runtime, {reach["ggml"]}x ggml.

| shape | threads | qcc us | of the read limit | ONNX Runtime | ggml | torch |
|---|---:|---:|---:|---:|---:|---:|
{_peer_lines(rows)}

Many rows, int8 activations. The dot limit is the instruction from registers, in the same rounds. The aims:
{reach["16"]}x the fastest peer at 16 rows, {reach["128"]}x and {reach["dot"]:.0%} of the limit at 128.

| rows | shape | threads | 4 bits us | of limit | 8 bits us | of limit | fastest peer | 4 / 8 bits over it |
|---:|---|---:|---:|---:|---:|---:|---|---:|
{_batch_lines(rows)}"""


def _decode_lines(rows: list[dict[str, Any]]) -> str:
    return "\n".join(
        f"| {r['bits']} | {r['group']} | {r['activations']} | {r['threads']} | {r['us'][1]:.0f} ({r['us'][0]:.0f} to "
        f"{r['us'][2]:.0f}) | {r['gb_s']:.1f} | {r['limit_gb_s']:.1f} | {r['share']:.0%} |"
        for r in rows
        if r["part"] == "decode"
    )


def _peer_lines(rows: list[dict[str, Any]]) -> str:
    lines: list[str] = []
    for r in rows:
        if r["part"] == "peers":
            us = r["sides"]["qcc"]["us"][1]
            beside = [_fastest(r, *words) for words in (("ort",), ("ggml", "xllamacpp"), ("torch",))]
            said = " | ".join(f"{them:.0f} us, {them / us:.2f}x ({name})" if name else "" for name, them in beside)
            shape = " x ".join(map(str, r["shape"]))
            lines.append(f"| {shape} | {r['threads']} | {us:.0f} | {r['share']:.0%} | {said} |")
    return "\n".join(lines)


def _batch_lines(rows: list[dict[str, Any]]) -> str:
    lines: list[str] = []
    for r in rows:
        if r["part"] == "batch":
            four, eight = r["sides"]["qcc 4-bit"], r["sides"]["qcc 8-bit"]
            name, them = _fastest(r)
            shares = [f"{side['us'][1]:.0f} | {side['gops'] / r['limit_gops']:.0%}" for side in (four, eight)]
            lines.append(
                f"| {r['m']} | {' x '.join(map(str, r['shape']))} | {r['threads']} | {' | '.join(shares)} | {name}, "
                f"{them:.0f} us | {them / four['us'][1]:.2f}x / {them / eight['us'][1]:.2f}x |"
            )
    return "\n".join(lines)


def _fastest(row: dict[str, Any], *words: str) -> tuple[str, float]:
    """The fastest peer whose name holds one of `words`, or any; an empty name where there is none."""
    rivals = {n: s["us"][1] for n, s in row["sides"].items() if not n.startswith("qcc")}
    found = {n: us for n, us in rivals.items() if not words or any(w in n for w in words)}
    return min(found.items(), key=lambda item: item[1], default=("", float("nan")))


def conv_section(result: dict[str, Any]) -> str:
    """What `docs/performance.md` says of convolutions. Any: the JSON of `benchmarks/cpu_conv.py`."""
    rows = result["rows"]
    return f"""`python -m benchmarks.cpu_conv`, {result["machine"]}: medians of {result["rounds"]} interleaved rounds
(10th to 90th percentile). Both sides compute QLinearConv to the same bits; ratios are to the faster of ONNX Runtime's
two forms. The aim: {result["reach"]:.1f}x.

All convolutions of a network, one after the other:

| network | threads | qcc ms | of the dot limit | ONNX Runtime, NCHW | ONNX Runtime, NHWC | ratio |
|---|---:|---:|---:|---:|---:|---:|
{_network_lines(rows)}

Layer by layer, one thread:

| network | times | convolution | qcc us | of the dot limit | ONNX Runtime, NCHW | NHWC | ratio |
|---|---:|---|---:|---:|---:|---:|---:|
{_layer_lines(rows)}"""


def attention_section(result: dict[str, Any]) -> str:
    """What `docs/performance.md` says of attention. Any: the JSON of `benchmarks/cpu_attention.py`."""
    lines = [
        f"`python -m benchmarks.cpu_attention`: medians of {result['rounds']} interleaved rounds. The limit is memory",
        "read, or multiply-adds from registers, in the same rounds; the ratio is that of the faster peer.",
        "",
        "| task | threads | qcc us | of the limit | fastest peer | ratio |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for r in result["rows"]:
        name, them = _fastest({"sides": {n: {"us": us} for n, us in r["us"].items()}})
        lines.append(
            f"| {r['task']} | {r['threads']} | {_spread(r['us']['qcc'], 1)} | {r['share']:.0%} | {name}, {them:.0f} us "
            f"| {r['ratio']:.2f}x |"
        )
    return "\n".join(lines)


def rows_section(result: dict[str, Any]) -> str:
    """What `docs/performance.md` says of row kernels. Any: the JSON of `benchmarks/cpu_rows.py`."""
    lines = [
        f"`python -m benchmarks.cpu_rows`, one thread, from the cache: medians of {result['rounds']} rounds.",
        "",
        "| operation | rows | columns | qcc us | GB/s | ONNX Runtime us | torch us | ratio |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in result["rows"]:
        us = r["us"]
        lines.append(
            f"| {r['op']} | {r['m']} | {r['k']} | {_spread(us['qcc'], 1)} | {r['gbs']['qcc']:.0f} | "
            f"{us['ort'][1]:.1f} | {us['torch'][1]:.1f} | {r['ratio']:.2f}x |"
        )
    return "\n".join(lines)


def codebooks_section(result: dict[str, Any]) -> str:
    """What `docs/performance.md` says of codebooks. Any: the JSON of `benchmarks/codebooks.py`."""
    lines = [
        f"`python -m benchmarks.codebooks`: one row of activations, 4096 x 4096, medians of {result['rounds']} rounds.",
        "The limit is memory read in the same rounds; of A16 the lesser of that and the kernel on a cached weight.",
        "The aims are 80% with A8 and 75% with A16.",
        "",
        "| weight | bits | activations | threads | us | GB/s | of the limit |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r['kind']} | {r['bits']} | {r['activations']} | {r['threads']} | {_spread(r['us'], 0)} | "
        f"{r['gb_s']:.1f} | {r['share']:.0%} |"
        for r in result["rows"]
        if r["kind"] != "linear"
    ]
    return "\n".join(lines)


def networks_section(result: dict[str, Any]) -> str:
    """What `docs/performance.md` says of whole networks. Any: the JSON of `benchmarks/networks.py`."""
    sides = ("qcc tvm", "ort W8A8", "ort W8A8_DYNAMIC")
    lines = [
        f"`python -m benchmarks.networks`, {result['machine']}: milliseconds, medians of {result['rounds']} rounds.",
        "The ratio is the faster of ONNX Runtime's integer forms over TVM. The aims: "
        + ", ".join(f"{reach}x for {name}" for name, reach in result["reach"].items())
        + ".",
        "",
        "| network | input | threads | qcc, TVM | ONNX Runtime W8A8 | W8A8_DYNAMIC | ratio |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for r in result["rows"]:
        ms = [_spread(r["ms"][side], 2) if side in r["ms"] else "" for side in sides]
        lines.append(f"| {r['network']} | {r['shape']} | {r['threads']} | {' | '.join(ms)} | {r['ratio']:.2f}x |")
    lines += ["", "Where the time goes, on one thread:", ""]
    for r in result["rows"]:
        if r["breakdown"]:
            parts = ", ".join(f"{kind} {ms:.2f} ms" for kind, ms in r["breakdown"].items())
            lines.append(f"- {r['network']}, {r['shape']}: {parts}")
    return "\n".join(lines)


def decoding_section(result: dict[str, Any]) -> str:
    """What `docs/performance.md` says of language models. Any: the JSON of `benchmarks/decoding.py`."""
    reach, agreed = result["reach"], result["agreement"]
    lines = [
        f"`python -m benchmarks.decoding`, {result['machine']}: Gemma 3 270M from its GGUF file, medians of "
        f"{result['rounds']} rounds; in brackets, over llama.cpp on the same file. The aims: {reach['prefill']:.0f}x "
        f"in prefill, {reach['decode']:.0f}x in decoding. The limit is the bytes that a token reads over what memory "
        "gave in the same rounds. W4A8 rounds the codes of the file a second time: it reads less, of another model.",
        "",
        "| threads | prompt | side | prefill, tokens a second | decode, tokens a second | of the read limit |",
        "|---:|---:|---|---:|---:|---:|",
    ]
    for row in result["rows"]:
        rates, memory = row["rates"], row["rates"]["memory"]["gb_s"][1]
        for side, phases in rates.items():
            if side == "memory":
                continue
            words = [
                f"{_spread(phases[phase], 1 if phase == 'decode' else 0)} "
                f"[{phases[phase][1] / rates['llama.cpp'][phase][1]:.2f}x]"
                for phase in ("prefill", "decode")
            ]
            held = result["artifacts"].get(side, result["artifacts"]["qcc tvm"])
            share = held["token_bytes"] * phases["decode"][1] / memory / 1e9
            lines.append(f"| {row['threads']} | {row['prompt']} | {side} | {' | '.join(words)} | {share:.0%} |")
    lines += [
        "",
        "| artifact | size | a token reads | compiled in | first token after | memory | beside weights, cache |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for side, each in result["artifacts"].items():
        peak, held = each["peak_rss_bytes"], each["bytes"] + each["cache_bytes"]
        lines.append(
            f"| {side} | {each['bytes'] / 1e6:.0f} MB | {each['token_bytes'] / 1e6:.0f} MB | "
            f"{each['compile_seconds']:.0f} s | {each['first_token_seconds']:.2f} s | {peak / 1e6:.0f} MB | "
            f"{(peak - held) / 2**20:.0f} MiB |"
        )
    lines += [
        "",
        f"Teacher forced over {agreed['tokens']} tokens, both backends are {agreed['sqnr_db']:.1f} dB apart and find "
        f"the same token likeliest {agreed['same_top1']} times; where they do not, the margin of the first over the "
        f"second is at most {agreed['widest_margin_where_not']:.2f}, and logits differ by up to "
        f"{agreed['largest_difference']:.2f}. Activations are rounded to 8 bits, and some lie close to the middle of "
        f"two codes: ONNX Runtime is {agreed['itself_db']:.1f} dB from itself where it takes all of it in one step.",
        "",
        "Where the time goes, on one thread:",
        "",
    ]
    for phase, parts in result["breakdown"].items():
        lines.append(f"- {phase}: " + ", ".join(f"{kind} {ms:.2f} ms" for kind, ms in parts.items()))
    return "\n".join(lines)


def _network_lines(rows: list[dict[str, Any]]) -> str:
    return "\n".join(
        f"| {r['network']} | {r['threads']} | {_spread(r['ms']['qcc'], 2)} | {r['share']:.0%} | "
        f"{_spread(r['ms']['ort nchw'], 2)} | {_spread(r['ms']['ort nhwc'], 2)} | {r['ratio']:.2f}x |"
        for r in rows
        if r["part"] == "networks"
    )


def _layer_lines(rows: list[dict[str, Any]]) -> str:
    return "\n".join(
        f"| {r['network']} | {r['count']} | {r['conv']} | {_spread(r['us']['qcc'], 1)} | {r['share']:.0%} | "
        f"{r['us']['ort nchw'][1]:.1f} | {r['us']['ort nhwc'][1]:.1f} | {r['ratio']:.2f}x |"
        for r in rows
        if r["part"] == "layers"
    )


def _spread(times: list[float], digits: int) -> str:
    return f"{times[1]:.{digits}f} ({times[0]:.{digits}f} to {times[2]:.{digits}f})"
