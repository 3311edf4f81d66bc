"""Train the digit classifier that ships with qcc and write `digits.onnx` and its data, reproducibly.

Run as `python examples/digits/train.py [FOLDER]`; FOLDER is this one unless given. Half a minute on one core.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

SEED = 0
TEST_IMAGES = 500
CALIBRATION_IMAGES = 128
EPOCHS = 40
BATCH = 64
OPSET = 20
IR_VERSION = 10


def main(folder: Path) -> None:
    """Train, export and write the four files into `folder`; the test accuracy goes to stdout."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    (train_images, train_labels), (test_images, test_labels) = split_digits()
    model = train(DigitNet(), torch.from_numpy(train_images), torch.from_numpy(train_labels))
    with torch.no_grad():
        guesses = model(torch.from_numpy(test_images)).argmax(1).numpy()
    print(f"parameters {sum(weight.numel() for weight in model.parameters())}")
    print(f"test accuracy {(guesses == test_labels).mean():.2%}")

    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(export(model), folder / "digits.onnx")
    np.savez_compressed(folder / "calibration.npz", images=train_images[:CALIBRATION_IMAGES])
    np.savez_compressed(folder / "test.npz", images=test_images)
    np.savez_compressed(folder / "labels.npz", labels=test_labels)


def split_digits() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """scikit-learn's digits, 1,297 to train and 500 to test: images float32 [n, 1, 8, 8] in 0..1, labels int64 [n]."""
    digits = load_digits()
    order = np.random.default_rng(SEED).permutation(len(digits.target))
    images = (digits.images[order, None] / 16.0).astype(np.float32)
    labels = digits.target[order].astype(np.int64)
    return (images[:-TEST_IMAGES], labels[:-TEST_IMAGES]), (images[-TEST_IMAGES:], labels[-TEST_IMAGES:])


class DigitNet(nn.Module):
    """images [n, 1, 8, 8] -> logits [n, 10]: a stem, a depthwise step to 4x4, a residual block, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(1, 24, kernel=3)
        self.depthwise = conv_bn(24, 24, kernel=3, stride=2, groups=24)
        self.pointwise = conv_bn(24, 48, kernel=1)
        self.inner = conv_bn(48, 48, kernel=3)
        self.outer = conv_bn(48, 48, kernel=3)
        self.head = nn.Linear(48, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = functional.relu(self.stem(images))
        x = functional.relu(self.depthwise(x))
        x = functional.relu(self.pointwise(x))
        x = functional.relu(x + self.outer(functional.relu(self.inner(x))))
        x = functional.adaptive_avg_pool2d(x, 1)
        return self.head(torch.flatten(x, 1))


def conv_bn(inputs: int, outputs: int, *, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution without bias that keeps the size at stride 1, and its batch normalization."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


def train(model: nn.Module, images: Tensor, labels: Tensor) -> nn.Module:
    """Fit `model` by AdamW under a one-cycle rate, on images shifted by at most one pixel; returns it in eval mode."""
    steps = EPOCHS * -(-len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    model.train()
    for _ in range(EPOCHS):
        for picked in torch.randperm(len(images)).split(BATCH):
            loss = functional.cross_entropy(model(shift(images[picked])), labels[picked], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def shift(images: Tensor) -> Tensor:
    """The batch moved by one random offset of -1, 0 or 1 pixel each way, with zeros let in at the border."""
    down, right = torch.randint(0, 3, (2,)).tolist()
    return functional.pad(images, (1, 1, 1, 1))[:, :, down : down + 8, right : right + 8]


def export(model: nn.Module) -> onnx.ModelProto:
    """`model` as ONNX with a symbolic batch and its BatchNormalization kept, so that a compiler has something to fold.

    The newer exporter (dynamo=True) merges them into the convolutions, or, unoptimized, leaves shape arithmetic behind.
    """
    stream = io.BytesIO()
    torch.onnx.export(
        model,
        (torch.zeros(2, 1, 8, 8),),
        stream,
        dynamo=False,
        do_constant_folding=False,
        opset_version=OPSET,
        input_names=["images"],
        output_names=["logits"],
        dynamic_axes={"images": {0: "batch"}, "logits": {0: "batch"}},
    )
    proto = onnx.load_from_string(stream.getvalue())
    proto.ir_version = IR_VERSION
    onnx.checker.check_model(proto, full_check=True)
    return proto


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
