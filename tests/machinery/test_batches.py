"""The batches of data.py: every draw is a function of (key, t), for any number of workers."""

import dataclasses
import gc
import itertools
import multiprocessing
import os

import numpy as np
import pytest
import torch
from conftest import tiny

import data
import train
from data import Batches, Samples
from utils.loader import InMemory, eval_loader, hold_out, stack
from utils.media import IMAGENET, normalize


def read_key(position, seed):
    """A sample that is its own key: (position, augmentation seed), -1 without one."""
    return torch.tensor([position, -1 if seed is None else seed])


def samples(n):
    return Samples([range(n)], range(n), [read_key])


def make(n, batch_size, key=(5,), **options):
    return Batches(samples(n), batch_size, list(key), "cpu", **options)


def keys(batches):
    """The [(position, seed)] of each of these batches."""
    result = []
    for (x,), y in batches:
        assert y.tolist() == x[:, 0].tolist()
        result.append([tuple(pair) for pair in x.tolist()])
    return result


def reconstructed(n, batch_size, key, count):
    """The first `count` batches, written out: in each pass a permutation, then the seeds."""
    size = min(n, batch_size)
    result = []
    for number in itertools.count():
        rng = np.random.default_rng([*key, number])
        order = rng.permutation(n)
        seeds = rng.integers(2**62, size=n)
        for i in range(0, n - size + 1, size):
            chunk = zip(order[i : i + size], seeds[i : i + size])
            result.append([(int(p), int(s)) for p, s in chunk])
        if len(result) >= count:
            return result[:count]


@pytest.mark.parametrize(
    "n, batch_size, inner_iters", [(10, 3, 0), (10, 3, 2), (10, 3, 7), (2, 3, 0)]
)
def test_epochs_follow_each_other_through_the_passes(n, batch_size, inner_iters):
    """Batch i belongs to epoch i // len + 1, also if inner_iters does not divide a pass."""
    batches = make(n, batch_size, inner_iters=inner_iters)
    found = [keys(batches.epoch(t)) for t in (1, 2, 3, 4)]
    one_pass = {10: 3, 2: 1}[n]
    assert all(len(epoch) == len(batches) == (inner_iters or one_pass) for epoch in found)
    expected = reconstructed(n, batch_size, [5], 4 * len(batches))
    assert [batch for epoch in found for batch in epoch] == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_can_be_asked_for_in_any_order(workers):
    """Epoch 3 is the same first, third, again, and after an epoch that was not finished."""
    expected = keys(make(10, 3, inner_iters=4).epoch(3))
    batches = make(10, 3, inner_iters=4, workers=workers)
    assert keys(batches.epoch(3)) == expected
    next(iter(batches.epoch(1)))
    assert keys(batches.epoch(3)) == expected
    for t in (1, 2):
        assert keys(batches.epoch(t)) != expected
    assert keys(batches.epoch(3)) == expected
    assert keys(make(10, 3, key=[6], inner_iters=4).epoch(3)) != expected


def test_workers_change_no_number_and_draw_none():
    """Epochs and draws are those without workers; the global random state stays."""
    state = torch.get_rng_state()
    found = []
    for workers in (0, 2):
        batches = make(10, 3, workers=workers)
        drawn = keys(itertools.islice(batches.draw(2), 5))
        found.append(([keys(batches.epoch(t)) for t in (1, 2)], drawn))
    assert found[0] == found[1]
    assert torch.equal(state, torch.get_rng_state())


def read_pid(position, seed):
    return torch.tensor([os.getpid()])


def test_the_workers_stay():
    """In training and evaluation, the second epoch is read by the processes of the first."""
    whole = Samples([range(8)], range(8), [read_pid])
    batches = Batches(whole, 2, [0], "cpu", workers=2)
    theta = [{int(p) for (x,), _ in batches.epoch(t) for p in x} for t in (1, 2)]
    loader = eval_loader(whole, 64, "cpu", workers=1)
    scored = [{int(p) for x, _ in loader for p in x} for _ in range(2)]
    for (first, second), workers in [(theta, 2), (scored, 1)]:
        assert first == second and len(first) == workers and os.getpid() not in first


@pytest.mark.parametrize("t", [1, 4])
def test_draws_are_batches_without_end(t):
    """Pass after pass, from the generator of (key, t, pass); independent of the epochs."""
    batches = make(10, 3, key=[5 + 2**32])
    expected = reconstructed(10, 3, [5 + 2**32, t], 8)
    assert keys(itertools.islice(batches.draw(t), 8)) == expected
    keys(batches.epoch(1))
    assert keys(itertools.islice(batches.draw(t), 2)) == expected[:2]


def test_draws_are_read_lazily_without_workers():
    """No sample is read before its batch is asked for."""
    read = []
    dataset = Samples([range(10)], range(10), [lambda i, seed: read.append(i) or torch.zeros(1)])
    draws = Batches(dataset, 3, [5], "cpu").draw(1)
    assert not read
    next(draws)
    assert len(read) == 3


def test_draws_have_one_worker_which_ends_with_them():
    """Also with --workers 2; none is left when the draws are dropped."""
    before = {p.pid for p in multiprocessing.active_children()}
    batches = Batches(Samples([range(8)], range(8), [read_pid]), 2, [0], "cpu", workers=2)
    draws = batches.draw(1)
    found = {int(p) for (x,), _ in itertools.islice(draws, 6) for p in x}
    assert len(found) == 1 and os.getpid() not in found
    draws.close()
    del draws
    gc.collect()
    assert not {p.pid for p in multiprocessing.active_children()} - before


@pytest.mark.parametrize("workers", [0, 1])
def test_the_shards_of_a_batch_are_the_batch(workers):
    """Every process sees the same batches in the same order, each its own part."""
    whole = make(10, 4)
    parts = [make(10, 4, workers=workers, shard=lambda k, r=r: k[r::2]) for r in (0, 1)]
    for t in (2, 1):
        halves = [keys(part.epoch(t)) for part in parts]
        for batch, *shards in zip(keys(whole.epoch(t)), *halves):
            assert shards == [batch[0::2], batch[1::2]]


def test_the_test_loader_reads_in_order():
    """All samples, the rest of them too, not augmented; a shard of their positions."""
    found = keys(([x], y) for x, y in eval_loader(samples(7), 3, "cpu"))
    assert found == [[(i, -1) for i in batch] for batch in ([0, 1, 2], [3, 4, 5], [6])]
    loader = eval_loader(samples(7), 3, "cpu", shard=lambda positions: positions[1::2])
    assert keys(([x], y) for x, y in loader) == [[(i, -1) for i in (1, 3, 5)]]
    assert len(loader.loader) == 1 and len(loader.loader.dataset) == 7


def in_memory_as(*order):
    """Three random (2, 4, 3) tensors whose dimensions lie in memory in this order."""
    back = sorted(range(3), key=order.__getitem__)
    values = torch.randn(3, *((2, 4, 3)[k] for k in order))
    return [x.permute(back) for x in values]


@pytest.mark.parametrize("order", [*itertools.permutations(range(3))])
def test_a_batch_lies_in_memory_as_its_samples_do(order):
    """The same values in any case; of equal layouts nothing is transposed."""
    column = in_memory_as(*order)
    batch = stack(column)
    assert torch.equal(batch, torch.stack(column))
    assert batch[1].stride() == column[1].stride() and batch.stride(0) == 24
    mixed = [column[0], *(x.contiguous() for x in column[1:])]
    assert torch.equal(stack(mixed), torch.stack(mixed))
    expanded = [torch.randn(1, 4, 3).expand(2, -1, -1) for _ in range(3)]
    assert torch.equal(stack(expanded), torch.stack(expanded))


def test_pixels_beside_numbers_are_normalized_on_their_own():
    """One array of another type in a batch does not change what the others become."""
    pixels = torch.arange(12, dtype=torch.uint8).reshape(3, 2, 2)
    numbers = torch.ones(3, 2, 2)
    batch = stack([pixels, numbers])
    assert torch.equal(batch[0], normalize(pixels, IMAGENET)) and torch.equal(batch[1], numbers)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_model_gets_the_usual_layout(workers):
    """However the samples were read."""
    column = in_memory_as(1, 2, 0)
    loader = eval_loader(Samples([column], torch.arange(3), [read_nothing]), 3, "cpu", workers)
    [(x, y)] = loader
    assert torch.equal(x, torch.stack(column)) and x.is_contiguous() and y.tolist() == [0, 1, 2]


def read_nothing(x, seed):
    return x


def test_what_is_read_moves_to_the_device():
    """Inputs batch by batch, in training, in Eq. 3 and in evaluation; labels with the training."""
    data_set = Samples([torch.zeros(4, 2)], torch.zeros(4), [read_nothing])
    batches = Batches(data_set, 2, [0], "meta")
    for [x], y in (next(batches.epoch(1)), next(batches.draw(1))):
        assert x.device.type == y.device.type == "meta"
    for x, y in eval_loader(data_set, 2, "meta"):
        assert x.device.type == "meta" and y.device.type == "cpu"


def test_hold_out_keeps_groups_together(tiny_data):
    """No group on both sides, nothing lost, about the fraction asked for; at least one group."""
    tiny = tiny_data()
    tiny.splits["train"].sources[0] = torch.arange(48)
    for fraction, expected in [(0.25, 12), (0.001, 2)]:
        rest, held_out = hold_out(tiny.splits["train"], tiny.groups, fraction, 0)
        i, j = rest.sources[0].tolist(), held_out.sources[0].tolist()
        assert sorted(i + j) == list(range(48)) and len(held_out) == expected
        assert not set(tiny.groups[i]) & set(tiny.groups[j])
        assert held_out.y.tolist() == tiny.splits["train"].y[j].tolist()
    with pytest.raises(ValueError, match="--val-fraction 1 leaves nothing to train on"):
        hold_out(tiny.splits["train"], tiny.groups, 1, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_in_memory_gives_the_same_batches(workers):
    """Indexed as a whole or sample by sample: the same inputs and labels, bit for bit."""
    x, y = [torch.randn(7, 1, 3), torch.arange(7)], torch.arange(7) % 3
    whole = Samples(x, y, [data.identity] * 2)
    single = Samples(x, y, [lambda x_j, seed: x_j] * 2)
    loaders = [eval_loader(s, 3, "cpu", workers) for s in (whole, single)]
    assert [isinstance(loader, InMemory) for loader in loaders] == [workers == 0, False]
    loaders += [Batches(s, 3, [0], "cpu", workers).epoch(2) for s in (whole, single)]
    for one, other in (loaders[:2], loaders[2:]):
        for ours, usual in zip(one, other, strict=True):
            for a, b in zip(flat(ours), flat(usual), strict=True):
                assert a.dtype == b.dtype and torch.equal(a, b)


def test_what_is_in_memory_moves_to_the_device_once(monkeypatch):
    """load_data moves the inputs, for all loaders of the set; labels stay, for the scores."""
    monkeypatch.setitem(data.DATASETS, "tiny", tiny)
    monkeypatch.setattr(data.distributed, "pick_device", lambda name: "meta")
    args = train.parse(["--dataset", "tiny"])
    samples = data.load_data(args, lambda m: ["cnn"] * m).splits["train"]
    moved = samples.sources[0]
    assert moved.device.type == "meta" and samples.y.device.type == "cpu"
    loader = eval_loader(samples, 2, "meta")
    x, _, y = next(iter(loader))
    assert loader.sources[0] is moved and x.device.type == "meta" and y.device.type == "cpu"


def flat(batch):
    """A batch as a flat list of tensors."""
    return [x for part in batch for x in (part if isinstance(part, list) else [part])]


def test_a_data_set_stays_as_it_is(monkeypatch):
    """An entry of DATASETS may return the same Data each time; without groups, samples are held
    out one by one."""
    whole = dataclasses.replace(tiny(), groups=None)
    monkeypatch.setitem(data.DATASETS, "tiny", lambda root: whole)
    args = train.parse(["--dataset", "tiny", "--val-fraction", "0.25"])
    for _ in range(2):
        found = data.load_data(args, lambda m: ["cnn"] * m)
        assert [len(found.splits[s]) for s in ("train", "val")] == [36, 12]
    assert set(whole.splits) == {"train", "test"} and len(whole.splits["train"]) == 48
    assert whole.channels is None and args.val_fraction == 0.25


def test_a_run_can_train_on_few_groups(monkeypatch):
    """Whole groups, drawn with the seed; what is held out is of these groups, too."""
    whole = tiny()
    whole.splits["train"].sources[0] = torch.arange(48).reshape(48, 1, 1, 1)
    monkeypatch.setitem(data.DATASETS, "tiny", lambda root: whole)

    def kept(*flags):
        args = train.parse(["--dataset", "tiny", "--train-groups", "4", *flags])
        splits = data.load_data(args, lambda m: ["cnn"] * m).splits
        return {name: samples.sources[0].flatten().tolist() for name, samples in splits.items()}

    places = kept()["train"]
    groups = {*whole.groups[places].tolist()}
    assert len(groups) == 4 and places == np.flatnonzero(np.isin(whole.groups, [*groups])).tolist()
    assert kept()["train"] == places != kept("--seed", "1")["train"]
    half = kept("--val-fraction", "0.5")
    assert sorted(half["train"] + half["val"]) == places
    assert len({*whole.groups[half["val"]].tolist()}) == 2
    args = train.parse(["--dataset", "tiny", "--train-groups", "1000"])
    with pytest.raises(ValueError, match="--train-groups is 1000, but tiny has 24 groups"):
        data.load_data(args, lambda m: ["cnn"] * m)
