"""What several test files share: a data set that trains in a blink."""

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import data

torch.set_num_threads(1)  # the tests are small; more threads only wait for each other


def tiny(root=None, n=48):
    """Three classes, two modalities of 1 and 2 channels; groups of two samples."""
    generator = torch.Generator().manual_seed(0)

    def pairs(n):
        y = torch.arange(n) % 3
        x = [torch.randn(n, c, 8, 8, generator=generator) + y.view(-1, 1, 1, 1) for c in (1, 2)]
        return TensorDataset(*x, y)

    return {"modalities": ["image", "sound"], "n_classes": 3, "train": pairs(n), "test": pairs(15),
            "groups": np.arange(n) // 2}  # fmt: skip


@pytest.fixture
def tiny_data(monkeypatch, tmp_path):
    """`--dataset tiny`, run in an empty folder."""
    monkeypatch.setitem(data.DATASETS, "tiny", tiny)
    monkeypatch.chdir(tmp_path)
    return tiny
