"""Eq. 3 beside the response of training itself, on keypad: the tables of docs/EQ3.md.

    python -m scripts.response run resnet18 0.9 0    a network, alpha and seed: three states of it
    python -m scripts.response table                 the tables of all states in runs/response

The response: from one state of theta and the optimizer, train with alpha + e and with alpha - e on
the same batches, and divide the difference of L_CLS on other training data by 2 e; after 5 steps,
an epoch, three epochs. It is repeated with other batches, so that its noise is known. A state that
has a file in runs/response is not measured again.
"""

import collections
import copy
import itertools
import json
import statistics
import sys
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import nn

import model as models
import train
from bilevel import hypergradient
from data import DATASETS
from losses import total_loss
from model import MultimodalModel
from scripts.figures import one_table
from utils import cli
from utils.atomic import atomic
from utils.cli import SettingsError
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


class State:
    """A model in training: its parameters, its optimizer, the batches that it draws."""

    def __init__(self, net, alpha, seed):
        models.ENCODERS["cnn without batch norm"] = without_batch_norm
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        self.net, self.alpha, self.seed = net, alpha, seed
        self.batch_size, self.lr, self.inner_iters, *_ = NETS[net]
        self.samples, self.settings = DATASETS["keypad"]().splits["train"], train.Settings()
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

    def estimate(self, rng, batch_statistics=True, shared=False, **options):
        """(Eq. 3, report) by bilevel.py; its factors have separate batches, or share one."""
        batches = self.batches(rng)
        if shared:
            batches = itertools.repeat(next(batches))
        with eval_mode(self.model, batch_statistics):
            return hypergradient(
                lambda: self.losses(next(batches))[0],
                lambda: self.losses(next(batches)),
                self.params,
                self.alpha,
                decay=self.decay,
                rng=torch.Generator().manual_seed(int(rng.integers(2**40))),
                **options,
            )

    def at_mean(self, rng, **options):
        """Eq. 3 at the mean of theta over the last 20 steps, where sharp directions average out."""
        start = self.snapshot()
        with torch.no_grad():
            for p, values in zip(self.params, zip(*self.last)):
                p.copy_(sum(values) / len(values))
        result = self.estimate(rng, **options)
        self.restore(start)
        return result

    def unrolled(self, rng, n=5):
        """The derivative of n steps of training with momentum, in forward mode.

        w = d theta / d alpha and the derivative of the momentum follow each step of training:
        d (grad L_Total) / d alpha = H w + grad (L_MM - L_CLS).
        """
        start, batches = self.snapshot(), self.batches(rng)
        w = velocity = [torch.zeros_like(p) for p in self.params]
        for _ in range(n):
            with eval_mode(self.model, batch_statistics=True):
                l_cls, l_mm = self.losses(next(batches))
                c = self.gradient(l_mm - l_cls, retain_graph=True)
                g = self.gradient(total_loss(l_cls, l_mm, self.alpha), create_graph=True)
                h = self.gradient(g, grad_outputs=w)
            velocity = [
                MOMENTUM * v + h_i + self.decay * w_i + c_i
                for v, h_i, w_i, c_i in zip(velocity, h, w, c)
            ]
            w = [w_i - self.lr * v for w_i, v in zip(w, velocity)]
            for p, g_i in zip(self.params, g):
                p.grad = g_i.detach()
            self.optimizer.step()
        values = []
        with eval_mode(self.model, batch_statistics=True):
            for _ in range(4):
                v = self.gradient(self.losses(next(batches))[0])
                values.append(sum((v_i * w_i).sum().item() for v_i, w_i in zip(v, w)))
        self.restore(start)
        return statistics.mean(values), {}

    def gradient(self, loss, **options):
        return torch.autograd.grad(loss, self.params, materialize_grads=True, **options)


# name: (its number, how it differs from "chosen", the estimate). The number seeds its batches, so
# that the numbers in docs/EQ3.md, which were taken among more estimators, come again.
CHOSEN = "own batches for v, c, H; 4 draws; batch statistics; K = 5; step, damping by the curvature"
BEFORE = {"batch_statistics": False, "shared": True, "solver": "neumann"}
ESTIMATORS = {
    "chosen": (0, CHOSEN, lambda s, rng: s.estimate(rng, draws=4)),
    "shared": (1, "one batch for all factors", lambda s, rng: s.estimate(rng, shared=True)),
    "1 draw": (2, "", lambda s, rng: s.estimate(rng)),
    "eval": (
        4,
        "batch norm with its running statistics",
        lambda s, rng: s.estimate(rng, batch_statistics=False, draws=4),
    ),
    "before": (
        13,
        "one batch, running statistics, step lr / 2, no damping",
        lambda s, rng: s.estimate(rng, step=s.lr / 2, **BEFORE),
    ),
    "unrolled": (14, "5 steps with momentum differentiated in forward mode", State.unrolled),
    "mean theta": (
        15,
        "at the mean of theta over the last 20 steps",
        lambda s, rng: s.at_mean(rng, draws=4),
    ),
}
LENGTHS = ("5 steps", "an epoch", "3 epochs")


def run(net, alpha, seed):
    """Train, and measure three states of it."""
    *_, inner_iters, epochs, repeats = NETS[net]
    state, done = State(net, alpha, seed), 0
    rng = np.random.default_rng([seed, 0])
    for t in epochs:
        n, last = (t - done) * inner_iters, state.last.maxlen
        batches = state.batches(rng)
        state.train(state.alpha, batches, n - last)
        state.train(state.alpha, batches, last, remember=True)
        done, path = t, OUT / f"{net}, {alpha}, {seed}, {t}.json"
        if not path.exists():
            result = {"net": net, "alpha": alpha, "seed": seed, "t": t}
            result |= measured(state, t, zip(LENGTHS, (5, inner_iters, 3 * inner_iters), repeats))
            with atomic(path) as part:
                part.write_text(json.dumps(result))
        print(path, flush=True)


def measured(state, t, lengths):
    """A state's responses, of each of the lengths (name, steps, repeats), and its estimates."""
    responses, estimates = {}, {}
    for name, n, times in lengths:
        own = np.random.default_rng([state.seed, t, n])
        responses[name] = [state.response(own, n) for _ in range(times)]
    times = 3 if state.net == "resnet18" else 12
    for name, (number, _, estimate) in ESTIMATORS.items():
        own = np.random.default_rng([state.seed, t, 2**20 + number])
        estimates[name] = [estimate(state, own)[0] for _ in range(times)]
    return {"response": responses, "estimates": estimates}


def known(values):
    """The estimates that were not refused."""
    return [v for v in values if v is not None]


def show(values):
    """`mean ± standard error`."""
    return f"{np.mean(values):.3f} ± {stats.sem(values):.3f}"


def table():
    """The states one by one, then how each estimator agrees with each response."""
    states = [json.loads(path.read_text()) for path in OUT.glob("*.json")]
    if not states:
        raise SettingsError(
            f"{OUT} has no state; measure some with: python -m scripts.response run"
        )
    order = list(NETS)
    states.sort(key=lambda r: (order.index(r["net"]), -r["alpha"], r["seed"], r["t"]))
    names = ["chosen", "mean theta", "shared", "eval", "before", "unrolled"]
    head = ["network", "alpha", "seed", "t", "5 steps", "5 steps, eval mode", *LENGTHS[1:]]
    rows = [head + names]
    for r in states:
        response = [show([v[0] for v in r["response"][n]]) for n in LENGTHS]
        response.insert(1, show([v[1] for v in r["response"]["5 steps"]]))
        estimates = [show(known(r["estimates"][n])) for n in names]
        rows.append([r["net"], r["alpha"], r["seed"], r["t"], *response, *estimates])
    print("d L_CLS / d alpha, mean ± standard error: of training, then as estimated.\n")
    print(one_table(rows))
    for length in LENGTHS:
        compare(states, length)


def compare(states, length):
    """How each estimator agrees with the response of one length."""
    truths = [[v[0] for v in r["response"][length]] for r in states]
    clear = [k for k, v in enumerate(truths) if abs(np.mean(v)) > 2 * stats.sem(v)]
    head = ["estimator", "difference", "right sign of the mean", "right sign, each"]
    rows = [head + ["rank correlation", "estimate / response", "spread / size"]]
    for name, (_, how, _) in ESTIMATORS.items():
        values = {k: known(states[k]["estimates"][name]) for k in clear}
        values = {k: v for k, v in values.items() if len(v) > 1}
        if not values:
            continue
        means = [np.mean(v) for v in values.values()]
        truth = [np.mean(truths[k]) for k in values]
        signs = sum(a * b > 0 for a, b in zip(means, truth))
        each = np.mean([x * b > 0 for v, b in zip(values.values(), truth) for x in v])
        ratio = np.median(np.divide(means, truth))
        spread = np.median([np.std(v, ddof=1) / abs(np.mean(v)) for v in values.values()])
        ranks = stats.spearmanr(means, truth).statistic if len(truth) > 2 else np.nan
        numbers = [f"{signs} of {len(truth)}", f"{each:.0%}", f"{ranks:.2f}"]
        rows.append([name, how, *numbers, f"{ratio:.2f}", f"{spread:.1f}"])
    print(
        f"\nAgainst the response of {length}, in the {len(clear)} of {len(states)} states where "
        "it is above twice its standard error; ratio and spread are medians over the states.\n"
    )
    print(one_table(rows))


def main(arguments=None):
    """Exit status 0, or 2 and one sentence."""
    with cli.one_sentence("response") as program:
        parser = cli.Parser("response", description=__doc__)
        commands = parser.add_subparsers(dest="command", required=True)
        commands.add_parser("table", help="the tables of all states that were measured")
        measure = commands.add_parser("run", help="measure three states of one training")
        measure.add_argument("net", metavar="NETWORK", help=f"one of {', '.join(NETS)}")
        measure.add_argument("alpha", metavar="ALPHA", type=float)
        measure.add_argument("seed", metavar="SEED", type=int)
        args = parser.parse_args(arguments)
        if args.command == "table":
            table()
        else:
            run(cli.check_choice("network", args.net, NETS), args.alpha, args.seed)
    return program.status


if __name__ == "__main__":
    sys.exit(main())
