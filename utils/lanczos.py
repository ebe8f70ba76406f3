"""A few products with a symmetric matrix H, put to all their uses (Lanczos).

n products from a vector v give a small tridiagonal T that stands for H wherever only the first n
powers of H matter: the terms of a series, an iterate of conjugate gradient, the extreme
eigenvalues. Vectors are lists of tensors; product(u) returns H u.
"""

import math

import torch


def dot(a, b):
    """<a, b> over two lists of tensors of the same shapes -> float."""
    return sum((x * y).sum() for x, y in zip(a, b)).item()


def lanczos(product, v, c, n):
    """(T, a) with c^T p(H) v = a^T p(T) e_1 for every polynomial p up to degree n, from n products.

    T (n + 1, n + 1) is tridiagonal, a (n + 1,); both are float64. T[n, n] would cost one more
    product; it is 0, and no such p depends on it. If v spans only k <= n dimensions, T is (k, k),
    and the equality holds for every p.
    """
    T = torch.zeros(n + 1, n + 1, dtype=torch.float64)
    a = torch.zeros(n + 1, dtype=torch.float64)
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
    """(smallest, largest) eigenvalue of T[:n, :n], which estimate those of H; nan for n = 0."""
    if n == 0 or not T.isfinite().all():
        return math.nan, math.nan
    ritz = torch.linalg.eigvalsh(T[:n, :n]).tolist()
    return ritz[0], ritz[-1]


def safe_step(T, n, step):
    """A report with the step and damping that put I - step (H + damping I) between 0 and I.

    The damping cancels negative curvature: Eq. 3 is then that of the inner problem with the
    proximal term damping / 2 |theta - theta_t|^2. A step that you give is used as it is, without
    damping.
    """
    smallest, largest = curvature(T, n)
    damping = 0.0 if step else max(0.0, -smallest)
    scale = max(0.0, largest) + damping
    step = step or (1 / scale if scale else math.nan)
    return {"step": step, "damping": damping, "curvature": [smallest, largest]}
