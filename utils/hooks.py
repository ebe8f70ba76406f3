"""What a method of baselines.py can change in Algorithm 1, and what it asks for.

train.train calls the hooks of every model. For our own method none of them does anything.
"""

import functools
import inspect

import torch
from torch.nn.functional import cross_entropy

from utils import cli, distributed


class Hooks:
    """Base of a model whose `phi` is the list of the encoders; every hook here changes nothing."""

    fusions = None  # the values of --fusion that fit; None: all
    own_heads = False  # whether a single modality is scored by a classifier of its own
    own_loss = False  # whether it has a loss that --smoothing does not change
    needs_val = False  # whether it needs held-out samples
    only_scales = False  # whether it only scales gradients, most of which Adam undoes
    one_process = True  # whether several processes cannot train it

    def begin(self):
        """Take the numbers of `--method name:number:...`, and make what checkpoints shall keep.

        A number whose default is a whole one is a whole one from 1 on; others are 0 or more.
        """

    def each(self, z):
        """o_1, ..., o_m: (m, B, c)."""
        return torch.stack([self.unimodal_logits(z, j) for j in range(len(z))])

    def groups(self, lr):
        """The optimizer's groups of parameters; lr: the learning rate of theta."""
        return [{"params": list(self.parameters())}]

    def by_modality(self, lr):
        """Groups of phi^(j) and its own classifier, for each j; then one of the rest, if any."""
        pairs = zip(self.phi, self.classifiers)
        own = [[*phi.parameters(), *classifier.parameters()] for phi, classifier in pairs]
        used = {id(p) for params in own for p in params}
        rest = [p for p in self.parameters() if id(p) not in used]
        return [{"params": params, "lr": lr} for params in [*own, rest] if params]

    def steps(self, z, logits, y, ce):
        """Yield the losses of a batch: theta takes one step along the gradient of each.

        z, logits: from the model's forward; y (B,); ce: logits (B, c) -> L_CLS.
        """
        yield ce(logits)

    def modulate(self):
        """Change the gradients, between backward and the optimizer's step."""

    def end_of_epoch(self, optimizer, batches):
        """After an epoch, with the batches of evaluate; returns what to add to its record."""


def numbers_of(text, begin):
    """The numbers of `name:number:...` that begin takes; ValueError if one does not fit."""
    name = text.split(":")[0]
    alone = functools.partial(begin, None)  # without self
    _, given = cli.call_of("method", text, {name: alone}, "")
    defaults = inspect.signature(alone).parameters
    numbers = []
    for key, value in given.items():
        for number in value if isinstance(value, tuple) else [value]:  # a tuple is of *rates
            whole = isinstance(defaults[key].default, int)
            if number < whole or (whole and number != int(number)):
                what = "a whole number from 1 on" if whole else "0 or more"
                raise cli.SettingsError(f"method {text!r} has {key} = {number:g}, expected {what}")
            numbers.append(int(number) if whole else number)
    return numbers


def check(kind, args):
    """Raise ValueError for settings of a run that a method, a subclass of Hooks, cannot have."""
    name = args.method.split(":")[0]
    numbers_of(args.method, kind.begin)
    if kind.fusions and args.fusion not in kind.fusions:
        wanted = " or ".join(f"--fusion {fusion}" for fusion in kind.fusions)
        raise cli.SettingsError(
            f"--method {name} needs {wanted}, got {args.fusion}; change one of them"
        )
    if kind.own_loss and args.smoothing:
        raise cli.SettingsError(f"--smoothing changes nothing in --method {name}; leave it out")


def begin(model, args, data):
    """Start a method with the numbers of --method; ValueError for data that it cannot use."""
    name = args.method.split(":")[0]
    if model.one_process and distributed.world_size() > 1:
        raise cli.SettingsError(
            f"--method {name} runs in one process; start train.py with plain python"
        )
    if model.only_scales and args.optimizer == "adam":
        print(f"--method {name} scales gradients, most of which Adam undoes: exercise 11 shows it")
    model.register_buffer("t", torch.tensor(0))  # finished epochs
    model.begin(*numbers_of(args.method, type(model).begin))


@torch.no_grad()
def held_out(model, batches):
    """CE and ACC / 100 of the fused model and of each modality on held-out batches: (2, 1 + m)."""
    parts = []
    model.eval()
    for *x, y in batches:
        z = model(x)[0]
        y = y.to(z[0].device)
        o = torch.stack([model.logits(z), *model.each(z)])  # (1 + m, B, c)
        ce = cross_entropy(o.mT, y.expand(len(o), -1), reduction="none")
        parts.append(torch.stack([ce, (o.argmax(2) == y).float()]))
    model.train()
    return torch.cat(parts, dim=2).mean(2)
