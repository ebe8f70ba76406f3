"""utils/modules.py: the mean over a grid."""

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from model import ENCODERS
from utils.modules import GridMean


@pytest.mark.parametrize("size", [(3, 3), (9, 3), (33, 38), (4, 4), (1, 1), (2, 5)])
def test_grid_mean_is_adaptive_average_pooling(size):
    """Value and gradient are those of torch's own layer, whether 4 divides a size or not."""
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 48, dtype=torch.float64)
    ours, theirs = GridMean(4)(x), adaptive_avg_pool2d(x, 4).flatten(1)
    assert torch.allclose(ours, theirs, rtol=1e-12)
    gradients = [torch.autograd.grad((y * weights).sum(), x)[0] for y in (ours, theirs)]
    assert torch.allclose(*gradients, rtol=1e-12)


def test_default_encoder_has_only_operations_that_every_device_has():
    """AdaptiveAvgPool2d is not deterministic on CUDA and does not run on MPS for most sizes."""
    net, _ = ENCODERS["cnn"](1)
    assert not any("Adaptive" in type(module).__name__ for module in net.modules())
    assert any(isinstance(module, GridMean) for module in net.modules())
