"""The MiniLM workload: our encoder computes what transformers' BertModel does, and padding changes nothing."""

import numpy as np
import pytest
import torch

from benchmarks.workloads import minilm

pytestmark = pytest.mark.models


def embed(texts: list[str], length: int | None = None) -> np.ndarray:
    inputs = minilm.encode(texts, length)
    with torch.no_grad():
        return minilm.load()(torch.from_numpy(inputs["ids"]), torch.from_numpy(inputs["mask"])).numpy()


def test_agrees_with_transformers() -> None:
    from transformers import BertModel

    inputs = {name: torch.from_numpy(array) for name, array in minilm.encode(minilm.sentences(8, 0)).items()}
    with torch.no_grad():
        ours = minilm.load()(**inputs)
        bert = BertModel.from_pretrained(str(minilm.model_folder())).eval()
        tokens = bert(input_ids=inputs["ids"], attention_mask=inputs["mask"]).last_hidden_state
    weight = inputs["mask"][:, :, None].float()
    theirs = torch.nn.functional.normalize((tokens * weight).sum(1) / weight.sum(1), dim=-1)
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_padding_changes_nothing() -> None:
    texts = minilm.sentences(4, 1)
    assert np.allclose(embed(texts), embed(texts, 64), atol=1e-5)


def test_near_meanings_lie_near() -> None:
    food, bread, child = embed(["A man is eating food.", "A man eats a piece of bread.", "The girl carries a baby."])
    assert minilm.cosine(food, bread) > 0.5 > minilm.cosine(food, child)
