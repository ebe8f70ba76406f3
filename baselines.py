"""The other methods of Table 1: models that change Algorithm 1 by the hooks of utils/hooks.py.

Their alpha is 0. Their rules are in utils/rebalance.py. Numbers in brackets are the paper's
references; o_j: the logits of modality j alone; ce, CE: L_CLS of a batch.
"""

import functools

import torch
from torch import nn
from torch.nn.functional import softplus

from bilevel import grad
from losses import classification_loss, modality_matching_loss
from model import MultimodalModel
from utils import rebalance
from utils.hooks import held_out


class Baseline(MultimodalModel):
    """Trained by CE of the fused logits, as with --method constant:0, where no hook says more."""

    def end_of_epoch(self, optimizer, batches):
        self.t = self.t + 1

    def inner_step(self, model, optimizer, x, y, alpha, args):
        """train.inner_step with the hooks; model: self, or parallel. L_MM is only logged."""
        with torch.autocast(y.device.type, torch.bfloat16, enabled=args.bf16):
            z, logits = model(x)
        z, logits = [z_j.float() for z_j in z], logits.float()
        ce = functools.partial(classification_loss, y=y, smoothing=args.smoothing)
        l_cls = 0.0
        for loss in self.steps(z, logits, y, ce):
            optimizer.zero_grad()
            loss.backward()
            self.modulate()
            optimizer.step()
            l_cls += loss.detach()
        l_mm = modality_matching_loss([z_j.detach() for z_j in z], args.tau)
        return torch.stack([l_cls, l_cls, l_mm])


class Unimodal(Baseline):
    """Each encoder with a classifier of its own; the fused logits are the sum of the modalities'.

    No parameter is shared, so fitting the sum of the losses trains each modality alone.
    """

    fusions, own_heads, one_process = ["concat"], True, False

    def build_head(self, fusion):
        self.classifiers = nn.ModuleList(nn.Linear(self.d, self.n_classes) for _ in self.phi)

    def forward(self, x):
        """x: list of m inputs -> (z, o): z a list, o (m, B, c) instead of the fused logits."""
        z = [phi(x_j) for phi, x_j in zip(self.phi, x)]
        return z, self.each(z)

    def logits(self, z):
        return sum(self.each(z))

    def unimodal_logits(self, z, j):
        return self.classifiers[j](z[j])

    def steps(self, z, logits, y, ce):
        yield sum(ce(o_j) for o_j in logits)


class Heads(Unimodal):
    """A classifier per modality besides the fused one: CE(fused) + sum_j CE(o_j)."""

    fusions, one_process = None, True
    forward, logits = MultimodalModel.forward, MultimodalModel.logits

    def build_head(self, fusion):
        MultimodalModel.build_head(self, fusion)
        super().build_head(fusion)

    def losses(self, z, logits, ce):
        """CE of the fused logits and of each o_j: (1 + m,)."""
        return torch.stack([ce(o) for o in [logits, *self.each(z)]])

    def steps(self, z, logits, y, ce):
        yield self.losses(z, logits, ce).sum()


class MSES(Heads):
    """MSES [15]: Heads; a modality stops (lr = 0) once its held-out CE(o_j) has ceased to fall."""

    needs_val, groups = True, Baseline.by_modality

    def begin(self, patience=3):
        self.overfits = rebalance.Patience(len(self.phi), patience)

    def end_of_epoch(self, optimizer, batches):
        # Departs from paper: copies of MSES restore the modality's best epoch. Not here.
        stopped = self.overfits(held_out(self, batches)[0, 1:])
        for group, stop in zip(optimizer.param_groups, stopped):
            group["lr"] *= float(~stop)
        return {"stopped": stopped.tolist()}


class MSLR(Unimodal):
    """MSLR [47]: CE(sum_j o_j), each modality at a rate of its own, lr rebalance.Rates(ACC)."""

    needs_val, one_process = True, True
    forward, steps = MultimodalModel.forward, Baseline.steps

    def begin(self, *rates):
        self.rates = rebalance.Rates(len(self.phi), rates)

    def groups(self, lr):
        return [{**g, "lr": lr * rate} for g, rate in zip(self.by_modality(lr), self.rates.rates)]

    def end_of_epoch(self, optimizer, batches):
        before = self.rates.factors
        factors = self.rates(held_out(self, batches)[1, 1:])
        for group, change in zip(optimizer.param_groups, factors / before):
            group["lr"] *= float(change)  # as a factor, so that what the plateau did stays
        return {"rates": factors.tolist()}


class GBlend(Heads):
    """G-Blend [38]: sum_k w_k CE_k over the fused and the own heads, w by rebalance.blend."""

    needs_val = True

    def begin(self, every=1):
        self.blend = rebalance.Blend(1 + len(self.phi), every)

    def steps(self, z, logits, y, ce):
        yield self.blend(self.losses(z, logits, ce))

    def end_of_epoch(self, optimizer, batches):
        # Departs from paper: [38] trains a copy for each head. Here: the heads of the one model.
        return {"weights": self.blend.end_of_epoch(held_out(self, batches)[0]).tolist()}


class OGM(Baseline):
    """OGM-GE [31]: slow the encoders that are ahead, by k = rebalance.slowed(certainty)."""

    only_scales = True

    def begin(self, alpha=0.1, noise=1.0):
        self.alpha, self.noise = alpha, noise

    def steps(self, z, logits, y, ce):
        self.k = rebalance.slowed(rebalance.certainty(self.each(z), y), self.alpha)
        yield ce(logits)

    def modulate(self):
        for k, phi in zip(self.k, self.phi):
            rebalance.slow(phi.parameters(), k, self.noise)


class AGM(Baseline):
    """AGM [24]: CE(sum_j part_j), the logits as a sum of a part per modality: rebalance.parts.

    The gradient into part_j is scaled by kappa_j, which is rebalance.Lead of the CE(part_j).
    """

    def begin(self, alpha=1.0):
        self.lead = rebalance.Lead(len(self.phi), alpha)

    def steps(self, z, logits, y, ce):
        parts = rebalance.parts(self.logits, z)
        kappa = self.lead(torch.stack([ce(part.detach()) for part in parts]))
        yield ce(sum(k * part + (1 - k) * part.detach() for k, part in zip(kappa, parts)))


class MMPareto(Heads):
    """MMPareto [40]: Heads, but an encoder's two gradients become gamma without_conflict(g, u)."""

    def begin(self, gamma=1.5):
        self.gamma = gamma

    def steps(self, z, logits, y, ce):
        losses = self.losses(z, logits, ce)
        pairs = zip(losses[1:], self.phi)
        self.alone = [grad(l_j, [*phi.parameters()], retain_graph=True) for l_j, phi in pairs]
        yield losses.sum()

    def modulate(self):
        for u, phi in zip(self.alone, self.phi):
            rebalance.resolve(list(phi.parameters()), u, self.gamma)


class MLA(Baseline):
    """MLA [52]: a step on CE(o_j) for each j; one classifier, whose gradient G becomes G P."""

    fusions, own_heads = ["concat"], True

    def begin(self, ridge=0.1):
        self.ridge = ridge

    def build_head(self, fusion):
        self.classifier = nn.Linear(self.d, self.n_classes)

    def unimodal_logits(self, z, j):
        return self.classifier(z[j])

    def logits(self, z):
        return rebalance.by_confidence(self.each(z))

    def steps(self, z, logits, y, ce):
        # Departs from paper: [52]'s P is of all steps and only shrinks. Here: P = I at each batch.
        self.P = torch.eye(self.d).to(z[0])
        for z_j in z:
            yield ce(self.classifier(z_j))  # with the classifier of the step before
            self.P = rebalance.without_direction(self.P, z_j.detach().mean(0), self.ridge)

    def modulate(self):
        self.classifier.weight.grad = self.classifier.weight.grad @ self.P


class ReconBoost(Unimodal):
    """ReconBoost [19]: `stage` epochs of modality k alone, then as many by CE(sum_j o_j).

    Alone: mean_i (weight - p_i) CE(o_ki) / c, p_i = softmax(sum_{j != k} o_ji)_{y_i}.
    """

    one_process, forward = True, MultimodalModel.forward

    def begin(self, weight=5.0, stage=1):
        self.weight, self.stage = weight, stage

    def steps(self, z, logits, y, ce):
        turn, epoch = divmod(int(self.t), 2 * self.stage)
        own = self.unimodal_logits(z, turn % len(z))
        p = (logits - own).detach().softmax(1).gather(1, y[:, None])[:, 0]
        alone = ((self.weight - p) * ce(own, reduction="none")).mean() / self.n_classes
        yield alone if epoch < self.stage else ce(logits)


class ETMC(Heads):
    """ETMC [17]: evidence e_v = softplus(logits) of each modality and of all, then dempster.

    Loss: rebalance.evidential_loss of every e_v and of the fused one, KL's weight min(1, t/anneal).
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

    def steps(self, z, logits, y, ce):
        e, weight = self.evidence(z), min(1.0, float(self.t) / self.anneal)
        views = [*e, rebalance.dempster(e)]
        yield sum(rebalance.evidential_loss(e_v, y, weight) for e_v in views)


class PMR(Baseline):
    """PMR [13]: CE(fused) + alpha sum_j beta_j CE(near_j), near_j = -|z^(j) - class means|.

    beta = rebalance.weaker(certainty(near)).
    """

    def begin(self, alpha=1.0):
        self.alpha = alpha
        self.means = rebalance.ClassMeans(len(self.phi), self.n_classes, self.d)

    def steps(self, z, logits, y, ce):
        # Departs from paper: [13] also lowers the entropy of the faster modality. Not here.
        near = self.means(torch.stack(z), y)
        beta = rebalance.weaker(rebalance.certainty(near, y))
        yield ce(logits) + self.alpha * sum(b * ce(o) for b, o in zip(beta, near))

    def end_of_epoch(self, optimizer, batches):
        self.means.end_of_epoch()


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

    def steps(self, z, logits, y, ce):
        o, ce = self.each(z), functools.partial(ce, reduction="none")
        own = torch.stack([ce(o_j) for o_j in o])  # (m, B)
        d = rebalance.divergence(o)
        fused = ce(MultimodalModel.logits(self, z)) + (own.square() / 2 - self.eta * d).sum(0)
        yield (own.sum(0) + (d < self.limit).all(0) * fused).mean()


class Greedy(Baseline):
    """Greedy [41]: hold the gate (--fusion channel) of the modality whose gate learns fastest.

    speed_j = log10(mu_gate / mu_phi), mu = sum over steps of |gradient|^2 / |parameters|^2. If the
    speeds differ by more than eps, that gate is its mean so far for `window` steps.
    """

    fusions = ["channel"]

    def begin(self, eps=0.01, window=5):
        self.speeds = rebalance.Speeds(len(self.phi), self.d, eps, window)

    def logits(self, z):
        gates = self.fusion.gates(z)
        return self.classifier(self.fusion(z, self.speeds(gates) if self.training else gates))

    def steps(self, z, logits, y, ce):
        yield ce(logits)
        self.speeds.usual(torch.stack(self.fusion.gates(z)).mean(1))

    def modulate(self):
        self.speeds.step(self.fusion, self.phi)


KINDS = [Unimodal, Heads, MSES, OGM, Greedy, DOMFN, MSLR, PMR, AGM, MLA, ReconBoost, MMPareto, ETMC]
BASELINES = {"g-blend": GBlend, **{kind.__name__.lower(): kind for kind in KINDS}}  # --method
