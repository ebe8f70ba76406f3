"""bilevel.py against closed forms, dense Hessians and finite differences.

The quadratics couple their two tensors, so that a Hessian taken tensor by tensor is wrong here.
"""

import math

import pytest
import torch

from bilevel import SOLVERS, dot, evaluating, grad, hessian_product, hypergradient, total_gradient
from losses import classification_loss, modality_matching_loss, total_loss
from model import Model

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
    """L_CLS = (theta-a)^T A (theta-a) / 2, L_MM = (theta-b)^T M (theta-b) / 2; theta: two coupled tensors, 9 numbers"""

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
    value, report = hypergradient(q.losses, q.params, alpha, terms=terms, step=0.2)
    c, v = q.c_and_v()
    expected = -c @ series(q.H(alpha), v, terms, 0.2)
    assert value == pytest.approx(
        expected.item(), rel=tolerance, abs=tolerance * (c.norm() * v.norm()).item()
    )
    assert report["terms"] == terms and report["note"] == ""


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("alpha", ALPHAS)
def test_long_series_and_cg_give_the_inverse(alpha, outer):
    """2000 terms, and 9 iterations of CG on 9 numbers, equal - c^T H^-1 v; also for a held-out outer loss."""
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
        value, report = hypergradient(
            q.losses, q.params, alpha, q.outer if outer else None, **options
        )
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
    value, _ = hypergradient(q.losses, q.params, alpha, terms=terms, step=1 / L)
    error = abs(value - exact.item())
    assert 0 < error <= (c.norm() * v.norm()).item() / mu * (1 - mu / L) ** terms


@pytest.mark.parametrize("alpha", ALPHAS)
def test_hypergradient_is_the_derivative_of_the_solved_problem(alpha):
    """Central difference of L_CLS(theta*(alpha)), theta* solved anew on both sides."""
    q, eps = Quadratic(), 1e-5
    above = q.put(q.solve(alpha + eps)).losses()[0].item()
    below = q.put(q.solve(alpha - eps)).losses()[0].item()
    value, _ = hypergradient(q.put(q.solve(alpha)).losses, q.params, alpha, solver="cg", terms=9)
    assert value == pytest.approx((above - below) / (2 * eps), rel=1e-7)


class TwoTowers:
    """A small smooth multimodal net with InfoNCE, whose theta is four tensors and can be set from one vector."""

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
        for _ in range(3):
            theta = theta - torch.linalg.solve(hessian(theta), gradient(theta))
        assert gradient(theta).norm() < 1e-12 and torch.linalg.eigvalsh(hessian(theta))[0] > 0
        return theta


@pytest.mark.parametrize("alpha", [0.1, 0.6])
def test_hypergradient_of_a_net_is_the_derivative_of_the_solved_problem(alpha):
    """Two tanh encoders with weight decay, which enters as damping: the inner problem contains it."""
    net, decay, eps = TwoTowers(), 1e-2, 1e-5
    optimum = net.solve(flat(net.params), alpha, decay)
    above, below = (
        net.losses(net.split(net.solve(optimum, a, decay)))[0] for a in (alpha + eps, alpha - eps)
    )
    net.put(optimum)
    value, report = hypergradient(
        net.losses, net.params, alpha, solver="cg", terms=300, damping=decay
    )
    assert value == pytest.approx((above - below).item() / (2 * eps), rel=1e-6)
    assert report["note"] == ""


@pytest.mark.parametrize("alpha", [0, 0.02, 0.1, 0.6, 1])
def test_hypergradient_of_a_net_equals_the_dense_hessian(alpha):
    """Five terms on an indefinite Hessian that damping makes positive, against dense matrices."""
    net = TwoTowers()
    H, c, v = net.dense(alpha)
    smallest, *_, largest = torch.linalg.eigvalsh(H).tolist()
    damping = max(0.0, -smallest)
    step = 1 / (largest + damping)
    expected = -c @ series(H + damping * torch.eye(len(H), dtype=H.dtype), v, 5, step)
    value, report = hypergradient(
        net.losses, net.params, alpha, terms=5, step=step, damping=damping
    )
    assert smallest < 0
    assert value == pytest.approx(expected.item(), rel=1e-12)
    assert report["terms"] == 5 and report["note"] == ""


def test_hessian_product_is_symmetric_and_spans_all_tensors():
    """u^T H w = w^T H u, and H w equals the dense product."""
    net = TwoTowers()
    u, w = ([normal(*s, seed=seed + i) for i, s in enumerate(net.shapes)] for seed in (20, 30))
    g = total_gradient(*net.losses(), 0.6, net.params)
    Hw, Hu = hessian_product(g, net.params, w), hessian_product(g, net.params, u)
    assert dot(u, Hw) == pytest.approx(dot(w, Hu), rel=1e-12)
    assert torch.allclose(flat(Hw), net.dense(0.6)[0] @ flat(w), rtol=1e-11, atol=1e-13)


def conv_net(dtype, encoder="cnn", size=16):
    """A Model with batch norm, its losses on a random batch, in eval mode with settled statistics."""
    torch.manual_seed(0)
    net = Model([1, 2], 3, encoder).to(dtype)
    x = [
        normal(8, 1, size, size, seed=1, dtype=dtype),
        normal(8, 2, size, size, seed=2, dtype=dtype),
    ]
    y = torch.arange(8) % 3
    for _ in range(3):
        net(x)

    def losses():
        z = net(x)
        return classification_loss(net.logits(z), y), modality_matching_loss(z, 0.1)

    return net, losses


@pytest.mark.parametrize("encoder, size", [("cnn", 16), ("resnet18", 32)])
def test_float32_agrees_with_float64(encoder, size):
    """Five terms through convolutions and batch norm, to 1e-3."""
    values = []
    for dtype in (torch.float32, torch.float64):
        net, losses = conv_net(dtype, encoder, size)
        with evaluating(net):
            values.append(hypergradient(losses, net.parameters(), 0.6, terms=5, step=1e-3)[0])
    assert values[0] == pytest.approx(values[1], rel=1e-3)


def test_randomised_averages_to_neumann_and_takes_fresh_batches():
    """The mean over every p equals the series; p products cost p batches besides the first; p is uniform."""
    q, terms, calls = Quadratic().put(normal(9, seed=6)), 5, []

    def inner():
        calls.append(1)
        return q.losses()

    by_p, drawn = {}, []
    for seed in range(200):
        calls.clear()
        generator = torch.Generator().manual_seed(seed)
        value, report = hypergradient(
            inner, q.params, 0.35, None, "randomised", terms, 0.2, generator=generator
        )
        p = report["terms"] - 1
        assert len(calls) == 1 + p and report["note"] == ""
        by_p[p] = value
        drawn.append(p)
    assert sorted(by_p) == list(range(terms))
    expected, _ = hypergradient(q.losses, q.params, 0.35, terms=terms, step=0.2)
    assert sum(by_p.values()) / terms == pytest.approx(expected, rel=1e-12)
    assert sum(drawn) / len(drawn) == pytest.approx((terms - 1) / 2, abs=0.3)


def test_randomised_uses_each_batch_once():
    """(I - step H_2)(I - step H_1) v with a Hessian of its own per batch, the first batch giving c and v."""
    q, scale = Quadratic().put(normal(9, seed=6)), []

    def inner():
        scale.append(1 + len(scale))  # the n-th batch has n times the loss
        return tuple(scale[-1] * loss for loss in q.losses())

    generator = torch.Generator()
    seed = next(
        s for s in range(99) if int(torch.randint(4, (), generator=generator.manual_seed(s))) == 2
    )
    value, _ = hypergradient(
        inner, q.params, 0.35, None, "randomised", 4, 0.05, generator=generator.manual_seed(seed)
    )
    c, v = q.c_and_v()
    eye, H = EYE, q.H(0.35)
    expected = -0.05 * 4 * c @ (eye - 0.05 * 3 * H) @ (eye - 0.05 * 2 * H) @ v
    assert value == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_at_an_inner_optimum_alpha_can_only_fall(alpha, damping):
    """c = -v / alpha there, so that the hypergradient is v^T H^-1 v / alpha > 0, also damped and truncated."""
    q = Quadratic()
    q.put(q.solve(alpha))
    _, v = q.c_and_v()
    H = q.H(alpha) + damping * EYE
    value, _ = hypergradient(q.losses, q.params, alpha, terms=2000, step=0.2, damping=damping)
    assert value == pytest.approx((v @ torch.linalg.solve(H, v)).item() / alpha, rel=1e-9)
    assert hypergradient(q.losses, q.params, alpha, terms=3, step=0.2, damping=damping)[0] > 0


def test_alpha_ends_at_0_or_at_the_held_out_optimum():
    """Outer loss = the training L_CLS: alpha falls to 0. A held-out one: to the minimum that a grid finds."""
    q = Quadratic()
    for outer in (None, q.outer):
        alpha = 0.95
        for _ in range(400):
            q.put(q.solve(alpha))
            value, _ = hypergradient(q.losses, q.params, alpha, outer, "cg", 9)
            alpha = max(0.0, min(1.0, alpha - 0.1 * value))
        if outer is None:
            assert alpha == 0
    grid = torch.linspace(0, 1, 1001).tolist()
    best = min(grid, key=lambda a: q.put(q.solve(a)).outer().item())
    assert 0 < best < 1
    assert alpha == pytest.approx(best, abs=0.01)


@pytest.mark.parametrize("solver", SOLVERS)
def test_hypergradient_leaves_no_trace(solver):
    """Parameters, buffers, .grad, modes and random state stay bit for bit; a second call gives the same value."""
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
        with evaluating(net):
            generator = torch.Generator().manual_seed(1)
            values.append(
                hypergradient(losses, net.parameters(), 0.6, None, solver, 4, 1e-3, 10.0, generator)
            )
    assert values[0] == values[1] and values[0][0] is not None
    assert len(forwards) == 2 or solver == "randomised"
    after = [*net.state_dict().values(), *(p.grad for p in net.parameters())]
    assert all(torch.equal(a, b) for a, b in zip(before, after))
    assert modes == [m.training for m in net.modules()]
    assert torch.equal(random_state, torch.get_rng_state())


def test_modes_come_back_after_an_error():
    """evaluating() restores them on the way out of any exception."""
    net, _ = conv_net(torch.float32)
    net.train()
    with pytest.raises(KeyError), evaluating(net):
        assert not net.phi[0].training
        raise KeyError
    assert all(m.training for m in net.modules())


class Indefinite(Quadratic):
    """H with the eigenvalues -1, .5 and 2 whatever alpha, and gradients in all three directions."""

    def __init__(self):
        super().__init__()
        self.A = self.M = with_eigenvalues([-1, 0.5, 2] * 3, seed=7)
        self.put(normal(9, seed=6))


def test_an_indefinite_hessian_is_cut_and_said():
    """200 undamped terms would reach 1e30: the sum ends before the first term that grows, and the note says so."""
    q = Indefinite()
    value, report = hypergradient(q.losses, q.params, 0.5, terms=200, step=0.4)
    c, v = q.c_and_v()
    used = report["terms"]
    A = EYE - 0.4 * q.H(0.5)
    sizes = [(torch.linalg.matrix_power(A, k) @ v).norm().item() for k in range(200)]
    assert 1 <= used < 20 and sizes[used] > sizes[used - 1] and max(sizes[:used]) == sizes[0]
    assert value == pytest.approx((-c @ series(q.H(0.5), v, used, 0.4)).item(), rel=1e-12)
    assert f"cut after {used} of 200 terms" in report["note"]


def test_an_indefinite_hessian_can_be_damped():
    """With damping above the most negative curvature all terms stay, and the value is the damped inverse's."""
    q = Indefinite()
    value, report = hypergradient(q.losses, q.params, 0.5, terms=400, step=0.2, damping=1.5)
    c, v = q.c_and_v()
    expected = -c @ torch.linalg.solve(q.H(0.5) + 1.5 * EYE, v)
    assert report["terms"] == 400 and report["note"] == ""
    assert value == pytest.approx(expected.item(), rel=1e-9)
    assert 0 < report["curvature"] <= 3.5


def test_too_large_a_step_is_cut_and_said():
    """A step above 2 / (largest eigenvalue) makes the terms grow although H > 0."""
    q = Quadratic().put(normal(9, seed=6))
    value, report = hypergradient(q.losses, q.params, 0.5, terms=50, step=2.0)
    assert math.isfinite(value) and report["terms"] < 10 and "cut after" in report["note"]


def test_a_singular_hessian_is_no_singularity_of_the_series():
    """Zero curvature weighs K step: finite, and without a note."""
    q = Quadratic()
    q.A = q.M = with_eigenvalues([0.0, 1, 2] * 3, seed=7)
    q.put(normal(9, seed=6))
    value, report = hypergradient(q.losses, q.params, 0.5, terms=30, step=0.4)
    c, v = q.c_and_v()
    assert value == pytest.approx((-c @ series(q.H(0.5), v, 30, 0.4)).item(), rel=1e-11)
    assert report["note"] == ""


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_is_not_finite_is_refused(solver):
    """A loss of nan gives None and a note, never a number."""
    q = Quadratic()

    def inner():
        l_cls, l_mm = q.losses()
        return l_cls * math.nan, l_mm

    value, report = hypergradient(
        inner, q.params, 0.5, solver=solver, generator=torch.Generator().manual_seed(3)
    )
    assert value is None and "refused" in report["note"] and math.isfinite(report["curvature"])


def test_cg_refuses_negative_curvature():
    """Without a first direction of positive curvature there is no value; later, the iterate before is kept."""
    q = Quadratic()
    q.A = q.M = with_eigenvalues([-1.0] * 9, seed=7)
    assert hypergradient(q.put(normal(9, seed=6)).losses, q.params, 0.5, solver="cg")[0] is None
    q = Indefinite()
    value, report = hypergradient(q.losses, q.params, 0.5, solver="cg", terms=50)
    c, v = q.c_and_v()
    first_iterate = (v @ v) / (v @ q.H(0.5) @ v) * v
    assert value == pytest.approx(-(c @ first_iterate).item(), rel=1e-12)
    assert report["terms"] == 1 and "cut after 1 of 50 terms" in report["note"]


def test_cg_ends_where_it_has_solved():
    """H = I takes one iteration; those that are left change nothing and are no sign of negative curvature."""
    q = Quadratic()
    q.A = q.M = EYE
    q.put(normal(9, seed=6))
    c, v = q.c_and_v()
    value, report = hypergradient(q.losses, q.params, 0.5, solver="cg", terms=5)
    assert value == pytest.approx(-(c @ v).item(), rel=1e-12) and report["note"] == ""


def test_randomised_refuses_a_product_that_grows():
    """Negative curvature in every factor: nothing to average."""
    q = Quadratic()
    q.A = q.M = with_eigenvalues([-1.0] * 9, seed=7)
    q.put(normal(9, seed=6))
    generator = torch.Generator()
    seed = next(
        s for s in range(99) if int(torch.randint(5, (), generator=generator.manual_seed(s))) > 0
    )
    value, report = hypergradient(q.losses, q.params, 0.5, None, "randomised", 5, 0.1,
                                  generator=generator.manual_seed(seed))  # fmt: skip
    assert value is None and "refused" in report["note"]


def test_a_parameter_outside_a_loss_counts_as_zero():
    """The classifier is not in L_MM, and grad() says 0 for it."""
    net = TwoTowers()
    g = grad(net.losses()[1], net.params)
    assert all(x.abs().sum() == 0 for x in g[2:]) and all(x.abs().sum() > 0 for x in g[:2])
