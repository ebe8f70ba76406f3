"""Helpers for torch modules: eval mode for a while, and the mean over a grid."""

import functools
import itertools
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool1d
from torch.nn.modules.batchnorm import _BatchNorm

FEW_STEPS = 50  # after which 0.9^50 = 0.5 % of batch norm's running statistics are older


@contextmanager
def eval_mode(model, batch_statistics=False):
    """Put the model in eval mode; restore every module's mode on exit.

    batch_statistics: batch norm normalizes with the statistics of the batch, as in training, and
    updates nothing.
    """
    modes = {module: module.training for module in model.modules()}
    tracked = {norm: norm.track_running_stats for norm in modes if isinstance(norm, _BatchNorm)}
    model.eval()
    if batch_statistics:
        for norm in tracked:
            norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for norm, track in tracked.items():
            norm.track_running_stats = track


@torch.no_grad()
def renew_statistics(model, batches, n=20):
    """Set batch norm's running statistics to their means over n batches (x, y), for these weights.

    Nothing else of the model changes.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    with eval_mode(model):
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum, norm.training = None, True  # None: the mean over all batches
        for x, _ in itertools.islice(batches, n if norms else 0):
            model(x)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum


@functools.lru_cache(maxsize=64)
def grid_matrix(height, width, n, device, dtype):
    """(height width, n n): the weight of a pixel in the mean of each cell of an n x n grid."""
    identities = torch.eye(height).double(), torch.eye(width).double()
    rows, columns = (adaptive_avg_pool1d(identity[None], n)[0] for identity in identities)
    return torch.kron(rows, columns).to(device, dtype)


class GridMean(nn.Module):
    """AdaptiveAvgPool2d(n) and Flatten as one matrix product: (B, C, H, W) -> (B, C n n).

    AdaptiveAvgPool2d itself has no deterministic backward pass on CUDA, and no kernel for most
    sizes on MPS.
    """

    def __init__(self, n):
        super().__init__()
        self.n = n

    def forward(self, x):
        matrix = grid_matrix(*x.shape[-2:], self.n, x.device, x.dtype)
        return (x.flatten(2) @ matrix).flatten(1)
