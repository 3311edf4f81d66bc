"""`qcc compile MODEL`: a network in, an artifact out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ._frame import DebugFlag, JsonFlag, QuietFlag, Screen, size
from ._options import (
    Algorithm,
    Calibration,
    CalibrationLimit,
    Dynamic,
    GroupSize,
    Ignore,
    ImageMean,
    ImageOrder,
    ImageSize,
    ImageStd,
    Include,
    InputShape,
    Observer,
    Seed,
    dynamic_axes,
    image_options,
    input_shapes,
)

if TYPE_CHECKING:
    from qcc.api import Plan
    from qcc.backends.artifact import ContestRecord, Manifest


def command(
    model: Annotated[Path, typer.Argument(help="An .onnx or .pt2 file.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The artifact folder. Default: ./<model>.qcc")
    ] = None,
    target: Annotated[str, typer.Option(help="What it will run on: `qcc list targets`.")] = "cpu",
    backend: Annotated[
        str, typer.Option(help="auto: the fastest that can, measured; or onnxruntime, tvm, fpga.")
    ] = "auto",
    scheme: Annotated[
        str | None,
        typer.Option(
            help="Formats of weights and activations: `qcc list schemes`. Default: the target's; for weights that are "
            "codes already, one that keeps them."
        ),
    ] = None,
    group_size: GroupSize = 0,
    algorithm: Algorithm = "rtn",
    observer: Observer = "mse",
    calibration: Calibration = None,
    calibration_limit: CalibrationLimit = 128,
    image_size: ImageSize = None,
    image_mean: ImageMean = "0",
    image_std: ImageStd = "1",
    image_order: ImageOrder = "rgb",
    ignore: Ignore = None,
    include: Include = None,
    kv_cache: Annotated[
        str | None,
        typer.Option(help="What caches of a language model keep: f32, f16 or i8. Default: what the backend prefers."),
    ] = None,
    input_shape: InputShape = None,
    dynamic: Dynamic = None,
    seed: Seed = 0,
    min_sqnr: Annotated[float | None, typer.Option(help="Fail below this signal to noise ratio, in dB.")] = None,
    max_error: Annotated[float | None, typer.Option(help="Fail if an output is off by more.")] = None,
    verify_passes: Annotated[
        bool, typer.Option("--verify-passes", help="Check the program against the float model after each pass.")
    ] = False,
    max_ram: Annotated[
        str | None, typer.Option(help="Memory, like 4GiB: weights take at most a quarter, the rest is kept in files.")
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show every decision with its reason.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be done; write nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing artifact.")] = False,
    json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Compile a network to a small, fast, checked artifact."""
    del debug
    import time

    from qcc import api
    from qcc.api.options import bytes_of

    screen = Screen(as_json=json, quiet=quiet)
    if calibration == "random":
        screen.console.print(
            "[bold yellow]Calibrating on random data: speed and size will be right, accuracy will not.[/bold yellow]"
        )
    options: dict[str, Any] = {
        "target": target,
        "backend": backend,
        "scheme": scheme,
        "group_size": group_size,
        "algorithm": algorithm,
        "observer": observer,
        "calibration": calibration,
        "calibration_limit": calibration_limit,
        "image": image_options(image_size, image_mean, image_std, image_order),
        "ignore": tuple(ignore or ()),
        "include": tuple(include or ()),
        "kv_cache": kv_cache,
        "input_shapes": input_shapes(input_shape),
        "dynamic": dynamic_axes(dynamic),
        "seed": seed,
        "min_sqnr": min_sqnr,
        "max_error": max_error,
        "verify_passes": verify_passes,
        "max_ram": max_ram,
        "progress": screen,
    }
    begin = time.perf_counter()
    if dry_run:
        made = api.plan(model, **options)
        _show_plan(screen, made, explain)
        screen.result(_plan_json(made))
        return
    destination = output or Path(f"{model.name.removesuffix(model.suffix)}.qcc")
    artifact = api.compile(model, output=destination, force=force, **options)
    seconds = time.perf_counter() - begin
    manifest = artifact.manifest
    _show(screen, manifest, destination, seconds, explain)
    peak = _peak_bytes()
    if 0 < bytes_of(max_ram) < peak:
        why = "what runs the model to check it takes memory that compilation does not bound"
        screen.console.print(f"  peak memory {size(peak)}, more than --max-ram {max_ram}: {why}", markup=False)
    screen.result(
        {
            "artifact": str(destination),
            "backend": manifest.backend,
            "backends": [record.model_dump() for record in manifest.contest],
            "target": manifest.target,
            "scheme": manifest.scheme,
            "bytes": manifest.bytes,
            "float_bytes": manifest.float_bytes,
            "bits_per_weight": round(manifest.bits_per_weight, 3),
            "quantized": len(manifest.layers),
            "skipped": [{"node": d.node, "reason": d.reason} for d in manifest.decisions if d.action == "skipped"],
            "sqnr_db": round(manifest.error.sqnr_db, 3),
            "max_abs_error": manifest.error.max_abs_error,
            "ran_on": manifest.ran_on,
            "not_run": manifest.not_run,
            "seconds": round(seconds, 2),
            "peak_rss_bytes": peak,
        }
    )


def _peak_bytes() -> int:
    """The most memory that this process held, or the one that captures a large language model."""
    import resource

    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    try:  # not ru_maxrss: on Linux it begins with what the process that started this one held
        status = Path("/proc/self/status").read_text()
        own = int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1])
    except (OSError, StopIteration):
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 1024 * max(own, child)


def _show(screen: Screen, manifest: Manifest, destination: Path, seconds: float, explain: bool) -> None:
    from rich.markup import escape

    console = screen.console
    ratio = manifest.bytes / manifest.float_bytes if manifest.float_bytes else 1.0
    skipped = [d for d in manifest.decisions if d.action == "skipped"]
    place = escape(str(destination))
    console.print(f"\n[bold]{place}[/bold]  {manifest.scheme} for {manifest.target}, by {manifest.backend}")
    console.print(f"  size       {size(manifest.bytes)}, {ratio:.2f}x of {size(manifest.float_bytes)} in float")
    if manifest.contest:
        console.print(f"  backend    {_contest_line(manifest.contest)}", markup=False, soft_wrap=True)
    if manifest.layers:
        console.print(
            f"  weights    {len(manifest.layers)} quantized at {manifest.bits_per_weight:.2f} bits each with scales, "
            f"{len(skipped)} left float"
        )
    error = manifest.error
    console.print(
        f"  error      {error.sqnr_db:.1f} dB signal to noise, at most {error.max_abs_error:.4g} off  "
        f"({escape(manifest.samples)})",
        soft_wrap=True,
    )
    if manifest.not_run:
        console.print(f"  checked    on {', '.join(manifest.ran_on)}, not on {', '.join(manifest.not_run)}")
    console.print(f"  took       {seconds:.1f} s")
    if explain:
        for decision in manifest.decisions:
            console.print(f"  {decision.action:22} {decision.node}: {decision.reason}", markup=False)
    elif skipped:
        console.print(f"  [dim]--explain shows why {len(skipped)} nodes were left float[/dim]")


def _contest_line(contest: list[ContestRecord]) -> str:
    """Who was kept and by how much; of those that were not timed, why."""
    kept = next(record for record in contest if record.kept)
    timed = [f"{record.backend} {record.latency_ms.median:.3g} ms" for record in contest if record.latency_ms]
    others = [f"{record.backend}: {record.reason}" for record in contest if not record.kept and not record.latency_ms]
    times = f" ({', '.join(timed)})" if timed else ""
    return "; ".join([f"{kept.backend} {kept.reason}: kept{times}", *others])


def _show_plan(screen: Screen, made: Plan, explain: bool) -> None:
    from qcc.api.contest import COMPETES, LEFT_OUT

    console = screen.console
    console.print(
        f"\nWould compile with {made.scheme} for {made.target}: "
        f"weights {size(made.float_bytes)} -> {size(made.bytes)}; nothing was written"
    )
    for decision in made.decisions:
        if explain or decision.action in ("quantized", "skipped", COMPETES, LEFT_OUT):
            kernel = (
                f"  [{made.kernels[decision.node]}]"
                if decision.action == "quantized" and decision.node in made.kernels
                else ""
            )
            console.print(f"  {decision.action:16} {decision.node}: {decision.reason}{kernel}", markup=False)
    for check in made.passes:
        console.print(f"  after {check.name}: {check.sqnr_db:.1f} dB, {check.operations} operations")


def _plan_json(made: Plan) -> dict[str, Any]:
    """Any: plain JSON values."""
    from qcc.api.contest import COMPETES, LEFT_OUT

    backends = [d for d in made.decisions if d.action in (COMPETES, LEFT_OUT)]
    return {
        "dry_run": True,
        "backend": made.backend,
        "backends": [{"backend": d.node, "competes": d.action == COMPETES, "reason": d.reason} for d in backends],
        "target": made.target,
        "scheme": made.scheme,
        "bytes": made.bytes,
        "float_bytes": made.float_bytes,
        "quantized": [
            {"node": d.node, "reason": d.reason, "kernel": made.kernels.get(d.node, "")} for d in made.quantized
        ],
        "skipped": [{"node": d.node, "reason": d.reason} for d in made.skipped],
    }
