"""Write docs/results.md, and the table in README.md, from what the other scripts left in benchmarks/results.

python -m benchmarks.report
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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


def page(models: dict[str, Any], conformance: dict[str, Any], ir_speed: dict[str, Any]) -> str:
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
"""


def main() -> None:
    """Read the results and write the pages."""
    found = [json.loads((RESULTS / f"{name}.json").read_text()) for name in ("models", "conformance", "ir_speed")]
    (ROOT / "docs" / "results.md").write_text(page(*found))
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text().partition("<!-- results -->")
    _, _, after = rest.partition("<!-- /results -->")
    readme.write_text(f"{before}<!-- results -->\n\n{readme_table(found[0])}\n\n<!-- /results -->{after}")


if __name__ == "__main__":
    main()
