"""The two losses, and the schedules that set alpha by hand (Sec. 3.1, 3.2, 4.4, first half of 3.3).

paper                                   here
s(x_i^(j), x_k^(l))      Sec. 3.2       similarity
L_CLS                    Sec. 3.1       classification_loss; its smoothing mixes in L_U of Fig. 1
L_MM                     Sec. 3.2       modality_matching_loss
L_Total                  Eq. 1          total_loss
omega(t), h(p), ...      Sec. 3.3, 4.4  SCHEDULES by name: make_schedule("stepwise:0.05")

t is the epoch and counts from 1; T is the number of epochs.
"""

import itertools
import math

import torch
import torch.nn.functional as F

from utils.cli import SettingsError, call_of, number_of


def similarity(z_j, z_l):
    """s(x_i^(j), x_k^(l)) = z_i^(j)T z_k^(l) / (|z_i^(j)| |z_k^(l)|), for all i and k (Sec. 3.2).

    z_j (B, d), z_l (B', d) -> (B, B'), each in [-1, 1].
    """
    return F.normalize(z_j, dim=1) @ F.normalize(z_l, dim=1).T


def classification_loss(logits, y, smoothing=0.0, reduction="mean"):
    """L_CLS = -1/n sum_i y_i^T log softmax(logits_i) (Sec. 3.1); (1 - e) L_S + e L_U (Fig. 1).

    logits (B, c); y (B,) class indices, or (B, c) rows that sum to 1; smoothing: e, the weight of
    uniform labels 1/c. Returns a scalar, in nats; (B,) with the reduction "none".
    """
    return F.cross_entropy(logits, y, label_smoothing=smoothing, reduction=reduction)


def modality_matching_loss(z, tau, y=None):
    """L_MM, the symmetric InfoNCE between two modalities j and l of one batch (Sec. 3.2).

    L_MM = -1/(2 n_b) sum_i [ log( exp(s(x_i^j, x_i^l)/tau) / sum_k exp(s(x_i^j, x_k^l)/tau) )
                            + log( exp(s(x_i^j, x_i^l)/tau) / sum_k exp(s(x_k^j, x_i^l)/tau) ) ]

    z: list of m >= 2 tensors (B, d). y: None, or labels (B,); then all samples of i's class match
    i, and their logs are averaged. Returns a scalar, in nats.
    """
    if len(z) < 2:
        raise SettingsError(f"L_MM pairs modalities: got {len(z)}, expected at least 2")
    match = torch.arange(len(z[0]), device=z[0].device)  # (B,): sample i matches sample i
    if y is not None:
        # Departs from paper: --matching classes pulls together all samples of one class.
        same = (y[:, None] == y).to(z[0])
        match = same / same.sum(1, keepdim=True)  # (B, B): row i has the weights of i's matches
    pairs = []
    for z_j, z_l in itertools.combinations(z, 2):
        logits = similarity(z_j, z_l) / tau  # (B, B): s(x_i^(j), x_k^(l)) / tau
        # cross_entropy(logits, match) = -1/n_b sum_i log(exp(logits_ii) / sum_k exp(logits_ik))
        pairs.append((F.cross_entropy(logits, match) + F.cross_entropy(logits.T, match)) / 2)
    # Paper silent: L_MM of more than two modalities. Here: the mean over all pairs.
    return torch.stack(pairs).mean()


def total_loss(l_cls, l_mm, alpha):
    """L_Total = (1 - alpha) L_CLS + alpha L_MM (Eq. 1)."""
    return (1 - alpha) * l_cls + alpha * l_mm


def constant(t, T, p):
    """alpha = p in every epoch (Sec. 4.4)."""
    return p


def stepwise(t, T, p):
    """h(p): alpha = p while t is less than half of T, then 1 - p (Sec. 4.4)."""
    return p if t < T / 2 else 1 - p


def heuristic(t, T):
    """omega(t) = 1 - e^(-1/t) (Sec. 3.3): 0.632, 0.393, 0.283, ... 0.095 at t = 10."""
    return 1 - math.exp(-1 / t)


def cubic(t, T, last=None):
    """a t^3 + b t^2 + c t + d, the paper's fit of a learned alpha on KineticsSounds (Sec. 4.4).

    Its minimum is 0.074 at t = 26; for t <= 5 and t >= 38 it is above 1, which is clipped.
    `cubic:26` scales t so that the last epoch gets the minimum, whatever T is.
    """
    # Paper silent: the T of that fit. Here: t is the epoch itself, unless `last` is given.
    t = t if last is None else t * last / T
    return 1.5e-4 * t**3 - 6.5e-3 * t**2 + 3.2e-2 * t + 1


SCHEDULES = {"constant": constant, "stepwise": stepwise, "heuristic": heuristic, "cubic": cubic}

# --- exercise: change below ---
# Your own omega(t) takes three lines. Its entry in SCHEDULES makes it a --method and tests it:
#
# def linear(t, T):
#     return 1 - t / T
# SCHEDULES["linear"] = linear
# --- end ---


def make_schedule(text):
    """The schedule `name` or `name:number` as a function (t, T) -> alpha, clipped to [0, 1].

    Raises ValueError for an unknown name or an argument that does not fit; the function itself
    raises FloatingPointError where the schedule does not return a number.
    """
    omega, numbers = call_of("schedule", text, SCHEDULES, "t, T")
    if omega in (constant, stepwise) and not 0 <= numbers["p"] <= 1:
        raise SettingsError(f"schedule {text!r} has p = {numbers['p']:g}, expected 0 to 1")

    def clipped(t, T):
        what = f"schedule {text!r} does not return a number at t = {t} of T = {T}"
        return min(1.0, max(0.0, number_of(what, omega, t, T, **numbers)))

    return clipped
