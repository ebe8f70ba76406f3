"""scripts/landscape.py: Eq. 3 against the problem solved anew, and where the best alpha is."""

import functools
from types import SimpleNamespace

import numpy as np
import pytest

from scripts import landscape
from scripts.landscape import ALPHAS, LIMIT, START, Problem, descend, slope, solutions


@functools.cache
def solved(seed):
    """(problem, {alpha: theta*(alpha)})."""
    problem = Problem(seed)
    return problem, solutions(problem)


def curve(seed, outer):
    problem, found = solved(seed)
    return np.array([problem.l_cls(found[alpha], outer).item() for alpha in ALPHAS])


@pytest.mark.slow
@pytest.mark.parametrize("outer", landscape.OUTER.values())
@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_exact_eq_3_is_the_slope_of_the_solved_problem(alpha, outer):
    """A central difference of fourth order agrees to 1e-6; a short series has its own size."""
    problem, found = solved(0)
    theta, h = found[alpha], 1e-4

    def difference(h):
        ends = [problem.solve(theta, alpha + step) for step in (h, -h)]
        above, below = [problem.l_cls(end, outer).item() for end in ends]
        return (above - below) / (2 * h)

    expected = (4 * difference(h) - difference(2 * h)) / 3
    assert slope(problem, theta, alpha, outer) == pytest.approx(expected, rel=1e-6)
    assert slope(problem, theta, alpha, outer, 5) != pytest.approx(expected, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_best_alpha_is_0_in_training_and_inside_held_out(seed):
    """On training samples L_CLS only rises; held out it has its minimum well inside (0, 1)."""
    assert (np.diff(curve(seed, "train")) > 0).all()
    held_out = curve(seed, "held_out")
    assert 0.2 < ALPHAS[held_out.argmin()] < 0.8
    assert held_out.min() < held_out[0] - 0.05 and held_out.min() < held_out[-1] - 0.05


@pytest.mark.slow
def test_the_exact_path_ends_at_the_best_alpha():
    """From 0.95 by steps of at most 0.1: to 0 in training, to the lowest point held out."""
    problem, found = solved(0)
    for outer, best in [("train", 0), ("held_out", ALPHAS[curve(0, "held_out").argmin()])]:
        alphas = [alpha for alpha, _ in descend(problem, found[START], outer, 0)]
        assert alphas[0] == START and alphas[-1] == pytest.approx(best, abs=0.03)
        assert max(np.abs(np.diff(alphas))) <= LIMIT + 1e-12 and min(alphas) >= 0


def test_a_problem_that_is_not_solved_is_said(monkeypatch):
    """Two Newton steps from anywhere do not reach a minimum."""
    monkeypatch.setattr(landscape, "minimize", lambda inner, start, **_: SimpleNamespace(x=start))
    problem = Problem(0)
    with pytest.raises(FloatingPointError, match="alpha 0.500 is not solved: .* another --seed"):
        problem.solve(problem.initial, 0.5)
