"""Handwritten digits of 8 x 8 pixels (UCI, from scikit-learn) and two small networks that learn them in seconds."""

from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

Floats: TypeAlias = npt.NDArray[np.float32]
Labels: TypeAlias = npt.NDArray[np.int64]
Kind: TypeAlias = Literal["mlp", "cnn"]

TRAIN = 1297


def dataset(seed: int = 0) -> tuple[tuple[Floats, Labels], tuple[Floats, Labels]]:
    """(train, test): pictures f32[N, 1, 8, 8] in [0, 1] and classes i64[N]; 1297 and 500 of them, split by `seed`."""
    from sklearn.datasets import load_digits

    pictures, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(classes))
    x = (pictures[order] / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    y = classes[order].astype(np.int64)
    return (x[:TRAIN], y[:TRAIN]), (x[TRAIN:], y[TRAIN:])


def network(kind: Kind, seed: int = 0, epochs: int = 30) -> nn.Sequential:
    """A network trained from `seed` (Adam, a few seconds), f32[N, 1, 8, 8] -> scores f32[N, 10], in evaluation mode.

    `mlp` is 64-64-32-10 with ReLU; `cnn` has two dense convolutions, a depthwise-separable one and a linear layer.
    """
    (x, y), _ = dataset(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _mlp() if kind == "mlp" else _cnn()
        _train(model, torch.from_numpy(x), torch.from_numpy(y), epochs)
    return model.eval()


def accuracy(scores: npt.NDArray[np.floating], classes: Labels) -> float:
    """The share of rows of `scores[N, 10]` whose largest entry is the class: 0.98 is 98 percent."""
    return float((scores.argmax(-1) == classes).mean())


def _mlp() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def _cnn() -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 64, 1), nn.BatchNorm2d(64), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    )


def _train(model: nn.Sequential, x: torch.Tensor, y: torch.Tensor, epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(y)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
        schedule.step()
