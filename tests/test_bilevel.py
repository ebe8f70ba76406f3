"""bilevel.py against closed forms, dense Hessians and finite differences.

The quadratics couple their two tensors, so that a Hessian taken tensor by tensor is wrong here.
"""

import functools
import math

import pytest
import torch

from bilevel import SOLVERS, grad, hvp, hypergradient, total_gradient
from losses import classification_loss, modality_matching_loss, total_loss
from model import MultimodalModel
from utils.lanczos import dot, lanczos
from utils.modes import eval_mode

ALPHAS = [0.05, 0.35, 0.95]
EYE = torch.eye(9, dtype=torch.float64)


def normal(*shape, seed, dtype=torch.float64):
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def with_eigenvalues(eigenvalues, seed):
    """A dense symmetric matrix with these eigenvalues."""
    q, _ = torch.linalg.qr(normal(len(eigenvalues), len(eigenvalues), seed=seed))
    return q @ torch.diag(torch.as_tensor(eigenvalues, dtype=torch.float64)) @ q.T


def flat(tensors):
    return torch.cat([x.detach().flatten() for x in tensors])


class Quadratic:
    """L_CLS = (theta-a)^T A (theta-a) / 2, L_MM = (theta-b)^T M (theta-b) / 2; theta: two coupled
    tensors, 9 numbers"""

    def __init__(self, dtype=torch.float64):
        self.A = with_eigenvalues(torch.linspace(0.5, 3, 9), seed=1).to(dtype)
        self.M = with_eigenvalues(torch.linspace(4, 0.6, 9), seed=2).to(dtype)
        self.a, self.b = normal(9, seed=3, dtype=dtype), normal(9, seed=4, dtype=dtype)
        self.held_out = (
            self.a + self.b + normal(9, seed=5, dtype=dtype)
        ) / 2  # where a held-out L_CLS has its minimum
        self.params = [
            torch.zeros(2, 3, dtype=dtype, requires_grad=True),
            torch.zeros(3, dtype=dtype, requires_grad=True),
        ]

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
        x = self.theta() - self.held_out
        return x @ self.A @ x / 2

    def H(self, alpha):
        return (1 - alpha) * self.A + alpha * self.M

    def solve(self, alpha):
        """theta*(alpha), the exact inner minimum."""
        return torch.linalg.solve(
            self.H(alpha), (1 - alpha) * self.A @ self.a + alpha * self.M @ self.b
        )

    def c_and_v(self):
        x = self.theta().detach()
        v = self.A @ (x - self.a)
        return self.M @ (x - self.b) - v, v


class Indefinite(Quadratic):
    """H with the eigenvalues -1, .5 and 2 whatever alpha, and gradients in all three directions."""

    def __init__(self):
        super().__init__()
        self.A = self.M = with_eigenvalues([-1, 0.5, 2] * 3, seed=7)
        self.put(normal(9, seed=6))


def eq_3(problem, alpha, outer=None, **options):
    """hypergradient of a problem that has losses() and params, and no batches: all factors see the
    same data."""
    outer = outer or (lambda: problem.losses()[0])
    return hypergradient(outer, problem.losses, problem.params, alpha, **options)


def ritz(H, v, n):
    """(smallest, largest) eigenvalue of H within the span of v, H v, ..., H^(n-1) v, by dense
    matrices."""
    basis = [v]
    for _ in range(n - 1):
        basis.append(H @ basis[-1])
    Q, _ = torch.linalg.qr(torch.stack([b / b.norm() for b in basis], 1))
    smallest, *_, largest = torch.linalg.eigvalsh(Q.T @ H @ Q).tolist() * 2
    return smallest, largest


def series(H, v, terms, step):
    """step * sum_k (I - step H)^k v, by dense powers."""
    A = torch.eye(len(H), dtype=H.dtype) - step * H
    return step * sum(torch.linalg.matrix_power(A, k) @ v for k in range(terms))


@pytest.mark.parametrize("terms", [1, 2, 5, 50])
@pytest.mark.parametrize("alpha", [0.0, *ALPHAS, 1.0])
@pytest.mark.parametrize("where", ["optimum", "anywhere"])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_neumann_is_its_closed_form(terms, alpha, where, dtype, tolerance):
    """- step c^T sum_{k<K} (I - step H)^k v, at an inner optimum and elsewhere."""
    q = Quadratic(dtype)
    q.put(q.solve(alpha) if where == "optimum" else normal(9, seed=6, dtype=dtype))
    value, report = eq_3(q, alpha, terms=terms, step=0.2)
    c, v = q.c_and_v()
    expected = -c @ series(q.H(alpha), v, terms, 0.2)
    assert value == pytest.approx(
        expected.item(), rel=tolerance, abs=tolerance * (c.norm() * v.norm()).item()
    )
    assert report["terms"] == terms and report["note"] == ""


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_long_series_and_cg_give_the_inverse(alpha, outer):
    """2000 terms, and 9 iterations of CG on 9 numbers, equal - c^T H^-1 v; also for a held-out
    outer loss."""
    q = Quadratic().put(normal(9, seed=6))
    c, v = q.c_and_v()
    if outer:
        v = q.A @ (q.theta().detach() - q.held_out)
    expected = (-c @ torch.linalg.solve(q.H(alpha), v)).item()
    for options in [
        dict(terms=2000, step=0.25),
        dict(solver="cg", terms=9),
        dict(solver="cg", terms=50),
    ]:
        value, report = eq_3(q, alpha, q.outer if outer else None, **options)
        assert value == pytest.approx(expected, rel=1e-10), options
        assert report["note"] == ""


@pytest.mark.parametrize("terms", [1, 5, 50])
def test_neumann_truncation_is_within_its_bound(terms):
    """At theta*, |error| <= |c| |v| / mu (1 - mu/L)^K with step 1/L."""
    alpha = 0.35
    q = Quadratic()
    q.put(q.solve(alpha))
    mu, *_, L = torch.linalg.eigvalsh(q.H(alpha)).tolist()
    c, v = q.c_and_v()
    exact = -c @ torch.linalg.solve(q.H(alpha), v)
    value, _ = eq_3(q, alpha, terms=terms, step=1 / L)
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
        self.params = [
            (0.5 * normal(*s, seed=9 + i)).requires_grad_() for i, s in enumerate(self.shapes)
        ]

    def split(self, theta):
        return [
            p.view(s) for p, s in zip(theta.split([math.prod(s) for s in self.shapes]), self.shapes)
        ]

    def losses(self, params=None):
        W1, W2, W, b = params or self.params
        one = torch.ones(
            len(self.y), 1, dtype=torch.float64
        )  # keeps |z| from 0, where the cosine has a kink
        z = [torch.cat([torch.tanh(x @ W.T), one], 1) for x, W in zip(self.x, (W1, W2))]
        return classification_loss(torch.cat(z, 1) @ W.T + b, self.y), modality_matching_loss(
            z, 0.5
        )

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
        theta = theta.clone().requires_grad_()
        options = dict(
            max_iter=1000, max_eval=2000, tolerance_grad=1e-9, tolerance_change=0, history_size=40
        )
        optimizer = torch.optim.LBFGS([theta], line_search_fn="strong_wolfe", **options)

        def closure():
            optimizer.zero_grad()
            loss = self.total(theta, alpha, weight_decay)
            loss.backward()
            return loss

        optimizer.step(closure)
        theta = theta.detach()
        gradient = torch.func.grad(lambda x: self.total(x, alpha, weight_decay))
        hessian = torch.func.hessian(lambda x: self.total(x, alpha, weight_decay))
        for _ in range(12):
            theta = theta - torch.linalg.solve(hessian(theta), gradient(theta))
        assert gradient(theta).norm() < 1e-12 and torch.linalg.eigvalsh(hessian(theta))[0] > 0
        return theta


def compare_with_the_solved_problem(net, alpha, decay, terms, eps=1e-5):
    """Eq. 3 at the inner optimum, by cg, against the central difference of the solved problem."""
    optimum = net.solve(flat(net.params), alpha, decay)
    above, below = (
        net.losses(net.split(net.solve(optimum, a, decay)))[0] for a in (alpha + eps, alpha - eps)
    )
    net.put(optimum)
    value, report = eq_3(net, alpha, solver="cg", terms=terms, decay=decay)
    assert value == pytest.approx((above - below).item() / (2 * eps), rel=1e-6)
    assert report["note"] == ""


@pytest.mark.parametrize("alpha", [0.1, 0.6])
def test_hypergradient_of_a_net_is_the_derivative_of_the_solved_problem(alpha):
    """Two tanh encoders with weight decay, which enters as damping, a part of the inner problem."""
    compare_with_the_solved_problem(TwoTowers(), alpha, decay=1e-2, terms=300)


@pytest.mark.parametrize("alpha", [0, 0.02, 0.1, 0.6, 1])
def test_hypergradient_of_a_net_equals_the_dense_hessian(alpha):
    """Five terms on an indefinite Hessian that damping makes positive, against dense matrices."""
    net = TwoTowers()
    H, c, v = net.dense(alpha)
    smallest, *_, largest = torch.linalg.eigvalsh(H).tolist()
    damping = max(0.0, -smallest)
    step = 1 / (largest + damping)
    expected = -c @ series(H + damping * torch.eye(len(H), dtype=H.dtype), v, 5, step)
    value, report = eq_3(net, alpha, terms=5, step=step, decay=damping)
    assert smallest < 0
    assert value == pytest.approx(expected.item(), rel=1e-12)
    assert report["terms"] == 5 and report["note"] == ""


def test_hvp_is_symmetric_and_spans_all_tensors():
    """u^T H w = w^T H u, and H w equals the dense product."""
    net = TwoTowers()
    u, w = ([normal(*s, seed=seed + i) for i, s in enumerate(net.shapes)] for seed in (20, 30))
    g = total_gradient(*net.losses(), 0.6, net.params)
    Hw, Hu = hvp(g, net.params, w), hvp(g, net.params, u)
    assert dot(u, Hw) == pytest.approx(dot(w, Hu), rel=1e-12)
    assert torch.allclose(flat(Hw), net.dense(0.6)[0] @ flat(w), rtol=1e-11, atol=1e-13)


class NormTowers(TwoTowers):
    """TwoTowers with batch norm behind each tanh, in the mode in which Eq. 3 has it: the batch's
    own statistics.

    A large eps keeps weight decay from shrinking the weights for ever, which batch norm would
    otherwise not notice.
    """

    shapes = [(4, 3), (4, 3), (3, 10), (3,), (4,), (4,), (4,), (4,)]

    def __init__(self, seed=0):
        super().__init__(seed)
        self.norms = torch.nn.ModuleList(
            torch.nn.BatchNorm1d(4, eps=0.5, dtype=torch.float64) for _ in range(2)
        )
        for scale in self.params[4:6]:
            scale.data += 1.0
        with torch.no_grad():
            for norm in self.norms:  # running statistics that lag far behind
                norm.running_mean += 0.3
                norm.running_var *= 4

    def losses(self, params=None):
        W1, W2, W, b, *affine = params or self.params
        one = torch.ones(len(self.y), 1, dtype=torch.float64)
        with eval_mode(self.norms, batch_statistics=True):
            z = []
            for norm, x, w, scale, shift in zip(
                self.norms, self.x, (W1, W2), affine[:2], affine[2:]
            ):
                affine_j = {"weight": scale, "bias": shift}
                z_j = torch.func.functional_call(norm, affine_j, torch.tanh(x @ w.T))
                z.append(torch.cat([z_j, one], 1))
        return classification_loss(torch.cat(z, 1) @ W.T + b, self.y), modality_matching_loss(
            z, 0.5
        )


@pytest.mark.parametrize("alpha", [0.3, 0.6])
def test_hypergradient_with_batch_norm_is_the_derivative_of_the_solved_problem(alpha):
    """As above with batch norm: the inner problem is solved as it is trained, with the statistics
    of the batch."""
    net = NormTowers()
    before = [x.clone() for x in net.norms.state_dict().values()]
    compare_with_the_solved_problem(net, alpha, decay=3e-2, terms=400)
    assert all(torch.equal(a, b) for a, b in zip(before, net.norms.state_dict().values()))


def conv_net(dtype, encoder="cnn", size=16):
    """A model with batch norm whose statistics are settled, and its losses on a random batch."""
    torch.manual_seed(0)
    net = MultimodalModel([1, 2], 3, encoder).to(dtype)
    x = [
        normal(8, 1, size, size, seed=1, dtype=dtype),
        normal(8, 2, size, size, seed=2, dtype=dtype),
    ]
    y = torch.arange(8) % 3
    for _ in range(3):
        net(x)

    def losses():
        z, logits = net(x)
        return classification_loss(logits, y), modality_matching_loss(z, 0.1)

    return net, losses


@pytest.mark.parametrize("encoder, size", [("cnn", 16), ("resnet18", 32)])
def test_float32_agrees_with_float64(encoder, size):
    """Five terms through convolutions and batch norm, their step and damping included, to 1e-3."""
    values = []
    for dtype in (torch.float32, torch.float64):
        net, losses = conv_net(dtype, encoder, size)
        with eval_mode(net):
            value, _ = hypergradient(lambda: losses()[0], losses, net.parameters(), 0.6)
        values.append(value)
    assert values[0] == pytest.approx(values[1], rel=1e-3)


@pytest.mark.parametrize("terms", [2, 5, 9])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_step_and_damping_follow_the_curvature(terms, alpha):
    """damping = -smallest where that is negative, step = 1 / (largest + damping), of what the
    products show of H."""
    for q in (Quadratic(), Indefinite()):
        q.put(normal(9, seed=6))
        H, (c, v) = q.H(alpha), q.c_and_v()
        smallest, largest = ritz(H, v, min(terms - 1, len(set(torch.linalg.eigvalsh(H).tolist()))))
        if isinstance(q, Indefinite):
            smallest, largest = ritz(H, v, min(terms - 1, 3))
        damping = max(0.0, -smallest)
        step = 1 / (largest + damping)
        value, report = eq_3(q, alpha, terms=terms)
        assert report["curvature"] == pytest.approx([smallest, largest], rel=1e-9)
        assert (report["step"], report["damping"]) == pytest.approx(
            (step, damping), rel=1e-9, abs=1e-12
        )
        assert value == pytest.approx(
            (-c @ series(H + damping * EYE, v, terms, step)).item(), rel=1e-9
        )
        assert report["terms"] == terms and report["note"] == ""


@pytest.mark.parametrize("n", [1, 4, 9, 30])
def test_lanczos_keeps_every_polynomial(n):
    """c^T H^k v = a^T T^k e_1 for k = 0..n, and where n reaches the dimension for every k."""
    H = with_eigenvalues(torch.linspace(-1, 2, 9), seed=7)
    v, c = normal(9, seed=1), normal(9, seed=2)
    T, a = lanczos(lambda u: [H @ u[0]], [v.clone()], [c], n)  # it overwrites v
    for k in range(n + 1):
        power = torch.linalg.matrix_power
        expected = (c @ power(H, k) @ v).item()
        assert (a @ power(T, k)[:, 0]).item() == pytest.approx(expected, rel=1e-8, abs=1e-8)


def test_one_term_takes_one_product():
    """Its step is one over the curvature along v."""
    q = Quadratic().put(normal(9, seed=6))
    c, v = q.c_and_v()
    along = (v @ q.H(0.35) @ v / (v @ v)).item()
    value, report = eq_3(q, 0.35, terms=1)
    assert value == pytest.approx(-(c @ v).item() / along, rel=1e-12)
    assert report["curvature"] == pytest.approx([along, along], rel=1e-12)


@pytest.mark.parametrize(
    "terms, step, products",
    [(1, None, 1), (2, None, 1), (5, None, 4), (9, None, 8), (1, 0.1, 0), (5, 0.1, 4)],
)
def test_products_are_counted(terms, step, products, monkeypatch):
    """K terms cost K - 1 products with H; one term costs one if its step is to follow from it."""
    q, calls = Quadratic().put(normal(9, seed=6)), []
    real = hvp
    monkeypatch.setattr("bilevel.hvp", lambda *a: calls.append(1) or real(*a))
    eq_3(q, 0.35, terms=terms, step=step)
    assert len(calls) == products


@pytest.mark.parametrize("terms, step, batches", [(1, None, 2), (5, 0.1, 2), (1, 0.1, 1)])
def test_a_batch_for_h_is_drawn_only_if_it_is_used(terms, step, batches):
    """One batch is for c; one term with a given step takes no H."""
    q, calls = Quadratic().put(normal(9, seed=6)), []

    def inner():
        calls.append(1)
        return q.losses()

    hypergradient(lambda: q.losses()[0], inner, q.params, 0.35, terms=terms, step=step)
    assert len(calls) == batches


def test_a_product_has_the_layout_of_its_vector(monkeypatch):
    """Also where autograd returns H u transposed in memory, as it does for convolutions."""
    q, real = Quadratic().put(normal(9, seed=6)), hvp

    def transposed(*args):
        matrix, vector = real(*args)
        return matrix.T.contiguous().T, vector

    def solver(product, v, c, *_):
        h = product(v)
        assert all(h_i.is_contiguous() for h_i in h)
        assert torch.allclose(flat(h), (q.H(0.35) + 0.1 * EYE) @ flat(v))
        return dot(c, h), {}

    monkeypatch.setattr("bilevel.hvp", transposed)
    monkeypatch.setitem(SOLVERS, "mine", solver)
    value, _ = eq_3(q, 0.35, solver="mine", decay=0.1)
    c, v = q.c_and_v()
    assert value == pytest.approx(-(c @ (q.H(0.35) + 0.1 * EYE) @ v).item(), rel=1e-12)


@pytest.mark.parametrize("scale", [1e-6, 1e3, 1e6])
def test_other_units_change_nothing_but_the_unit(scale):
    """Both losses a thousand times as large, so that H's largest eigenvalue is: Eq. 3 is a thousand
    times itself."""
    values = []
    for factor in (1.0, scale):
        q = Indefinite()
        q.A, q.M = factor * q.A, factor * q.M
        values.append(eq_3(q.put(normal(9, seed=6)), 0.35)[0] / factor)
    assert values[1] == pytest.approx(values[0], rel=1e-9)


class Noisy(Quadratic):
    """The quadratic whose L_CLS is a mean over samples, each with a minimum of its own; losses()
    sees four of them."""

    def __init__(self, n=64):
        super().__init__()
        self.around = 2 * normal(n, 9, seed=8)
        self.around -= self.around.mean(0)
        self.generator = torch.Generator().manual_seed(0)

    def batch(self):
        return self.around[torch.randint(len(self.around), (4,), generator=self.generator)].mean(0)

    def losses(self, noise=None):
        noise = self.batch() if noise is None else noise
        x, z = self.theta() - self.a - noise, self.theta() - self.b
        return x @ self.A @ x / 2, z @ self.M @ z / 2


def mean_and_error(values):
    values = torch.tensor(values, dtype=torch.float64)
    return values.mean().item(), values.std().item() / len(values) ** 0.5


@pytest.mark.parametrize("draws", [1, 4])
def test_batches_of_their_own_make_eq_3_unbiased(draws):
    """The mean over many draws is the value of all data, within three standard errors; that of a
    shared batch, which contains the variance of the gradient, is far above it."""
    q, alpha, times = Noisy().put(normal(9, seed=6)), 0.6, 400
    exact = eq_3(Quadratic().put(q.theta().detach()), alpha, terms=5, step=0.2)[0]
    own = [eq_3(q, alpha, terms=5, step=0.2, draws=draws)[0] for _ in range(times)]
    mean, error = mean_and_error(own)
    assert abs(mean - exact) < 3 * error

    shared = []
    for _ in range(times):
        inner = functools.partial(q.losses, q.batch())
        value, _ = hypergradient(lambda: inner()[0], inner, q.params, alpha, terms=5, step=0.2)
        shared.append(value)
    biased, biased_error = mean_and_error(shared)
    assert biased > exact + 8 * biased_error


def test_draws_are_averaged():
    """More of them, less noise: v and c are means over as many batches, H is of one more."""
    q, spread, calls = Noisy().put(normal(9, seed=6)), {}, []
    real = q.batch
    q.batch = lambda: calls.append(1) or real()
    for draws in (1, 16):
        calls.clear()
        values = [eq_3(q, 0.6, terms=5, step=0.2, draws=draws)[0] for _ in range(100)]
        assert len(calls) == 100 * (2 * draws + 1)
        spread[draws] = torch.tensor(values).std().item()
    assert spread[16] < 0.4 * spread[1]


def test_randomised_averages_to_neumann_and_takes_fresh_batches():
    """The mean over every p equals the series; p products cost p batches besides that of c; p is
    uniform."""
    q, terms, calls = Quadratic().put(normal(9, seed=6)), 5, []

    def inner():
        calls.append(1)
        return q.losses()

    by_p, drawn = {}, []
    for seed in range(200):
        calls.clear()
        generator = torch.Generator().manual_seed(seed)
        value, report = hypergradient(
            lambda: q.losses()[0],
            inner,
            q.params,
            0.35,
            "randomised",
            terms,
            0.2,
            rng=generator,
        )
        p = report["terms"] - 1
        assert len(calls) == 1 + p and report["note"] == ""
        by_p[p] = value
        drawn.append(p)
    assert sorted(by_p) == list(range(terms))
    expected, _ = eq_3(q, 0.35, terms=terms, step=0.2)
    assert sum(by_p.values()) / terms == pytest.approx(expected, rel=1e-12)
    assert sum(drawn) / len(drawn) == pytest.approx((terms - 1) / 2, abs=0.3)


def test_randomised_uses_each_batch_once():
    """(I - step H_2)(I - step H_1) v with a Hessian of its own per batch, the first giving c, the
    second the step."""
    q, scale = Quadratic().put(normal(9, seed=6)), []

    def inner():
        scale.append(1 + len(scale))  # the n-th batch has n times the loss
        return tuple(scale[-1] * loss for loss in q.losses())

    generator = torch.Generator()
    seed = next(
        s for s in range(99) if int(torch.randint(4, (), generator=generator.manual_seed(s))) == 2
    )
    value, report = hypergradient(
        lambda: q.losses()[0],
        inner,
        q.params,
        0.35,
        "randomised",
        4,
        rng=generator.manual_seed(seed),
    )
    (c, v), H, step = q.c_and_v(), q.H(0.35), report["step"]
    assert step == pytest.approx(1 / ritz(2 * H, v, 3)[1], rel=1e-9) and report["damping"] == 0
    expected = -step * 4 * c @ (EYE - step * 4 * H) @ (EYE - step * 3 * H) @ v
    assert value == pytest.approx(expected.item(), rel=1e-9)


def test_randomised_is_damped_as_neumann_is():
    """On an indefinite Hessian the mean over every p is neumann's value, with the step and damping
    that it found."""
    q, by_p = Indefinite(), {}
    for seed in range(60):
        value, report = eq_3(q, 0.35, solver="randomised", rng=torch.Generator().manual_seed(seed))
        by_p[report["terms"]] = value
    expected, found = eq_3(q, 0.35)
    assert report["damping"] > 0 and report["step"] == found["step"] and len(by_p) == 5
    assert sum(by_p.values()) / 5 == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_at_an_inner_optimum_alpha_can_only_fall(alpha, damping):
    """c = -v / alpha there, so that the hypergradient is v^T H^-1 v / alpha > 0, also damped and
    truncated."""
    q = Quadratic()
    q.put(q.solve(alpha))
    _, v = q.c_and_v()
    H = q.H(alpha) + damping * EYE
    value, _ = eq_3(q, alpha, terms=2000, step=0.2, decay=damping)
    assert value == pytest.approx((v @ torch.linalg.solve(H, v)).item() / alpha, rel=1e-9)
    assert eq_3(q, alpha, terms=3, step=0.2, decay=damping)[0] > 0
    assert eq_3(q, alpha, decay=damping)[0] > 0


def test_alpha_ends_at_0_or_at_the_held_out_optimum():
    """Outer loss = the training L_CLS: alpha falls to 0. A held-out one: to the minimum that a grid
    finds."""
    q = Quadratic()
    for outer in (None, q.outer):
        alpha = 0.95
        for _ in range(400):
            q.put(q.solve(alpha))
            value, _ = eq_3(q, alpha, outer, solver="cg", terms=9)
            alpha = max(0.0, min(1.0, alpha - 0.1 * value))
        if outer is None:
            assert alpha == pytest.approx(0, abs=1e-9)  # it falls by a fraction of itself
    grid = torch.linspace(0, 1, 1001).tolist()
    best = min(grid, key=lambda a: q.put(q.solve(a)).outer().item())
    assert 0 < best < 1
    assert alpha == pytest.approx(best, abs=0.01)


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
    forwards = []
    net.register_forward_hook(lambda *_: forwards.append(1))
    values = []
    for _ in range(2):
        with eval_mode(net, batch_statistics):
            generator = torch.Generator().manual_seed(1)
            options = dict(solver=solver, terms=4, decay=1e4, rng=generator)
            values.append(
                hypergradient(lambda: losses()[0], losses, net.parameters(), 0.6, **options)
            )
    assert values[0] == values[1] and values[0][0] is not None
    assert len(forwards) == 6 or solver == "randomised"
    after = [*net.state_dict().values(), *(p.grad for p in net.parameters())]
    assert all(torch.equal(a, b) for a, b in zip(before, after))
    assert modes == [m.training for m in net.modules()]
    assert all(m.track_running_stats for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert torch.equal(random_state, torch.get_rng_state())


def test_batch_statistics_are_those_of_training():
    """The features are those of train mode, where dropout would differ; eval mode has the running
    statistics."""
    net, _ = conv_net(torch.float64)
    x = [normal(8, c, 16, 16, seed=5 + c) for c in (1, 2)]
    with eval_mode(net, batch_statistics=True):
        inside, _ = net(x)
        assert not any(m.training for m in net.modules() if not isinstance(m, torch.nn.BatchNorm2d))
    with eval_mode(net):
        running, _ = net(x)
    net.train()
    assert all(torch.equal(a, b) for a, b in zip(inside, net(x)[0]))
    assert not torch.allclose(running[0], inside[0], rtol=0.1)


def test_modes_come_back_after_an_error():
    """eval_mode() restores them on the way out of any exception."""
    net, _ = conv_net(torch.float32)
    net.train()
    with pytest.raises(KeyError), eval_mode(net):
        assert not net.phi[0].training
        raise KeyError
    assert all(m.training for m in net.modules())


@pytest.mark.parametrize("terms", [5, 200])
def test_negative_curvature_is_damped(terms):
    """Undamped, 200 terms would reach 1e30. With the damping that follows from the products all
    terms stay, each no larger than the one before, and the value is the damped inverse's."""
    q = Indefinite()
    value, report = eq_3(q, 0.5, terms=terms)
    c, v = q.c_and_v()
    assert report["damping"] == pytest.approx(1, rel=1e-9) and report["step"] == pytest.approx(
        1 / 3, rel=1e-9
    )
    damped = q.H(0.5) + report["damping"] * EYE
    assert value == pytest.approx((-c @ series(damped, v, terms, 1 / 3)).item(), rel=1e-8)
    assert abs(value) <= terms / 3 * (c.norm() * v.norm()).item() and report["terms"] == terms


def test_an_indefinite_hessian_can_be_damped_by_hand():
    """Damping above the most negative curvature is part of H, and the solver adds none."""
    q = Indefinite()
    value, report = eq_3(q, 0.5, terms=400, decay=1.5)
    c, v = q.c_and_v()
    expected = -c @ torch.linalg.solve(q.H(0.5) + 1.5 * EYE, v)
    assert report["damping"] == 0 and report["curvature"] == pytest.approx([0.5, 3.5], rel=1e-9)
    assert value == pytest.approx(expected.item(), rel=1e-9)


def test_curvature_that_is_negative_everywhere_is_flat_when_damped():
    """H = -I damped by 1 is 0: every term is c^T v, with the step 1."""
    q = Quadratic()
    q.A = q.M = -EYE
    c, v = q.put(normal(9, seed=6)).c_and_v()
    value, report = eq_3(q, 0.5, terms=5)
    assert value == pytest.approx(-5 * (c @ v).item(), rel=1e-12) and report[
        "step"
    ] == pytest.approx(1)


def test_a_singular_hessian_is_no_singularity_of_the_series():
    """Zero curvature weighs K step: finite, and without a note."""
    q = Quadratic()
    q.A = q.M = with_eigenvalues([0.0, 1, 2] * 3, seed=7)
    q.put(normal(9, seed=6))
    value, report = eq_3(q, 0.5, terms=30, step=0.4)
    c, v = q.c_and_v()
    assert value == pytest.approx((-c @ series(q.H(0.5), v, 30, 0.4)).item(), rel=1e-11)
    assert report["note"] == ""


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("factor", [math.nan, math.inf, 0.0])
def test_what_is_not_finite_is_refused(solver, factor):
    """A loss of nan or inf, or one without any curvature, gives None and a note, never a number."""
    q = Quadratic()

    def inner():
        return tuple(factor * loss for loss in q.losses())

    generator = torch.Generator().manual_seed(3)
    value, report = hypergradient(lambda: inner()[0], inner, q.params, 0.5, solver, rng=generator)
    assert value is None and f"refused: the {solver} estimate is not finite" in report["note"]


def test_cg_ends_before_negative_curvature():
    """Without a first direction of positive curvature there is no value; later, the iterate before
    is kept."""
    q = Quadratic()
    q.A = q.M = with_eigenvalues([-1.0] * 9, seed=7)
    assert eq_3(q.put(normal(9, seed=6)), 0.5, solver="cg")[0] is None
    q = Indefinite()
    value, report = eq_3(q, 0.5, solver="cg", terms=50)
    c, v = q.c_and_v()
    first_iterate = (v @ v) / (v @ q.H(0.5) @ v) * v
    assert value == pytest.approx(-(c @ first_iterate).item(), rel=1e-12)
    assert report["terms"] == 1 and report["curvature"] == pytest.approx([-1, 2], rel=1e-9)


@pytest.mark.parametrize("terms", [1, 2, 4])
def test_cg_is_conjugate_gradient(terms):
    """Its value is that of the textbook's iteration, stopped after so many products."""
    q = Quadratic().put(normal(9, seed=6))
    (c, v), H = q.c_and_v(), q.H(0.35)
    x, r = torch.zeros(9, dtype=torch.float64), v.clone()
    d = r
    for _ in range(terms):
        length = (r @ r) / (d @ H @ d)
        x, after = x + length * d, r - length * H @ d
        d, r = after + (after @ after) / (r @ r) * d, after
    assert eq_3(q, 0.35, solver="cg", terms=terms)[0] == pytest.approx(-(c @ x).item(), rel=1e-10)


def test_cg_ends_where_it_has_solved():
    """H = I takes one iteration; those that are left change nothing."""
    q = Quadratic()
    q.A = q.M = EYE
    q.put(normal(9, seed=6))
    c, v = q.c_and_v()
    value, report = eq_3(q, 0.5, solver="cg", terms=5)
    assert (
        value == pytest.approx(-(c @ v).item(), rel=1e-12)
        and report["terms"] == 1
        and report["note"] == ""
    )


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

    def first(inner):
        return inner()[0]

    found = []
    for inner, params in [
        (losses, model.parameters()),
        (lambda: losses(lambda _: features), [p for p in model.parameters() if p.requires_grad]),
    ]:
        rng = torch.Generator().manual_seed(0)
        outer = functools.partial(first, inner)
        found.append(hypergradient(outer, inner, params, 0.5, solver, terms=3, rng=rng))
    assert found[0] == found[1] and found[0][0] is not None


def test_a_constant_gradient_has_no_curvature():
    """L_Total is linear in b and does not contain c: their rows of H are zero, and so is their part
    of H u; the rest is as without them."""
    a, b, c = (torch.tensor([x, 1.0], requires_grad=True) for x in (2.0, 3.0, 5.0))
    params, u = [a, b, c], [torch.tensor([1.0, 2.0])] * 3
    g = total_gradient((a**3).sum() + b.sum(), (a**2).sum(), 0.5, params)
    h = hvp(g, params, u)
    expected = [0.5 * 6 * 2 + 0.5 * 2, (0.5 * 6 * 1 + 0.5 * 2) * 2]
    assert h[0].tolist() == expected and h[1].tolist() == h[2].tolist() == [0.0, 0.0]
