"""The digits workload: the split repeats and the small networks learn."""

import numpy as np
import torch

from benchmarks.workloads import digits


def test_the_split_repeats_and_does_not_overlap() -> None:
    (x, y), (test_x, test_y) = digits.dataset(3)
    assert x.shape == (1297, 1, 8, 8) and test_y.shape == (500,) and 0 <= x.min() <= x.max() <= 1
    assert np.array_equal(digits.dataset(3)[0][0], x) and not np.array_equal(digits.dataset(4)[0][1], y)
    assert not {row.tobytes() for row in test_x} & {row.tobytes() for row in x}


def test_the_perceptron_learns() -> None:
    _, (x, classes) = digits.dataset()
    network = digits.network("mlp")
    with torch.no_grad():
        scores = network(torch.from_numpy(x)).numpy()
    assert digits.accuracy(scores, classes) > 0.95
