"""The learned alpha: the bilevel problem's hypergradient (Eq. 2 and 3; Sec. 3.3, second half).

    min over alpha in [0, 1] of  L_CLS(theta*(alpha)),  theta*(alpha) in argmin over theta of L_Total   (Eq. 2)

    d L_CLS / d alpha = - [d2 L_Total / d alpha d theta] [d2 L_Total / d theta2]^-1 [d L_CLS / d theta]  (Eq. 3)

paper                         here
d L_CLS / d theta             v, from the outer batches
d2 L_Total / d alpha d theta  c = grad L_MM - grad L_CLS, because L_Total is linear in alpha
d2 L_Total / d theta2         H, never formed: only products H u, each one more backward pass
[16], Ghadimi and Wang        SOLVERS: the number c^T H^-1 v from a few products H u
Eq. 3                         hypergradient = - c^T H^-1 v

Three batches. Eq. 3 is a product of three means over the data. From one shared batch, v and c have the same noise,
c contains -v, and E[-c^T H^-1 v] is too large by about the variance of v: alpha falls because the batch is small.
As in [16], v, c and H each have batches of their own here, which makes the errors of v and c cancel in the mean.

What to expect. At an inner optimum grad L_Total = 0, so c = -v / alpha there, and Eq. 3 reads
v^T H^-1 v / alpha > 0 for a positive definite H: while both levels of Eq. 2 see the same loss on the same data,
alpha can only fall. Away from the optimum Eq. 3 can have either sign: K terms of the series tell how L_CLS answers
to alpha within the next few steps of training, not what alpha is best after many epochs.
"""

import math
from contextlib import contextmanager

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from losses import total_loss


def dot(a, b):
    """<a, b> over two lists of tensors of the same shapes -> float."""
    return sum((x * y).sum() for x, y in zip(a, b)).item()


def lanczos(product, v, c, n):
    """H as n products see it from v: (T, a), so that c^T p(H) v = a^T p(T) e_1 for any polynomial p of degree <= n.

    T (n + 1, n + 1) is tridiagonal, a (n + 1,), both float64. The eigenvalues of T[:n, :n] (Ritz values) estimate the
    extreme ones of H. T[n, n] would cost another product; no such p depends on it, and it is 0. Where the products
    of v span no more than k dimensions, T is (k, k) and holds for every p.
    """
    T, a = torch.zeros(n + 1, n + 1, dtype=torch.float64), torch.zeros(n + 1, dtype=torch.float64)
    size, beta = math.sqrt(dot(v, v)), 0.0
    before, q = v, [v_i / (size or 1.0) for v_i in v]
    a[0] = dot(c, q) * size
    for k in range(n):
        h = product(q)
        T[k, k] = dot(h, q)
        h = [h_i - T[k, k].item() * q_i - beta * b_i for h_i, q_i, b_i in zip(h, q, before)]
        beta = math.sqrt(dot(h, h))
        if beta <= 1e-12 * T.abs().max():
            return T[: k + 1, : k + 1], a[: k + 1]
        before, q = q, [h_i / beta for h_i in h]
        T[k, k + 1] = T[k + 1, k] = beta
        a[k + 1] = dot(c, q) * size
    return T, a


def curvature(T, n):
    """(smallest, largest) Ritz value of the projection T that n products gave; nan where there is none."""
    if n == 0 or not T.isfinite().all():
        return math.nan, math.nan
    ritz = torch.linalg.eigvalsh(T[:n, :n])
    return ritz[0].item(), ritz[-1].item()


def safe_step(smallest, largest):
    """(step, damping) that keep the eigenvalues of I - step (H + damping I) within [0, 1], as far as they were seen.

    The damping takes negative curvature away: it belongs to an inner problem with damping / 2 |theta - theta_t|^2
    added, which is convex near theta_t. nan where no curvature was seen at all.
    """
    damping = max(0.0, -smallest)
    scale = max(0.0, largest) + damping
    return (1 / scale if scale else math.nan), damping


def neumann(product, v, c, terms, step=None, generator=None):
    """c^T H^-1 v ~ step * sum_{k=0}^{terms-1} c^T (I - step (H + damping I))^k v: the mean of [16]'s estimator.

    Costs terms - 1 products. They also show the curvature, from which step and damping follow (for this, one term
    costs a product too); a step that is given is taken as it is, undamped. The sum is taken with T in the place of H:
    the same number, see lanczos.
    """
    n = terms - 1 if step else max(1, terms - 1)
    T, a = lanczos(product, v, c, n)
    smallest, largest = curvature(T, n)
    step, damping = (step, 0.0) if step else safe_step(smallest, largest)
    u, total = torch.eye(len(a), dtype=a.dtype)[0], 0.0  # e_1, which stands for v
    for _ in range(terms):
        total += (a @ u).item()
        u = u - step * (T @ u + damping * u)
    return step * total, {"terms": terms, "step": step, "damping": damping, "curvature": [smallest, largest]}


def randomised(product, v, c, terms, step=None, generator=None):
    """c^T H^-1 v ~ step * terms * c^T prod_{i=1}^{p} (I - step (H_i + damping I)) v, p uniform in 0..terms-1: [16].

    Each H_i is of a fresh batch, as [16] prints it. Its mean is the series of `neumann` for the mean of the H_i, its
    spread several times that. Step and damping follow from terms - 1 products of one further batch.
    """
    n = 0 if step else max(1, terms - 1)
    smallest, largest = curvature(lanczos(product, v, c, n)[0], n)
    step, damping = (step, 0.0) if step else safe_step(smallest, largest)
    p, u = int(torch.randint(terms, (), generator=generator)), v
    for _ in range(p):
        u = [u_i - step * (h_i + damping * u_i) for u_i, h_i in zip(u, product(u, fresh=True))]
    report = {"terms": p + 1, "step": step, "damping": damping, "curvature": [smallest, largest]}
    return step * terms * dot(c, u), report


def conjugate_gradient(product, v, c, terms, step=None, generator=None):
    """c^T x with x from `terms` iterations of conjugate gradient on H x = v: to check the others against.

    Costs terms products. Its k-th iterate, in the space that lanczos spans, is T_k^-1 e_1. It needs H > 0: it ends
    with the last iterate before a direction of negative or no curvature, or with nan where that is the first.
    """
    T, a = lanczos(product, v, c, terms)
    n = min(terms, len(a))
    smallest, largest = curvature(T, n)
    k = next((k for k in range(n, 0, -1) if curvature(T, k)[0] > 0), 0)
    value = (a[:k] @ torch.linalg.inv(T[:k, :k])[:, 0]).item() if k else math.nan
    return value, {"terms": k, "step": None, "damping": 0.0, "curvature": [smallest, largest]}


# Each is called alike, solver(product, v, c, terms, step, generator), takes of that what it needs, and returns
# (c^T H^-1 v, report): what the log is to tell of it, among it the terms or iterations in the value.
SOLVERS = {"neumann": neumann, "randomised": randomised, "cg": conjugate_gradient}

# --- exercise: change below ---
# A solver of your own, which becomes a --solver name by its entry, SOLVERS["mine"] = mine.
# --- end ---


def grad(loss, params, **options):
    """d loss / d params as a list of tensors; zeros where the loss does not contain a parameter."""
    return torch.autograd.grad(loss, params, materialize_grads=True, **options)


def mean_gradient(loss, params, draws):
    """The mean of d loss() / d params over so many calls of loss, each of which draws a batch."""
    total = grad(loss(), params)
    for _ in range(draws - 1):
        total = [t + g for t, g in zip(total, grad(loss(), params))]
    return [t / draws for t in total]


def total_gradient(l_cls, l_mm, alpha, params):
    """grad_theta L_Total, with the graph that lets it be differentiated again."""
    return grad(total_loss(l_cls, l_mm, alpha), params, create_graph=True)


def hessian_product(g, params, u):
    """H u = grad_theta <grad_theta L_Total, u>, from g = total_gradient(...)."""
    return grad(sum((g_i * u_i).sum() for g_i, u_i in zip(g, u)), params, retain_graph=True)


@contextmanager
def evaluating(model, batch_statistics=False):
    """Inside, every module of the model is in eval mode; afterwards each in its own mode again.

    batch_statistics: batch norm normalises with the batch's mean and variance, as in training, and updates nothing.
    """
    modes = {module: module.training for module in model.modules()}
    tracked = {norm: norm.track_running_stats for norm in modes if isinstance(norm, _BatchNorm)}
    model.eval()
    for norm in tracked if batch_statistics else ():
        norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for norm, track in tracked.items():
            norm.track_running_stats = track


def hypergradient(outer, inner, params, alpha, solver="neumann", terms=5, step=None, damping=0.0, draws=1,
                  generator=None):  # fmt: skip
    """d L_CLS(theta*(alpha)) / d alpha = - c^T H^-1 v (Eq. 3), and a report of how it was found.

    outer: called without arguments, gives L_CLS of a fresh batch of the outer level: v is the mean of `draws` of them.
    inner: called without arguments, gives (L_CLS, L_MM) of a fresh batch of the inner level: c is the mean of `draws`
        of them, H is that of one more, or for `randomised` of one more for each product.
    params: theta, a list of tensors. alpha: float in [0, 1].
    solver, terms, step: which of SOLVERS, its number of terms, and the step of its series; None lets it follow from
        the curvature that the products show.
    damping: added to the diagonal of H. The optimiser's weight decay belongs here: it is part of the inner problem.

    Returns (value, report): the value is a float, or None where it is not finite; the report has `terms`, `step`,
    `damping` (beyond the one given), `curvature` (smallest, largest seen), `note` (empty if all is well).
    params and their .grad are left as they were; evaluating(model) around the call keeps the buffers too.
    """
    params = list(params)

    def mixed():
        l_cls, l_mm = inner()
        return l_mm - l_cls  # d L_Total / d alpha

    v = mean_gradient(outer, params, draws)
    c = mean_gradient(mixed, params, draws)
    g = total_gradient(*inner(), alpha, params)

    def product(u, fresh=False):
        """(H + damping I) u; fresh: with the H of a fresh batch."""
        h = hessian_product(total_gradient(*inner(), alpha, params) if fresh else g, params, u)
        return [h_i + damping * u_i for h_i, u_i in zip(h, u)]

    inverse, report = SOLVERS[solver](product, v, c, terms, step, generator)
    if not math.isfinite(inverse):
        return None, report | {"note": f"refused: the {solver} estimate is not finite"}
    return -inverse, report | {"note": ""}
