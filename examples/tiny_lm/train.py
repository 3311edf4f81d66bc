"""Train the tiny language model that ships with qcc and write `model/` and its texts, reproducibly.

Run as `python examples/tiny_lm/train.py [FOLDER]`; FOLDER is this one unless given. A quarter of an hour on two cores.
"""

from __future__ import annotations

import math
import random
import sys
import sysconfig
import time
import tokenize
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SEED = 0
HELD_OUT_TOPICS = 0.1
HELD_OUT_SOURCES = 0.05
HELD_OUT_BYTES = 160_000
EXCERPTS = 60
EXCERPT_LINES = 45
END = "<|endoftext|>"
VOCABULARY = 2048
POSITIONS = 512
STEPS = 2400
BATCH_TOKENS = 2048
WARM_UP = 100
LEARNING_RATE = 4e-3
NOT_TEXT = {"encodings", "idlelib", "lib2to3", "msilib", "pydoc_data", "site-packages", "test", "tests", "turtledemo"}
PARAGRAPH = 60


def main(folder: Path) -> None:
    """Split the corpus, train the tokenizer and the model, and write everything into `folder`; figures go to stdout."""
    torch.manual_seed(SEED)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    training, held_out = split(without_copies([*python_topics(), *library_sources()]))
    for name, documents in (("training", training), ("held out", held_out)):
        print(f"{name} {len(documents)} documents, {sum(document.size for document in documents):,} bytes")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "heldout.txt").write_bytes(whole_documents(held_out).encode())
    (folder / "calibration.txt").write_bytes(excerpts(training).encode())

    tokenizer = train_tokenizer(training)
    wrap(tokenizer).save_pretrained(folder / "model")
    encoded = tokenizer.encode_batch([END + document.text for document in training])
    tokens = torch.tensor([token for document in encoded for token in document.ids])
    model = LlamaForCausalLM(architecture())
    print(f"training tokens {len(tokens):,}, parameters {model.num_parameters():,}")
    train(model, tokens).half().save_pretrained(folder / "model")


class Document(NamedTuple):
    """One topic of Python's reference or one source file of its library."""

    name: str
    text: str
    is_source: bool

    @property
    def size(self) -> int:
        """UTF-8 bytes."""
        return len(self.text.encode())

    @property
    def paragraphs(self) -> list[str]:
        """The paragraphs long enough to know a copy by."""
        return [part.strip() for part in self.text.split("\n\n") if len(part.strip()) >= PARAGRAPH]


def python_topics() -> Iterator[Document]:
    """The topics of Python's reference that `help()` shows."""
    for name, text in sorted(topics.items()):
        yield Document(name, text, is_source=False)


def library_sources() -> Iterator[Document]:
    """The standard library's own `.py` files, but for tests, tables and what the build of this interpreter wrote."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        parts = path.relative_to(library).parts
        if NOT_TEXT.isdisjoint(parts) and not parts[0].startswith(("config-", "_sysconfigdata")):
            with tokenize.open(path) as source:
                yield Document("/".join(parts), source.read(), is_source=True)


def without_copies(documents: list[Document]) -> list[Document]:
    """`documents` less those with half their text in longer ones, as `if` in `compound`, and those with hardly any."""
    kept, seen = [], set[str]()
    for document in sorted(documents, key=lambda document: -document.size):
        paragraphs = document.paragraphs
        if 2 * sum(len(part) for part in paragraphs if part in seen) < sum(map(len, paragraphs)):
            kept.append(document)
            seen.update(paragraphs)
    return kept


def split(documents: list[Document]) -> tuple[list[Document], list[Document]]:
    """`documents` in random order as (training, held out): whole documents, a share of the topics and the sources."""
    documents = random.Random(SEED).sample(documents, len(documents))
    training, held_out = [], []
    room = {
        is_source: share * sum(document.size for document in documents if document.is_source == is_source)
        for is_source, share in ((False, HELD_OUT_TOPICS), (True, HELD_OUT_SOURCES))
    }
    for document in documents:
        if document.size <= room[document.is_source]:
            room[document.is_source] -= document.size
            held_out.append(document)
        else:
            training.append(document)
    return training, held_out


def whole_documents(documents: list[Document]) -> str:
    """HELD_OUT_BYTES of `documents`, topics first, an empty line between them; none over a tenth of the room."""
    chosen, room = [], HELD_OUT_BYTES
    for document in sorted(documents, key=lambda document: document.is_source):
        if document.size < min(room, HELD_OUT_BYTES // 10):
            room -= document.size + 1
            chosen.append(document.text)
    return "\n".join(chosen)


def excerpts(documents: list[Document]) -> str:
    """EXCERPTS runs of EXCERPT_LINES lines, evenly spaced in `documents`: the mix that the model is trained on."""
    lines = "\n".join(document.text for document in documents).splitlines(keepends=True)
    starts = range(0, len(lines) - EXCERPT_LINES, len(lines) // EXCERPTS)
    return "".join(line for start in starts for line in lines[start : start + EXCERPT_LINES])


def train_tokenizer(documents: list[Document]) -> Tokenizer:
    """Byte-level BPE: any text encodes and decodes without loss; nothing is added at the ends."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in documents), trainer)
    return tokenizer


def wrap(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    """`tokenizer` as transformers saves and loads it."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        clean_up_tokenization_spaces=False,
        model_max_length=POSITIONS,
    )


def architecture() -> LlamaConfig:
    """Llama's shape at 2.8 million parameters: grouped queries (6 heads on 2), tied embeddings, no biases."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=POSITIONS,
        rms_norm_eps=1e-5,
        initializer_range=0.06,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )


def train(model: LlamaForCausalLM, tokens: Tensor) -> LlamaForCausalLM:
    """Fit `model` to random windows of `tokens` by AdamW, warm-up and cosine decay; returns it in eval mode.

    Windows are 256 tokens, and 512 in every fourth batch, so that each position the model has is trained.
    """
    matrices = [weight for weight in model.parameters() if weight.ndim == 2]
    scales = [weight for weight in model.parameters() if weight.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": scales, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    model.train()
    start, recent = time.monotonic(), []
    for step in range(STEPS):
        length = POSITIONS if step % 4 == 3 else POSITIONS // 2
        starts = torch.randint(len(tokens) - length, (BATCH_TOKENS // length, 1))
        windows = tokens[starts + torch.arange(length)]
        loss = model(windows, labels=windows, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        recent.append(loss.item())
        if (step + 1) % 50 == 0:
            mean = sum(recent[-100:]) / len(recent[-100:])
            print(f"step {step + 1} loss {mean:.4f} minutes {(time.monotonic() - start) / 60:.2f}", flush=True)
    return model.eval()


def rate(step: int) -> float:
    """The share of LEARNING_RATE at `step`: up in a line, down in half a cosine to a twentieth."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.05 + 0.475 * (1 + math.cos(math.pi * (step - WARM_UP) / (STEPS - WARM_UP)))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
