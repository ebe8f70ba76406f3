"""Loaders of batches, with or without processes that read the data."""

import torch
from torch.utils.data import DataLoader

from utils.pretrained import collate


def identity(x, seed=None):
    """The reader of a modality whose tensors are in memory already."""
    return x


class InMemory:
    """A loader of inputs that are in memory: they move to the device once, and stay there."""

    def __init__(self, dataset, batches, device):
        dataset.sources = [source.to(device) for source in dataset.sources]
        self.dataset, self.batches, self.device = dataset, batches, device

    def __iter__(self):
        for keys in self.batches:
            positions = torch.tensor([key[0] if isinstance(key, tuple) else key for key in keys])
            there = positions.to(self.device, non_blocking=True)
            yield *(source[there] for source in self.dataset.sources), self.dataset.y[positions]


def make_loader(dataset, batches, device, workers):
    """A loader of batches of keys; workers persist, global random state is untouched."""
    read = zip(dataset.readers, dataset.sources)
    if not workers and all(r is identity and torch.is_tensor(x) for r, x in read):
        return InMemory(dataset, batches, device)
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
