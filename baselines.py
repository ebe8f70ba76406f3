"""The other methods of Table 1, and the authors' release: models that change parts of Algorithm 1.

Baseline has the parts that a method can replace:

begin         the numbers of --method name:number:..., and buffers that checkpoints shall keep
omega         alpha of an epoch; 0 for all methods but the release
groups        the optimizer's groups of parameters
loss          the loss of a batch; or `steps`, all its steps of theta
modulate      changes gradients between backward and the optimizer's step
end_of_epoch  what happens after an epoch

Their rules are in utils/rebalance.py. Numbers in brackets are the paper's references; o_j: the
logits of modality j alone; ce, CE: the cross entropy of a batch.
"""

import functools
import inspect

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, softplus

from bilevel import grad, make_hvp
from data import Batches
from losses import (
    SCHEDULES,
    classification_loss,
    make_schedule,
    modality_matching_loss,
    total_loss,
)
from model import MultimodalModel
from utils import cli, distributed, rebalance
from utils.cli import SettingsError
from utils.loader import eval_loader
from utils.modules import eval_mode


class Baseline(MultimodalModel):
    """Trained by CE of the fused logits, where nothing is replaced: with concat, constant:0."""

    fusions = None  # the values of --fusion that fit; None: all
    own_heads = False  # whether a single modality is scored by a classifier of its own
    own_loss = False  # whether it has a loss that --smoothing does not change
    needs_val = False  # whether it needs held-out samples
    only_scales = False  # whether it only scales gradients, most of which Adam undoes
    one_process = True  # whether several processes cannot train it

    @classmethod
    def check(cls, args):
        """Raise ValueError for settings of a run that the method cannot have."""
        name = args.method.split(":")[0]
        cls.numbers(args.method)
        if args.heads or args.matching != "pairs":
            flag = "--heads" if args.heads else f"--matching {args.matching}"
            raise SettingsError(f"{name} has a loss of its own; leave {flag} out")
        if cls.fusions and args.fusion not in cls.fusions:
            wanted = " or ".join(f"--fusion {fusion}" for fusion in cls.fusions)
            got = f"got {args.fusion}; change one of them"
            raise SettingsError(f"--method {name} needs {wanted}, {got}")
        if cls.own_loss and args.smoothing:
            raise SettingsError(f"--smoothing changes nothing in --method {name}; leave it out")

    @classmethod
    def numbers(cls, method):
        """The numbers of `name:number:...` that begin takes; ValueError if one does not fit."""
        return numbers_of(method, cls.begin)

    def start(self, args, data):
        """Begin with the numbers of --method; ValueError where several processes cannot train.

        args, data: the settings and the Data of the run.
        """
        name = args.method.split(":")[0]
        if self.one_process and distributed.world_size() > 1:
            hint = "start train.py with plain python"
            raise SettingsError(f"--method {name} runs in one process; {hint}")
        if self.only_scales and args.optimizer == "adam":
            what = "scales gradients, most of which Adam undoes"
            print(f"--method {name} {what}: exercise 11 shows it")
        self.args, self.data = args, data
        self.register_buffer("t", torch.tensor(0))  # finished epochs
        self.begin(*self.numbers(args.method))

    def begin(self):
        """Take the numbers of `--method name:number:...`, and make what checkpoints shall keep.

        A number whose default is a whole one is a whole one from 1 on; others are 0 or more.
        """

    def omega(self, t, T):
        """alpha of epoch t; called once before each epoch, which it may prepare; 0: no L_MM."""
        return 0.0

    def groups(self, lr):
        """The optimizer's groups of parameters; lr: the learning rate of theta."""
        return self.parameters()

    def each(self, z):
        """o_1, ..., o_m: (m, B, c)."""
        return torch.stack([self.unimodal_logits(z, j) for j in range(len(z))])

    def loss(self, z, o, y, ce):
        """The loss of a batch. z, o: of the forward pass; o[0]: fused; ce: logits (B, c) -> CE."""
        return ce(o[0])

    def modulate(self):
        """Change the gradients, between backward and the optimizer's step."""

    def descend(self, optimizer, loss):
        """A step of theta along the modulated gradient of a loss."""
        optimizer.zero_grad()
        loss.backward()
        self.modulate()
        optimizer.step()

    def steps(self, optimizer, z, o, y, ce):
        """The steps of theta for a batch, here one; returns the loss to log."""
        loss = self.loss(z, o, y, ce)
        self.descend(optimizer, loss)
        return loss.detach()

    def inner_step(self, model, optimizer, x, y, alpha, args):
        """In place of train.inner_step. model: self, or parallel; L_MM is only logged."""
        with torch.autocast(y.device.type, torch.bfloat16, enabled=args.bf16):
            z, o = model(x)
        z, o = [z_j.float() for z_j in z], [o_k.float() for o_k in o]
        ce = functools.partial(classification_loss, y=y, smoothing=args.smoothing)
        l_cls = ce(o[0].detach())  # to log, and for --plateau: it means the same in all epochs
        loss = self.steps(optimizer, z, o, y, ce)
        l_mm = modality_matching_loss([z_j.detach() for z_j in z], args.tau)
        return torch.stack([loss, l_cls, l_mm])

    def end_of_epoch(self, optimizer, batches):
        """After an epoch, with the batches of evaluate; returns what to add to its record."""
        self.t = self.t + 1
        return {}


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
            if number < int(whole) or (whole and number != int(number)):
                what = "a whole number from 1 on" if whole else "0 or more"
                raise SettingsError(f"method {text!r} has {key} = {number:g}, expected {what}")
            numbers.append(int(number) if whole else number)
    return numbers


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


def train_and_held_out(model):
    """CE of the fused model and of each modality, (2, 1 + m): on training and on held-out samples.

    As many training samples as there are held-out ones, the same ones whenever it is called.
    """
    train, val = model.data.splits["train"], model.data.splits["val"]
    some = np.random.default_rng(model.args.seed).permutation(len(train))[: len(val)]
    device = next(model.parameters()).device
    parts = [eval_loader(samples, 64, device) for samples in (train.subset(some), val)]
    return torch.stack([held_out(model, batches)[0] for batches in parts])


class Heads(Baseline):
    """A classifier per modality besides the fused one: CE(fused) + sum_j CE(o_j)."""

    own_heads = True

    def build_head(self, fusion, heads):
        super().build_head(fusion, heads=True)

    def loss(self, z, o, y, ce):
        return sum(ce(o_k) for o_k in o)

    def by_modality(self, lr):
        """Groups of phi^(j) and its own classifier, for each j; then one of the rest, if any."""
        pairs = zip(self.phi, self.classifiers)
        own = [[*phi.parameters(), *classifier.parameters()] for phi, classifier in pairs]
        used = {id(p) for params in own for p in params}
        rest = [p for p in self.parameters() if id(p) not in used]
        return [{"params": params, "lr": lr} for params in [*own, rest] if params]


class Unimodal(Heads):
    """Each encoder with a classifier of its own; the fused logits are the sum of the modalities'.

    No parameter is shared, so fitting the sum of the losses trains each modality alone.
    """

    fusions = ["concat"]
    one_process = False

    def build_head(self, fusion, heads):
        self.classifiers = nn.ModuleList(nn.Linear(self.d, self.n_classes) for _ in self.phi)

    def logits(self, z):
        return sum(self.own_logits(z))

    def loss(self, z, o, y, ce):
        return sum(ce(o_j) for o_j in o[1:])


class MSES(Heads):
    """MSES [15]: Heads; a modality stops (lr = 0) once its held-out CE(o_j) has ceased to fall."""

    needs_val = True

    def begin(self, patience=3):
        self.overfits = rebalance.Patience(len(self.phi), patience)

    def groups(self, lr):
        return self.by_modality(lr)

    def end_of_epoch(self, optimizer, batches):
        # Departs from paper: copies of MSES restore the modality's best epoch. Not here.
        stopped = self.overfits.update(held_out(self, batches)[0, 1:])
        for group, stop in zip(optimizer.param_groups, stopped):
            group["lr"] *= float(~stop)
        return {"stopped": stopped.tolist()}


class MSLR(Unimodal):
    """MSLR [47]: CE(sum_j o_j), the rate of modality j is lr rebalance.Rates(ACC)_j."""

    needs_val = True
    one_process = True
    loss = Baseline.loss

    def begin(self, *rates):
        self.rates = rebalance.Rates(len(self.phi), rates)

    def groups(self, lr):
        return [{**g, "lr": lr * rate} for g, rate in zip(self.by_modality(lr), self.rates.rates)]

    def end_of_epoch(self, optimizer, batches):
        before = self.rates.factors
        factors = self.rates.update(held_out(self, batches)[1, 1:])
        for group, change in zip(optimizer.param_groups, factors / before):
            group["lr"] *= float(change)  # as a factor, so that what the plateau did stays
        return {"rates": factors.tolist()}


class GBlend(Heads):
    """G-Blend [38]: sum_k w_k CE_k over all heads; rebalance.Blend sets w each `every` epochs."""

    needs_val = True

    @classmethod
    def check(cls, args):
        super().check(args)
        every = (cls.numbers(args.method) or [1])[0]
        if 2 * every >= args.epochs:
            raise SettingsError(f"--method {args.method} needs more than {2 * every} epochs")

    def begin(self, every=1):
        self.every, self.blend = every, rebalance.Blend(1 + len(self.phi))

    def omega(self, t, T):
        if t == 1:
            self.blend.update(train_and_held_out(self))
        return super().omega(t, T)

    def loss(self, z, o, y, ce):
        return self.blend.w @ torch.stack([ce(o_k) for o_k in o])

    def end_of_epoch(self, optimizer, batches):
        # Departs from paper: [38] trains a copy for each head. Here: the heads of the one model.
        super().end_of_epoch(optimizer, batches)
        if self.t % self.every == 0:
            self.blend.update(train_and_held_out(self))
        return {"weights": self.blend.w.tolist()}


class OGM(Baseline):
    """OGM-GE [31]: slow the encoders that are ahead, by k = rebalance.slowed(certainty).

    Only in the first `epochs` epochs; then it is joint training.
    """

    only_scales = True

    def begin(self, alpha=0.1, noise=1.0, epochs=50):
        self.alpha, self.noise, self.epochs = alpha, noise, epochs

    def loss(self, z, o, y, ce):
        self.k = rebalance.slowed(rebalance.certainty(self.each(z), y), self.alpha)
        return ce(o[0])

    def modulate(self):
        if self.t < self.epochs:
            for k, phi in zip(self.k, self.phi):
                rebalance.slow(phi.parameters(), k, self.noise)


class AGM(Baseline):
    """AGM [24]: CE(sum_j part_j), the logits as a sum of a part per modality: rebalance.parts.

    In the first `epochs` epochs the gradient into part_j is scaled by kappa_j, which is
    rebalance.Lead of the CE(part_j). Where one of the classifier's gradient exceeds 1, the gradient
    of theta is clipped to the norm 1.
    """

    def begin(self, alpha=1.0, epochs=20):
        self.lead, self.epochs = rebalance.Lead(len(self.phi), alpha), epochs

    def modulate(self):
        if max(p.grad.max() for p in self.classifier.parameters()) > 1:
            nn.utils.clip_grad_norm_(self.parameters(), 1)

    def loss(self, z, o, y, ce):
        if self.t >= self.epochs:
            return ce(o[0])
        parts = rebalance.parts(self.logits, z)
        kappa = self.lead.update(torch.stack([ce(part.detach()) for part in parts]))
        return ce(sum(k * part + (1 - k) * part.detach() for k, part in zip(kappa, parts)))


class MMPareto(Heads):
    """MMPareto [40]: Heads, but an encoder's two gradients become gamma without_conflict(g, u)."""

    def begin(self, gamma=1.5):
        self.gamma = gamma

    def loss(self, z, o, y, ce):
        losses = torch.stack([ce(o_k) for o_k in o])
        pairs = zip(losses[1:], self.phi)
        self.alone = [grad(l_j, [*phi.parameters()], retain_graph=True) for l_j, phi in pairs]
        return losses.sum()

    def modulate(self):
        for u, phi in zip(self.alone, self.phi):
            rebalance.resolve(list(phi.parameters()), u, self.gamma)


class MLA(Baseline):
    """MLA [52]: a step on CE(o_j) for each j; one classifier, whose gradient G becomes G P."""

    fusions = ["concat"]
    own_heads = True

    def begin(self, ridge=0.1):
        self.ridge = ridge
        self.register_buffer("P", torch.eye(self.d))

    def build_head(self, fusion, heads):
        self.classifier, self.classifiers = nn.Linear(self.d, self.n_classes), []

    def unimodal_logits(self, z, j):
        return self.classifier(z[j])

    def logits(self, z):
        return rebalance.by_confidence(self.each(z))

    def steps(self, optimizer, z, o, y, ce):
        losses = []
        for z_j in z:
            losses.append(ce(self.classifier(z_j)))  # with the classifier as just updated
            self.descend(optimizer, losses[-1])
            # G P of all later steps has little in the direction of these mean features.
            self.P = rebalance.without_direction(self.P, z_j.detach().mean(0), self.ridge)
        return sum(losses).detach()

    def modulate(self):
        self.classifier.weight.grad = self.classifier.weight.grad @ self.P


class ReconBoost(Unimodal):
    """ReconBoost [19]: `stage` epochs of modality k alone, then as many by CE(sum_j o_j).

    Alone: mean_i (weight - p_i) CE(o_ki) / c, p_i = softmax(sum_{j != k} o_ji)_{y_i}. The optimizer
    begins anew, without momentum, with each kind of epochs.
    """

    one_process = True

    def begin(self, weight=5.0, stage=1):
        self.weight, self.stage = weight, stage

    def loss(self, z, o, y, ce):
        # Departs from paper: [19] also keeps o_k near that of the modality before ("memory
        # consolidation"). Its release computes this term without a gradient. Not here.
        turn, epoch = divmod(int(self.t), 2 * self.stage)
        own = o[1 + turn % len(z)]
        p = (o[0] - own).detach().softmax(1).gather(1, y[:, None])[:, 0]
        alone = ((self.weight - p) * ce(own, reduction="none")).mean() / self.n_classes
        return alone if epoch < self.stage else ce(o[0])

    def end_of_epoch(self, optimizer, batches):
        super().end_of_epoch(optimizer, batches)
        if self.t % self.stage == 0:
            optimizer.state.clear()
        return {}


class ETMC(Heads):
    """ETMC [17]: evidence e_v = softplus(logits) of each modality and of all, then dempster.

    Loss: rebalance.evidential_loss of every e_v and of the fused one; in epoch t, from 1, KL has
    the weight min(1, (t - 1)/anneal).
    """

    own_loss = True

    def begin(self, anneal=10):
        self.anneal = anneal

    def evidence(self, z):
        own = [classifier(z_j) for classifier, z_j in zip(self.classifiers, z)]
        return [softplus(o) for o in [MultimodalModel.logits(self, z), *own]]

    def logits(self, z):
        return rebalance.dempster(self.evidence(z)).log1p()  # softmax of it: the Dirichlet's mean

    def unimodal_logits(self, z, j):
        return softplus(self.classifiers[j](z[j])).log1p()

    def loss(self, z, o, y, ce):
        e = self.evidence(z)
        views = [*e, rebalance.dempster(e)]
        weight = min(1.0, float(self.t) / self.anneal)
        return sum(rebalance.evidential_loss(e_v, y, weight) for e_v in views)


class PMR(Baseline):
    """PMR [13]: CE(fused) + alpha sum_j beta_j CE(near_j), near_j = -|z^(j) - class means|.

    beta = rebalance.weaker(certainty(near)); momentum: the part of the means that an epoch leaves.
    """

    def begin(self, alpha=1.0, momentum=0.0):
        self.alpha = alpha
        self.means = rebalance.ClassMeans(len(self.phi), self.n_classes, self.d, momentum)

    def loss(self, z, o, y, ce):
        # Departs from paper: [13] also raises the entropy of the leading modality's near_j at
        # first, and its release has the means of the untrained model before epoch 1. Not here.
        z = torch.stack(z)
        near = self.means.near(z)
        self.means.update(z, y)
        beta = rebalance.weaker(rebalance.certainty(near, y))
        return ce(o[0]) + self.alpha * sum(b * ce(near_j) for b, near_j in zip(beta, near))

    def end_of_epoch(self, optimizer, batches):
        self.means.end_of_epoch()
        return {}


class DOMFN(Heads):
    """DOMFN [46]: fuse a sample where its modalities agree: all d_j = divergence_j < gamma tau.

    sum_j CE(o_j), and where they agree + CE(fused) + sum_j (CE(o_j)^2 / 2 - eta d_j).
    """

    def begin(self, gamma=0.8, eta=0.5, tau=0.2):
        self.eta, self.limit = eta, gamma * tau

    def logits(self, z):
        o = self.each(z)
        agree = (rebalance.divergence(o) < self.limit).all(0)[:, None]  # (B, 1)
        return torch.where(agree, super().logits(z), rebalance.surest(o))

    def loss(self, z, o, y, ce):
        ce = functools.partial(ce, reduction="none")
        own = torch.stack([ce(o_j) for o_j in o[1:]])  # (m, B)
        d = rebalance.divergence(torch.stack(o[1:]))
        fused = ce(MultimodalModel.logits(self, z)) + (own.square() / 2 - self.eta * d).sum(0)
        return (own.sum(0) + (d < self.limit).all(0) * fused).mean()


class Greedy(Baseline):
    """Greedy [41]: sum_j CE(o_j), o_j of g_j z^(j); the gate g_j that learns fastest is held.

    A gate (--fusion channel) sees all modalities: o_j is no score of one. See rebalance.Speeds.
    """

    fusions = ["channel"]
    loss = Unimodal.loss

    def build_head(self, fusion, heads):
        self.fusion, self.classifiers = fusion(len(self.phi), self.d), []
        self.classifier = nn.ModuleList(nn.Linear(self.d, self.n_classes) for _ in self.phi)

    def begin(self, eps=0.01, window=5):
        self.speeds = rebalance.Speeds(len(self.phi), self.d, eps, window)

    def forward(self, x):
        z = [phi(x_j) for phi, x_j in zip(self.phi, x)]
        o = self.branches(z)
        return z, [sum(o) / len(o), *o]

    def branches(self, z):
        gates = self.speeds.hold(self.fusion.gates(z))
        return [branch(g * z_j) for branch, g, z_j in zip(self.classifier, gates, z)]

    def logits(self, z):
        return sum(self.branches(z)) / len(z)

    def modulate(self):
        self.speeds.step(self.fusion, self.phi, self.classifier)


class Quintic(Unimodal):
    """What the authors' release computes: 2 ((1 - alpha) CE(mean_j o_j) + alpha L_MM).

    L_MM is rebalance.release_divergence. This is its Crema_epoch.py: alpha is rebalance.quintic.
    """

    one_process = True

    @classmethod
    def numbers(cls, method):
        return super().numbers(method.removesuffix(":quintic"))

    def begin(self):
        self.register_buffer("alpha", torch.tensor(0.95, dtype=torch.float64))

    def both(self, z, ce):
        """(L_CLS, L_MM) as the release has them."""
        o = self.each(z)
        return ce(o.mean(0)), rebalance.release_divergence(o)

    def omega(self, t, T):
        self.alpha = self.alpha.new_tensor(rebalance.quintic(t))
        return self.alpha.item()

    def loss(self, z, o, y, ce):
        return 2 * total_loss(*self.both(z, ce), self.alpha.item())


class Released(Quintic):
    """The release's Crema_epoch_learnable.py: Quintic, but alpha, 0.95 at first, is learned.

    Before each epoch it moves by -lr times the mean, over the first tensor of theta, of H grad
    L_CLS of 8 held-out samples, and stays in [0.05, 0.95]; lr is 1e-4, halved every 20 epochs.
    """

    needs_val = True

    def gradient(self, x, y):
        """The mean over the first tensor of theta of H grad L_CLS, H of L_Total."""
        with eval_mode(self, batch_statistics=True):
            l_cls, l_mm = self.both(self(x)[0], functools.partial(cross_entropy, target=y))
        params = list(self.parameters())
        hvp = make_hvp(l_cls, l_mm, self.alpha.item(), params)
        return hvp(grad(l_cls, params, retain_graph=True))[0].mean().item()

    def omega(self, t, T):
        key, device = [self.args.seed + 3 * 2**32], self.alpha.device
        batch = next(Batches(self.data.splits["val"], 8, key, device).draw(t))
        lr = 1e-4 / 2 ** ((t - 1) // 20)
        self.alpha = (self.alpha - lr * self.gradient(*batch)).clamp(0.05, 0.95)
        return self.alpha.item()


KINDS = [Unimodal, Heads, MSES, OGM, Greedy, DOMFN, MSLR, PMR, AGM, MLA, ReconBoost, MMPareto, ETMC]
BASELINES = {"g-blend": GBlend, **{kind.__name__.lower(): kind for kind in [*KINDS, Released]}}
BASELINES["released:quintic"] = Quintic

# --- exercise: change below ---
# A method of your own is one class; BASELINES["mine"] = Mine makes it a --method.
# --- end ---


def class_of(method):
    """The class of a --method `name` or `name:number:...`; None for those of the paper."""
    return BASELINES.get(method, BASELINES.get(method.split(":")[0]))


def requirements(method):
    """The class whose attributes say what a --method requires; Baseline requires nothing."""
    return class_of(method) or Baseline


def schedule_of(method):
    """omega(t, T) of a method that is a schedule; None for one that learns alpha, or keeps it."""
    return make_schedule(method) if method.split(":")[0] in SCHEDULES else None


def methods():
    """The names of --method, with entries that were added later."""
    return ["learning-based", *SCHEDULES, *BASELINES]
