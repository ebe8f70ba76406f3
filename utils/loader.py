"""Loaders of batches, with or without processes that read the data."""

import torch
from torch.utils.data import DataLoader

from utils.pretrained import collate


def make_loader(dataset, batches, device, workers):
    """A DataLoader over batches of keys; workers persist, global random state is untouched."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
        pin_memory=torch.device(device).type == "cuda",
        generator=torch.Generator(),
    )


def eval_loader(dataset, batch_size, device, workers=0, shard=None):
    """Loader of a split in its order, to evaluate on; shard: this process's part of positions."""
    positions = (shard or list)(range(len(dataset)))
    batches = [positions[i : i + batch_size] for i in range(0, len(positions), batch_size)]
    return make_loader(dataset, batches, device, workers)
