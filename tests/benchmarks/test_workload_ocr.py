"""The OCR workload: its pictures repeat, its decoder and error rate are right, the float model reads them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.workloads import ocr

words = st.text("abc ", max_size=8)


def test_decode_merges_repeats_and_drops_blanks() -> None:
    steps = [1, 1, 0, 1, 2, 2, 0, 0, 3]
    scores = np.eye(4, dtype=np.float32)[steps][None]
    assert ocr.decode(scores, ["", "a", "b", " "]) == "aab"


def test_error_rate_counts_characters_expected() -> None:
    assert ocr.cer([("kitten", "sitting"), ("abcd", "abcd")]) == pytest.approx(3 / 10)


@given(words, words, words)
def test_edit_distance_is_a_metric(a: str, b: str, c: str) -> None:
    assert ocr.edit_distance(a, b) == ocr.edit_distance(b, a)
    assert (ocr.edit_distance(a, b) == 0) == (a == b)
    assert ocr.edit_distance(a, c) <= ocr.edit_distance(a, b) + ocr.edit_distance(b, c)


def test_inputs_have_the_shapes_the_models_take() -> None:
    image = np.full((30, 200, 3), 255, np.uint8)
    rec = ocr.rec_input(image)
    assert rec.shape == (1, 3, 48, 320) and rec.dtype == np.float32
    assert ocr.cls_input(image).shape == (1, 3, 48, 192)
    assert ocr.det_input(np.zeros((470, 650, 3), np.uint8)).shape == (1, 3, 480, 640)
    narrow = ocr.rec_input(image[:, :60])
    assert narrow.shape == (1, 3, 48, 96) and narrow.max() == 1.0
    assert ocr.rec_input(image[:, :50])[..., 80:].max() == 0.0


@pytest.mark.models
def test_a_seed_draws_the_same_lines_again_and_another_seed_others() -> None:
    first, again, other = ocr.lines(8, 1), ocr.lines(8, 1), ocr.lines(8, 2)
    assert [text for text, _ in first] == [text for text, _ in again]
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(first, again, strict=True))
    assert not {text for text, _ in first} & {text for text, _ in other}


@pytest.mark.models
def test_the_float_recognizer_reads_the_lines() -> None:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(ocr.model_path("rec"), options)
    characters = ocr.charset(ocr.model_path("rec"))
    pairs: list[tuple[str, str]] = []
    for text, image in ocr.lines(20, 1):
        scores = session.run(None, {"x": ocr.rec_input(image)})[0]
        pairs.append((text, ocr.decode(scores, characters)))
    assert ocr.cer(pairs) < 0.01
