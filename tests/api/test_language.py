"""The tokenizer that travels in an artifact: read quickly, and the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from qcc.api.language import quick_to_read
from tests.language import TEXT, tokenizer

TINY = Path("examples/tiny_lm/model/tokenizer.json")


def merges(text: str) -> list[Any]:
    return json.loads(text)["model"]["merges"]


@pytest.mark.parametrize("text", [TINY.read_text(encoding="utf-8"), tokenizer().to_str()], ids=["tiny", "trained"])
def test_tokens_stay_what_they_are(text: str) -> None:
    quick = quick_to_read(text)
    assert all(isinstance(pair, str) for pair in merges(quick))
    assert len(merges(quick)) == len(merges(text)) > 0
    sample = TEXT * 3 + "def f(x):\n\treturn x  # 世界\u00a0"
    assert Tokenizer.from_str(quick).encode(sample).ids == Tokenizer.from_str(text).encode(sample).ids
    assert quick_to_read(quick) == quick


def test_pairs_with_spaces_and_other_models_stay() -> None:
    told = json.loads(tokenizer().to_str())
    told["model"]["merges"] = [["a", " b"]]
    for text in (json.dumps(told), json.dumps({"model": {"type": "Unigram", "vocab": []}}), "[]", "{}"):
        assert quick_to_read(text) == text
