"""The learned alpha: the bilevel problem's hypergradient (Eq. 2 and 3; Sec. 3.3, second half).

    min over alpha in [0, 1] of  L_CLS(theta*(alpha)),  theta*(alpha) in argmin over theta of L_Total   (Eq. 2)

    d L_CLS / d alpha = - [d2 L_Total / d alpha d theta] [d2 L_Total / d theta2]^-1 [d L_CLS / d theta]  (Eq. 3)

paper                         here
d2 L_Total / d alpha d theta  c = grad L_MM - grad L_CLS, because L_Total is linear in alpha
d2 L_Total / d theta2         H, never formed: only products H u, each one more backward pass
d L_CLS / d theta             v
[16], Ghadimi and Wang        SOLVERS: the number c^T H^-1 v from a few products H u
Eq. 3                         hypergradient = - c^T H^-1 v

What to expect. At an inner optimum grad L_Total = 0, so c = -v / alpha there, and Eq. 3 reads
v^T H^-1 v / alpha > 0 for a positive definite H: while both levels of Eq. 2 see the same loss on the same data,
alpha can only fall. Curves that do anything else come from an unfinished inner problem, from a held-out outer
batch, or from what the inner problem has besides: weight decay, batch norm's training mode.
"""

import math
from contextlib import contextmanager

import torch

from losses import total_loss

GROWTH = 1 + 1e-6  # a term may exceed the one before it by rounding, not by more


def dot(a, b):
    """<a, b> over two lists of tensors of the same shapes -> float."""
    return sum((x * y).sum() for x, y in zip(a, b)).item()


def neumann(product, v, c, terms, step, generator=None):
    """c^T H^-1 v ~ step * sum_{k=0}^{terms-1} c^T (I - step H)^k v: the mean of [16]'s estimator.

    Costs terms - 1 products. The terms shrink for 0 < H < 2 / step. One that grows shows negative curvature or
    too large a step: the series is cut before it, which is a shorter sum of the same sign pattern (every cut
    weighs each eigenvalue below 2 / step by a positive number, also a zero or negative one).
    Returns the value and the number of terms in it.
    """
    u, size = v, math.sqrt(dot(v, v))
    total = dot(c, u)
    for k in range(1, terms):
        u = [u_i - step * h_i for u_i, h_i in zip(u, product(u))]  # (I - step H)^k v
        before, size = size, math.sqrt(dot(u, u))
        if not size <= before * GROWTH:
            return step * total, k
        total += dot(c, u)
    return step * total, terms


def randomised(product, v, c, terms, step, generator=None):
    """c^T H^-1 v ~ step * terms * c^T prod_{i=1}^{p} (I - step H_i) v, p uniform in 0..terms-1: [16] as printed.

    Each H_i is of a fresh batch. Its mean over p is the value of `neumann`, its spread is several times that.
    A product that grows is no estimate of anything: then the value is nan.
    Returns the value and the number of terms it stands for, p + 1.
    """
    p = int(torch.randint(terms, (), generator=generator))
    u, size = v, math.sqrt(dot(v, v))
    for k in range(1, p + 1):
        u = [u_i - step * h_i for u_i, h_i in zip(u, product(u))]
        before, size = size, math.sqrt(dot(u, u))
        if not size <= before * GROWTH:
            return math.nan, k
    return step * terms * dot(c, u), p + 1


def conjugate_gradient(product, v, c, terms, step=None, generator=None):
    """c^T x with x from `terms` iterations of conjugate gradient on H x = v: to check the others against.

    Costs one product per iteration. It needs H > 0: a direction of negative or no curvature ends it with the
    iterate before, or with nan where there is none.
    Returns the value and the number of iterations in it, `terms` where fewer have solved it.
    """
    r = d = v  # residual, direction
    rr = rr_0 = dot(r, r)
    total = 0.0
    for k in range(terms):
        if rr <= 1e-30 * rr_0:
            return total, terms  # solved
        h = product(d)
        curvature = dot(d, h)
        if not curvature > 0:
            return (total, k) if k else (math.nan, 0)
        length = rr / curvature
        total += length * dot(c, d)
        r = [r_i - length * h_i for r_i, h_i in zip(r, h)]
        rr, rr_before = dot(r, r), rr
        d = [r_i + rr / rr_before * d_i for r_i, d_i in zip(r, d)]
    return total, terms


# Each is called alike, solver(product, v, c, terms, step, generator), takes of that what it needs, and returns
# (c^T H^-1 v, the terms in it); fewer than it was given are reported as cut.
SOLVERS = {"neumann": neumann, "randomised": randomised, "cg": conjugate_gradient}

# --- exercise: change below ---
# A solver of your own, which becomes a --solver name by its entry, SOLVERS["mine"] = mine.
# --- end ---


def grad(loss, params, **options):
    """d loss / d params as a list of tensors; zeros where the loss does not contain a parameter."""
    return torch.autograd.grad(loss, params, materialize_grads=True, **options)


def total_gradient(l_cls, l_mm, alpha, params):
    """grad_theta L_Total, with the graph that lets it be differentiated again."""
    return grad(total_loss(l_cls, l_mm, alpha), params, create_graph=True)


def outer_and_mixed(l_cls, l_mm, alpha, params, g):
    """(v, c) = (grad L_CLS, grad L_MM - grad L_CLS) from g = grad L_Total = v + alpha c and one more backward pass.

    The pass is for the loss with the smaller weight, so that what follows is divided by at least 1/2.
    """
    if alpha >= 0.5:
        v = grad(l_cls, params, retain_graph=True)
        return v, [(g_i - v_i) / alpha for g_i, v_i in zip(g, v)]
    g_mm = grad(l_mm, params, retain_graph=True)  # = g + (1 - alpha) c
    c = [(b - a) / (1 - alpha) for a, b in zip(g, g_mm)]
    return [g_i - alpha * c_i for g_i, c_i in zip(g, c)], c


def hessian_product(g, params, u):
    """H u = grad_theta <grad_theta L_Total, u>, from g = total_gradient(...)."""
    return grad(sum((g_i * u_i).sum() for g_i, u_i in zip(g, u)), params, retain_graph=True)


@contextmanager
def evaluating(model):
    """Inside, every module of the model is in eval mode; afterwards each in its own mode again."""
    # Paper silent: the mode of batch norm and dropout in Eq. 3. Here: eval, so that the loss is one fixed function
    # of theta, no sample's term depends on the others through the batch statistics, and nothing is updated.
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def hypergradient(inner, params, alpha, outer=None, solver="neumann", terms=5, step=0.01, damping=0.0, generator=None,
                  mean=list):  # fmt: skip
    """d L_CLS(theta*(alpha)) / d alpha = - c^T H^-1 v (Eq. 3), and a report of how it was found.

    inner: called without arguments, gives (L_CLS, L_MM) of a training batch; a fresh batch each call.
    params: theta, a list of tensors. alpha: float in [0, 1].
    outer: called without arguments, gives the outer L_CLS; None takes the one of the inner batch.
    solver, terms, step: which of SOLVERS, its number of terms, and the step of its series, which must stay below
        2 / (largest eigenvalue of H).
    damping: added to the diagonal of H. The optimiser's weight decay belongs here: it is part of the inner problem.
    mean: takes gradients and products H u to their means over the processes that share a batch, see parallel.py.

    Returns (value, report): the value is a float, or None where it is refused (not finite, or see the solver);
    the report has `terms` (used), `curvature` (largest |H u| / |u| seen), `note` (empty if all is well).
    params and their .grad are left as they were; evaluating(model) around the call keeps the buffers too.
    """
    params = list(params)
    fresh = solver == "randomised"  # each factor of its product takes a batch of its own
    l_cls, l_mm = inner()
    g = total_gradient(l_cls, l_mm, alpha, params)
    v, c = map(mean, outer_and_mixed(l_cls, l_mm, alpha, params, [x.detach() for x in g]))
    if outer is not None:
        v = mean(grad(outer(), params))
    seen = []

    def product(u):
        """(H + damping I) u."""
        h = mean(hessian_product(total_gradient(*inner(), alpha, params) if fresh else g, params, u))
        h = [h_i + damping * u_i for h_i, u_i in zip(h, u)]
        seen.append(math.sqrt(dot(h, h) / max(dot(u, u), 1e-300)))
        return h

    inverse, used = SOLVERS[solver](product, v, c, terms, step, generator)
    report = {"terms": used, "curvature": max(filter(math.isfinite, seen), default=0.0), "note": ""}
    if not math.isfinite(inverse):
        report["note"] = f"refused: the {solver} estimate grew or is not finite; more damping or a smaller step"
        return None, report
    if used < terms and not fresh:
        report["note"] = f"cut after {used} of {terms} terms: negative curvature, or the step is too large"
    return -inverse, report
