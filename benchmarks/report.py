"""Write docs/results.md, and tables in other pages, from what the other scripts left in benchmarks/results.

python -m benchmarks.report
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.report_kernels import (
    attention_section,
    codebooks_section,
    conv_section,
    decoding_section,
    matmul_section,
    networks_section,
    rows_section,
)

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README_ROWS = (("PP-OCRv4 rec", "W8A8"), ("PP-OCRv4 det", "W8A8"), ("MiniLM-L6", "W8A8"), ("MiniLM-L6", "W4A16 gptq"))


def models_table(result: dict[str, Any]) -> str:
    """All networks. Any: the JSON of `benchmarks/models.py`."""
    lines = [
        "| network | scheme | size | of float | float ms | qcc ms | speed-up | compile | quality |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for row in result["rows"]:
        times = [f"{t[1]:.2f} ({t[0]:.2f} to {t[2]:.2f})" for t in (row["float_ms"], row["ms"])]
        lines.append(
            f"| {row['model']} | {row['scheme']} | {row['bytes'] / 1e6:.2f} MB | {row['size_ratio']:.2f}x | {times[0]} "
            f"| {times[1]} | {row['speedup']:.2f}x | {row['compile_seconds']:.1f} s | {quality(row)} |"
        )
    return "\n".join(lines)


def quality(row: dict[str, Any]) -> str:
    """The errors of a row in words."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in row["error"].items())


def readme_table(result: dict[str, Any]) -> str:
    """A few rows for the first page."""
    lines = [
        "| network | scheme | size of float | speed-up over ONNX Runtime float | quality |",
        "|---|---|---:|---:|---|",
    ]
    for row in result["rows"]:
        if (row["model"], row["scheme"]) in README_ROWS:
            ratios = f"{row['size_ratio']:.2f}x | {row['speedup']:.2f}x"
            lines.append(f"| {row['model']} | {row['scheme']} | {ratios} | {quality(row)} |")
    return "\n".join(lines)


def language_table(result: dict[str, Any]) -> str:
    """Language models, for their page. Any: the JSON of `benchmarks/language.py`."""
    lines = [
        "| model | scheme | size | perplexity (float) | KL | same token | prefill / decode, tokens a second "
        "| llama.cpp | read limit | compile |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        ours = row["rates"]["artifact"]
        share = row["token_bytes"] * ours["decode_tokens_per_s"]["median"] / result["read_bytes_per_s"]
        lines.append(
            f"| {row['model']} | {row['scheme']} | {row['bytes'] / 1e6:.1f} MB | {row['perplexity']:.2f} "
            f"({row['float_perplexity']:.2f}) | {row['kl']:.4f} | {100 * row['top1']:.1f} % | {_phases(ours)} "
            f"| {_beside(row)} | {100 * share:.0f} % | {row['compile_seconds']:.0f} s, "
            f"{row['peak_rss_bytes'] / 1e9:.2f} GB |"
        )
    return "\n".join(lines)


def _phases(side: dict[str, Any]) -> str:
    return " / ".join(f"{side[f'{phase}_tokens_per_s']['median']:.1f}" for phase in ("prefill", "decode"))


def _beside(row: dict[str, Any]) -> str:
    """llama.cpp's rates, and ours over its in decoding."""
    other = row["rates"].get("llama.cpp")
    if other is None:
        return ""
    ratio = row["rates"]["artifact"]["decode_tokens_per_s"]["median"] / other["decode_tokens_per_s"]["median"]
    return f"{_phases(other)} ({ratio:.2f}x)"


def language_section(result: dict[str, Any]) -> str:
    """What `docs/language-models.md` says of the figures."""
    where = f"{result['machine']}, {result['threads']} thread, medians of {result['rounds']} interleaved rounds"
    return f"""`python -m benchmarks.language`, {where}:
a prompt of 128 tokens, then 32 tokens one by one. The tiny model is judged on its whole held-out text in windows of
256; Gemma on Debian's `jargon-text`, 8 windows of 512 tokens from a quarter in, against the dequantized model.
llama.cpp runs the same GGUF file (`xllamacpp`, its PyPI build); in brackets, our decoding over its. The limit is the
bytes of weights that a token reads over {result["read_bytes_per_s"] / 1e9:.1f} GB/s, what one thread reads here.

{language_table(result)}"""


def formats_section(result: dict[str, Any]) -> str:
    """Speed of formats and layouts. Any: the JSON of `benchmarks/formats.py`."""
    rows, reach, model, memory = result["rows"], result["reach"], result["model"], result["copy"]
    missed = [f"{row['name']} ({', '.join(row['misses'])})" for row in rows if row["misses"]]
    missed += [f"the model ({model['pack_seconds']:.1f} s)"] if model["pack_seconds"] > reach["pack_seconds"] else []
    rounds = f"{' x '.join(map(str, result['shape']))} values, {result['rounds']} interleaved rounds on one pinned core"
    return f"""`python -m benchmarks.formats`, {result["machine"]}, {_packages(result["packages"])}:
GB/s of decoded float32, {rounds}, median (10th to 90th percentile).
A copy of the same tensor to new memory, in the same rounds, runs at {_rate(memory)}. The aims: packing and unpacking
{reach["pack"]} GB/s, rounding {reach["quantize"]} GB/s, the model below packed in {reach["pack_seconds"]:.0f} s.
Missed: {", ".join(missed) or "none"}.

| format | quantize (RTN) | decode | checked |
|---|---:|---:|---|
{_lines(rows, "format", ("quantize", "decode"))}

| layout | pack | unpack | checked |
|---|---:|---:|---|
{_lines(rows, "layout", ("pack", "unpack"))}
{_lines(rows, "record", ("pack", "unpack"))}

| the same work elsewhere | qcc | other | ratio | checked |
|---|---:|---:|---:|---|
{_peers(rows)}

A model of {model["parameters"] / 1e6:.0f}M parameters (the shapes of Gemma 3 270M, float32 in files) in a process of
its own: RTN to `i4, f32 per 32` in {model["quantize_seconds"]:.1f} s, packed for MatMulNBits in
{model["pack_seconds"]:.1f} s. {model["keep_bytes"] / 2**20:.0f} MiB of tensors may stay in memory and the others spill
to files; memory without a file behind it peaks at {model["peak_anonymous_bytes"] / 1e6:.0f} MB, and more than
{model["limit_bytes"] / 2**20:.0f} MiB would end the process. With the pages of mapped files, which the system takes
back when it needs them, {model["peak_rss_bytes"] / 1e6:.0f} MB."""


def _packages(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def _rate(rates: list[float]) -> str:
    return f"{rates[1]:.2f} ({rates[0]:.2f} to {rates[2]:.2f})"


def _lines(rows: list[dict[str, Any]], kind: str, sides: tuple[str, ...]) -> str:
    return "\n".join(
        f"| `{row['name']}` | {' | '.join(_rate(row['rates'][side]) for side in sides)} | {row['checked']} |"
        for row in rows
        if row["kind"] == kind
    )


def _peers(rows: list[dict[str, Any]]) -> str:
    """A line for each side that somebody else has too."""
    lines: list[str] = []
    for row in rows:
        for side, rates in row["rates"].items():
            who, _, work = side.partition(": ")
            if row["kind"] == "peer" and work:
                ours = row["rates"][work]
                what = row["name"] if row["name"].startswith(work) else f"{row['name']}: {work}"
                ratio = f"{ours[1] / rates[1]:.2f}x"
                lines.append(f"| {what} | {_rate(ours)} | {_rate(rates)}, {who} | {ratio} | {row['checked']} |")
    return "\n".join(lines)


def between(path: Path, mark: str, text: str) -> None:
    """Put `text` between `<!-- mark -->` and `<!-- /mark -->` of a page."""
    before, _, rest = path.read_text().partition(f"<!-- {mark} -->")
    _, _, after = rest.partition(f"<!-- /{mark} -->")
    path.write_text(f"{before}<!-- {mark} -->\n\n{text}\n\n<!-- /{mark} -->{after}")


def page(models: dict[str, Any], conformance: dict[str, Any], ir_speed: dict[str, Any], formats: dict[str, Any]) -> str:
    """The whole of docs/results.md."""
    listed = "\n".join(f"- `{name}`: {reason}" for name, reason in conformance["failures"].items())
    mutants = ", ".join(f"{kind} {caught} of {tried}" for kind, (caught, tried) in conformance["mutants"].items())
    seconds = ", ".join(f"{name} {value:.2f} s" for name, value in ir_speed["seconds"].items())
    share = 100 * conformance["identical"] / conformance["tests"]
    return f"""# Results

Written by `python -m benchmarks.report` from the files in `benchmarks/results`; `make bench` makes all of them anew.

Machine: {models["machine"]}. Python {models["python"]}.

## Real networks

`python -m benchmarks.models`. Latencies are on one thread, median (10th to 90th percentile) of interleaved rounds; the
float side is ONNX Runtime on the original file with all its optimizations. Sizes are of the model and its weights,
against the float file. Quality is measured on data that calibration did not see; `cer` is the character error rate in
percent. MiniLM's float side is the export at opset 20, because ONNX Runtime 1.31 does not run the operator Attention
with a padding mask.

{models_table(models)}

Peak memory of the whole run, the float sessions and torch included: {models["peak_rss_bytes"] / 1e6:.0f} MB.

## Conformance

`python -m benchmarks.conformance`. Of the ONNX node tests that ONNX Runtime passes by itself,
{conformance["identical"]} of {conformance["tests"]} ({share:.2f} %) give the same outputs after import, printing,
parsing and export; {conformance["left_out"]} are left out because ONNX Runtime does not pass them. The others:

{listed}

Broken copies that the IR verifier refuses: {mutants}.

## Speed of the IR

`python -m benchmarks.ir_speed`. A graph of {ir_speed["nodes"]} nodes: {seconds}; {ir_speed["total"]:.2f} s in all
(the aim: 6 s).

## Speed of formats and layouts

{formats_section(formats)}
"""


def main() -> None:
    """Read the results and write the pages."""
    found = [
        json.loads((RESULTS / f"{name}.json").read_text()) for name in ("models", "conformance", "ir_speed", "formats")
    ]
    (ROOT / "docs" / "results.md").write_text(page(*found))
    between(ROOT / "README.md", "results", readme_table(found[0]))
    language = json.loads((RESULTS / "language.json").read_text())
    between(ROOT / "docs" / "language-models.md", "language results", language_section(language))
    matmul = json.loads((RESULTS / "cpu_matmul.json").read_text())
    between(ROOT / "docs" / "performance.md", "cpu matmul", matmul_section(matmul))
    conv = json.loads((RESULTS / "cpu_conv.json").read_text())
    performance = ROOT / "docs" / "performance.md"
    between(performance, "cpu conv", conv_section(conv))
    sections = {
        "cpu attention": ("cpu_attention", attention_section),
        "cpu rows": ("cpu_rows", rows_section),
        "codebooks": ("codebooks", codebooks_section),
        "networks": ("networks", networks_section),
        "decoding": ("decoding", decoding_section),
    }
    for mark, (name, section) in sections.items():
        between(performance, mark, section(json.loads((RESULTS / f"{name}.json").read_text())))


if __name__ == "__main__":
    main()
