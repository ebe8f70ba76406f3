"""The rules of baselines.py, as functions of tensors and as modules whose buffers are their memory.

o: the logits of each modality alone, (m, B, c); y: (B,) labels; s: (m,), a number per modality.
"""

import itertools
import math

import torch
from torch import nn
from torch.distributions import Dirichlet, kl_divergence
from torch.nn.functional import kl_div, one_hot

from utils.cli import SettingsError


class Mean(nn.Module):
    """The mean of all values, (*shape), of its updates; 0 before the first."""

    def __init__(self, *shape):
        super().__init__()
        self.register_buffer("value", torch.zeros(shape))
        self.register_buffer("n", torch.zeros(()))

    def update(self, value):
        # New tensors: a step's graph may still hold the old ones.
        self.n = self.n + 1
        self.value = self.value + (value.detach() - self.value) / self.n


def vector(tensors):
    """All numbers of some tensors, in any memory format: (n,)."""
    return torch.cat([x.flatten() for x in tensors])


def certainty(o, y):
    """s_j = sum_i softmax(o_ji)_{y_i}: (m,), without a gradient."""
    return torch.stack([o_j.detach().softmax(1).gather(1, y[:, None]).sum() for o_j in o])


class Patience(nn.Module):
    """MSES: an epoch's losses (m,) -> whether each has once not fallen for `patience` epochs."""

    def __init__(self, m, patience):
        super().__init__()
        self.patience = patience
        self.register_buffer("best", torch.full((m,), math.inf))
        self.register_buffer("waited", torch.zeros(m))
        self.register_buffer("stopped", torch.zeros(m, dtype=torch.bool))

    def update(self, loss):
        self.waited = torch.where(loss < self.best, 0.0, self.waited + 1)
        self.best = torch.minimum(loss, self.best)
        self.stopped = self.stopped | (self.waited >= self.patience)
        return self.stopped


class Rates(nn.Module):
    """MSLR: an epoch's ACC (m,) -> the factor on each rate, ACC_j / (mean ACC_j of the 5 before).

    rates: of --method mslr:1:0.5, one for each modality; without numbers all are 1. In the first 6
    epochs the factors are 1.
    """

    def __init__(self, m, rates):
        super().__init__()
        if len(rates) not in (0, m):
            raise SettingsError(
                f"--method mslr has {len(rates)} rates, expected {m}: one a modality"
            )
        self.rates = rates or (1.0,) * m
        self.register_buffer("factors", torch.ones(m))
        self.register_buffer("past", torch.full((5, m), math.nan))

    def update(self, acc):
        if not self.past.isnan().any():
            # Paper silent: an ACC of 0 would stop a modality for good. Here: 0.1 to 10.
            self.factors = (acc / self.past.mean(0)).nan_to_num(1.0).clamp(0.1, 10)
        self.past = torch.cat([self.past[1:], acc[None]])
        return self.factors


def blend(before, now, otherwise):
    """G-Blend's weights w_k = G_k / O_k^2, normalized; rows L^T, L^V of n heads (2, n) -> (n,).

    G: how far the held-out loss L^V fell; O: how far L^V - L^T rose. A negative G counts as 0; if
    no G is positive, the weights are `otherwise`.
    """
    G = before[1] - now[1]
    O = (now[1] - now[0]) - (before[1] - before[0])
    w = G.clamp(min=0) / O.square().clamp(min=1e-8)
    return w / w.sum() if w.sum() > 0 else otherwise


class Blend(nn.Module):
    """G-Blend's weights of n heads, w (n,): equal at first, set anew by each update.

    before (2, n): L^T and L^V of the update before; nan before the first.
    """

    def __init__(self, n):
        super().__init__()
        self.register_buffer("w", torch.full((n,), 1 / n))
        self.register_buffer("before", torch.full((2, n), math.nan))

    def update(self, now):
        """now (2, n): L^T and L^V of the same parameters."""
        if not self.before.isnan().any():
            self.w = blend(self.before, now, self.w)
        self.before = now


def slowed(s, alpha):
    """OGM's factors k_j = 1 - tanh(alpha rho_j) where rho_j > 1, else 1: (m,) -> (m,).

    rho_j is the mean of s_j / s_l over the other modalities l.
    """
    # Departs from paper: [31] has two modalities. Here: any number, as its authors propose.
    rho = (s[:, None] / s).fill_diagonal_(0).sum(1) / (len(s) - 1)
    return torch.where(rho > 1, 1 - torch.tanh(alpha * rho), 1.0)


def slow(params, k, noise):
    """OGM-GE: the gradient g of each weight becomes k g + noise N(0, std(g)^2)."""
    for p in params:
        # Departs from paper: [31] takes convolutions. Here: linear maps, too, as in BERT.
        if p.grad is not None and p.dim() > 1:
            std = p.grad.std(correction=0)
            p.grad = k * p.grad + noise * std * torch.randn_like(p)


def shapley(value, m):
    """The Shapley values of m players, a list; they sum to value of all.

    value: a function of a tuple of players; of the empty tuple it is 0.
    """
    coalitions = [S for r in range(1, m + 1) for S in itertools.combinations(range(m), r)]
    values = {S: value(S) for S in coalitions} | {(): 0.0}
    weight = [math.factorial(n) * math.factorial(m - n - 1) / math.factorial(m) for n in range(m)]

    def added(j, S):
        return values[tuple(sorted((*S, j)))] - values[S]

    return [sum(weight[len(S)] * added(j, S) for S in values if j not in S) for j in range(m)]


def parts(logits, z):
    """AGM: the logits of z as a sum of a part per modality, its Shapley value; [(B, c)] * m.

    logits: a function of z, in which an absent modality's feature is 0.
    """

    # Departs from paper: [24] sets inputs to zero. Here: features, without further passes.
    def value(present):
        absent = [torch.zeros_like(z_k) for z_k in z]
        return logits([z[k] if k in present else absent[k] for k in range(len(z))])

    return shapley(value, len(z))


def lead(s):
    """exp(m / (m - 1) (mean s - s_j)) of losses s: a modality's lead over the others, (m,)."""
    return torch.exp(len(s) / (len(s) - 1) * (s.mean() - s))


class Lead(nn.Module):
    """AGM: losses s -> kappa_j = exp(alpha (lead(mean s so far) - lead(s))_j), (m,)."""

    def __init__(self, m, alpha):
        super().__init__()
        self.alpha, self.usual = alpha, Mean(m)

    def update(self, s):
        behind = lead(self.usual.value) - lead(s)
        self.usual.update(s)
        return torch.exp(self.alpha * behind.clamp(max=10))


def without_conflict(g, u):
    """MMPareto's h = 2 (a g + (1 - a) u), stretched to the length of g + u if shorter: vectors.

    a = 1/2 if g^T u > 0, else the a in [0, 1] of the shortest h: then a small step along -h raises
    neither loss. Opposite gradients give 0.
    """
    a = 0.5 if g @ u > 0 else ((u - g) @ u / (g - u).square().sum().clamp(min=1e-12)).clamp(0, 1)
    h = 2 * (a * g + (1 - a) * u)
    return h * ((g + u).norm() / h.norm().clamp(min=1e-12)).clamp(min=1)


def resolve(params, u, gamma):
    """MMPareto: an encoder's gradient g + u becomes gamma h; u: of its CE(o_j), a list."""
    used = [(p, u_p) for p, u_p in zip(params, u) if p.grad is not None]
    both, u = vector(p.grad for p, _ in used), vector(u_p for _, u_p in used)
    h = gamma * without_conflict(both - u, u)
    for (p, _), h_p in zip(used, h.split([p.numel() for p, _ in used])):
        p.grad = h_p.view_as(p)


def by_confidence(o):
    """MLA's fused logits sum_j w_j o_j, w = softmax_j(-entropy of softmax(o_j)): (B, c)."""
    entropy = torch.special.entr(o.softmax(2)).sum(2, keepdim=True)
    return ((-entropy).softmax(0) * o).sum(0)


def without_direction(P, r, ridge):
    """MLA's P - P r r^T P / (ridge + r^T P r), recursive least squares: (d, d), (d,) -> (d, d).

    From P = I it gives (I + sum_i r_i r_i^T / ridge)^-1 after r_1, r_2, ...
    """
    Pr = P @ r
    return P - torch.outer(Pr, Pr) / (ridge + r @ Pr)


def divergence(o):
    """DOMFN's d_j = max_k (p_jk - mean_l p_lk)^2, p_j = softmax(o_j): (m, B, c) -> (m, B).

    It is at most (1 - 1/m)^2, which is 0.25 for two modalities.
    """
    p = o.softmax(2)
    return (p - p.mean(0)).square().amax(2)


def surest(o):
    """The logits of each sample's modality with the highest probability: (m, B, c) -> (B, c)."""
    best = o.softmax(2).amax(2).argmax(0)
    return o[best, torch.arange(len(best), device=o.device)]


def dempster(evidence):
    """ETMC's rule for any number of views: 1 + e / c = prod_v (1 + e_v / c); [(B, c)] -> (B, c)."""
    c = evidence[0].shape[1]
    return c * (torch.stack([1 + e / c for e in evidence]).prod(0) - 1)


def evidential_loss(evidence, y, weight):
    """ETMC's loss of Dirichlet(e + 1): E[-log p_y] + weight KL(without e_y || uniform), a mean."""
    alpha, own = evidence + 1, y[:, None]
    fit = torch.digamma(alpha.sum(1)) - torch.digamma(alpha.gather(1, own)[:, 0])
    wrong = alpha.scatter(1, own, 1.0)
    kl = kl_divergence(Dirichlet(wrong), Dirichlet(torch.ones_like(wrong)))
    return (fit + weight * kl).mean()


def release_divergence(o):
    """The release's L_MM of class probabilities p_j = softmax(o_j): (m, B, c) -> a scalar.

    The mean over pairs of (KL(q || p_j) + KL(q || p_l)) / 2, q = (p_j + p_l) / 2. The divergence of
    Jensen and Shannon has KL(p_j || q): the release calls kl_div with its arguments swapped.
    """
    pairs = []
    for log_p, log_r in itertools.combinations(o.log_softmax(2), 2):
        q = (log_p.exp() + log_r.exp()) / 2
        pairs += [kl_div(log, q, reduction="batchmean") for log in (log_p, log_r)]
    return torch.stack(pairs).mean()


def quintic(t):
    """alpha of the release's Crema_epoch.py, a fit of a learned alpha; t from 1, clipped to [0, 1].

    The release counts epochs from 0 and trains 200.
    """
    weights = [0.795376296, -3.35472727e-3, -1.22989557e-4]
    weights += [2.92947416e-6, -2.23835486e-8, 5.39717505e-11]
    return min(1.0, max(0.0, sum(w * (t - 1) ** k for k, w in enumerate(weights))))


def weaker(s):
    """PMR's beta_j = min(1, max s / s_j - 1): 0 for the surest modality, (m,)."""
    return (s.max() / s - 1).clamp(0, 1)


class ClassMeans(nn.Module):
    """PMR: -|z^(j) - mean of class k|, (m, B, c), with the means of the epochs before.

    momentum: the part of the means that an epoch leaves. In the first epoch the means are 0: all
    classes are alike, and no modality is the surer.
    """

    def __init__(self, m, n_classes, d, momentum):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("means", torch.zeros(m, n_classes, d))
        self.register_buffer("sums", torch.zeros(m, n_classes, d))
        self.register_buffer("n", torch.zeros(n_classes))

    def near(self, z):
        """z (m, B, d)."""
        return -torch.cdist(z, self.means)

    def update(self, z, y):
        """Count features z (m, B, d) for the means of the next epoch."""
        members = one_hot(y, len(self.n)).to(z)  # (B, c)
        self.sums, self.n = self.sums + members.T @ z.detach(), self.n + members.sum(0)

    def end_of_epoch(self):
        new = self.sums / self.n.clamp(min=1)[:, None]
        self.means = torch.lerp(new, self.means, self.momentum) if self.means.any() else new
        self.sums, self.n = torch.zeros_like(self.sums), torch.zeros_like(self.n)


def relative_size(params):
    """|gradient|^2 / |parameters|^2 of the parameters that have a gradient, a scalar."""
    used = [p for p in params if p.grad is not None]
    g, theta = vector(p.grad for p in used), vector(used).detach()
    return g.square().sum() / theta.square().sum()


class Speeds(nn.Module):
    """Greedy: which gate is frozen, for how many steps, and its value, the mean so far.

    mu (2, m): the sums over steps of |gradient|^2 / |parameters|^2 of each gate and branch. If
    speed_j = log10(mu_gate / mu_branch) differs by more than eps between modalities, the fastest
    gate is frozen for `window` steps.
    """

    def __init__(self, m, d, eps, window):
        super().__init__()
        self.eps, self.window, self.usual = eps, window, Mean(m, d)
        self.register_buffer("mu", torch.zeros(2, m))
        self.register_buffer("held", torch.tensor(0))
        self.register_buffer("left", torch.tensor(0))

    def hold(self, gates):
        """[g_1, ..., g_m], (B, d) each; in training one may be held, and the mean counts all."""
        if not self.training:
            return gates
        self.usual.update(torch.stack(gates).mean(1))
        usual = self.usual.value.expand(len(gates[0]), -1, -1).unbind(1)
        holds = self.left > 0
        return [u if holds and j == self.held else g for j, (g, u) in enumerate(zip(gates, usual))]

    def step(self, channel, phi, classifiers):
        """After backward; channel: the fusion with the gates; a branch: phi_j and classifier j."""
        if self.left > 0:
            self.left = self.left - 1
            return
        gates = [nn.ModuleList([channel.squeeze, excite]) for excite in channel.excite]
        branches = [nn.ModuleList(pair) for pair in zip(phi, classifiers)]
        sizes = [relative_size(list(part.parameters())) for part in [*gates, *branches]]
        self.mu = self.mu + torch.stack(sizes).view(2, -1)
        speed = (self.mu[0] / self.mu[1]).log10()
        if speed.max() - speed.min() > self.eps:
            self.held, self.left = speed.argmax(), self.left + self.window
