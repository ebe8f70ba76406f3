"""scripts/costs.py: how memory is counted, and that every part runs."""

import functools

import pytest
import torch

from model import MultimodalModel
from scripts import costs
from utils import media

SMALL = {"encoders": "cnn", "optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0, "bf16": False}

FEW = {  # keywords that make each part of costs.PARTS short
    "update": {"rounds": 1, "terms": (1,)},
    "epoch": {"rounds": 1},
    "hypergradient": {"rounds": 1, "terms": (1,)},
    "memory": {},
}


def two_cnns(n, *_):
    """In place of costs.two_resnets."""
    x = [torch.randn(n, 1, 9, 9), torch.randn(n, 3, 9, 9)]
    return MultimodalModel([1, 3], 6, "cnn"), (x, torch.arange(n) % 6)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """What a test checks does not depend on the machine."""
    monkeypatch.setattr(costs, "CUDA", False)
    monkeypatch.setattr(costs, "DEVICE", "cpu")


def test_live_counts_the_bytes_that_are_alive():
    """The most at once; a view takes nothing, freed memory is subtracted, on any device."""
    for device in ("cpu", "meta"):
        with costs.Live() as live:
            a = torch.zeros(1000, device=device)
            b = a + 1
            c = b.view(10, 100)[2:]
            assert live.live == live.peak == 8000
            del a
            assert live.live == 4000
            a = torch.zeros(500, device=device)
            assert live.live == 6000 and live.peak == 8000
            del a, b, c
            assert live.live == 0
    with costs.Live():
        assert torch.zeros(1, device="meta").item() == 1.0 and torch.zeros(1).item() == 0.0


@pytest.mark.parametrize("way", costs.WAYS)
def test_needed_memory_is_a_line_over_the_batch(way, monkeypatch):
    """So two batches give the others; no fake tensor is left behind for later training."""
    monkeypatch.setattr(costs, "defaults", lambda name: SMALL)
    a, b, c = (costs.needed("cremad", way, n) for n in (8, 16, 24))
    assert 0 < a < b < c and c - b == pytest.approx(b - a, rel=1e-3)
    black = media.normalize(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), media.IMAGENET)
    mean, std = map(torch.tensor, media.IMAGENET)
    assert torch.allclose(black[0, :, 0, 0], -mean / std)


@pytest.mark.parametrize("step", [1e-4, None])
def test_eq_3_takes_seven_times_the_memory_of_theta(step):
    """Beside theta: v, c, two or three vectors of the solver, and a product with H; for a batch
    whose features are small beside them."""
    model, batch = costs.two_resnets(2, (33, 33), (32, 32))
    theta = sum(p.nbytes for p in model.parameters()) / 2**20
    _, peak = costs.counted(functools.partial(costs.eq_3, model, batch, 3, step), model)
    assert 2 * theta < peak / 2**20 < 7.2 * theta


@pytest.mark.slow
@pytest.mark.parametrize("part, keywords", FEW.items())
def test_every_part_prints_its_duration_and_its_numbers(part, keywords, monkeypatch, capsys):
    """On small models and one round; a spread is `median (smallest to largest)`."""
    monkeypatch.setattr(costs, "two_resnets", two_cnns)
    usual = costs.defaults("cremad", "cpu") | SMALL
    monkeypatch.setattr(costs, "defaults", lambda name: usual)
    monkeypatch.setitem(costs.ENCODERS, "bert", None)  # `memory` puts its own there
    if part == "memory":
        monkeypatch.setattr(costs, "SETS", {"cremad": costs.SETS["cremad"]})
    function, duration = costs.PARTS[part]
    monkeypatch.setitem(costs.PARTS, part, (functools.partial(function, **keywords), duration))
    assert costs.main([part]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"## {part}: about {duration}")
    assert ("| cremad | step |" if part == "memory" else " to ") in out


def test_an_unknown_part_is_one_sentence(monkeypatch, capsys):
    """Exit status 2, with the choices, before anything runs."""
    monkeypatch.setitem(costs.PARTS, "memory", (costs.spread, "not run"))
    assert costs.main(["memory", "speed"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "costs: unknown part 'speed'; choose from epoch, " in err


def test_help_lists_the_parts_and_their_durations(capsys):
    """Through argparse, as in every program."""
    with pytest.raises(SystemExit) as end:
        costs.main(["--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    for part, (_, duration) in costs.PARTS.items():
        assert f"{part}: " in out and duration in out
