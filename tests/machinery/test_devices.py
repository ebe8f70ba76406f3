"""Every device: a GPU is played on `meta`, PyTorch's device with shapes and without values.

An operation that mixes devices is found, and what waits for the GPU is counted.
"""

import contextlib

import pytest
import torch
from torch import is_tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import train
from baselines import Baseline, held_out
from bilevel import SOLVERS
from data import Batches, Samples, identity, load_data
from model import MultimodalModel
from scripts.inside import grad_cam, shown
from utils.loader import eval_loader

ENCODERS = ["cnn", "resnet18", "bert", "clip"]
# By the documentation of torch.use_deterministic_algorithms these raise on CUDA.
NOT_DETERMINISTIC = "adaptive_ _adaptive_ fractional_ avg_pool3d max_unpool upsample_ reflection_"
NOT_DETERMINISTIC += " nll_loss2d _ctc_loss embedding_bag put histc bincount median grid_sampler"


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
    """Raises RuntimeError for what a device refuses; notes in `waits` what waits for the GPU.

    Refused are operations on meta and the CPU together, operations that are not deterministic on
    CUDA, and float64, which MPS does not have. item() and its kin give 1, a copy to the CPU is full
    of ones.
    """

    def __init__(self, waits):
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, str(function).split(".")[1]
        tensors = [x for x in tree_leaves((args, kwargs)) if is_tensor(x)]
        devices = {x.device.type for x in tensors}
        if len(devices) > 1 and name != "copy_":
            shapes = [f"{x.device} {tuple(x.shape)}" for x in tensors]
            raise RuntimeError(f"{function} mixes devices: {shapes}")
        source = devices.pop() if devices else "meta"
        if source == "meta" and name.startswith(tuple(NOT_DETERMINISTIC.split())):
            raise RuntimeError(f"{function} is not deterministic on CUDA")
        target = torch.device(kwargs.get("device") or source).type
        if name == "_to_copy" and source != target and not kwargs.get("non_blocking"):
            self.waits.append(name)
        if name == "_local_scalar_dense" and source == "meta":
            self.waits.append(name)
            return torch.ones((), dtype=tensors[0].dtype).item()
        if name == "_to_copy" and (source, target) == ("meta", "cpu"):
            return torch.ones_like(tensors[0], device="cpu", dtype=kwargs.get("dtype"))
        result = function(*args, **kwargs)
        if any(x.is_meta and x.dtype == torch.float64 for x in tree_leaves(result) if is_tensor(x)):
            raise RuntimeError(f"{function} is in float64, which MPS does not have")
        return result


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


@pytest.mark.parametrize("encoder, optimizer", [*((x, "sgd") for x in ENCODERS), ("cnn", "adam")])
def test_a_training_step_waits_for_nothing(on_meta, encoder, optimizer):
    """inner_step is on the model's device alone, and reads no value of it."""
    model, samples = on_meta(encoder)
    args = train.Settings(optimizer=optimizer)
    theta, _ = train.make_optimizer(args, model.parameters())
    for x, y in Batches(samples, 4, [0], "meta", inner_iters=2).epoch(1):
        with played_gpu() as waits:
            steps = train.inner_step(model, theta, x, y, 0.5, args)
    # BERT's own code asks the device whether a text of the batch is padded.
    assert len(waits) <= (encoder in ("bert", "clip")), waits
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


def test_held_out_scores_are_on_the_device(on_meta):
    """Those that steer g-blend and others; the labels follow the features."""
    _, samples = on_meta("cnn")
    model = Baseline([1, 3], 3).to("meta")
    assert held_out(model, eval_loader(samples, 4, "meta")).device.type == "meta"


def read(x, seed=None):
    """A reader, as of files."""
    return x


def test_what_is_read_moves_without_waiting():
    """The inputs in training and in evaluation, and the labels in training."""
    samples = Samples([torch.zeros(4, 2)], torch.zeros(4), [read])
    with played_gpu() as waits:
        batches = [*Batches(samples, 2, [0], "meta").epoch(1), *eval_loader(samples, 2, "meta")]
    assert len(batches) == 4 and not waits


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_evaluation_is_on_the_device(on_meta, encoder):
    """The scores of a batch come to the CPU by one copy."""
    model, samples = on_meta(encoder)
    loader = eval_loader(samples, 4, "meta")
    with played_gpu() as waits:
        train.evaluate(model, loader, ["a", "b"])
    assert waits.count("_to_copy") == 2 and len(waits) <= 2 + 2 * (encoder in ("bert", "clip"))


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
    model.classifier.bias = nn.Parameter(torch.zeros(3))
    with played_gpu(), pytest.raises(RuntimeError, match="mixes devices"):
        model([x_j.to("meta") for x_j in samples.sources])


@pytest.mark.parametrize("workers, there", [(0, "meta"), (1, "cpu")])
def test_data_in_memory_move_to_the_device_unless_workers_read_them(
    tiny_data, monkeypatch, workers, there
):
    """A worker process cannot read the tensors of a GPU."""
    monkeypatch.setattr("utils.distributed.pick_device", lambda name: "meta")
    args = train.Settings(dataset="tiny", workers=workers)
    found = load_data(args, lambda m: ["cnn"] * m)
    assert {x.device.type for x in found.splits["train"].sources} == {there}


def test_a_picture_of_an_input_is_on_the_cpu():
    """The inputs of a small set are on the run's device."""
    waits = []
    with Operations(waits):
        assert shown(torch.ones(3, 4, 5, device="meta")).shape == (4, 5, 3)
    assert waits


def test_what_a_device_refuses_is_found():
    """The check itself: the pooling that CUDA and MPS refuse, and float64."""
    picture = torch.ones(1, 1, 9, 3, device="meta")
    with played_gpu(), pytest.raises(RuntimeError, match="not deterministic on CUDA"):
        nn.AdaptiveAvgPool2d(4)(picture)
    with played_gpu(), pytest.raises(RuntimeError, match="float64"):
        picture.double()


@pytest.fixture
def deterministic():
    """Only deterministic kernels, as --deterministic has them."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("encoder", ["cnn", "cnn,resnet18"])
def test_deterministic_kernels_are_enough(deterministic, encoder):
    """For a step, for Eq. 3 and for Grad-CAM; a second run gives the same numbers."""
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        x = [torch.randn(4, c, 33, 38) for c in (1, 3)]
        samples = Samples(x, torch.arange(4) % 3, [identity] * 2)
        model, args = MultimodalModel([1, 3], 3, encoder), train.Settings(terms=2, draws=1)
        theta, _ = train.make_optimizer(args, model.parameters())
        batches = Batches(samples, 4, [0], "cpu")
        steps = [train.inner_step(model, theta, *xy, 0.5, args) for xy in batches.epoch(1)]
        gradient, _ = train.alpha_gradient(model, batches, batches, 0.5, 1, args)
        heat = grad_cam(model, [x_j[:1] for x_j in x], 1, 0)
        found.append([*torch.stack(steps).flatten().tolist(), gradient, *heat.flatten().tolist()])
    assert found[0] == found[1] and gradient is not None


@pytest.mark.parametrize("device", ["mps", "cuda"])
def test_a_device_that_is_not_here_is_one_sentence(tiny_data, monkeypatch, capsys, device):
    """It lists those that are; --deterministic changes nothing in that."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert train.main(["--dataset", "tiny", "--device", device, "--deterministic"]) == 2
    expected = f"device '{device}' is not available; choose from auto, cpu"
    assert capsys.readouterr().err == f"train.py: {expected}\n"


def test_the_six_sets_use_bf16_where_the_gpu_has_it(monkeypatch):
    """An emulated one is none; --no-bf16 switches it off; other sets and the CPU keep float32."""
    asked = ["--dataset", "cremad", "--root", "DIR"]
    assert not train.parse(asked).bf16 or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for real in (True, False):
        has = {False: real, True: True}
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True: has[including_emulation],
        )
        assert train.parse(asked).bf16 == real
        assert not train.parse([*asked, "--no-bf16"]).bf16
        assert train.parse([*asked, "--bf16"]).bf16
        assert not train.parse([]).bf16
        assert train.parse([*asked, "--device", "cuda"]).bf16 == real
        assert not train.parse([*asked, "--device", "cpu"]).bf16
