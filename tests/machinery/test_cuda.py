"""A real GPU: the numbers of the CPU, bfloat16, equal runs. Skipped where there is none."""

import math

import pytest
import torch

import train
from data import Batches, Samples, identity
from model import MultimodalModel
from utils.run import read_log

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture(autouse=True)
def exact():
    """Convolutions in float32, not in TensorFloat-32."""
    torch.backends.cudnn.allow_tf32, before = False, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32 = before


def a_step_and_eq_3(device, encoder, dtype, settings):
    """(the losses of a step of theta, theta's first weights after it, Eq. 3)."""
    torch.manual_seed(0)
    x = [torch.randn(8, c, 33, 38, dtype=dtype) for c in (1, 3)]
    samples = Samples(x, torch.arange(8) % 3, [identity] * 2)
    model = MultimodalModel([1, 3], 3, encoder).to(device, dtype)
    args = train.Settings(**{"terms": 3, "draws": 1} | settings)
    theta, _ = train.make_optimizer(args, model.parameters())
    batches = Batches(samples, 8, [0], device)
    (step,) = (train.inner_step(model, theta, *xy, 0.5, args) for xy in batches.epoch(1))
    gradient, _ = train.alpha_gradient(model, batches, batches, 0.5, 1, args)
    weights = next(model.parameters()).flatten()[:20]
    return [*step.tolist(), *weights.tolist(), gradient]


@pytest.mark.parametrize("encoder", ["cnn", "cnn,resnet18"])
@pytest.mark.parametrize("solver", ["lanczos", "neumann", "randomised", "cg"])
def test_a_step_and_eq_3_are_those_of_the_cpu(encoder, solver):
    both = [
        a_step_and_eq_3(device, encoder, torch.float64, {"solver": solver})
        for device in ("cpu", "cuda")
    ]
    assert both[1] == pytest.approx(both[0], rel=1e-6, abs=1e-9)


def test_bfloat16_is_near_float32_and_leaves_eq_3_alone():
    """--bf16 rounds the steps of theta; an update of alpha stays in float32."""
    plain, half = (
        a_step_and_eq_3("cuda", "cnn", torch.float32, {"bf16": bf16, "lr": 1e-9})
        for bf16 in (False, True)
    )
    assert half[:2] == pytest.approx(plain[:2], rel=0.02) and half[:2] != plain[:2]
    assert half[-1] == pytest.approx(plain[-1], rel=1e-3)


@pytest.mark.parametrize("method", ["heuristic", "learning-based"])
def test_deterministic_runs_are_equal(method, tiny_data):
    """With --deterministic, to the last digit."""
    asked = ["--dataset", "tiny", "--method", method, "--epochs", "2", "--batch-size", "8"]
    asked += ["--device", "cuda", "--deterministic"]
    assert [train.main([*asked, "--out", out]) for out in ("once", "twice")] == [0, 0]
    once, twice = (read_log(out).epochs for out in ("once", "twice"))
    assert once == twice and all(math.isfinite(record["l_cls"]) for record in once)
