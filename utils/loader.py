"""Loaders of batches, with or without processes that read the data.

They give (*x, y): the inputs x on the device, the labels y on the CPU.
"""

import itertools

import numpy as np
import torch
from torch.nn.functional import pad
from torch.utils.data import DataLoader, default_collate

from utils.cli import SettingsError
from utils.media import IMAGENET, normalize
from utils.pretrained import is_text


def identity(x, seed=None):
    """The reader of a modality whose tensors are in memory already."""
    return x


def collate(samples):
    """[(x^(1), ..., x^(m), y), ...] -> [x^(1), ..., x^(m), y], stacked.

    Texts are padded to the longest of the batch, with id 0 and mask 0.
    """
    columns = list(zip(*samples))
    for k, column in enumerate(columns):
        if is_text(column[0]):
            length = max(x_j.shape[1] for x_j in column)
            columns[k] = [pad(x_j, (0, length - x_j.shape[1])) for x_j in column]
    return [stack(column) for column in columns]


def stack(column):
    """default_collate that keeps the layout of the samples: pictures whose channels are last in
    memory stay so, because transposing while copying is slow."""
    first = column[0]
    if not torch.is_tensor(first):
        return default_collate(column)
    if len({x_j.dtype for x_j in column}) > 1:  # one by one, or pixels would count as numbers
        column = [normalize(x_j, IMAGENET) for x_j in column]
    order = sorted(range(first.dim()), key=first.stride, reverse=True)
    batch = default_collate([x_j.permute(order) for x_j in column])
    return batch.movedim(tuple(range(1, batch.dim())), tuple(1 + k for k in order))


def normalized(splits, axes=None):
    """{split: (x, y)} of arrays, x a list -> of tensors, x normalized by the training split.

    axes: over which its mean and std are taken, None: all.
    """
    x_train, _ = splits["train"]
    scales = [(x_j.mean(axes, keepdims=True), x_j.std(axes, keepdims=True)) for x_j in x_train]
    result = {}
    for split, (x, y) in splits.items():
        x = [torch.tensor((x_j - mean) / std).float() for x_j, (mean, std) in zip(x, scales)]
        result[split] = x, torch.tensor(y)
    return result


class OnDevice:
    """A loader of inputs that are read: they move to the device batch by batch."""

    def __init__(self, loader, device):
        self.loader, self.device = loader, device

    def __iter__(self):
        for *x, y in self.loader:
            yield *(x_j.to(self.device, non_blocking=True).contiguous() for x_j in x), y


class InMemory:
    """A loader of inputs that are in memory; load_data has moved them to the device once."""

    def __init__(self, dataset, batches, device):
        self.sources = [source.to(device) for source in dataset.sources]  # nothing moves twice
        self.dataset, self.batches, self.device = dataset, batches, device

    def __iter__(self):
        for keys in self.batches:
            positions = torch.tensor([key[0] if isinstance(key, tuple) else key for key in keys])
            there = positions.to(self.device, non_blocking=True)
            yield *(source[there] for source in self.sources), self.dataset.y[positions]


class BatchSampler:
    """Batches of keys (position, seed): of each sample its position, and its augmentation's seed.

    Every draw is a function of key, a list of ints. A pass is a permutation of the n samples
    without its last n % B. An epoch has `length` batches, 0: one pass, None: it never ends. shard:
    this process's part of a batch's keys.
    """

    def __init__(self, n, batch_size, key, length=0, shard=None):
        self.n, self.batch_size, self.key = n, min(batch_size, n), key
        # Paper silent: the last n % B samples of a pass. Here: left out, others in each pass.
        self.per_pass = n // self.batch_size
        self.length = self.per_pass if length == 0 else length
        self.shard, self.t = shard or list, 1

    def set_epoch(self, t):
        """The next batches are of epoch t, from 1 on."""
        self.t = t

    def __iter__(self):
        if self.length is None:
            return self.passes(0)
        number, skip = divmod((self.t - 1) * self.length, self.per_pass)
        return itertools.islice(self.passes(number), skip, skip + self.length)

    def __len__(self):
        return self.length

    def passes(self, first):
        """The batches of pass number `first` and of all later passes."""
        for number in itertools.count(first):
            rng = np.random.default_rng([*self.key, number])
            positions = rng.permutation(self.n).tolist()
            keys = list(zip(positions, rng.integers(2**62, size=self.n).tolist()))
            for i in range(self.per_pass):
                yield self.shard(keys[i * self.batch_size : (i + 1) * self.batch_size])


def make_loader(dataset, batches, device, workers):
    """A loader of batches of keys; workers persist, global random state is untouched."""
    read = zip(dataset.readers, dataset.sources)
    if not workers and all(r is identity and torch.is_tensor(x) for r, x in read):
        return InMemory(dataset, batches, device)
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=workers > 0,
        pin_memory=torch.device(device).type == "cuda",
        generator=torch.Generator(),
    )
    return OnDevice(loader, device)


def eval_loader(dataset, batch_size, device, workers=0, shard=None):
    """Loader of a split in its order, to evaluate on; shard: this process's part of positions."""
    positions = (shard or list)(range(len(dataset)))
    batches = [positions[i : i + batch_size] for i in range(0, len(positions), batch_size)]
    return make_loader(dataset, batches, device, workers)


def take(values, chosen):
    """The values at the positions `chosen`, of a tensor or a list, in one of the same type."""
    return values[chosen] if torch.is_tensor(values) else type(values)([values[i] for i in chosen])


def of_groups(groups, n, seed):
    """Which samples are of n groups drawn with a seed: bools (N,); groups: ints (N,)."""
    return np.isin(groups, np.random.default_rng(seed).permutation(np.unique(groups))[:n])


def hold_out(dataset, groups, fraction, seed):
    """(rest, held out): about that fraction of a data set, no group (N,) of ints on both sides."""
    held_out = of_groups(groups, max(1, round(fraction * len(np.unique(groups)))), seed)
    if held_out.all():
        raise SettingsError(f"--val-fraction {fraction} leaves nothing to train on; choose less")
    return dataset.subset(np.flatnonzero(~held_out)), dataset.subset(np.flatnonzero(held_out))


def with_validation(args, data, needs_val):
    """The splits of a data.Data, with a `val` held out of `train` if the settings or needs_val ask.

    With --train-groups, `train` and what is held out of it are of so many groups. SettingsError if
    there are fewer, or if --val-fraction is given and the data have a validation part.
    """
    splits, fraction = dict(data.splits), args.val_fraction
    groups = np.arange(len(splits["train"])) if data.groups is None else data.groups
    if n := args.train_groups:
        if n > (there := len(np.unique(groups))):
            has = f"{args.dataset} has {there} groups to train on"
            raise SettingsError(f"--train-groups is {n}, but {has}; choose fewer")
        kept = np.flatnonzero(of_groups(groups, n, args.seed))
        splits["train"], groups = splits["train"].subset(kept), groups[kept]
    if "val" in splits and fraction:
        raise SettingsError(f"{args.dataset} has a validation part; leave --val-fraction out")
    if (needs_val or args.outer == "held-out") and "val" not in splits and not fraction:
        fraction = 0.1
        if not args.eval:
            print("a tenth of the training split is held out, as by --val-fraction 0.1")
    if fraction:
        splits["train"], splits["val"] = hold_out(splits["train"], groups, fraction, args.seed)
    return splits
