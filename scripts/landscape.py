"""The bilevel problem of Eq. 2 on a problem that is small enough to be solved to the end.

    python -m scripts.figures landscape                 the picture; --seed draws other data

Eq. 2                                   here
the inner problem, theta*(alpha)        Problem.solve, by Newton's method instead of SGD
the outer loss L_CLS(theta*(alpha))     Problem.l_cls, of the training or of held-out samples
Eq. 3, of K terms or exact              slope, by bilevel.hypergradient
Alg. 1's update of alpha                descend, from 0.95

The samples are handwritten digits 0, 1 and 2, cut into a left and a right half: two modalities of 8
numbers, with noise of the size of the ink. There are 40 samples to train and 300 held out. An
encoder is z^(j) = sigmoid(A^(j) x^(j)), three numbers; fusion and classifier are concat and W, b.
Weight decay is a part of the inner problem. At each solution H is checked to be positive definite.

Training samples as the outer level: the best alpha is 0, because at 0 the inner problem minimizes
the outer loss itself (but for the weight decay). Held-out samples: the best alpha is inside (0, 1)
for a natural reason. Forty noisy samples are few, so that at alpha = 0 the model fits their noise.
A larger alpha leaves less weight to that fit: against L_MM, and against the weight decay, which
would do a part of this without L_MM. At alpha = 1 nothing trains the classifier, and L_CLS is
log 3.

The inner problem has several minima. Each solution starts from its neighbour, so that it follows
one of them; where that minimum ends, the curve jumps to another one, and no derivative exists.
"""

import numpy as np
import torch
from scipy.optimize import minimize
from sklearn.datasets import load_digits

from bilevel import hypergradient
from losses import classification_loss, modality_matching_loss, total_loss

CLASSES, TRAIN, HELD_OUT = 3, 40, 300  # classes; samples
NOISE = 1.0  # standard deviation; that of the pixels is 1
WIDTH, TAU, DECAY = 3, 1.0, 0.01  # d, the temperature of L_MM, the weight decay
START, ETA, LIMIT, UPDATES = 0.95, 0.5, 0.1, 15  # Alg. 1: alpha_0, eta_alpha, alpha_limit, T
ALPHAS = [k / 20 for k in range(21)]
TANGENTS = [0.1, 0.3, 0.5, 0.7, 0.9]
TERMS = {"K = 1": 1, "K = 5": 5, "exact": 0}  # of the series; 0: the inverse itself
OUTER = {"training samples": "train", "held-out samples": "held_out"}


def half_digits(seed):
    """Two batches (x, y), to train and held out: x two tensors (n, 8), y (n,)."""
    digits, rng = load_digits(n_class=CLASSES), np.random.default_rng(seed)
    chosen = rng.permutation(len(digits.target))[: TRAIN + HELD_OUT]
    image = digits.images[chosen].reshape(-1, 4, 2, 4, 2).mean((2, 4))  # (n, 4, 4)
    y, x = torch.tensor(digits.target[chosen]), []
    for half in (image[:, :, :2], image[:, :, 2:]):
        pixels = half.reshape(len(half), -1)  # (n, 8)
        pixels = (pixels - pixels.mean(0)) / pixels.std()
        x.append(torch.tensor(pixels + rng.normal(0, NOISE, pixels.shape)))
    return ([x_j[:TRAIN] for x_j in x], y[:TRAIN]), ([x_j[TRAIN:] for x_j in x], y[TRAIN:])


class Problem:
    """The inner problem and both outer losses, in float64; theta is a list of four tensors."""

    def __init__(self, seed=0):
        self.train, self.held_out = half_digits(seed)
        sizes = [(8, WIDTH), (8, WIDTH), (2 * WIDTH, CLASSES), (CLASSES,)]  # A^(1), A^(2), W, b
        rng = torch.Generator().manual_seed(seed)
        self.initial = [0.5 * torch.randn(n, generator=rng, dtype=torch.float64) for n in sizes]

    def losses(self, theta, batch):
        """(L_CLS, L_MM) of all samples of a batch (Sec. 3.1, 3.2)."""
        *A, W, b = theta
        x, y = batch
        z = [torch.sigmoid(x_j @ A_j) for x_j, A_j in zip(x, A)]
        logits = torch.cat(z, dim=1) @ W + b
        return classification_loss(logits, y), modality_matching_loss(z, TAU)

    def l_cls(self, theta, outer):
        """L_CLS of the outer level's samples; outer: train or held_out."""
        return self.losses(theta, getattr(self, outer))[0]

    def solve(self, theta, alpha):
        """theta*(alpha), the minimum of L_Total + decay / 2 |theta|^2 that is reached from theta.

        FloatingPointError unless |gradient| < 1e-10 and H > 0 there.
        """

        def parts(vector):
            flat = vector.split([p.numel() for p in theta])
            return [f.view(p.shape) for f, p in zip(flat, theta)]

        def inner(vector):
            l_total = total_loss(*self.losses(parts(vector), self.train), alpha)
            return l_total + DECAY / 2 * vector @ vector

        value, hessian = torch.func.grad_and_value(inner), torch.func.hessian(inner)

        def value_and_gradient(x):
            g, loss = value(torch.from_numpy(x))
            return loss.item(), g.numpy()

        found = minimize(
            value_and_gradient,
            torch.cat([p.detach().flatten() for p in theta]).numpy(),
            jac=True,
            hess=lambda x: hessian(torch.from_numpy(x)).numpy(),
            method="trust-exact",
            options={"gtol": 1e-7},
        )
        vector = torch.from_numpy(found.x)
        for _ in range(2):  # plain Newton steps: each squares the error
            vector = vector - torch.linalg.solve(hessian(vector), value(vector)[0])
        size, lowest = value(vector)[0].norm(), torch.linalg.eigvalsh(hessian(vector))[0]
        if not (size < 1e-10 and lowest > 0):
            raise FloatingPointError(
                f"alpha {alpha:.3f} is not solved: the gradient has size {size:.1e}, H the "
                f"smallest eigenvalue {lowest:.1e}; choose another --seed"
            )
        return [p.clone().requires_grad_() for p in parts(vector)]


def slope(problem, theta, alpha, outer, terms=0):
    """Eq. 3 at theta by bilevel.hypergradient; terms: K of the series, 0 for the exact inverse."""
    how = {"solver": "neumann", "terms": terms}
    if not terms:  # conjugate gradient until it is exact; rounding costs it further iterations
        how = {"solver": "cg", "terms": 2 * sum(p.numel() for p in theta)}
    value, _ = hypergradient(
        lambda: problem.l_cls(theta, outer),
        lambda: problem.losses(theta, problem.train),
        theta,
        alpha,
        decay=DECAY,
        **how,
    )
    return value


def solutions(problem):
    """{alpha: theta*(alpha)} over ALPHAS, from START to both sides, each from its neighbour."""
    start = problem.solve(problem.initial, START)
    down = sorted((alpha for alpha in ALPHAS if alpha <= START), reverse=True)
    up = [alpha for alpha in ALPHAS if alpha > START]
    found = {}
    for side in (down, up):
        theta = start
        for alpha in side:
            found[alpha] = theta = problem.solve(theta, alpha)
    return dict(sorted(found.items()))


def descend(problem, theta, outer, terms):
    """Alg. 1 with the inner problem solved in each epoch: [(alpha, L_CLS)] of T epochs.

    theta: theta*(START). alpha moves as in train.train, by at most LIMIT, and stays in [0, 1].
    """
    alpha, path = START, []
    for _ in range(UPDATES):
        theta = problem.solve(theta, alpha)
        path.append((alpha, problem.l_cls(theta, outer).item()))
        move = ETA * slope(problem, theta, alpha, outer, terms)
        alpha = max(0.0, min(1.0, alpha - max(-LIMIT, min(LIMIT, move))))
    return path


def draw(axes, seed, colours):
    """Two columns, training and held-out samples. axes (2, 2); colours: one for each of TERMS.

    Above: L_CLS(theta*(alpha)), Eq. 3 as tangents, and the path by the exact Eq. 3. Below: alpha
    over the updates.
    """
    problem = Problem(seed)
    found = solutions(problem)
    for (above, below), (name, outer) in zip(axes.T, OUTER.items()):
        values = {alpha: problem.l_cls(theta, outer).item() for alpha, theta in found.items()}
        above.plot(*zip(*values.items()), "-", color="#bbbbbb", lw=4, zorder=1)
        best = min(values, key=values.get)
        above.set_title(f"outer level: {name}\nlowest at α = {best:g}", fontsize=10)
        for (label, terms), colour in zip(TERMS.items(), colours):
            for alpha in TANGENTS:
                g = slope(problem, found[alpha], alpha, outer, terms)
                ends = np.array([-0.06, 0.06])
                above.plot(alpha + ends, values[alpha] + g * ends, color=colour, lw=1.8)
            path = descend(problem, found[START], outer, terms)
            below.plot(range(1, 1 + len(path)), [a for a, _ in path], ".-", color=colour, lw=1.2)
            above.plot([], [], color=colour, label=f"Eq. 3, {label}")
        above.plot(*zip(*path), "o", color=colour, ms=4, label="α of each epoch, exact")
        below.axhline(best, color="#bbbbbb", lw=4, zorder=0)
        above.set(xlabel=r"$\alpha$", xlim=(-0.05, 1.05))
        below.set(xlabel="epoch t", ylim=(-0.05, 1.05))
    axes[0, 0].set_ylabel(r"$L_{CLS}(\theta^*(\alpha))$, nats")
    axes[1, 0].set_ylabel(r"$\alpha$")
