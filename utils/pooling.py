"""The mean over a grid of cells, with operations that every device has."""

import functools

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool1d


@functools.lru_cache(maxsize=64)
def grid_matrix(height, width, n, device, dtype):
    """(height width, n n): what a pixel counts in the mean of each cell of an n x n grid."""
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
