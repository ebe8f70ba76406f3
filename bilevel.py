"""The learned alpha: the bilevel problem's hypergradient (Eq. 2 and 3; second half of Sec. 3.3).

    Eq. 2: min over alpha in [0, 1] of L_CLS(theta*(alpha)), theta*(alpha) in argmin of L_Total
    Eq. 3: d L_CLS / d alpha =
           - [d2 L_Total / d alpha d theta] [d2 L_Total / d theta2]^-1 [d L_CLS / d theta]

paper                         here
d L_CLS / d theta             v, from batches of the outer level
d2 L_Total / d alpha d theta  c = grad L_MM - grad L_CLS, because L_Total is linear in alpha
d2 L_Total / d theta2         H, never formed: only products H u (hvp)
[16], Ghadimi and Wang        SOLVERS: the number c^T H^-1 v from a few products
Eq. 3                         hypergradient: - c^T H^-1 v

Three batches. Eq. 3 multiplies three means over the data. If one batch gives all three, its noise n
is in v and, as -n, in c. This adds n^T H^-1 n, which is positive for H > 0, and alpha falls. As in
[16], v, c and H have batches of their own here, so that the noise of v and c averages out.

What to expect. At an optimum of the inner problem grad L_Total = 0 (without weight decay), so
c = -v / alpha, and Eq. 3 is v^T H^-1 v / alpha > 0 for H > 0: alpha can only fall while both levels
see the same data. Elsewhere Eq. 3 can have either sign. The first K terms of its series say how
L_CLS responds to alpha within K steps if v, c and H stay as they are (see docs/EQ3.md).
"""

import functools
import math

import torch

from losses import total_loss
from utils.lanczos import curvature, dot, lanczos, step_and_damping


def neumann(product, v, c, terms, step=None, rng=None):
    """c^T H^-1 v ~ step * sum_{k=0}^{terms-1} c^T (I - step (H + damping I))^k v.

    This is the mean of randomised over p, for one H. It costs terms - 1 products. A given step is
    used without damping. If none is given, the products (at least one) first give step and damping.
    The sum then has lanczos's T (not Alg. 1's T) in place of H and a in place of c, which gives the
    same value.
    """
    if step:
        u, total = v, dot(c, v)
        for _ in range(terms - 1):
            u = [torch.sub(u_i, h_i, alpha=step) for u_i, h_i in zip(u, product(u))]
            total += dot(c, u)
        return step * total, step_and_damping(step=step) | {"terms": terms}
    n = max(1, terms - 1)
    T, a = lanczos(product, v, c, n)
    report = step_and_damping(T, n)
    step, damping = report["step"], report["damping"]
    u, total = torch.eye(len(a), dtype=a.dtype)[0], 0.0  # u starts as e_1, the image of v
    for _ in range(terms):
        total += (a @ u).item()
        u = u - step * (T @ u + damping * u)
    return step * total, report | {"terms": terms}


def randomised(product, v, c, terms, step=None, rng=None):
    """c^T H^-1 v ~ step * terms * c^T prod_{i=1}^{p} (I - step (H_i + damping I)) v.

    This is [16] as printed: p is uniform in 0..terms-1, each H_i is of a fresh batch. Its mean, for
    a fixed step and damping, is the series of neumann with the mean H; its spread is several times
    larger. Unless step is given, terms - 1 products (at least 1) of one more batch choose both.
    """
    n = 0 if step else max(1, terms - 1)
    T, _ = lanczos(product, [v_i.clone() for v_i in v], c, n)
    report = step_and_damping(T, n, step)
    step, damping = report["step"], report["damping"]
    p, u = int(torch.randint(terms, (), generator=rng)), v
    for _ in range(p):
        h = product(u, fresh=True)
        u = [u_i - step * (h_i + damping * u_i) for u_i, h_i in zip(u, h)]
    return step * terms * dot(c, u), report | {"terms": p + 1}


def conjugate_gradient(product, v, c, terms, step=None, rng=None):
    """c^T x, x from `terms` iterations of conjugate gradient on H x = v: a check for the others.

    It costs terms products; the k-th value is a_k^T T_k^-1 e_1, see lanczos. It needs H > 0: before
    a direction of negative or zero curvature it stops, with nan if that is the first direction.
    """
    T, a = lanczos(product, v, c, terms)
    n = min(terms, len(a))
    k = next((k for k in range(n, 0, -1) if curvature(T, k)[0] > 0), 0)
    value = (a[:k] @ torch.linalg.inv(T[:k, :k])[:, 0]).item() if k else math.nan
    return value, {"terms": k, "step": None, "damping": 0.0, "curvature": list(curvature(T, n))}


# All solvers have one signature and ignore what they do not use; they return (c^T H^-1 v, report).
SOLVERS = {"neumann": neumann, "randomised": randomised, "cg": conjugate_gradient}

# --- exercise: change below ---
# SOLVERS["mine"] = mine makes your own solver a --solver name.
# --- end ---


def grad(loss, params, **options):
    """d loss / d params, a list of tensors; zeros for a parameter that is not in the loss.

    With tensors `loss` and grad_outputs=u it is d <loss, u> / d params.
    """
    return torch.autograd.grad(loss, params, materialize_grads=True, **options)


def mean_gradient(loss, params, draws):
    """The mean gradient over `draws` calls of loss, each of which draws a batch."""
    total = grad(loss(), params)
    for _ in range(draws - 1):
        total = [total_i + g_i for total_i, g_i in zip(total, grad(loss(), params))]
    return [total_i / draws for total_i in total]


def total_gradient(l_cls, l_mm, alpha, params):
    """grad_theta L_Total, with the graph that lets it be differentiated again."""
    return grad(total_loss(l_cls, l_mm, alpha), params, create_graph=True)


def hvp(g, params, u):
    """The Hessian-vector product H u = grad_theta <g, u>, for g = total_gradient(...)."""
    g, u = zip(*(pair for pair in zip(g, u) if pair[0].requires_grad))  # the others are constant
    return grad(g, params, grad_outputs=u, retain_graph=True)


def hypergradient(
    outer, inner, params, alpha, solver="neumann", terms=5, step=None, decay=0, draws=1, rng=None
):
    """d L_CLS(theta*(alpha)) / d alpha = - c^T H^-1 v (Eq. 3), and a report of how it was found.

    outer: a function that returns L_CLS of a fresh batch of the outer level; v is the mean gradient
        over `draws` of them.
    inner: a function that returns (L_CLS, L_MM) of a fresh batch of the inner level; c is the mean
        over `draws` of them, H is that of one more (`randomised`: one more for each product).
    params: theta; tensors that do not require grad are left out. alpha: float in [0, 1].
    solver, terms, step: a name in SOLVERS and its arguments; step None: chosen by the curvature.
    decay: the optimizer's weight decay; it belongs to the inner problem, so H means H + decay I.

    Returns (value, report): the value is a float, or None where it is not finite; the report has
    the solver's `terms`, `step`, `damping`, `curvature` (smallest, largest; nan: not estimated) and
    `note`, empty if all is well. params and their .grad stay as they are; utils.modes.eval_mode
    protects a model's buffers.
    """
    params = [p for p in params if p.requires_grad]

    def d_alpha():
        l_cls, l_mm = inner()
        return l_mm - l_cls  # d L_Total / d alpha

    v = mean_gradient(outer, params, draws)
    c = mean_gradient(d_alpha, params, draws)

    @functools.cache
    def g():  # only if a solver asks for a product with the one H
        return total_gradient(*inner(), alpha, params)

    def product(u, fresh=False):
        """(H + decay I) u; fresh: with the H of a fresh batch."""
        h = hvp(total_gradient(*inner(), alpha, params) if fresh else g(), params, u)
        # In u's layout: convolutions return another one, which slows down the arithmetic on h.
        layout = [torch.empty_like(u_i) for u_i in u]
        return [torch.add(h_i, u_i, alpha=decay, out=o) for h_i, u_i, o in zip(h, u, layout)]

    value, report = SOLVERS[solver](product, v, c, terms, step, rng)  # c^T H^-1 v
    if not math.isfinite(value):
        return None, report | {"note": f"refused: the {solver} estimate is not finite"}
    return -value, report | {"note": ""}
