"""The costs of training on this machine: times as ratios, memory in GiB.

    python -m scripts.costs                  all parts; each says beforehand how long it takes
    python -m scripts.costs update memory    only these; --help lists all

Functions that are compared are called alternately, in several rounds. A time is given relative to
one of them: the median of the rounds (the smallest to the largest). Such a ratio hardly depends on
the machine. `update`, `epoch` and `hypergradient` use the GPU if torch finds a CUDA device.
docs/COSTS.md has the numbers of one machine.
"""

import contextlib
import functools
import itertools
import statistics
import sys
import time
import weakref
from types import SimpleNamespace

import numpy as np
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import train
from bilevel import hypergradient
from data import SETS, Batches, defaults
from losses import total_loss
from model import ENCODERS, MultimodalModel, Pretrained
from scripts.figures import one_table
from utils import cli, media, modules

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
ALPHA = 0.6
SETTINGS = train.Settings()


def seconds(function):
    """Of one call, until the GPU has finished it, too."""
    wait = torch.cuda.synchronize if CUDA else lambda: None
    wait()
    start = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - start


def relative_times(unit, rounds, function):
    """A function's time in each round, divided by the mean of two calls of `unit` around it."""
    ratios = []
    for _ in tqdm(range(rounds), "rounds", leave=False):
        before, own, after = map(seconds, (unit, function, unit))
        ratios.append(2 * own / (before + after))
    return ratios


def spread(values, digits=2):
    """'median (smallest to largest)'."""
    middle, low, high = (f"{f(values):.{digits}f}" for f in (statistics.median, min, max))
    return f"{middle} ({low} to {high})"


def line(sizes, values):
    """A function of n, the line through the measured values."""
    return np.poly1d(np.polyfit(sizes, values, 1))


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive; `peak`: the most at once.

    Tensors can be fake or on the meta device: they have a size, but no values, and cost no time.
    Where the program reads a number from such a tensor, it reads 1.
    """

    def __init__(self):
        super().__init__()
        self.known, self.live, self.peak = weakref.WeakSet(), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 1.0
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if torch.is_tensor(leaf) and (storage := leaf.untyped_storage()) not in self.known:
                self.known.add(storage)
                self.add(storage.nbytes())
                weakref.finalize(storage, self.add, -storage.nbytes())
        return result

    def add(self, size):
        self.live += size
        self.peak = max(self.peak, self.live)


def counted(function, model):
    """(FLOPs of convolutions and matrix products, the most bytes of tensors beside theta)."""
    with FlopCounterMode(display=False) as counter, Live() as live:
        live.known.update(p.untyped_storage() for p in model.parameters())
        function()
    return np.array([counter.get_total_flops(), live.peak])


def two_resnets(n, sound, frame):
    """(model, batch): the paper's audio-video model with a random batch, in eval mode; on a CPU
    one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    c = SETS["cremad"]["n_classes"]
    model = MultimodalModel([1, 3], c, "resnet18").to(DEVICE).eval()
    x = [torch.randn(n, 1, *sound), torch.randn(n, 3, *frame)]
    return model, ([x_j.to(DEVICE) for x_j in x], torch.arange(n, device=DEVICE) % c)


def losses(model, batch):
    """(L_CLS, L_MM)."""
    x, y = batch
    return train.losses(*model(x), y, SETTINGS)


def training_step(model, batch, optimizer, s=SETTINGS):
    """A step of theta, as train.py has it."""
    train.inner_step(model.train(), optimizer, *batch, ALPHA, s)


def alpha_update(model, batch, s=SETTINGS):
    """An update of alpha, as train.py has it, except that all of its batches are this one."""
    batches = SimpleNamespace(draw=lambda t: itertools.repeat(batch))
    train.alpha_gradient(model, batches, batches, ALPHA, 1, s)


def sgd(model):
    return torch.optim.SGD(model.parameters(), 1e-6, 0.9)


def update(rounds=15, terms=(1, 5, 20)):
    """One update of alpha relative to a training step with the same batch of keypad."""
    data = train.DATASETS["keypad"]()
    model = MultimodalModel([1, 1], len(data.classes)).to(DEVICE)
    batch = next(Batches(data.splits["train"], SETTINGS.batch_size, [0], DEVICE).epoch(1))
    step = functools.partial(training_step, model, batch, sgd(model))
    step()  # warm up
    print(f"Two cnn encoders, batches of {SETTINGS.batch_size}, {torch.get_num_threads()} threads.")
    for k in terms:
        s = train.Settings(terms=k)
        ratios = relative_times(step, rounds, functools.partial(alpha_update, model, batch, s))
        print(f"{k:2d} terms: {spread(ratios, 1)} training steps")


def epoch(rounds=3):
    """One update of alpha as a share of an epoch of CREMA-D, with inputs of full size."""
    usual = defaults("cremad")
    n_step, n_update = usual["batch_size"], usual["alpha_batch"]
    steps = SETS["cremad"]["paper"][0] // n_step
    ours, theirs = ((16, 32), (128, 256)) if CUDA else ((2, 6), (2, 6))  # of an update, of a step
    model, (x, y) = two_resnets(max(theirs), (257, 299), (224, 224))
    batches = {size: ([x_j[:size] for x_j in x], y[:size]) for size in {*ours, *theirs}}
    optimizer = sgd(model)
    for bf16 in (False, True) if usual["bf16"] else (False,):
        s, shares = train.Settings(bf16=bf16), []
        step = functools.partial(training_step, model, optimizer=optimizer, s=s)
        own = functools.partial(alpha_update, model, s=s)
        for _ in tqdm(range(1 + rounds), "rounds", leave=False):  # the first one warms up
            update_times = [seconds(functools.partial(own, batches[size])) for size in ours]
            step_times = [seconds(functools.partial(step, batches[size])) for size in theirs]
            whole = steps * line(theirs, step_times)(n_step)
            shares.append(100 * line(ours, update_times)(n_update) / whole)
        precision = "bf16" if bf16 else "float32"
        print(f"Steps in {precision}: an update takes {spread(shares[1:], 1)} % of the epoch.")
    print(f"{steps} steps with batches of {n_step}, an update with {n_update}.")
    print(f"Timed: steps with batches of {theirs}, updates with {ours}; the rest lies on a line.")


def eq_3(model, batch, terms, step):
    """Eq. 3 with one batch for all of its factors; step None: by the curvature, as in training."""
    hypergradient(
        lambda: losses(model, batch)[0],
        lambda: losses(model, batch),
        model.parameters(),
        ALPHA,
        solver=SETTINGS.solver if step is None else "neumann",
        terms=terms,
        step=step,
    )


def eq_3_alone(rounds=5, terms=(1, 5, 20)):
    """Eq. 3 on two ResNet18, relative to one forward and backward pass of its batch."""
    model, batch = two_resnets(8, (97, 97), (80, 80))

    def unit():
        torch.autograd.grad(total_loss(*losses(model, batch), ALPHA), list(model.parameters()))

    unit()  # warm up
    rows = [["terms", "step", "FLOPs", "time", "memory"]]
    for k in terms:
        for step in (1e-4, None):
            call = functools.partial(eq_3, model, batch, k, step)
            times = relative_times(unit, rounds, call)
            work, most = counted(call, model) / counted(unit, model)
            row = [k, "found" if step is None else "given"]
            rows.append([*row, f"{work:.2f}", spread(times, 1), f"{most:.1f}"])
    print("Batches of 8, spectrograms 97 x 97, frames 80 x 80. Memory: of tensors beside theta.\n")
    print(one_table(rows))


# Of a sample's input: its shape, its channels, its dtype.
SHAPES = {
    "video": ((3, 3, 224, 224), 3, torch.uint8),
    "image": ((3, 224, 224), 3, torch.uint8),
    "text": ((2, 128), 0, torch.int64),
    "rgb": ((8, 3, 224, 224), 3, torch.uint8),
    "flow": ((8, 2, 224, 224), 2, torch.float32),
    "depth": ((8, 1, 224, 224), 1, torch.uint8),
}
WAYS = ["step", "step, --bf16", "update of alpha"]
COUNTED = (32, 64)  # batch sizes; the others lie on the line through these two


def random_bert(*_):
    """BERT of base size with random weights, as an encoder."""
    from transformers import BertConfig, BertModel

    config = BertConfig(attn_implementation="eager")
    return Pretrained(BertModel(config), "pooler_output"), config.hidden_size


def first_use(name, way, n, device):
    """A training step of n samples of a set with its own shapes and settings, twice; or an update
    of alpha after a step of two samples.

    Two draws and three terms: a larger number takes more time, but no more memory.
    """
    kinds = SETS[name]["kinds"].values()
    sound = (1, *media.spectrogram_shape(3 if "audio-3s" in kinds else 10))
    shapes = [SHAPES.get(kind, (sound, 1, torch.float16)) for kind in kinds]
    s = train.Settings(**defaults(name) | {"draws": 2, "terms": 3, "bf16": "bf16" in way})
    with torch.device(device):
        model = MultimodalModel([c for _, c, _ in shapes], SETS[name]["n_classes"], s.encoders)
        x = [torch.zeros(n, *shape, dtype=dtype) for shape, _, dtype in shapes]
        y = torch.zeros(n, dtype=torch.int64)
    optimizer, _ = train.make_optimizer(s, model.parameters())
    if "step" in way:
        for _ in range(2):
            training_step(model, (x, y), optimizer, s)
    else:
        total_loss(*losses(model, ([x_j[:2] for x_j in x], y[:2])), ALPHA).backward()
        optimizer.step()  # its state stays in memory
        alpha_update(model, (x, y), s)


def needed(name, way, n):
    """The most GiB that the tensors of first_use take, counted."""
    # A step needs a real device for autocast, so its tensors are fake; Eq. 3 reads numbers, which
    # fake tensors do not have, so its tensors are on the meta device.
    fake = FakeTensorMode() if "step" in way else contextlib.nullcontext()
    caches = media.per_channel.cache_clear, modules.grid_matrix.cache_clear
    for clear in caches:
        clear()
    with fake, Live() as live:
        first_use(name, way, n, "cpu" if "step" in way else "meta")
    for clear in caches:  # the tensors that they hold now have no values
        clear()
    return live.peak / 2**30


def memory(sizes=(8, 32, 64, 128, 256), cards=(8, 24, 80)):
    """Memory of a training step and an update of alpha, by batch size; the largest that fit."""
    ENCODERS["bert"] = random_bert
    rows = [["set", "GiB of", *sizes, *(f"in {card} GB" for card in cards)]]
    usual = [["set", "batch", *WAYS[:2], "update's batch", WAYS[2]]]
    usual[0] += ["float32 in 24 GB", "--bf16 in 24 GB"]
    for name in tqdm(SETS, "sets", leave=False):
        lines = [line(COUNTED, [needed(name, way, n) for n in COUNTED]) for way in WAYS]
        for way, grows in zip(WAYS, lines):
            most = [int((grows - card).roots[0]) for card in cards]
            rows.append([name, way, *(f"{grows(n):.1f}" for n in sizes), *most])
        batch, alpha_batch = (defaults(name)[k] for k in ("batch_size", "alpha_batch"))
        step, half, update = (f(n) for f, n in zip(lines, (batch, batch, alpha_batch)))
        fits = ["yes" if max(x, update) <= 24 else "no" for x in (step, half)]
        own = [f"{step:.1f}", f"{half:.1f}", alpha_batch, f"{update:.1f}"]
        usual.append([name, batch, *own, *fits])
    how = "tensors counted for batches of 32 and 64, the others by the line"
    print(f"The most memory at once ({how}).\n\n{one_table(rows)}\n")
    print(f"The memory of the defaults, in GiB.\n\n{one_table(usual)}")


PARTS = {  # about how long each takes on two cores of a CPU
    "update": (update, "1 minute"),
    "epoch": (epoch, "3 minutes"),
    "hypergradient": (eq_3_alone, "4 minutes"),
    "memory": (memory, "2 minutes"),
}


def main(arguments=None):
    """Exit status 0, or 2 and one sentence for an unknown part."""
    with cli.one_sentence("costs") as program:
        program.stopped = lambda: "stopped; the part that was running has printed no result"
        parser = cli.Parser("costs", description=__doc__)
        listed = [f"{k}: {f.__doc__.splitlines()[0]} {time}" for k, (f, time) in PARTS.items()]
        parser.add_argument("parts", nargs="*", metavar="PART", help="\n".join(listed))
        args = parser.parse_args(arguments)
        for name in args.parts:
            cli.check_choice("part", name, PARTS)
        program.started = True
        for name in args.parts or PARTS:
            function, duration = PARTS[name]
            print(f"## {name}: about {duration} on two cores\n", flush=True)
            function()
            print(flush=True)
    return program.status


if __name__ == "__main__":
    sys.exit(main())
