"""Draw docs/pictures/report-light.png and report-dark.png anew: `python -m tests.report_pictures`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.browser import launched

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "examples" / "digits"
WIDTH, HEIGHT = 1180, 1385


def main() -> None:
    """Compile the digits network, write its page, and take a picture of the upper part in each theme."""
    import qcc

    with tempfile.TemporaryDirectory() as folder:
        artifact = qcc.compile(
            DIGITS / "digits.onnx",
            scheme="W8A8",
            calibration=DIGITS / "calibration.npz",
            output=Path(folder) / "digits.qcc",
        )
        page = Path(folder) / "digits.html"
        qcc.report(artifact, output=page)
        with launched() as browser:
            for theme in ("light", "dark"):
                tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=theme)
                tab.goto(page.as_uri())
                picture = ROOT / "docs" / "pictures" / f"report-{theme}.png"
                tab.screenshot(path=picture)
                shrink(picture)


def shrink(path: Path) -> None:
    """Fewer colours than a screen has are enough for flat areas and text."""
    from PIL import Image

    with Image.open(path) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


if __name__ == "__main__":
    main()
