"""utils/modules.py: the mean over a grid, and eval mode for a while."""

import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d

from model import ENCODERS, MultimodalModel
from utils.modules import GridMean, eval_mode, renew_statistics


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


def test_batch_statistics_are_those_of_training():
    """The features are those of train mode, where dropout would differ; eval mode has the running
    statistics."""
    torch.manual_seed(0)
    net = MultimodalModel([1, 2], 3)
    x = [torch.randn(8, c, 16, 16) for c in (1, 2)]
    with eval_mode(net, batch_statistics=True):
        inside, _ = net(x)
        assert not any(m.training for m in net.modules() if not isinstance(m, torch.nn.BatchNorm2d))
    with eval_mode(net):
        running, _ = net(x)
    net.train()
    assert all(torch.equal(a, b) for a, b in zip(inside, net(x)[0]))
    assert not torch.allclose(running[0], inside[0], rtol=0.1)


def test_modes_come_back_after_an_error():
    """eval_mode() restores them on the way out of any exception."""
    net = MultimodalModel([1, 2], 3).train()
    with pytest.raises(KeyError), eval_mode(net):
        assert not net.phi[0].training
        raise KeyError
    assert all(m.training for m in net.modules())


def test_statistics_are_renewed_for_the_present_weights():
    """Batch norm's running mean and variance: means over the batches' own; nothing else changes."""
    net = MultimodalModel([5, 3], 3, "mlp").train()
    batches = [([torch.randn(9, 5), torch.randn(9, 3)], None) for _ in range(4)]
    net(batches[0][0])
    before = {name: p.clone() for name, p in net.named_parameters()}
    renew_statistics(net, iter(batches), n=3)
    norm, x = net.phi[0][0], [x[0] for x, _ in batches[:3]]
    assert torch.allclose(norm.running_mean, sum(x_j.mean(0) for x_j in x) / 3, atol=1e-6)
    assert torch.allclose(norm.running_var, sum(x_j.var(0) for x_j in x) / 3, atol=1e-6)
    assert norm.momentum == 0.1 and all(m.training for m in net.modules())
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
