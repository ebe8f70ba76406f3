"""What things cost: ratios of times measured in turn, so that other machines give about the same.

    python tests/benchmarks.py                  all of them, in this order
    python tests/benchmarks.py update           one alpha update, in training steps of keypad
    python tests/benchmarks.py hypergradient    Eq. 3 by bilevel.py and by two libraries, on two ResNet18
    python tests/benchmarks.py epoch            one alpha update as a share of an epoch of CREMA-D
    python tests/benchmarks.py startup          what importing train.py takes, and what it leaves out
    python tests/benchmarks.py growth           an epoch's time and memory for more and more samples
"""

import importlib.util
import inspect
import math
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import train
from bilevel import evaluating, hypergradient
from data import CREMAD, SETS, defaults
from losses import total_loss
from model import Model

ROOT = Path(__file__).parents[1]
ALPHA, STEP = 0.6, 1e-4
SETTINGS = train.Settings()  # tau 0.1, no smoothing
HEAVY = ["transformers", "librosa", "matplotlib", "cv2", "av"]  # each imported where it is used


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_units(function, unit, rounds):
    """The time of a function in those of `unit`, called before and after it: the median of the rounds."""
    ratios = []
    for _ in range(rounds):
        before, own, after = seconds(unit), seconds(function), seconds(unit)
        ratios.append(2 * own / (before + after))
    return statistics.median(ratios)


def flops(function):
    """Floating point operations of convolutions and matrix products, counted."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def status(field):
    """VmRSS or VmHWM of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def peak_memory(function):
    """The highest resident memory during a call over that before it, in MiB; nan where there is no Linux."""
    if not Path("/proc/self/clear_refs").exists():
        function()
        return math.nan
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    start = status("VmRSS")
    function()
    return status("VmHWM") - start


def fresh(function, *arguments):
    """function(*arguments) in a process of its own, whose memory nothing else has touched."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def markdown(*rows):
    print("\n".join("| " + " | ".join(map(str, row)) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]))


class Losses(nn.Module):
    """(L_CLS, L_MM) of one batch as a function of theta."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, y):
        return train.losses(self.model, x, y, SETTINGS)


def two_resnets(size, dtype=torch.float32):
    """(Losses, batch) of the paper's audio-video model with a random batch, in evaluation mode, on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    n, sound, frame = size
    model = Losses(Model([1, 3], len(CREMAD), "resnet18")).to(dtype).eval()
    x = [torch.randn(n, 1, *sound, dtype=dtype), torch.randn(n, 3, *frame, dtype=dtype)]
    return model, (x, torch.arange(n) % len(CREMAD))


def size_text(n, sound, frame):
    return "batch {}, spectrograms {} x {}, frames {} x {}".format(n, *sound, *frame)


def plain(model, batch):
    """One forward and one backward pass: the unit of cost."""
    torch.autograd.grad(total_loss(*model(*batch), ALPHA), list(model.parameters()))


def ours(model, batch, terms):
    value, report = hypergradient(lambda: model(*batch), model.parameters(), ALPHA, terms=terms, step=STEP)
    assert report["terms"] == terms, report  # a series that was cut costs less
    return value


def betty(model, batch, terms):
    """betty.hypergradient.neumann, which adds the first term to `neumann_iterations` others."""
    from betty.hypergradient import neumann

    theta = list(model.parameters())
    alpha = torch.tensor(ALPHA, dtype=theta[0].dtype, requires_grad=True)
    outer = SimpleNamespace(trainable_parameters=lambda: [alpha])
    inner = SimpleNamespace(
        paths=[], cur_batch=batch, trainable_parameters=lambda: theta,
        training_step_exec=lambda batch: total_loss(*model(*batch), alpha),
        config=SimpleNamespace(neumann_iterations=terms - 1, neumann_alpha=STEP),
    )  # fmt: skip
    v = torch.autograd.grad(model(*batch)[0], theta)
    sync = {"sync": False} if "sync" in inspect.signature(neumann).parameters else {}  # since betty-ml 0.2
    return neumann(v, inner, outer, **sync)[0].item()


def torchopt(model, batch, terms):
    """torchopt.diff.implicit.custom_root with solve_inv, which adds the first term to `maxiter` others."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    from torchopt.diff.implicit import custom_root
    from torchopt.linear_solve import solve_inv

    names, theta = zip(*model.named_parameters())
    alpha = torch.tensor(ALPHA, dtype=theta[0].dtype, requires_grad=True)

    def losses(theta):
        return torch.func.functional_call(model, dict(zip(names, theta)), batch)

    def gradient(theta, alpha):
        return torch.func.grad(lambda theta: total_loss(*losses(theta), alpha))(theta)

    solve = solve_inv(ns=True, maxiter=terms - 1, alpha=STEP)
    solution = custom_root(gradient, argnums=1, solve=solve)(lambda theta, alpha: theta)
    return torch.autograd.grad(losses(solution(theta, alpha))[0], alpha)[0].item()


METHODS = {ours: "", betty: "betty-ml", torchopt: "torchopt"}  # each with the package that it takes


def costs(function, size, *terms):
    """(peak memory, FLOPs) of one call on the two ResNet18; meant for `fresh`."""
    model, batch = two_resnets(size)
    counted = []
    peak = peak_memory(lambda: counted.append(flops(lambda: function(model, batch, *terms))))
    return peak, counted[0]


def update(rounds=15):
    """One alpha update in training steps of the same batch of keypad."""
    data, s = train.DATASETS["keypad"](), train.Settings()
    model = Model([1, 1], data["n_classes"])
    theta = list(model.parameters())
    optimizer = torch.optim.SGD(theta, s.lr, s.momentum)
    batches = train.endless(data["train"], s.batch_size, 0, torch.device("cpu"))

    def step():
        model.train()
        optimizer.zero_grad()
        total_loss(*train.losses(model, *next(batches), s), 0.5).backward()
        optimizer.step()

    def alpha_update(terms):
        with evaluating(model):
            inner = lambda: train.losses(model, *next(batches), s)  # noqa: E731
            _, report = hypergradient(inner, theta, 0.5, terms=terms, step=1e-4, damping=100.0)
        assert report["terms"] == terms, report  # a series that was cut costs less

    print(f"two cnn encoders, batches of {s.batch_size}, {torch.get_num_threads()} threads")
    for terms in (1, 5, 20):
        step(), alpha_update(terms)  # warm up
        ratios = [
            seconds(lambda: alpha_update(terms)) / statistics.mean([seconds(step) for _ in range(3)])
            for _ in range(rounds)
        ]
        print(f"{terms:2d} terms: {statistics.median(ratios):5.1f} training steps")


def compare():
    """K terms of Eq. 3 by each of METHODS: do they agree, and what does each cost?

    One process, one batch, the same loss, parameters and step; only the memory is of a process each.
    """
    small, large = (2, (33, 33), (32, 32)), (8, (97, 97), (80, 80))
    exact, usual = two_resnets(small, torch.float64), two_resnets(large)
    unit = lambda: plain(*usual)  # noqa: E731
    memory, work = fresh(costs, plain, large)
    unit()  # warm up
    rows = [["terms", "by", "value", "differs", "differs in float64", "FLOPs", "time", "memory"]]
    for k, rounds in [(1, 3), (5, 3), (20, 1)]:
        first = None
        for f, package in METHODS.items():
            if package and not importlib.util.find_spec(f.__name__):
                rows.append([k, f.__name__, f"not installed: pip install {package}", *[""] * 5])
                continue
            values = [f(*exact, k)]
            duration = in_units(lambda f=f, k=k: values.append(f(*usual, k)), unit, rounds)
            first = first or values
            peak, total = fresh(costs, f, large, k)
            rows.append([k, f.__name__, f"{values[1]:.6f}", f"{abs(values[1] / first[1] - 1):.0e}",
                         f"{abs(values[0] / first[0] - 1):.0e}", f"{total / work:.2f}", f"{duration:.1f}",
                         f"{peak / memory:.1f}"])  # fmt: skip
    print(f"""Eq. 3 by K terms on two ResNet18, {size_text(*large)}, one thread.
differs: from ours, relative; in float64 with {size_text(*small)}.
FLOPs, time and memory in those of one forward and backward pass ({memory:.0f} MiB); time also has the work on theta.
""")
    markdown(*rows)


def training_step(model, batch, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 1e-6, 0.9)  # so slow that no series is ever cut
    model.train()
    optimizer.zero_grad()
    total_loss(*model(*batch), ALPHA).backward()
    optimizer.step()


def alpha_update(model, batch, terms):
    with evaluating(model):
        ours(model, batch, terms)


def epoch(rounds=5, terms=5):
    """The share of one alpha update in an epoch of CREMA-D, with its usual batch and with a quarter of it."""
    usual = defaults("cremad")["batch_size"]
    steps = SETS["cremad"]["paper"]["train"] // usual
    size = (16, (113, 131), (96, 96))
    memory, work = fresh(costs, training_step, size)
    model, (x, y) = two_resnets(size)
    optimizer = torch.optim.SGD(model.parameters(), 1e-6, 0.9)
    step = lambda: training_step(model, (x, y), optimizer)  # noqa: E731
    step()  # warm up
    rows = [["batch of the update", "FLOPs", "time", "memory", "of the epoch, by FLOPs", "by time"]]
    for part in (1, 4):
        n = size[0] // part
        batch = [x_j[:n] for x_j in x], y[:n]
        duration = in_units(lambda batch=batch: alpha_update(model, batch, terms), step, rounds)
        peak, total = fresh(costs, alpha_update, (n, *size[1:]), terms)
        rows.append([usual // part, f"{total / work:.2f}", f"{duration:.2f}", f"{peak / memory:.2f}",
                     f"{total / work / steps:.1%}", f"{duration / steps:.1%}"])  # fmt: skip
        largest = int(0.1 * steps * work / total * usual / part)
    print(f"""An epoch of {steps} training steps of {usual} (CREMA-D), an alpha update of {terms} terms; two ResNet18,
{size_text(*size)}, one thread.
FLOPs, time and memory of the update in those of a training step ({memory:.0f} MiB). Time has a part that does not grow
with the batch, work on theta alone; with larger batches it comes near the FLOPs.
""")
    markdown(*rows)
    print(f"\nBy FLOPs, under 10 % of the epoch with up to {largest} samples.")


def startup(rounds=5):
    """Importing train.py against importing torch, and which of HEAVY a run of keypad imports."""
    run = lambda code: subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, text=True,  # noqa: E731
                                      stdout=subprocess.PIPE).stdout  # fmt: skip
    run("import train")  # warm up
    torch_alone = lambda: run("import torch")  # noqa: E731
    ratio = in_units(lambda: run("import train"), torch_alone, rounds)
    print(f"import train: {ratio:.2f} times import torch, which takes {seconds(torch_alone):.1f} s here")
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--epochs", "1", "--inner-iters", "1", "--out", f"{folder}/run"]
        last = f"print([m for m in {HEAVY} if m in sys.modules])"
        imported = run(f"import sys, train; assert train.main({arguments}) == 0; {last}").splitlines()[-1]
    print(f"imported by a run of keypad, of {', '.join(HEAVY)}: {imported}")


def one_epoch(times):
    """(samples, MiB of them, seconds, peak memory) of an epoch of keypad whose samples stand `times` times."""
    torch.set_num_threads(1)
    data, s = train.DATASETS["keypad"](), train.Settings(epochs=1)
    train_set = data["train"] = data["train"].subset(list(range(len(data["train"]))) * times)
    model = Model([1, 1], data["n_classes"])
    took = []
    peak = peak_memory(lambda: took.append(seconds(lambda: train.train(s, data, model, None, lambda *_: None))))
    size = sum(x.nbytes for x in train_set.sources) / 2**20
    return len(train_set), size, took[0], peak


def growth():
    """An epoch of keypad, evaluation and alpha update included, with more and more samples."""
    rows, base = [["samples", "they take, MiB", "peak over that, MiB", "time", "time per sample"]], None
    for times in (1, 2, 4, 8):
        n, size, took, peak = fresh(one_epoch, times)
        base = base or took
        rows.append([n, f"{size:.0f}", f"{peak:.0f}", f"{took / base:.2f}", f"{took / base / times:.2f}"])
    print(f"One epoch of keypad, its samples repeated; one thread; time in those of the first row ({base:.1f} s).\n")
    markdown(*rows)


COMMANDS = {"update": update, "hypergradient": compare, "epoch": epoch, "startup": startup, "growth": growth}


def main(names):
    if unknown := set(names) - set(COMMANDS):
        sys.exit(f"benchmarks.py: unknown {', '.join(sorted(unknown))}; choose from {', '.join(COMMANDS)}")
    for name in names or COMMANDS:
        print(f"## {name}\n")
        COMMANDS[name]()
        print()


if __name__ == "__main__":
    main(sys.argv[1:])
