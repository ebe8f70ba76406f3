"""Every device: a GPU is played on `meta`, PyTorch's device with shapes and without values.

An operation that mixes devices is found, and what waits for the GPU is counted.
"""

import contextlib

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train
from bilevel import SOLVERS
from data import Batches, Samples, eval_loader, identity
from model import MultimodalModel

ENCODERS = ["cnn", "resnet18", "bert", "clip"]


class MadeOfNumbers(TorchFunctionMode):
    """Notes in `waits` each tensor on meta that is made of Python's numbers."""

    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "")
        if name in ("tensor", "new_tensor", "as_tensor") and result.device.type == "meta":
            self.waits.append(name)
        return result


class Operations(TorchDispatchMode):
    """Raises RuntimeError where meta and the CPU meet; notes in `waits` what waits for the GPU.

    item() and its kin give 1, and a copy to the CPU is full of ones.
    """

    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, str(function).split(".")[1]
        tensors = [x for x in tree_leaves((args, kwargs)) if torch.is_tensor(x)]
        devices = {x.device.type for x in tensors}
        if len(devices) > 1 and name != "copy_":
            shapes = [f"{x.device} {tuple(x.shape)}" for x in tensors]
            raise RuntimeError(f"{function} mixes devices: {shapes}")
        source = devices.pop() if devices else "meta"
        target = torch.device(kwargs.get("device") or source).type
        if name == "_to_copy" and source != target and not kwargs.get("non_blocking"):
            self.waits.append(name)
        if name == "_local_scalar_dense" and source == "meta":
            self.waits.append(name)
            return torch.ones((), dtype=tensors[0].dtype).item()
        if name == "_to_copy" and (source, target) == ("meta", "cpu"):
            return torch.ones_like(tensors[0], device="cpu", dtype=kwargs.get("dtype"))
        return function(*args, **kwargs)


@contextlib.contextmanager
def played_gpu():
    """A GPU, played on meta; yields the list of all that waits for it."""
    waits = []
    with MadeOfNumbers(waits), Operations(waits):
        yield waits


@pytest.fixture
def on_meta(monkeypatch, tiny_bert, tiny_clip):
    """A function: encoder -> (its model on meta, training samples on the CPU)."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())

    def make(encoder):
        sound = torch.zeros(6, 1, 40, 33, dtype=torch.float16)
        picture = torch.zeros(6, 3, 224, 224, dtype=torch.uint8)
        text = torch.ones(6, 2, 5, dtype=torch.int64)
        encoders, channels, x = {
            "cnn": ("cnn", [1, 3], [sound, picture]),
            "resnet18": ("cnn,resnet18", [1, 3], [sound, picture[:, None]]),
            "bert": (f"cnn,bert:{tiny_bert}", [3, 0], [picture, text]),
            "clip": (f"clip:{tiny_clip}", [3, 0], [picture, text]),
        }[encoder]
        model = MultimodalModel(channels, 3, encoders).to("meta")
        with played_gpu():  # some constants are copied at their first use
            model([x_j.to("meta") for x_j in x])
        return model, Samples(x, torch.arange(6) % 3, [identity] * 2)

    return make


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_training_step_waits_for_nothing(on_meta, encoder, optimizer):
    """inner_step is on the model's device alone, and reads no value of it."""
    model, samples = on_meta(encoder)
    args = train.Settings(optimizer=optimizer)
    theta, _ = train.make_optimizer(args, model.parameters())
    for x, y in Batches(samples, 4, [0], "meta", inner_iters=2).epoch(1):
        with played_gpu() as waits:
            steps = train.inner_step(model, theta, x, y, 0.5, args)
    # BERT's own code asks the device whether a text of the batch is padded.
    assert len(waits) <= (encoder == "bert"), waits
    assert steps.device.type == "meta" and steps.shape == (3,)


@pytest.mark.parametrize(
    "encoder, solver",
    [*(("cnn", solver) for solver in SOLVERS), *((x, "cg") for x in ENCODERS[1:])],
)
def test_eq_3_is_on_the_device(on_meta, encoder, solver):
    """v, c and the products with H; what comes back are numbers, not tensors."""
    model, samples = on_meta(encoder)
    inner, outer = (Batches(samples, 4, [k], "meta") for k in (0, 1))
    args = train.Settings(solver=solver, terms=2, draws=1)
    with played_gpu() as waits:
        value, report = train.alpha_gradient(model, inner, outer, 0.5, 1, args)
    assert "_local_scalar_dense" in waits and "terms" in report


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_evaluation_is_on_the_device(on_meta, encoder):
    """The scores of a batch come to the CPU by one copy."""
    model, samples = on_meta(encoder)
    with played_gpu() as waits:
        train.evaluate(model, eval_loader(samples, 4, "meta"), ["a", "b"])
    assert waits.count("_to_copy") == 2 and len(waits) <= 2 + 2 * (encoder == "bert")


def test_a_tensor_left_on_the_cpu_is_found(on_meta):
    """The check itself: a mixed operation, and each way to wait."""
    model, samples = on_meta("cnn")
    x = torch.ones(2, device="meta")
    for wait in (x.sum, x.cpu, x.tolist, lambda: torch.tensor([1.0], device="meta")):
        with played_gpu() as waits:
            wait()
        assert len(waits) == (wait != x.sum)
    for wait in (float, int, bool):
        with played_gpu() as waits:
            wait(x[0])
        assert len(waits) == 1
    model.classifier.bias = torch.nn.Parameter(torch.zeros(3))
    with played_gpu(), pytest.raises(RuntimeError, match="mixes devices"):
        model([x_j.to("meta") for x_j in samples.sources])
