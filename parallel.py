"""Several processes as one run: `torchrun --nproc-per-node=N train.py ...`, on one machine or several.

Each rank trains on its part of every batch. What it computes is what one process computes on the whole batch: L_MM is
over the features of all ranks, gradients and products with the Hessian are means over the ranks, the scores are of the
whole split. Batch norm alone sees a rank's own part; its running statistics are averaged after each epoch. Without
torchrun there is one rank, and each function here gives back what it was given.
"""

import os
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def start(cuda):
    """Join the other processes of torchrun, if there are any; the first alone prints. cuda: if they compute there."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if cuda else "gloo")
    if rank() > 0:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def stop():
    if dist.is_initialized():
        dist.destroy_process_group()


def wait():
    """Until every rank is here."""
    if dist.is_initialized():
        dist.barrier()


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def ranks():
    return dist.get_world_size() if dist.is_initialized() else 1


def own(things):
    """This rank's part of a list: every ranks()-th thing."""
    return things[rank() :: ranks()]


def mean(tensors):
    """The mean over the ranks of each tensor; those that are not floating point stay as they are."""
    if ranks() == 1:
        return tensors
    tensors = [x.clone() for x in tensors]
    for x in tensors:
        if x.is_floating_point():
            dist.all_reduce(x)
            x /= ranks()
    return tensors


class Sum(torch.autograd.Function):
    """The sum over the ranks; its gradient is the sum of theirs, and so it is for every further derivative."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient):
        return Sum.apply(gradient)


def everywhere(z_j):
    """The features of all ranks, (B / ranks, d) -> (B, d), with gradient, that can be differentiated again.

    The gradient that comes back to a rank is the sum of what all ranks make of its features.
    """
    if ranks() == 1:
        return z_j
    parts = [torch.zeros_like(z_j)] * ranks()
    parts[rank()] = z_j
    return Sum.apply(torch.cat(parts))


def everyone(thing):
    """What each rank has, as a list, in every rank."""
    if ranks() == 1:
        return [thing]
    things = [None] * ranks()
    dist.all_gather_object(things, thing)
    return things


class Shared(DistributedDataParallel):
    """A model whose gradients are, after backward, means over the ranks. It has the model's own methods."""

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.module, name)


def shared(model):
    """The model to train; batch norm's running statistics are each rank's own until `agree`."""
    return model if ranks() == 1 else Shared(model, broadcast_buffers=False)


def agree(model):
    """Set the buffers, batch norm's running statistics, to their mean over the ranks."""
    for buffer, value in zip(model.buffers(), mean(list(model.buffers()))):
        buffer.copy_(value)
