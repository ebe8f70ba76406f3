"""bilevel.py and utils/lanczos.py against numbers by hand, closed forms, dense Hessians and finite
differences.

The quadratics couple their two tensors, so that a Hessian taken tensor by tensor is wrong here.
"""

import functools
import math

import pytest
import torch

import bilevel
from bilevel import SOLVERS, grad, hypergradient, make_hvp
from losses import classification_loss, modality_matching_loss, total_loss
from model import MultimodalModel
from utils.lanczos import dot, stable, tridiagonal
from utils.modules import eval_mode

ALPHAS = [0.05, 0.35, 0.95]
EYE = torch.eye(9, dtype=torch.float64)


BY_HAND = [("neumann", 1, 4.2), ("neumann", 2, 6.3), ("neumann", 3, 7.35), ("lanczos", 3, 7.35)]
BY_HAND += [("randomised", 1, 4.2), ("cg", 1, 8.4)]


@pytest.mark.parametrize("solver, terms, expected", BY_HAND)
def test_eq_3_by_hand(solver, terms, expected):
    """v = 3, c = -7, H = 2.5 at theta = 2: 8.4; of step 0.2, K terms are 4.2, 6.3 and 7.35."""
    theta = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)

    def losses():
        return 1.5 * ((theta - 1) ** 2).sum(), ((theta - 4) ** 2).sum()

    value, report = hypergradient(lambda: losses()[0], losses, [theta], 0.5, solver, terms, 0.2)
    assert value == pytest.approx(expected)
    assert report["terms"] == terms and report["note"] == ""


def normal(*shape, seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def with_eigenvalues(eigenvalues, seed):
    """A dense symmetric matrix with these eigenvalues."""
    q, _ = torch.linalg.qr(normal(len(eigenvalues), len(eigenvalues), seed=seed))
    return q @ torch.diag(torch.as_tensor(eigenvalues, dtype=torch.float64)) @ q.T


def flat(tensors):
    return torch.cat([x.detach().flatten() for x in tensors])


class Quadratic:
    """L_CLS = (theta-a)^T A (theta-a) / 2, L_MM = (theta-b)^T M (theta-b) / 2; theta: two coupled
    tensors, 9 numbers."""

    def __init__(self, dtype=torch.float64, A=None):
        """A: the Hessian of both losses, in place of two positive definite ones."""
        self.A = with_eigenvalues(torch.linspace(0.5, 3, 9), seed=1) if A is None else A
        self.M = with_eigenvalues(torch.linspace(4, 0.6, 9), seed=2) if A is None else A
        self.A, self.M = self.A.to(dtype), self.M.to(dtype)
        self.a, self.b = normal(9, seed=3, dtype=dtype), normal(9, seed=4, dtype=dtype)
        self.held_out = (self.a + self.b + normal(9, seed=5, dtype=dtype)) / 2
        shapes = (2, 3), (3,)
        self.params = [torch.zeros(shape, dtype=dtype, requires_grad=True) for shape in shapes]
        self.put(normal(9, seed=6, dtype=dtype))

    def put(self, theta):
        with torch.no_grad():
            self.params[0].copy_(theta[:6].view(2, 3))
            self.params[1].copy_(theta[6:])
        return self

    def theta(self):
        return torch.cat([p.flatten() for p in self.params])

    def losses(self):
        x, z = self.theta() - self.a, self.theta() - self.b
        return x @ self.A @ x / 2, z @ self.M @ z / 2

    def outer(self):
        """A held-out L_CLS, whose minimum is elsewhere."""
        x = self.theta() - self.held_out
        return x @ self.A @ x / 2

    def H(self, alpha):
        return (1 - alpha) * self.A + alpha * self.M

    def solve(self, alpha):
        """theta*(alpha), the exact inner minimum."""
        right = (1 - alpha) * self.A @ self.a + alpha * self.M @ self.b
        return torch.linalg.solve(self.H(alpha), right)

    def c_and_v(self):
        x = self.theta().detach()
        v = self.A @ (x - self.a)
        return self.M @ (x - self.b) - v, v


INDEFINITE = with_eigenvalues([-1, 0.5, 2] * 3, seed=7)


def eq_3(problem, alpha, outer=None, **options):
    """hypergradient of a problem that has losses() and params, and no batches: all factors see the
    same data."""
    outer = outer or (lambda: problem.losses()[0])
    return hypergradient(outer, problem.losses, problem.params, alpha, **options)


def ritz(H, v, n):
    """[smallest, largest] eigenvalue of H within the span of v, H v, ..., H^(n-1) v, by dense
    matrices."""
    basis = [v]
    for _ in range(n - 1):
        basis.append(H @ basis[-1])
    Q, _ = torch.linalg.qr(torch.stack([b / b.norm() for b in basis], 1))
    values = torch.linalg.eigvalsh(Q.T @ H @ Q).tolist()
    return [values[0], values[-1]]


def series(H, v, terms, step):
    """step * sum_k (I - step H)^k v, by dense powers."""
    A = torch.eye(len(H), dtype=H.dtype) - step * H
    return step * sum(torch.linalg.matrix_power(A, k) @ v for k in range(terms))


@pytest.mark.parametrize("terms", [1, 3, 50])
@pytest.mark.parametrize("where, alpha", [("anywhere", 0.95), ("anywhere", 0.0), ("optimum", 0.35)])
def test_neumann_is_its_closed_form(terms, where, alpha):
    """- step c^T sum_{k<K} (I - step H)^k v, at an inner optimum and elsewhere, in both formats."""
    for dtype, tolerance in [(torch.float64, 1e-12), (torch.float32, 1e-5)]:
        q = Quadratic(dtype)
        if where == "optimum":
            q.put(q.solve(alpha))
        value, _ = eq_3(q, alpha, solver="neumann", terms=terms, step=0.2)
        c, v = q.c_and_v()
        expected = -(c @ series(q.H(alpha), v, terms, 0.2)).item()
        scale = (c.norm() * v.norm()).item()
        assert value == pytest.approx(expected, rel=tolerance, abs=tolerance * scale)


@pytest.mark.parametrize("solver, terms, step", [("neumann", 300, 0.25), ("cg", 50, None)])
def test_long_series_and_cg_give_the_inverse(solver, terms, step):
    """They equal - c^T H^-1 v; also for a held-out outer loss."""
    q = Quadratic()
    c, v = q.c_and_v()
    held_out = q.A @ (q.theta().detach() - q.held_out)
    for outer, gradient in [(None, v), (q.outer, held_out)]:
        expected = (-c @ torch.linalg.solve(q.H(0.35), gradient)).item()
        value, _ = eq_3(q, 0.35, outer, solver=solver, terms=terms, step=step)
        assert value == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("terms", [1, 50])
def test_neumann_truncation_is_within_its_bound(terms):
    """At theta*, |error| <= |c| |v| / mu (1 - mu/L)^K with step 1/L."""
    q = Quadratic()
    q.put(q.solve(0.35))
    mu, *_, L = torch.linalg.eigvalsh(q.H(0.35)).tolist()
    c, v = q.c_and_v()
    exact = -c @ torch.linalg.solve(q.H(0.35), v)
    value, _ = eq_3(q, 0.35, solver="neumann", terms=terms, step=1 / L)
    error = abs(value - exact.item())
    assert 0 < error <= (c.norm() * v.norm()).item() / mu * (1 - mu / L) ** terms


@pytest.mark.parametrize("alpha", ALPHAS)
def test_hypergradient_is_the_derivative_of_the_solved_problem(alpha):
    """Central difference of L_CLS(theta*(alpha)), theta* solved anew on both sides."""
    q, eps = Quadratic(), 1e-5
    above = q.put(q.solve(alpha + eps)).losses()[0].item()
    below = q.put(q.solve(alpha - eps)).losses()[0].item()
    value, _ = eq_3(q.put(q.solve(alpha)), alpha, solver="cg", terms=9)
    assert value == pytest.approx((above - below) / (2 * eps), rel=1e-7)


class TwoTowers:
    """A small smooth multimodal net with InfoNCE, whose theta is four tensors and can be set from
    one vector."""

    shapes = [(4, 3), (4, 3), (3, 10), (3,)]

    def __init__(self, seed=0):
        self.x = [normal(24, 3, seed=seed), normal(24, 3, seed=seed + 1)]
        self.y = torch.arange(24) % 3
        starts = [0.5 * normal(*shape, seed=9 + i) for i, shape in enumerate(self.shapes)]
        self.params = [start.requires_grad_() for start in starts]

    def split(self, theta):
        parts = theta.split([math.prod(shape) for shape in self.shapes])
        return [p.view(shape) for p, shape in zip(parts, self.shapes)]

    def encode(self, x, w, affine):
        return torch.tanh(x @ w.T)

    def losses(self, params=None):
        W1, W2, W, b, *affine = params or self.params
        one = torch.ones(24, 1, dtype=torch.float64)  # keeps |z| from 0, where the cosine kinks
        pairs = zip(self.x, (W1, W2), (affine[::2], affine[1::2]))
        z = [torch.cat([self.encode(x, w, own), one], 1) for x, w, own in pairs]
        l_cls = classification_loss(torch.cat(z, 1) @ W.T + b, self.y)
        return l_cls, modality_matching_loss(z, 0.5)

    def total(self, theta, alpha, weight_decay=0.0):
        return total_loss(*self.losses(self.split(theta)), alpha) + weight_decay / 2 * theta @ theta

    def put(self, theta):
        for p, value in zip(self.params, self.split(theta)):
            p.data.copy_(value)

    def dense(self, alpha):
        """(H, c, v), H by torch's own Hessian of the flattened net."""
        theta = flat(self.params)
        one = [torch.func.grad(lambda x, i=i: self.losses(self.split(x))[i])(theta) for i in (0, 1)]
        return torch.func.hessian(lambda x: self.total(x, alpha))(theta), one[1] - one[0], one[0]

    def solve(self, theta, alpha, weight_decay):
        """The inner optimum near theta, by L-BFGS and then Newton's steps."""
        total = functools.partial(self.total, alpha=alpha, weight_decay=weight_decay)
        theta = theta.clone().requires_grad_()
        options = dict(tolerance_grad=1e-9, tolerance_change=0, history_size=40)
        optimizer = torch.optim.LBFGS(
            [theta], max_iter=1000, max_eval=2000, line_search_fn="strong_wolfe", **options
        )

        def closure():
            optimizer.zero_grad()
            loss = total(theta)
            loss.backward()
            return loss

        optimizer.step(closure)
        theta = theta.detach()
        gradient, hessian = torch.func.grad(total), torch.func.hessian(total)
        for _ in range(6):
            theta = theta - torch.linalg.solve(hessian(theta), gradient(theta))
        assert gradient(theta).norm() < 1e-12 and torch.linalg.eigvalsh(hessian(theta))[0] > 0
        return theta


class NormTowers(TwoTowers):
    """TwoTowers with batch norm behind each tanh, in the mode in which Eq. 3 has it: the batch's
    own statistics.

    A large eps keeps weight decay from shrinking the weights for ever, which batch norm would
    otherwise not notice.
    """

    shapes = [*TwoTowers.shapes, (4,), (4,), (4,), (4,)]

    def __init__(self, seed=0):
        super().__init__(seed)
        norms = (torch.nn.BatchNorm1d(4, eps=0.5, dtype=torch.float64) for _ in range(2))
        self.norms = torch.nn.ModuleList(norms)
        for scale in self.params[4:6]:
            scale.data += 1.0
        for norm in self.norms:  # running statistics that lag far behind
            norm.running_mean += 0.3
            norm.running_var *= 4

    def encode(self, x, w, affine):
        norm = self.norms[0 if x is self.x[0] else 1]
        weights = {"weight": affine[0], "bias": affine[1]}
        with eval_mode(self.norms, batch_statistics=True):
            return torch.func.functional_call(norm, weights, torch.tanh(x @ w.T))


@pytest.mark.parametrize("Net, alpha, decay", [(TwoTowers, 0.1, 1e-2), (NormTowers, 0.6, 3e-2)])
def test_hypergradient_of_a_net_is_the_derivative_of_the_solved_problem(Net, alpha, decay):
    """Weight decay is a part of the inner problem; batch norm has the batch's statistics, with
    which the inner problem is solved."""
    net, eps = Net(), 1e-5
    norms = [x.clone() for x in net.norms.state_dict().values()] if Net is NormTowers else []
    optimum = net.solve(flat(net.params), alpha, decay)
    sides = [net.solve(optimum, a, decay) for a in (alpha + eps, alpha - eps)]
    above, below = (net.losses(net.split(side))[0].item() for side in sides)
    net.put(optimum)
    value, report = eq_3(net, alpha, solver="cg", terms=400, decay=decay)
    assert value == pytest.approx((above - below) / (2 * eps), rel=1e-6) and report["note"] == ""
    assert all(map(torch.equal, norms, net.norms.state_dict().values() if norms else []))


@pytest.mark.parametrize("alpha", [0, 0.6, 1])
def test_hypergradient_of_a_net_equals_the_dense_hessian(alpha):
    """Five terms on an indefinite Hessian that damping makes positive, against dense matrices."""
    net = TwoTowers()
    H, c, v = net.dense(alpha)
    smallest, *_, largest = torch.linalg.eigvalsh(H).tolist()
    damping = max(0.0, -smallest)
    step = 1 / (largest + damping)
    expected = -c @ series(H + damping * torch.eye(len(H), dtype=H.dtype), v, 5, step)
    value, report = eq_3(net, alpha, solver="neumann", terms=5, step=step, decay=damping)
    assert smallest < 0 and value == pytest.approx(expected.item(), rel=1e-12)


def test_hvp_is_symmetric_and_spans_all_tensors():
    """u^T H w = w^T H u, and H w equals the dense product; weight decay adds decay w."""
    net = TwoTowers()
    u, w = ([normal(*s, seed=seed + i) for i, s in enumerate(net.shapes)] for seed in (20, 30))
    hvp, decayed = (make_hvp(*net.losses(), 0.6, net.params, decay) for decay in (0, 0.5))
    assert dot(u, hvp(w)) == pytest.approx(dot(w, hvp(u)), rel=1e-12)
    assert torch.allclose(flat(hvp(w)), net.dense(0.6)[0] @ flat(w), rtol=1e-11, atol=1e-13)
    assert torch.allclose(flat(decayed(w)), flat(hvp(w)) + 0.5 * flat(w), rtol=1e-12)


def test_lanczos_keeps_the_layout_of_its_vectors():
    """Also where autograd returns H u transposed in memory, as it does for convolutions."""
    q, seen = Quadratic(), []
    plain = make_hvp(*q.losses(), 0.35, q.params)

    def transposed(u):
        seen.append(u[0].is_contiguous())
        matrix, vector = plain(u)
        return [matrix.T.contiguous().T, vector]

    u = [normal(2, 3, seed=1), normal(3, seed=2)]
    found, expected = (tridiagonal(hvp, u, u, 3)[0] for hvp in (transposed, plain))
    assert torch.equal(found, expected) and seen == [True] * 3


def conv_net(dtype):
    """A model with batch norm whose statistics are settled, and its losses on a random batch."""
    torch.manual_seed(0)
    net = MultimodalModel([1, 2], 3).to(dtype)
    x = [normal(6, c, 16, 16, seed=c, dtype=dtype) for c in (1, 2)]
    y = torch.arange(6) % 3
    for _ in range(3):
        net(x)

    def losses():
        z, (logits,) = net(x)
        return classification_loss(logits, y), modality_matching_loss(z, 0.1)

    return net, losses


def test_float32_agrees_with_float64():
    """Through convolutions and batch norm, with the step and the damping found, to 1e-3."""
    values = []
    for dtype in (torch.float32, torch.float64):
        net, losses = conv_net(dtype)
        with eval_mode(net):
            outer = functools.partial(lambda f: f()[0], losses)
            values.append(hypergradient(outer, losses, net.parameters(), 0.6, terms=5)[0])
    assert values[0] == pytest.approx(values[1], rel=1e-3)


CURVED = [  # A, its number of distinct eigenvalues, terms, decay
    (None, 9, 1, 0),  # one product along v
    (None, 9, 9, 0),
    (INDEFINITE, 3, 3, 0),
    (INDEFINITE, 3, 200, 0),  # undamped, they would reach 1e30
    (INDEFINITE, 3, 200, 1.5),  # damped by hand: the solver adds nothing
    (-EYE, 1, 5, 0),  # flat when damped: the step is 1
    (with_eigenvalues([0.0, 1, 2] * 3, seed=7), 3, 30, 0),
]


@pytest.mark.parametrize("solver", ["neumann", "lanczos"])
@pytest.mark.parametrize("A, distinct, terms, decay", CURVED)
def test_step_and_damping_follow_the_curvature(solver, A, distinct, terms, decay):
    """damping = -smallest where that is negative, step = 1 / (largest + damping), of what the
    products show of H; the value is the damped series, whose terms do not grow."""
    q = Quadratic(A=A)
    H, (c, v) = q.H(0.35) + decay * EYE, q.c_and_v()
    smallest, largest = ritz(H, v, min(max(1, terms - 1), distinct))
    damping = max(0.0, -smallest)
    step = 1 / (max(0.0, largest) + damping)
    value, report = eq_3(q, 0.35, solver=solver, terms=terms, decay=decay)
    assert value == pytest.approx(-(c @ series(H + damping * EYE, v, terms, step)).item(), rel=1e-8)
    assert report["curvature"] == pytest.approx([smallest, largest], rel=1e-9, abs=1e-12)
    assert (report["step"], report["damping"]) == pytest.approx((step, damping), abs=1e-12)
    assert abs(value) <= terms * step * (c.norm() * v.norm()).item() * (1 + 1e-9)
    assert report["terms"] == terms and report["note"] == ""


def test_stable_by_hand():
    """Positive, indefinite, negative everywhere, and no curvature at all."""
    assert stable(1.0, 4.0) == (0.25, 0.0)
    assert stable(-1.0, 3.0) == (0.25, 1.0)
    assert stable(-4.0, -1.0) == (0.25, 4.0)
    assert math.isnan(stable(0.0, 0.0)[0])


@pytest.mark.parametrize("terms", [1, 2, 20])
@pytest.mark.parametrize("step", [None, 0.1])
def test_lanczos_is_neumann_from_half_the_products(terms, step):
    """The same value to 1e-12 in float64 and to 1e-6 in float32, of the largest that it can be; the
    same step, damping and terms."""
    double, single = Quadratic(A=INDEFINITE), Quadratic(torch.float32)
    for problem, tolerance in [(TwoTowers(), 1e-12), (double, 1e-12), (single, 1e-6)]:
        how = {"terms": terms, "step": step}
        slow, report = eq_3(problem, 0.6, solver="neumann", **how)
        quick, own = eq_3(problem, 0.6, solver="lanczos", **how)
        l_cls, l_mm = problem.losses()
        v = grad(l_cls, problem.params, retain_graph=True)
        c = grad(l_mm - l_cls, problem.params)
        most = sum((1 + 0.1 * (step or 0)) ** k for k in range(terms)) * report["step"]
        most *= math.sqrt(dot(v, v) * dot(c, c))
        assert quick == pytest.approx(slow, rel=tolerance, abs=tolerance * most)
        for key in ("step", "damping", "terms"):
            assert own[key] == pytest.approx(report[key], rel=tolerance)


@pytest.mark.parametrize("n", [1, 4, 9, 30])
def test_lanczos_keeps_every_polynomial(n):
    """c^T H^k v = a^T T^k e_1 for k = 0..n, and where n reaches the dimension for every k."""
    H = with_eigenvalues(torch.linspace(-1, 2, 9), seed=7)
    v, c = normal(9, seed=1), normal(9, seed=2)
    T, a = tridiagonal(lambda u: [H @ u[0]], [v], [c], n)
    power = torch.linalg.matrix_power
    for k in range(n + 1):
        expected = (c @ power(H, k) @ v).item()
        assert (a @ power(T, k)[:, 0]).item() == pytest.approx(expected, rel=1e-8, abs=1e-8)


PRODUCTS = [("lanczos", 1, None, 1), ("lanczos", 5, None, 4), ("neumann", 1, None, 1)]
PRODUCTS += [("neumann", 5, None, 8), ("neumann", 5, 0.1, 4), ("cg", 4, None, 4)]


@pytest.mark.parametrize("solver, terms, step, products", PRODUCTS)
def test_products_are_counted(solver, terms, step, products, monkeypatch):
    """K terms cost K - 1 products, and neumann K - 1 more for its step; one term costs one."""
    calls, real = [], bilevel.make_hvp

    def counted(*arguments):
        hvp = real(*arguments)
        return lambda u: calls.append(1) or hvp(u)

    monkeypatch.setattr(bilevel, "make_hvp", counted)
    eq_3(Quadratic(), 0.35, solver=solver, terms=terms, step=step)
    assert len(calls) == products


class Noisy(Quadratic):
    """Of a batch of four of 64 samples, each of which has a minimum of L_CLS of its own."""

    def __init__(self):
        super().__init__()
        self.around = 2 * normal(64, 9, seed=8)
        self.around -= self.around.mean(0)
        self.generator, self.drawn = torch.Generator().manual_seed(0), 0

    def batch(self):
        self.drawn += 1
        return self.around[torch.randint(64, (4,), generator=self.generator)].mean(0)

    def losses(self, noise=None):
        noise = self.batch() if noise is None else noise
        x, z = self.theta() - self.a - noise, self.theta() - self.b
        return x @ self.A @ x / 2, z @ self.M @ z / 2


def mean_and_error(values):
    values = torch.tensor(values, dtype=torch.float64)
    return values.mean().item(), values.std().item() / len(values) ** 0.5


def test_batches_of_their_own_make_eq_3_unbiased():
    """The mean over many draws is the value of all data, within three standard errors; that of a
    shared batch, which contains the variance of the gradient, is far above it."""
    q, how = Noisy(), {"solver": "neumann", "terms": 5, "step": 0.2}
    exact = eq_3(Quadratic(), 0.6, **how)[0]
    mean, error = mean_and_error([eq_3(q, 0.6, **how)[0] for _ in range(400)])
    assert abs(mean - exact) < 3 * error
    shared = []
    for _ in range(400):
        inner = functools.partial(q.losses, q.batch())
        outer = functools.partial(lambda f: f()[0], inner)
        shared.append(hypergradient(outer, inner, q.params, 0.6, **how)[0])
    mean, error = mean_and_error(shared)
    assert mean > exact + 8 * error


def test_draws_are_averaged():
    """More of them, less noise: v and c are means over as many batches, H is of one more."""
    q, spread = Noisy(), {}
    for draws in (1, 16):
        q.drawn = 0
        values = [eq_3(q, 0.6, terms=5, step=0.2, draws=draws)[0] for _ in range(100)]
        assert q.drawn == 100 * (2 * draws + 1)
        spread[draws] = torch.tensor(values).std().item()
    assert spread[16] < 0.4 * spread[1]


@pytest.mark.parametrize("A, step", [(None, 0.2), (INDEFINITE, None)])
def test_randomised_averages_to_neumann_and_takes_fresh_batches(A, step):
    """The mean over every p equals the series, with its step and damping; p products cost p batches
    besides the two of c and of the step; p is uniform."""
    q, terms, calls, by_p, drawn = Quadratic(A=A), 5, [], {}, []
    how = {"terms": terms, "step": step}

    def inner():
        calls.append(1)
        return q.losses()

    expected, found = eq_3(q, 0.35, solver="neumann", **how)
    for seed in range(200):
        calls.clear()
        rng = torch.Generator().manual_seed(seed)
        value, report = hypergradient(
            lambda: q.losses()[0], inner, q.params, 0.35, "randomised", rng=rng, **how
        )
        p = report["terms"] - 1
        assert len(calls) == 2 + p and report["note"] == ""
        assert report["step"] == found["step"] and report["damping"] == found["damping"]
        by_p[p] = value
        drawn.append(p)
    assert sorted(by_p) == list(range(terms))
    assert sum(by_p.values()) / terms == pytest.approx(expected, rel=1e-9)
    assert sum(drawn) / len(drawn) == pytest.approx((terms - 1) / 2, abs=0.3)


def test_randomised_uses_each_batch_once():
    """(I - step H_2)(I - step H_1) v with a Hessian of its own per batch, the first giving c, the
    second the step."""
    q, scale = Quadratic(), []

    def inner():
        scale.append(1 + len(scale))  # the n-th batch has n times the loss
        return tuple(scale[-1] * loss for loss in q.losses())

    rng, seeds = torch.Generator(), range(99)
    two = next(s for s in seeds if torch.randint(4, (), generator=rng.manual_seed(s)) == 2)
    value, report = hypergradient(
        lambda: q.losses()[0], inner, q.params, 0.35, "randomised", 4, rng=rng.manual_seed(two)
    )
    (c, v), H, step = q.c_and_v(), q.H(0.35), report["step"]
    assert step == pytest.approx(1 / ritz(2 * H, v, 3)[1], rel=1e-9) and report["damping"] == 0
    expected = -step * 4 * c @ (EYE - step * 4 * H) @ (EYE - step * 3 * H) @ v
    assert value == pytest.approx(expected.item(), rel=1e-9)


@pytest.mark.parametrize("alpha, damping", [(0.05, 0.0), (0.95, 0.3)])
def test_at_an_inner_optimum_alpha_can_only_fall(alpha, damping):
    """c = -v / alpha there, so that the hypergradient is v^T H^-1 v / alpha > 0, also damped and
    truncated."""
    q = Quadratic()
    q.put(q.solve(alpha))
    _, v = q.c_and_v()
    expected = (v @ torch.linalg.solve(q.H(alpha) + damping * EYE, v)).item() / alpha
    value, _ = eq_3(q, alpha, solver="neumann", terms=400, step=0.2, decay=damping)
    assert value == pytest.approx(expected, rel=1e-9)
    assert eq_3(q, alpha, terms=3, step=0.2, decay=damping)[0] > 0
    assert eq_3(q, alpha, decay=damping)[0] > 0


def test_alpha_ends_at_0_or_at_the_held_out_optimum():
    """Outer loss = the training L_CLS: alpha falls to 0. A held-out one: to the minimum that a grid
    finds."""
    q = Quadratic()
    for outer in (None, q.outer):
        alpha = 0.95
        for _ in range(100):
            q.put(q.solve(alpha))
            value, _ = eq_3(q, alpha, outer, solver="cg", terms=9)
            alpha = max(0.0, min(1.0, alpha - 0.1 * value))
        if outer is None:
            assert alpha == pytest.approx(0, abs=1e-9)  # it falls by a fraction of itself
    grid = torch.linspace(0, 1, 1001).tolist()
    best = min(grid, key=lambda a: q.put(q.solve(a)).outer().item())
    assert 0 < best < 1 and alpha == pytest.approx(best, abs=0.01)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("batch_statistics", [False, True])
def test_hypergradient_leaves_no_trace(solver, batch_statistics):
    """Parameters, buffers, .grad, modes and random state stay bit for bit; a second call gives the
    same value."""
    net, losses = conv_net(torch.float32)
    net.train()
    net.phi[1].eval()
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    before = [x.clone() for x in [*net.state_dict().values(), *(p.grad for p in net.parameters())]]
    modes, random_state = [m.training for m in net.modules()], torch.get_rng_state()
    forwards, values = [], []
    net.register_forward_hook(lambda *_: forwards.append(1))
    for _ in range(2):
        with eval_mode(net, batch_statistics):
            how = {"terms": 4, "decay": 1e4, "rng": torch.Generator().manual_seed(1)}
            outer = functools.partial(lambda f: f()[0], losses)
            values.append(hypergradient(outer, losses, net.parameters(), 0.6, solver, **how))
    assert str(values[0]) == str(values[1]) and values[0][0] is not None
    assert len(forwards) == 6 or solver == "randomised"
    after = [*net.state_dict().values(), *(p.grad for p in net.parameters())]
    assert all(torch.equal(a, b) for a, b in zip(before, after))
    assert modes == [m.training for m in net.modules()]
    assert all(m.track_running_stats for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert torch.equal(random_state, torch.get_rng_state())


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("factor", [math.nan, math.inf, 0.0])
def test_what_is_not_finite_is_refused(solver, factor):
    """A loss of nan or inf, or one without any curvature, gives None and a note, never a number."""
    q = Quadratic()

    def inner():
        return tuple(factor * loss for loss in q.losses())

    rng = torch.Generator().manual_seed(3)
    value, report = hypergradient(lambda: inner()[0], inner, q.params, 0.5, solver, rng=rng)
    assert value is None and f"refused: the {solver} estimate is not finite" in report["note"]


def test_an_infinite_value_is_refused(monkeypatch):
    """A solver's inf is no number either."""
    monkeypatch.setitem(SOLVERS, "mine", lambda *_, **__: (math.inf, {}))
    value, report = eq_3(Quadratic(), 0.5, solver="mine")
    assert value is None and "refused" in report["note"]


def test_cg_ends_before_negative_curvature():
    """Without a first direction of positive curvature there is no value; later, the iterate before
    is kept."""
    assert eq_3(Quadratic(A=-EYE), 0.5, solver="cg")[0] is None
    q = Quadratic(A=INDEFINITE)
    value, report = eq_3(q, 0.5, solver="cg", terms=50)
    c, v = q.c_and_v()
    first_iterate = (v @ v) / (v @ q.H(0.5) @ v) * v
    assert value == pytest.approx(-(c @ first_iterate).item(), rel=1e-12)
    smallest, largest = report["curvature"]
    assert report["terms"] == 1 and -1 < smallest < 0 < largest < 2


@pytest.mark.parametrize("terms", [1, 2, 4])
def test_cg_is_conjugate_gradient(terms):
    """Of the span of v, ..., H^(K-1) v its x is the best: Q^T H x = Q^T v for a basis Q."""
    q = Quadratic()
    (c, v), H = q.c_and_v(), q.H(0.35)
    powers = torch.stack([torch.linalg.matrix_power(H, k) @ v for k in range(terms)], 1)
    Q, _ = torch.linalg.qr(powers)
    x = Q @ torch.linalg.solve(Q.T @ H @ Q, Q.T @ v)
    value, report = eq_3(q, 0.35, solver="cg", terms=terms)
    assert value == pytest.approx(-(c @ x).item(), rel=1e-10) and report["terms"] == terms


def test_cg_ends_where_it_has_solved():
    """H = I takes one iteration; those that are left change nothing."""
    q = Quadratic(A=EYE)
    c, v = q.c_and_v()
    value, report = eq_3(q, 0.5, solver="cg", terms=5)
    assert value == pytest.approx(-(c @ v).item(), rel=1e-12) and report["terms"] == 1


def test_a_solver_of_ones_own_gets_step_and_damping(monkeypatch):
    """Those of neumann; its report goes before what it was given, and its value is negated."""
    q, given = Quadratic(A=INDEFINITE), []

    def mine(hvp, v, c, terms, step, damping, **_):
        given.append((terms, step, damping))
        return 3.0, {"terms": 7}

    monkeypatch.setitem(SOLVERS, "mine", mine)
    _, usual = eq_3(q, 0.5, solver="neumann", terms=4)
    value, report = eq_3(q, 0.5, solver="mine", terms=4)
    assert value == -3.0 and report == usual | {"terms": 7}
    assert given == [(4, usual["step"], usual["damping"])]


def test_a_parameter_outside_a_loss_counts_as_zero():
    """The classifier is not in L_MM, and grad() says 0 for it."""
    net = TwoTowers()
    g = grad(net.losses()[1], net.params)
    assert all(x.abs().sum() == 0 for x in g[2:]) and all(x.abs().sum() > 0 for x in g[:2])


@pytest.mark.parametrize("solver", SOLVERS)
def test_frozen_parameters_are_left_out(solver):
    """An encoder with requires_grad_(False): Eq. 3 is over the rest, as if the encoder's features
    were the data."""
    torch.manual_seed(0)
    model, y = MultimodalModel([1, 2], 3).eval(), torch.arange(6) % 3
    x = [torch.randn(6, c, 9, 9) for c in (1, 2)]
    model.phi[0].requires_grad_(False)
    features = model.phi[0](x[0])

    def losses(encode=model.phi[0]):
        z = [encode(x[0]), model.phi[1](x[1])]
        return classification_loss(model.logits(z), y), modality_matching_loss(z, 0.5)

    rest = [p for p in model.parameters() if p.requires_grad]
    cases = [(losses, model.parameters()), (lambda: losses(lambda _: features), rest)]
    found = []
    for inner, params in cases:
        outer = functools.partial(lambda f: f()[0], inner)
        rng = torch.Generator().manual_seed(0)
        found.append(hypergradient(outer, inner, params, 0.5, solver, terms=3, rng=rng))
    assert str(found[0]) == str(found[1]) and found[0][0] is not None


def test_a_constant_gradient_has_no_curvature():
    """L_Total is linear in b and does not contain c: their rows of H are zero, and so is their part
    of H u; the rest is as without them."""
    params = [torch.tensor([x, 1.0], requires_grad=True) for x in (2.0, 3.0, 5.0)]
    a, b, _ = params
    hvp = make_hvp((a**3).sum() + b.sum(), (a**2).sum(), 0.5, params)
    h = hvp([torch.tensor([1.0, 2.0])] * 3)
    assert h[0].tolist() == [0.5 * 6 * 2 + 0.5 * 2, (0.5 * 6 * 1 + 0.5 * 2) * 2]
    assert h[1].tolist() == h[2].tolist() == [0.0, 0.0]
