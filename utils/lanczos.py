"""Lanczos: n products with a symmetric matrix H give a small tridiagonal T that replaces H.

Starting from a vector v, T gives the same numbers as H where only v, H v, ..., H^n v matter: the
terms of a series, an iterate of conjugate gradient. Its eigenvalues (Ritz values) estimate the
extreme ones of H, from inside. Vectors are lists of tensors; product(u) returns H u in new tensors.
To hold one vector less, lanczos overwrites these and v; c must be in memory of its own.
"""

import math

import torch


def dot(a, b):
    """<a, b> over two lists of tensors of the same shapes -> float."""
    return sum(torch.dot(x.flatten(), y.flatten()) for x, y in zip(a, b)).item()


def lanczos(product, v, c, n):
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
        h = product(q)
        T[k, k] = dot(h, q)
        for h_i, q_i, b_i in zip(h, q, before):
            h_i.sub_(q_i, alpha=T[k, k].item()).sub_(b_i, alpha=beta)
        beta = math.sqrt(dot(h, h))
        if beta <= 1e-12 * T.abs().max():
            return T[: k + 1, : k + 1], a[: k + 1]
        before, q = q, [torch.div(h_i, beta, out=b_i) for h_i, b_i in zip(h, before)]
        del h  # before the next product, which takes the most memory
        T[k, k + 1] = T[k + 1, k] = beta
        a[k + 1] = dot(c, q) * size
    return T, a


def curvature(T, n):
    """Smallest and largest eigenvalue of T[:n, :n], inside the spectrum of H; nan for n = 0."""
    if n == 0 or not T.isfinite().all():
        return math.nan, math.nan
    ritz = torch.linalg.eigvalsh(T[:n, :n]).tolist()
    return ritz[0], ritz[-1]


def step_and_damping(T=None, n=0, step=None):
    """A report: the step and damping that put I - step (T_n + damping I) between 0 and I.

    T_n is T[:n, :n]. H itself can have eigenvalues outside those of T_n, so that for a small n a
    series in I - step (H + damping I) can still grow. The damping cancels the negative curvature of
    T_n: Eq. 3 is then that of the inner problem with the proximal term
    damping / 2 |theta - theta_t|^2. A given step is used as it is, without damping; it needs no T.
    """
    smallest, largest = curvature(T, n)
    damping = 0.0 if step else max(0.0, -smallest)
    scale = max(0.0, largest) + damping
    step = step or (1 / scale if scale else math.nan)
    return {"step": step, "damping": damping, "curvature": [smallest, largest]}
