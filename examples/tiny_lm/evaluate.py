"""Print the perplexity of the tiny language model on `heldout.txt`: `evaluate.py [MODEL]`, else that of `model/`."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
WINDOW = 256


@torch.no_grad()
def main(folder: Path) -> None:
    """Score every token but the first of each whole window of 256; windows do not overlap and carry nothing over."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    text = (HERE / "heldout.txt").read_bytes().decode()
    tokens = tokenizer(text, return_tensors="pt", verbose=False).input_ids[0]
    windows = tokens[: len(tokens) // WINDOW * WINDOW].view(-1, WINDOW)
    loss = 0.0
    for batch in windows.split(16):
        logits = model(batch).logits[:, :-1]
        loss += functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
    scored = windows[:, 1:].numel()
    print(f"tokens     {len(tokens):,} in {len(text.encode()):,} bytes, {scored:,} scored")
    print(f"perplexity {math.exp(loss / scored):.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "model")
