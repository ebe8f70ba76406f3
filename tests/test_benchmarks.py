"""scripts/benchmarks.py: how memory is counted."""

import pytest
import torch

from scripts import benchmarks


def test_live_counts_the_bytes_that_are_alive():
    """The most at once; a view takes nothing, what is freed is given back, on any device."""
    for device in ("cpu", "meta"):
        with benchmarks.Live() as live:
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
    with benchmarks.Live():
        assert torch.zeros(1, device="meta").item() == 1.0 and torch.zeros(1).item() == 0.0


@pytest.mark.parametrize("way", benchmarks.WAYS)
def test_needed_memory_is_a_line_over_the_batch(way, monkeypatch):
    """So two batches tell the others; nothing is left behind that later training would use."""
    small = {"encoders": "cnn", "optimizer": "sgd", "lr": 0.1, "weight_decay": 0.0}
    monkeypatch.setattr(benchmarks, "defaults", lambda name: small)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    a, b, c = (benchmarks.needed("cremad", way, n) for n in (8, 16, 24))
    assert 0 < a < b < c and c - b == pytest.approx(b - a, rel=1e-3)
    pictures = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    expected = -torch.tensor(benchmarks.media.IMAGENET[0]) / torch.tensor(
        benchmarks.media.IMAGENET[1]
    )
    result = benchmarks.media.normalize(pictures, benchmarks.media.IMAGENET)[0, :, 0, 0]
    assert torch.allclose(result, expected)


@pytest.mark.parametrize("function", [benchmarks.ours, benchmarks.step_found])
def test_eq_3_holds_eight_copies_of_theta(function):
    """theta, v, c, one to three vectors of the solver, and what a product with H takes; for a batch
    whose features weigh nothing beside them."""
    with benchmarks.Live() as live:
        model, batch = benchmarks.two_resnets((2, (33, 33), (32, 32)))
        function(model, batch, 3)
    assert live.peak < 8.2 * sum(p.nbytes for p in model.parameters())
