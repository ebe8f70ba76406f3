"""Several processes as one run: `torchrun --nproc-per-node=N train.py ...`, on any machines.

Each rank trains on its shard of every batch. L_MM is over the features of all ranks, gradients are
averaged, and the scores are of the whole split, so that losses, alpha and parameters equal one
process on the whole batch. The exception is batch norm: it sees only the rank's own shard while
theta trains; every rank evaluates with rank 0's running statistics, which the checkpoint has. Every
rank computes the same Eq. 3 on the same whole batches. Without torchrun there is one rank, and the
functions below leave data and model as they are.
"""

import os

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from utils.cli import SettingsError


def pick_device(name):
    """cpu, cuda, mps; auto is cuda if available, else cpu. SettingsError if it is not available."""
    available = {"cpu": True, "cuda": torch.cuda.is_available()}
    available["mps"] = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if available["cuda"] else "cpu"
    if not available.get(name):
        choices = ["auto", *(device for device in available if available[device])]
        raise SettingsError(f"device {name!r} is not available; choose from {', '.join(choices)}")
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name == "cuda" else name


def has_bf16(device):
    """Whether --device is a GPU that computes in bfloat16, as NVIDIA's do since 2020."""
    if device not in ("auto", "cuda") or not torch.cuda.is_available():
        return False
    return torch.cuda.is_bf16_supported(including_emulation=False)


def init(device):
    """Join the other processes of torchrun, if there are any; rank 0 alone prints."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        return
    cuda = device.startswith("cuda")
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if cuda else "gloo")
    if rank() > 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def destroy():
    """Leave the other processes."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier():
    """Wait until every rank is here."""
    if dist.is_initialized():
        dist.barrier()


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    return dist.get_world_size() if dist.is_initialized() else 1


def check_batch(batch_size, splits):
    """SettingsError for a training batch or a split that the ranks cannot share.

    splits: Samples by name; a batch has at most all training samples.
    """
    n, batch = world_size(), min(batch_size, len(splits["train"]))
    for name, samples in splits.items():
        if len(samples) < n:
            problem = f"the split {name} has {len(samples)} samples, fewer than {n} processes"
            raise SettingsError(f"{problem}; start fewer")
    if n > 1 and (batch % n or batch < 2 * n):
        raise SettingsError(
            f"a batch of {batch} training samples cannot be shared by {n} processes; choose a "
            "--batch-size of 2 or more for each, the same for all"
        )


def shard(items):
    """This rank's part of a list: every world_size()-th item."""
    return items[rank() :: world_size()]


def all_reduce_mean(x):
    """The mean of a tensor over the ranks."""
    if world_size() > 1:
        x = x.clone()
        dist.all_reduce(x)
        x /= world_size()
    return x


def broadcast_buffers(model):
    """Give every rank rank 0's buffers: batch norm's running statistics, which a checkpoint has."""
    if dist.is_initialized():
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def all_gather_object(item):
    """Every rank's item, as a list, on every rank."""
    if not dist.is_initialized():
        return [item]
    items = [None] * world_size()
    dist.all_gather_object(items, item)
    return items


def labels_of(z_j, y):
    """The labels of the features z_j (B, d): y itself, or those of all ranks where z_j is."""
    if len(z_j) == len(y):
        return y
    parts = [torch.empty_like(y) for _ in range(world_size())]
    dist.all_gather(parts, y.contiguous())
    return torch.cat(parts)


class AllGather(torch.autograd.Function):
    """The features of all ranks, (B / ranks, d) -> (B, d); backward sums every rank's gradient."""

    @staticmethod
    def forward(ctx, z_j):
        parts = [torch.empty_like(z_j) for _ in range(world_size())]
        dist.all_gather(parts, z_j.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient.chunk(world_size())[rank()]


class DataParallel(DistributedDataParallel):
    """DistributedDataParallel for a model that returns (z, logits); z is that of all ranks."""

    def forward(self, x):
        z, logits = super().forward(x)
        return [AllGather.apply(z_j) for z_j in z], logits


def data_parallel(model):
    """The model, wrapped so that its forward and backward pass involve all ranks."""
    return model if world_size() == 1 else DataParallel(model)
