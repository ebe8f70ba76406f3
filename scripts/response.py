"""What Eq. 3 measures: its estimates beside the response of training itself, on keypad.

    python -m scripts.response run resnet18 0.9 0    a network, alpha and seed: three states of it
    python -m scripts.response table                 the tables of all states in runs/response

The response: from one state of theta and the optimizer, train with alpha + e and with alpha - e on
the same batches, and divide the difference of L_CLS on other training data by 2 e; after 5 steps,
an epoch, three epochs. It is repeated with other batches, so that its noise is known. What a
state's file already has is not measured again.
"""

import argparse
import collections
import contextlib
import copy
import functools
import itertools
import json
import math
import statistics
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

import model as models
import train
from bilevel import grad, hypergradient, make_hvp
from data import DATASETS
from losses import total_loss
from model import MultimodalModel
from utils import cli, markdown
from utils.lanczos import dot
from utils.modules import eval_mode

OUT = Path("runs/response")
E = 0.05  # alpha is moved by it in both directions
MOMENTUM = 0.9  # as in train.py
# n_b, learning rate, Inner_Iters, the epochs after which it is measured, repeats of 5 steps, an
# epoch, three
NETS = {
    "cnn": (64, 0.02, 224, (1, 3, 6), (32, 8, 4)),
    "cnn without batch norm": (64, 0.02, 224, (1, 3, 6), (32, 8, 4)),
    "resnet18": (32, 0.01, 40, (1, 2, 4), (12, 4, 2)),
}


def without_batch_norm(channels, pretrained=False, source=""):
    """model.py's cnn, with its batch norm layers taken out."""
    encoder, d = models.cnn(channels)
    for name, module in encoder.net.named_children():
        if isinstance(module, nn.BatchNorm2d):
            setattr(encoder.net, name, nn.Identity())
    return encoder, d


@contextlib.contextmanager
def reestimated(model, batches):
    """Evaluation mode, with batch norm's running statistics replaced by those of some batches;
    afterwards as before."""
    before = copy.deepcopy(model.state_dict())
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    model.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean
    with torch.no_grad():
        for x, _ in batches:
            model(x)
    for norm in norms:
        norm.momentum = 0.1
    with eval_mode(model):
        yield
    model.load_state_dict(before)


class State:
    """A model in training: its parameters, its optimiser, the batches that it draws."""

    def __init__(self, net, alpha, seed):
        models.ENCODERS["cnn without batch norm"] = without_batch_norm
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        self.alpha, self.seed = alpha, seed
        self.batch_size, self.lr, self.inner_iters, *_ = NETS[net]
        self.samples, self.settings = DATASETS["keypad"]()["train"], train.Settings()
        self.model = MultimodalModel([1, 1], 10, net)
        self.params = list(self.model.parameters())
        self.decay = self.settings.weight_decay
        self.optimizer = torch.optim.SGD(self.params, self.lr, MOMENTUM, weight_decay=self.decay)
        self.last = collections.deque(maxlen=20)  # theta after each of the last steps

    def losses(self, batch):
        x, y = batch
        return train.losses(*self.model(x), y, self.settings)

    def batches(self, rng, size=None):
        while True:
            i = torch.from_numpy(rng.integers(len(self.samples), size=size or self.batch_size))
            yield [x_j[i] for x_j in self.samples.sources], self.samples.y[i]

    def train(self, alpha, batches, n, remember=False):
        self.model.train()
        for batch in itertools.islice(batches, n):
            self.optimizer.zero_grad()
            total_loss(*self.losses(batch), alpha).backward()
            self.optimizer.step()
            if remember:
                self.last.append([p.detach().clone() for p in self.params])

    def snapshot(self):
        return copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()))

    def restore(self, snapshot):
        model, optimizer = copy.deepcopy(snapshot)
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)

    @torch.no_grad()
    def l_cls(self, batches):
        """L_CLS with batch norm as it is trained, and with its running statistics."""
        values = []
        for batch_statistics in (True, False):
            with eval_mode(self.model, batch_statistics):
                values.append(statistics.mean(self.losses(batch)[0].item() for batch in batches))
        return np.array(values)

    def response(self, rng, n):
        """d L_CLS / d alpha of n steps, in both modes, by one central difference."""
        start, after = self.snapshot(), []
        key = int(rng.integers(2**40))
        parts = list(itertools.islice(self.batches(rng, 256), 2))
        for alpha in (self.alpha + E, self.alpha - E):
            self.restore(start)
            self.train(alpha, self.batches(np.random.default_rng(key)), n)
            after.append(self.l_cls(parts))
        self.restore(start)
        return ((after[0] - after[1]) / (2 * E)).tolist()

    def estimate(self, rng, mode="batch statistics", shared=False, **options):
        """Eq. 3 by bilevel.py, with batches of its own for each factor or one for all."""
        batches = self.batches(rng)
        if shared:
            batches = itertools.repeat(next(batches))
        if mode == "re-estimated":
            context = reestimated(self.model, list(itertools.islice(self.batches(rng), 20)))
        else:
            context = eval_mode(self.model, batch_statistics=mode == "batch statistics")
        with context:
            value, report = hypergradient(
                lambda: self.losses(next(batches))[0],
                lambda: self.losses(next(batches)),
                self.params,
                self.alpha,
                decay=self.decay,
                rng=torch.Generator().manual_seed(int(rng.integers(2**40))),
                **options,
            )
        return value, report

    def at_mean(self, rng, **options):
        """Eq. 3 at the mean of theta over the last 20 steps, where sharp directions average out."""
        start = self.snapshot()
        with torch.no_grad():
            for p, values in zip(self.params, zip(*self.last)):
                p.copy_(sum(values) / len(values))
        value = self.estimate(rng, **options)
        self.restore(start)
        return value

    def undamped(self, rng, **options):
        """Eq. 3 with a step that follows the curvature, without damping of negative curvature."""
        _, report = self.estimate(np.random.default_rng(int(rng.integers(2**40))), draws=1)
        return self.estimate(rng, step=1 / max(map(abs, report["curvature"])), **options)

    def unrolled(self, rng, n=5):
        """The derivative of n steps of training with momentum, forward mode: d theta / d alpha
        beside theta."""
        start, batches = self.snapshot(), self.batches(rng)
        # d theta / d alpha and that of the momentum
        w = velocity = [torch.zeros_like(p) for p in self.params]
        for _ in range(n):
            with eval_mode(self.model, batch_statistics=True):
                l_cls, l_mm = self.losses(next(batches))
                c = grad(l_mm - l_cls, self.params, retain_graph=True)
                g = grad(total_loss(l_cls, l_mm, self.alpha), self.params, retain_graph=True)
                h = make_hvp(l_cls, l_mm, self.alpha, self.params)(w)
            velocity = [
                MOMENTUM * v + h_i + self.decay * w_i + c_i
                for v, h_i, w_i, c_i in zip(velocity, h, w, c)
            ]
            w = [w_i - self.lr * v for w_i, v in zip(w, velocity)]
            for p, g_i in zip(self.params, g):
                p.grad = g_i.detach()
            self.optimizer.step()
        with eval_mode(self.model, batch_statistics=True):
            value = statistics.mean(
                dot(grad(self.losses(next(batches))[0], self.params), w) for _ in range(4)
            )
        self.restore(start)
        return value, {}


ESTIMATORS = {  # name: (what it is, how); each differs from the chosen one in what is said
    "chosen": (
        "own batches for v, c, H; 4 draws; batch statistics; K = 5; step, damping by the curvature",
        functools.partial(State.estimate, draws=4),
    ),
    "shared": (
        "one batch for all three factors",
        functools.partial(State.estimate, shared=True, draws=1),
    ),
    "1 draw": ("", functools.partial(State.estimate, draws=1)),
    "16 draws": ("", functools.partial(State.estimate, draws=16)),
    "eval": (
        "batch norm with its running statistics",
        functools.partial(State.estimate, mode="eval", draws=4),
    ),
    "re-estimated": (
        "the same, re-estimated from 20 batches first",
        functools.partial(State.estimate, mode="re-estimated", draws=4),
    ),
    "K = 1": ("", functools.partial(State.estimate, terms=1, draws=4)),
    "K = 20": ("", functools.partial(State.estimate, terms=20, draws=4)),
    "step lr / 2": ("fixed, no damping", lambda s, rng: s.estimate(rng, step=s.lr / 2, draws=4)),
    "step lr": ("fixed, no damping", lambda s, rng: s.estimate(rng, step=s.lr, draws=4)),
    "undamped": ("step by the curvature, no damping", functools.partial(State.undamped, draws=4)),
    "randomised": (
        "a fresh H for each product, random p",
        functools.partial(State.estimate, solver="randomised", draws=4),
    ),
    "cg": (
        "the inverse in 5 products' space; refused at negative curvature",
        functools.partial(State.estimate, solver="cg", draws=4),
    ),
    "before": (
        "one batch, running statistics, step lr / 2, no damping",
        lambda s, rng: s.estimate(rng, mode="eval", shared=True, step=s.lr / 2, draws=1),
    ),
    "unrolled": ("5 steps with momentum differentiated in forward mode", State.unrolled),
    "mean theta": (
        "at the mean of theta over the last 20 steps",
        functools.partial(State.at_mean, draws=4),
    ),
}


def run(net, alpha, seed):
    """Train, and measure three states of it."""
    *_, inner_iters, epochs, repeats = NETS[net]
    state, done = State(net, alpha, seed), 0
    rng = np.random.default_rng([seed, 0])
    OUT.mkdir(parents=True, exist_ok=True)
    for t in epochs:
        n, last = (t - done) * inner_iters, state.last.maxlen
        batches = state.batches(rng)
        state.train(state.alpha, batches, n - last)
        state.train(state.alpha, batches, last, remember=True)
        done, path = t, OUT / f"{net}, {alpha}, {seed}, {t}.json"
        result = {"net": net, "alpha": state.alpha, "seed": state.seed, "t": t}
        result |= {"response": {}, "estimates": {}}
        if path.exists():
            result = json.loads(path.read_text())
        lengths = ("5 steps", 5), ("an epoch", inner_iters), ("3 epochs", 3 * inner_iters)
        for (name, n), times in zip(lengths, repeats):
            own = np.random.default_rng([state.seed, t, n])
            if name not in result["response"]:
                result["response"][name] = [state.response(own, n) for _ in range(times)]
        for k, (name, (_, estimate)) in enumerate(ESTIMATORS.items()):
            own = np.random.default_rng([state.seed, t, 2**20 + k])
            if name not in result["estimates"]:
                times = 3 if net == "resnet18" else 12
                result["estimates"][name] = [estimate(state, own)[0] for _ in range(times)]
        path.write_text(json.dumps(result))
        print(path, flush=True)


def mean_and_error(values):
    values = [v for v in values if v is not None]
    if len(values) < 2:
        return math.nan, math.nan
    return statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5


def rank_correlation(a, b):
    """Spearman's, of two lists without ties."""
    ranks = [np.argsort(np.argsort(x)) for x in (a, b)]
    return np.corrcoef(*ranks)[0, 1]


def table():
    """The states one by one, then how each estimator agrees with the response of 5 steps."""
    order = list(NETS)
    states = sorted(
        map(json.loads, (p.read_text() for p in OUT.glob("*.json"))),
        key=lambda r: (order.index(r["net"]), -r["alpha"], r["seed"], r["t"]),
    )

    def show(values):
        return "{:.3f} ± {:.3f}".format(*mean_and_error(values))

    names = ["chosen", "mean theta", "shared", "eval", "before", "unrolled"]
    rows = [
        [
            "network",
            "alpha",
            "seed",
            "t",
            "5 steps",
            "5 steps, eval mode",
            "an epoch",
            "3 epochs",
            *names,
        ]
    ]
    for r in states:
        response = [
            show([v[0] for v in r["response"][n]]) for n in ("5 steps", "an epoch", "3 epochs")
        ]
        response.insert(1, show([v[1] for v in r["response"]["5 steps"]]))
        rows.append(
            [
                r["net"],
                r["alpha"],
                r["seed"],
                r["t"],
                *response,
                *(show(r["estimates"][n]) for n in names),
            ]
        )
    print("d L_CLS / d alpha, mean ± standard error: of training, then as estimated.\n")
    print(markdown.table(*rows))
    for length in ("5 steps", "an epoch", "3 epochs"):
        compare(states, length)


def compare(states, length):
    truths = [mean_and_error([v[0] for v in r["response"][length]]) for r in states]
    clear = [k for k, (mean, error) in enumerate(truths) if abs(mean) > 2 * error]
    rows = [
        [
            "estimator",
            "what",
            "right sign of the mean",
            "right sign, each",
            "rank correlation",
            "estimate / response",
            "spread / size",
        ]
    ]
    for name, (what, _) in ESTIMATORS.items():
        values = [[v for v in r["estimates"].get(name, []) if v is not None] for r in states]
        there = [k for k in clear if len(values[k]) > 1]
        if not there:
            continue
        means = {k: statistics.mean(values[k]) for k in there}
        signs = sum(means[k] * truths[k][0] > 0 for k in there)
        each = statistics.mean(v * truths[k][0] > 0 for k in there for v in values[k])
        ratio = statistics.median(means[k] / truths[k][0] for k in there)
        spread = statistics.median(statistics.stdev(values[k]) / abs(means[k]) for k in there)
        ranks = (
            rank_correlation([truths[k][0] for k in there], list(means.values()))
            if len(there) > 2
            else math.nan
        )
        rows.append(
            [
                name,
                what,
                f"{signs} of {len(there)}",
                f"{each:.0%}",
                f"{ranks:.2f}",
                f"{ratio:.2f}",
                f"{spread:.1f}",
            ]
        )
    print(
        f"\nAgainst the response of {length}, in the {len(clear)} of {len(states)} states where "
        "that is above twice its standard error; ratio and spread are medians over the states.\n"
    )
    print(markdown.table(*rows))


def main(arguments=None):
    """Exit status 0, or 2 and one sentence."""
    parser = argparse.ArgumentParser("response", description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["run", "table"])
    parser.add_argument("state", nargs="*", help="for run: NETWORK ALPHA SEED")
    args = parser.parse_args(arguments)
    with cli.one_sentence("response") as program:
        if len(args.state) != (3 if args.command == "run" else 0):
            raise cli.SettingsError("run takes NETWORK ALPHA SEED, table takes nothing")
        if args.state:
            net, alpha, seed = args.state
            run(cli.check_choice("network", net, NETS), float(alpha), int(seed))
        else:
            table()
    return program.status


if __name__ == "__main__":
    sys.exit(main())
