"""scripts/response.py: its estimates are bilevel.py's, and its response is that of training."""

import copy
import json

import numpy as np
import pytest
import torch

from scripts import response


@pytest.fixture(scope="module")
def state():
    """keypad's cnn after a few steps, with the last of them remembered."""
    state = response.State("cnn without batch norm", 0.6, 0)
    state.train(0.6, state.batches(np.random.default_rng(0)), 25, remember=True)
    return state


def parameters(state):
    return torch.cat([p.detach().flatten() for p in state.params])


@pytest.mark.parametrize("name", response.ESTIMATORS)
def test_an_estimate_leaves_the_state(state, name):
    """Parameters, buffers and the optimizer are as before; the same rng, the same value."""
    before = copy.deepcopy(state.snapshot())
    *_, estimate = response.ESTIMATORS[name]
    values = [estimate(state, np.random.default_rng(1))[0] for _ in range(2)]
    assert values[0] == values[1]
    for old, new in zip(before[0].values(), state.snapshot()[0].values()):
        assert torch.equal(old, new)
    old, new = (s["state"].values() for s in (before[1], state.snapshot()[1]))
    assert all(torch.equal(a["momentum_buffer"], b["momentum_buffer"]) for a, b in zip(old, new))


def test_unrolling_is_the_derivative_of_training(state, monkeypatch):
    """Five steps in forward mode equal their central difference, on fixed batches, in float64."""
    state = copy.deepcopy(state)
    state.model.double()  # the parameters stay the same objects, those of the optimizer
    for memory in state.optimizer.state.values():
        memory["momentum_buffer"] = memory["momentum_buffer"].double()
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x)  # the losses keep float64
    fixed = [next(state.batches(np.random.default_rng(k), 8)) for k in range(9)]
    fixed = [([x_j.double() for x_j in x], y) for x, y in fixed]
    monkeypatch.setattr(state, "batches", lambda rng, size=None: iter(fixed))
    value, _ = state.unrolled(np.random.default_rng(0))
    start, after = state.snapshot(), []
    for alpha in (0.6 + 1e-6, 0.6 - 1e-6):
        state.restore(start)
        state.train(alpha, iter(fixed), 5)
        with torch.no_grad():
            after.append(sum(state.losses(batch)[0].item() for batch in fixed[5:]) / 4)
    assert value == pytest.approx((after[0] - after[1]) / 2e-6, rel=1e-5)


def test_the_mean_theta_is_that_of_the_last_steps(state, monkeypatch):
    """The estimate is taken at the mean of the 20 parameters remembered."""
    seen = []
    monkeypatch.setattr(state, "estimate", lambda rng: seen.append(parameters(state)))
    state.at_mean(np.random.default_rng(0))
    last = [torch.cat([p.flatten() for p in values]) for values in state.last]
    assert len(last) == 20 and torch.equal(last[-1], parameters(state))
    assert torch.allclose(seen[0], torch.stack(last).mean(0), atol=1e-6)


def test_the_tables_compare_signs_and_sizes(capsys, monkeypatch, tmp_path):
    """One of two states has the right sign; a refused estimate is left out."""
    monkeypatch.setattr(response, "OUT", tmp_path)
    for t, estimates in [(1, [0.2, 0.4, None]), (2, [-0.1, -0.2, -0.3])]:
        record = {"net": "cnn", "alpha": 0.9, "seed": 0, "t": t}
        lengths = ("5 steps", "an epoch", "3 epochs")
        record["response"] = dict.fromkeys(lengths, [[0.1, 0.1], [0.11, 0.1]])
        record["estimates"] = {name: estimates for name in response.ESTIMATORS}
        (tmp_path / f"{t}.json").write_text(json.dumps(record))
    response.table()
    out = capsys.readouterr().out
    assert "| cnn | 0.9 | 0 | 1 | 0.105 ± 0.005 |" in out and "| 0.300 ± 0.100 |" in out
    row = next(line for line in out.splitlines() if line.startswith("| chosen |"))
    assert "| 1 of 2 | 40% |" in row and row.endswith("| 0.48 | 0.5 |")


def test_a_wrong_command_is_one_sentence(capsys):
    """Exit status 2, and what is wrong."""
    for arguments, said in [
        (
            "run vgg 0.9 0",
            "unknown network 'vgg'; choose from cnn, cnn without batch norm, resnet18",
        ),
        ("run cnn", "missing: ALPHA, SEED; see --help"),
        ("run cnn high 0", "ALPHA is 'high', expected a number"),
        ("table cnn", "unknown argument 'cnn'; --help lists all flags"),
    ]:
        assert response.main(arguments.split()) == 2
        assert capsys.readouterr().err == f"response: {said}\n"
