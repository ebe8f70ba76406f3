"""Lanczos: n products with a symmetric matrix H give a small tridiagonal matrix that replaces H.

It finds the step of the solvers in bilevel.py, and is a quick solver itself. Starting from a vector
v, the small matrix gives the same numbers as H where only v, H v, ..., H^n v matter: the terms of a
series. Its eigenvalues (Ritz values) estimate the extreme ones of H, from inside. Vectors are lists
of tensors; hvp(u) returns H u in new tensors.
"""

import math

import torch


def dot(a, b):
    """<a, b> over two lists of tensors of the same shapes -> float."""
    return sum(torch.dot(x.flatten(), y.flatten()) for x, y in zip(a, b)).item()


def tridiagonal(hvp, v, c, n):
    """(T, a) with c^T p(H) v = a^T p(T) e_1 for every polynomial p up to degree n, from n products.

    T (n + 1, n + 1) is tridiagonal, a (n + 1,); both are float64. T[n, n] would cost one more
    product; it is 0, and no such p depends on it. If v, H v, ... span only k <= n dimensions, T is
    (k, k), and the equality holds for every p (in float32, rounding hides this and T stays larger).
    """
    T = torch.zeros(n + 1, n + 1, dtype=torch.float64)
    a = torch.zeros(n + 1, dtype=torch.float64)
    size, beta = math.sqrt(dot(v, v)), 0.0
    before, q = v, [v_i / (size or 1.0) for v_i in v]
    a[0] = dot(c, q) * size
    for k in range(n):
        # In q's memory layout: convolutions leave H q in another one, in which all below is slower.
        h = [torch.empty_like(q_i).copy_(h_i) for q_i, h_i in zip(q, hvp(q))]
        T[k, k] = dot(h, q)
        for h_i, q_i, b_i in zip(h, q, before):
            h_i.sub_(q_i, alpha=T[k, k].item()).sub_(b_i, alpha=beta)
        beta = math.sqrt(dot(h, h))
        if beta <= 1e-12 * T.abs().max():
            return T[: k + 1, : k + 1], a[: k + 1]
        before, q = q, [h_i.div_(beta) for h_i in h]
        T[k, k + 1] = T[k + 1, k] = beta
        a[k + 1] = dot(c, q) * size
    return T, a


def curvature(T, n):
    """[smallest, largest] eigenvalue of T[:n, :n], within the spectrum of H; nan if T is nan."""
    if not T.isfinite().all():
        return [math.nan, math.nan]
    ritz = torch.linalg.eigvalsh(T[:n, :n]).tolist()
    return [ritz[0], ritz[-1]]


def stable(smallest, largest):
    """(step, damping) that put I - step (H + damping I) between 0 and I, for this curvature of H.

    damping = max(0, -smallest), step = 1 / (largest + damping). The damping cancels the negative
    curvature: Eq. 3 is then that of the inner problem with the proximal term
    damping / 2 |theta - theta_t|^2.
    """
    damping = max(0.0, -smallest)
    scale = max(0.0, largest) + damping
    return (1 / scale if scale else math.nan), damping


def step_and_damping(hvp, v, n):
    """(step, damping, curvature) for a series in I - step (H + damping I) that starts from v.

    They follow from the curvature that n products show. H can have eigenvalues outside of it, so
    that for a small n the series can still grow.
    """
    T, _ = tridiagonal(hvp, v, v, n)
    found = curvature(T, n)
    return *stable(*found), found


def lanczos(hvp, v, c, terms, step=None, damping=0.0, **_):
    """A solver of bilevel.py: neumann's value, from the products that step_and_damping takes alone.

    The sum is over powers of T in place of H, with a in place of c, and e_1 in place of v.
    """
    n = max(1, terms - 1)
    T, a = tridiagonal(hvp, v, c, n)
    found = curvature(T, n)
    if step is None:
        step, damping = stable(*found)
    u, total = torch.eye(len(a), dtype=a.dtype)[0], 0.0
    for _ in range(terms):
        total += (a @ u).item()
        u = u - step * (T @ u + damping * u)
    return step * total, {"step": step, "damping": damping, "curvature": found}
