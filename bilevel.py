"""The learned alpha: the bilevel problem's hypergradient (Eq. 2 and 3; second half of Sec. 3.3).

    Eq. 2: min over alpha in [0, 1] of L_CLS(theta*(alpha)), theta*(alpha) in argmin of L_Total
    Eq. 3: d L_CLS / d alpha =
           - [d2 L_Total / d alpha d theta] [d2 L_Total / d theta2]^-1 [d L_CLS / d theta]

paper                         here
d L_CLS / d theta             v, from batches of the outer level
d2 L_Total / d alpha d theta  c = grad L_MM - grad L_CLS, because L_Total is linear in alpha
d2 L_Total / d theta2         H, never formed: only products H u (hvp)
[16], Ghadimi and Wang        SOLVERS: c^T H^-1 v; default: lanczos, the value of neumann
Eq. 3                         hypergradient: - c^T H^-1 v

Three batches. Eq. 3 multiplies three means over the data. If one batch gives all three, its noise e
is in v and, as -e, in c. This adds e^T H^-1 e, which is positive for H > 0, and alpha falls. As in
[16], v, c and H have batches of their own here, so that the noise of v and c averages out.

What to expect. At an optimum of the inner problem grad L_Total = 0 (without weight decay), so
c = -v / alpha, and Eq. 3 is v^T H^-1 v / alpha > 0 for H > 0: alpha can only fall while both levels
see the same data. Elsewhere either sign is possible. K terms of neumann say how L_CLS responds to
alpha in K plain gradient steps of size `step`, if v, c and H stay as they are.
"""

import math

import torch

from losses import total_loss
from utils.lanczos import dot, lanczos, step_and_damping


def times_factor(hvp, u, step, damping):
    """(I - step (H + damping I)) u."""
    return [u_i - step * (h_i + damping * u_i) for u_i, h_i in zip(u, hvp(u))]


def neumann(hvp, v, c, terms, step, damping, **_):
    """c^T (H + damping I)^-1 v ~ step * sum_{k=0}^{terms-1} c^T (I - step (H + damping I))^k v.

    This is the mean of randomised over p, for one H. It costs terms - 1 products.
    """
    u, total = v, dot(c, v)
    for _ in range(terms - 1):
        u = times_factor(hvp, u, step, damping)
        total += dot(c, u)
    return step * total, {}


def randomised(hvp, v, c, terms, step, damping, fresh_hvp, rng):
    """c^T H^-1 v ~ step * terms * c^T prod_{i=1}^{p} (I - step (H_i + damping I)) v.

    This is [16], but for the damping: p is uniform in 0..terms-1, each H_i is of a fresh batch. Its
    mean is the series of neumann with the mean H; its spread is several times larger.
    """
    p = int(torch.randint(terms, (), generator=rng))
    u = v
    for _ in range(p):
        u = times_factor(fresh_hvp(), u, step, damping)
    return step * terms * dot(c, u), {"terms": p + 1}  # p products


def conjugate_gradient(hvp, v, c, terms, step, damping, **_):
    """c^T x, x from `terms` iterations of conjugate gradient on H x = v: a check for the others.

    It costs terms products. It stops at the first direction of curvature <= 0; nan if that is p_1.
    """
    total, used, curvature = 0.0, 0, []
    r, p, rr = v, v, dot(v, v)
    while used < terms and rr > 0:
        h = hvp(p)
        pHp = dot(p, h)
        curvature.append(pHp / dot(p, p))
        if pHp <= 0:
            break
        length = rr / pHp
        total += length * dot(c, p)  # c^T x, for x + length p
        r = [r_i - length * h_i for r_i, h_i in zip(r, h)]
        rr, before = dot(r, r), rr
        beta = rr / before
        p = [r_i + beta * p_i for r_i, p_i in zip(r, p)]
        used += 1
    extremes = [min(curvature, default=math.nan), max(curvature, default=math.nan)]
    return total if used else math.nan, {"terms": used, "curvature": extremes}


# A solver is a function (hvp, v, c, terms, step, damping, fresh_hvp, rng) -> (c^T H^-1 v, report).
# hvp(u) is H u, fresh_hvp() the hvp of another batch, rng a torch.Generator; **_ takes the last two
# where they are not used. report: entries that replace those of hypergradient's.
SOLVERS = {"neumann": neumann, "randomised": randomised, "cg": conjugate_gradient}
SOLVERS["lanczos"] = lanczos  # the value of neumann from half the products
NEED_NO_STEP = ["lanczos", "cg"]  # lanczos finds its own step, cg takes none

# --- exercise: change below ---
# SOLVERS["mine"] = mine makes your own solver a --solver name.
# --- end ---


def grad(loss, params, **options):
    """d loss / d params, a list of tensors; zeros for a parameter that is not in the loss.

    loss may be a list of tensors; with grad_outputs=u it is then d <loss, u> / d params.
    """
    return torch.autograd.grad(loss, params, materialize_grads=True, **options)


def mean_gradient(loss, params, draws):
    """The mean gradient over `draws` calls of loss, each of which draws a batch."""
    total = grad(loss(), params)
    for _ in range(draws - 1):
        total = [total_i + g_i for total_i, g_i in zip(total, grad(loss(), params))]
    return [total_i / draws for total_i in total]


def make_hvp(l_cls, l_mm, alpha, params, decay=0):
    """hvp: u -> (H + decay I) u = grad_theta <grad_theta L_Total, u> + decay u, of one batch."""
    g = grad(total_loss(l_cls, l_mm, alpha), params, create_graph=True)
    used = [i for i, g_i in enumerate(g) if g_i.requires_grad]  # the others are constant

    def hvp(u):
        u_used = [u[i] for i in used]
        h = grad([g[i] for i in used], params, grad_outputs=u_used, retain_graph=True)
        return [h_i.add(u_i, alpha=decay) for h_i, u_i in zip(h, u)]

    return hvp


def hypergradient(
    outer, inner, params, alpha, solver="lanczos", terms=5, step=None, decay=0, draws=1, rng=None
):
    """d L_CLS(theta*(alpha)) / d alpha = - c^T H^-1 v (Eq. 3), and a report of how it was found.

    outer: a function that returns L_CLS of a fresh batch of the outer level; v is the mean gradient
        over `draws` of them.
    inner: a function that returns (L_CLS, L_MM) of a fresh batch of the inner level; c is the mean
        over `draws` of them, H is that of one more (`randomised`: one more for each product).
    params: theta; tensors that do not require grad are left out. alpha: float in [0, 1].
    solver: a name in SOLVERS. step: used without damping; None: step and damping are found from H.
    decay: the optimizer's weight decay, a part of Eq. 2's inner problem: H means H + decay I.

    Returns (value, report): the value is a float, or None where it is not finite; the report has
    the solver's `terms`, `step`, `damping`, `curvature` (smallest, largest; nan: not known) and
    `note`, empty if all is well. params and their .grad stay; eval_mode protects a model's buffers.
    """
    params = [p for p in params if p.requires_grad]

    def d_alpha():
        l_cls, l_mm = inner()
        return l_mm - l_cls  # d L_Total / d alpha

    def fresh_hvp():
        return make_hvp(*inner(), alpha, params, decay)

    v = mean_gradient(outer, params, draws)
    c = mean_gradient(d_alpha, params, draws)
    hvp = fresh_hvp()
    damping, curvature = 0.0, [math.nan, math.nan]
    if step is None and solver not in NEED_NO_STEP:  # from as many products as the series takes
        step, damping, curvature = step_and_damping(hvp, v, max(1, terms - 1))
    value, own = SOLVERS[solver](hvp, v, c, terms, step, damping, fresh_hvp=fresh_hvp, rng=rng)
    report = {"terms": terms, "step": step, "damping": damping, "curvature": curvature, **own}
    if not math.isfinite(value):
        return None, report | {"note": f"refused: the {solver} estimate is not finite"}
    return -value, report | {"note": ""}
