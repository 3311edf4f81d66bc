"""PP-OCRv4 on rendered text: seeded lines of English, the inputs of its three models, CTC decoding and the error rate.

The models come from the installed `rapidocr-onnxruntime` package (only its files are read, it is never imported), the
typefaces from font packages, so that a fresh machine draws the same pictures. Pre- and postprocessing follow PP-OCRv4:
BGR, `(x / 255 - 0.5) / 0.5`, height 48, blank at index 0, a space after the last character.
"""

import importlib.util
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from qcc.ir.errors import MissingExtra

Pixels: TypeAlias = npt.NDArray[np.uint8]
Floats: TypeAlias = npt.NDArray[np.float32]
Stage: TypeAlias = Literal["rec", "det", "cls"]

_MODELS = {
    "rec": "ch_PP-OCRv4_rec_infer.onnx",
    "det": "ch_PP-OCRv4_det_infer.onnx",
    "cls": "ch_ppocr_mobile_v2.0_cls_infer.onnx",
}
_FACES = {
    "font_source_sans_pro": ("SourceSansPro-Regular", "SourceSansPro-Bold", "SourceSansPro-It", "SourceSansPro-Light"),
    "font_source_serif_pro": ("SourceSerifPro-Regular", "SourceSerifPro-Bold", "SourceSerifPro-It"),
    "font_caladea": ("Caladea-Regular", "Caladea-Bold", "Caladea-Italic", "Caladea-BoldItalic"),
    "font_manrope": ("Manrope-Regular", "Manrope-SemiBold"),
}
_WORDS = Path(__file__).with_name("words.txt").read_text("ascii").split()


def model_path(stage: Stage) -> Path:
    """The ONNX file of a stage: `rec` reads a line, `det` finds lines, `cls` tells upright from upside-down."""
    return (
        _package_folder("rapidocr_onnxruntime", "pip install --no-deps rapidocr-onnxruntime")
        / "models"
        / _MODELS[stage]
    )


def charset(model_file: Path | str) -> list[str]:
    """The characters of a recognizer's classes: class 0 is the CTC blank (here ""), the last one a space."""
    import onnx

    model = onnx.load(model_file, load_external_data=False)
    listed = next(entry.value for entry in model.metadata_props if entry.key == "character")
    return ["", *listed.split("\n"), " "]


def lines(n: int, seed: int) -> list[tuple[str, Pixels]]:
    """`n` texts of 8 to 36 characters, each with its picture u8[height, width, 3] in BGR; a new corpus a seed."""
    random = np.random.default_rng(seed)
    pairs: list[tuple[str, Pixels]] = []
    for _ in range(n):
        text = _text(random)
        pairs.append((text, _draw(text, random)))
    return pairs


def pages(n: int, seed: int, *, height: int = 480, width: int = 640) -> list[Pixels]:
    """`n` pictures u8[height, width, 3] in BGR of six to nine text lines each, for the detector."""
    random = np.random.default_rng([seed, 1])
    return [_page(random, height, width) for _ in range(n)]


def rec_input(image: Pixels) -> Floats:
    """The recognizer's input `f32[1, 3, 48, W]`: scaled to height 48, zeros on the right up to a multiple of 32."""
    scaled = _resize(image, 48, max(1, round(image.shape[1] * 48 / image.shape[0])))
    return _pad(_normalize(scaled), -(-scaled.shape[1] // 32) * 32)


def cls_input(image: Pixels) -> Floats:
    """The direction classifier's input `f32[1, 3, 48, 192]`: scaled to height 48, squeezed or padded to width 192."""
    width = min(192, max(1, round(image.shape[1] * 48 / image.shape[0])))
    return _pad(_normalize(_resize(image, 48, width)), 192)


def det_input(image: Pixels) -> Floats:
    """The detector's input `f32[1, 3, H, W]`: both sides brought to the nearest multiple of 32."""
    height, width = (max(32, round(side / 32) * 32) for side in image.shape[:2])
    return _normalize(_resize(image, height, width))


def decode(scores: npt.NDArray[np.floating], characters: Sequence[str]) -> str:
    """Greedy CTC of scores [1, steps, classes]: each step's best class, repeats merged, blanks dropped, stripped."""
    best = scores[0].argmax(axis=-1)
    starts = np.concatenate(([True], best[1:] != best[:-1]))
    return "".join(characters[int(index)] for index in best[starts]).strip()


def cer(pairs: Iterable[tuple[str, str]]) -> float:
    """Character error rate of (expected, read) pairs: edit distances over characters expected; 0.01 is one percent."""
    distances, length = 0, 0
    for expected, read in pairs:
        distances += edit_distance(expected, read)
        length += len(expected)
    return distances / length


def edit_distance(a: str, b: str) -> int:
    """The least number of insertions, deletions and substitutions that turn `a` into `b` (Wagner and Fischer 1974)."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def _text(random: np.random.Generator) -> str:
    target = int(random.integers(8, 30))
    text = _token(random)
    while len(text) < target:
        text += " " + _token(random)
    return text[:36].rstrip()


def _token(random: np.random.Generator) -> str:
    word = str(random.choice(_WORDS))
    day, month, year = int(random.integers(1, 29)), int(random.integers(1, 13)), int(random.integers(1950, 2030))
    amount, pick = int(random.integers(1, 100_000)), float(random.random())
    if pick < 0.40:
        return word
    if pick < 0.55:
        return word.capitalize()
    if pick < 0.62:
        return word.upper()
    if pick < 0.70:
        return word + str(random.choice([",", ".", ":", ";", "!", "?"]))
    if pick < 0.75:
        return f"{word}-{random.choice(_WORDS)}"
    if pick < 0.79:
        return f"({word})"
    if pick < 0.84:
        return f"{year}-{month:02}-{day:02}"
    if pick < 0.89:
        return f"${amount / 100:.2f}"
    if pick < 0.93:
        return f"No.{amount}"
    if pick < 0.96:
        return f"{amount % 100}%"
    return f"{word}@{random.choice(_WORDS)}.com"


def _draw(text: str, random: np.random.Generator) -> Pixels:
    """A tight picture of one line in a random face, size and pair of colours, with noise of up to 8 grey levels."""
    font = _font(int(random.integers(len(_faces()))), int(random.integers(22, 56)))
    left, top, right, bottom = (int(side) for side in font.getbbox(text))
    margin = int(random.integers(3, 9))
    paper, ink = _colours(random)
    image = Image.new("RGB", (right - left + 2 * margin, bottom - top + 2 * margin), paper)
    ImageDraw.Draw(image).text((margin - left, margin - top), text, font=font, fill=ink)
    return _grain(image, random)


def _page(random: np.random.Generator, height: int, width: int) -> Pixels:
    paper, ink = _colours(random)
    image = Image.new("RGB", (width, height), paper)
    draw = ImageDraw.Draw(image)
    count = int(random.integers(6, 10))
    for row in range(count):
        font = _font(int(random.integers(len(_faces()))), int(random.integers(18, 34)))
        place = (int(random.integers(8, width // 4)), 12 + row * (height - 24) // count)
        draw.text(place, _text(random), font=font, fill=ink)
    return _grain(image, random)


def _colours(random: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
    light, dark = random.integers(185, 256, 3).tolist(), random.integers(0, 90, 3).tolist()
    return (tuple(dark), tuple(light)) if random.random() < 0.15 else (tuple(light), tuple(dark))


def _grain(image: Image.Image, random: np.random.Generator) -> Pixels:
    bgr = np.asarray(image, np.float32)[:, :, ::-1]
    noise = random.normal(0.0, float(random.uniform(0.0, 8.0)), bgr.shape)
    return np.clip(np.rint(bgr + noise), 0, 255).astype(np.uint8)


def _resize(image: Pixels, height: int, width: int) -> Pixels:
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def _normalize(image: Pixels) -> Floats:
    planes = image.transpose(2, 0, 1)[None].astype(np.float32)
    return (planes / 255 - 0.5) / 0.5


def _pad(planes: Floats, width: int) -> Floats:
    return np.pad(planes, ((0, 0), (0, 0), (0, 0), (0, width - planes.shape[3])))


@cache
def _font(face: int, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_faces()[face], size, layout_engine=ImageFont.Layout.BASIC)


@cache
def _faces() -> tuple[Path, ...]:
    packages = " ".join(name.replace("_", "-") for name in _FACES)
    return tuple(
        _package_folder(package, f"pip install --no-deps {packages}") / "files" / f"{face}.ttf"
        for package, faces in _FACES.items()
        for face in faces
    )


def _package_folder(package: str, install: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise MissingExtra(f"the package {package} is not installed", hint=install)
    return Path(next(iter(found.submodule_search_locations)))
