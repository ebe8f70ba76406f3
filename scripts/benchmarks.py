"""What things cost: ratios of times measured alternately, which hardly depend on the machine.

A ratio stands with its spread: the median of the rounds (the smallest to the largest).

python -m scripts.benchmarks                  all parts, in this order
python -m scripts.benchmarks update           one alpha update, in training steps of keypad
python -m scripts.benchmarks hypergradient    Eq. 3 here and in two libraries, on two ResNet18
python -m scripts.benchmarks epoch            one alpha update as a share of a CREMA-D epoch
python -m scripts.benchmarks step             train.py's steps against a plain loop, and in bf16
python -m scripts.benchmarks text             a step of BERT, texts cut to the batch's longest
python -m scripts.benchmarks compile          a training step by torch.compile, and Eq. 3 of it
python -m scripts.benchmarks loader           clips read a second, against the authors' release
python -m scripts.benchmarks gpu              clips trained a second on CUDA, time spent waiting
python -m scripts.benchmarks startup          what the start of train.py takes and leaves out
python -m scripts.benchmarks memory           what a step and an alpha update take, on what card
python -m scripts.benchmarks growth           time and memory of an epoch for more samples
python -m scripts.benchmarks methods          an epoch of each method of Table 1, in those of joint
python -m scripts.benchmarks start            finding the samples of a set of VGGSound's size
"""

import contextlib
import dataclasses
import functools
import importlib.util
import inspect
import io
import itertools
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
import weakref
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import soundfile
import torch
from PIL import Image
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.nn.functional import cross_entropy, normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

import data as datasets
import train
from bilevel import hypergradient
from data import SETS, Batches, Samples, defaults, identity
from losses import total_loss
from model import ENCODERS, MultimodalModel, Pretrained
from scripts import prepare, sweep
from utils import cli, decode, markdown, media, modules
from utils.annotations import CREMAD
from utils.files import find_samples
from utils.loader import collate, make_loader
from utils.modules import eval_mode

ROOT = Path(__file__).parents[1]
ALPHA, STEP = 0.6, 1e-4
SETTINGS = train.Settings()  # tau 0.1, no smoothing
HEAVY = ["transformers", "librosa", "matplotlib", "cv2", "av"]  # each imported where it is used


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_units(unit, rounds, *functions):
    """The time of each function in those of `unit`, which is called before and after them: for each
    function the ratios of all rounds."""
    ratios = []
    for _ in range(rounds):
        before, *own, after = map(seconds, (unit, *functions, unit))
        ratios.append([2 * time / (before + after) for time in own])
    return list(zip(*ratios))


def spread(ratios, digits=2):
    """'median (smallest to largest)'."""
    middle, *ends = (f"{f(ratios):.{digits}f}" for f in (statistics.median, min, max))
    return "{} ({} to {})".format(middle, *ends)


def flops(function):
    """Floating point operations of convolutions and matrix products, counted."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def status(field):
    """VmRSS or VmHWM of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def peak_memory(function):
    """The highest resident memory during a call over that before it, in MiB; nan where there is no
    Linux."""
    if not Path("/proc/self/clear_refs").exists():
        function()
        return math.nan
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    start = status("VmRSS")
    function()
    return status("VmHWM") - start


def peak_of_tensors(function):
    """The most bytes of tensors that a call holds at once, in MiB, counted."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(itertools.accumulate(sizes)) / 2**20


def fresh(function, *arguments):
    """function(*arguments) in a process of its own, whose memory nothing else has touched."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler would speak of every start
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


class Losses(nn.Module):
    """(L_CLS, L_MM) of one batch as a function of theta."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, y):
        return train.losses(*self.model(x), y, SETTINGS)


def two_resnets(size, dtype=torch.float32):
    """(Losses, batch) of the paper's audio-video model with a random batch, in evaluation mode, on
    one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    n, sound, frame = size
    model = Losses(MultimodalModel([1, 3], len(CREMAD), "resnet18")).to(dtype).eval()
    x = [torch.randn(n, 1, *sound, dtype=dtype), torch.randn(n, 3, *frame, dtype=dtype)]
    return model, (x, torch.arange(n) % len(CREMAD))


def size_text(n, sound, frame):
    return "batch {}, spectrograms {} x {}, frames {} x {}".format(n, *sound, *frame)


def plain(model, batch):
    """One forward and one backward pass: the unit of cost."""
    torch.autograd.grad(total_loss(*model(*batch), ALPHA), list(model.parameters()))


def ours(model, batch, terms, step=STEP, draws=1):
    """Eq. 3 with one batch for all of its factors."""
    losses = functools.partial(model, *batch)
    solver = "neumann" if step else "lanczos"
    value, _ = hypergradient(
        lambda: losses()[0], losses, model.parameters(), ALPHA, solver, terms, step, draws=draws
    )
    return value


def step_found(model, batch, terms):
    """As ours, but the step and the damping follow from the curvature; the value is another one."""
    return ours(model, batch, terms, None)


def betty(model, batch, terms):
    """betty.hypergradient.neumann, which adds the first term to `neumann_iterations` others."""
    from betty.hypergradient import neumann

    theta = list(model.parameters())
    alpha = torch.tensor(ALPHA, dtype=theta[0].dtype, requires_grad=True)
    outer = SimpleNamespace(trainable_parameters=lambda: [alpha])
    inner = SimpleNamespace(
        paths=[],
        cur_batch=batch,
        trainable_parameters=lambda: theta,
        training_step_exec=lambda batch: total_loss(*model(*batch), alpha),
        config=SimpleNamespace(neumann_iterations=terms - 1, neumann_alpha=STEP),
    )
    v = torch.autograd.grad(model(*batch)[0], theta)
    # since betty-ml 0.2
    sync = {"sync": False} if "sync" in inspect.signature(neumann).parameters else {}
    return neumann(v, inner, outer, **sync)[0].item()


def torchopt(model, batch, terms):
    """torchopt.diff.implicit.custom_root with solve_inv, which adds the first term to `maxiter`
    others."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    from torchopt.diff.implicit import custom_root
    from torchopt.linear_solve import solve_inv

    names, theta = zip(*model.named_parameters())
    alpha = torch.tensor(ALPHA, dtype=theta[0].dtype, requires_grad=True)

    def losses(theta):
        return torch.func.functional_call(model, dict(zip(names, theta)), batch)

    def gradient(theta, alpha):
        return torch.func.grad(lambda theta: total_loss(*losses(theta), alpha))(theta)

    solve = solve_inv(ns=True, maxiter=terms - 1, alpha=STEP)
    solution = custom_root(gradient, argnums=1, solve=solve)(lambda theta, alpha: theta)
    return torch.autograd.grad(losses(solution(theta, alpha))[0], alpha)[0].item()


# each with the package that it takes
METHODS = {ours: "", betty: "betty-ml", torchopt: "torchopt", step_found: ""}


def costs(function, size, *terms):
    """(peak of tensors in MiB, FLOPs) of one call on the two ResNet18; meant for `fresh`."""
    model, batch = two_resnets(size)
    call = functools.partial(function, model, batch, *terms)
    return peak_of_tensors(call), flops(call)


def compare():
    """K terms of Eq. 3 by each of METHODS: do they agree, and what does each cost?

    One process, one batch, the same loss, parameters and step; only the memory is of a process
    each.
    """
    small, large = (2, (33, 33), (32, 32)), (8, (97, 97), (80, 80))
    exact, usual = two_resnets(small, torch.float64), two_resnets(large)
    unit = functools.partial(plain, *usual)
    memory, work = fresh(costs, plain, large)
    unit()  # warm up
    rows = [["terms", "by", "value", "differs", "differs in float64", "FLOPs", "time", "memory"]]
    there = [
        f for f, package in METHODS.items() if not package or importlib.util.find_spec(f.__name__)
    ]
    for k, rounds in [(1, 5), (5, 5), (20, 3)]:
        durations = in_units(unit, rounds, *(functools.partial(f, *usual, k) for f in there))
        first = [ours(*batch, k) for batch in (usual, exact)]
        for f, duration in zip(there, durations):
            pairs = () if f is step_found else zip((usual, exact), first)
            differ = [f"{abs(f(*batch, k) / value - 1):.0e}" for batch, value in pairs] or ["", ""]
            peak, total = fresh(costs, f, large, k)
            rows.append(
                [
                    k,
                    f.__name__,
                    f"{first[0]:.6f}",
                    *differ,
                    f"{total / work:.2f}",
                    spread(duration, 1),
                    f"{peak / memory:.1f}",
                ]
            )
    for package in {METHODS[f] for f in METHODS if f not in there}:
        print(f"not installed, and so not compared: pip install {package}")
    print(f"""Eq. 3 by K terms on two ResNet18, {size_text(*large)}, one thread.
differs: from ours, relative; in float64 with {size_text(*small)}.
FLOPs, time and memory in those of one forward and backward pass ({memory:.0f} MiB beside theta);
memory is the most that tensors take at once, counted; time also has the work on theta.
All take the same step as given, but for step_found: ours when it finds the step by itself.
""")
    print(markdown.table(*rows))


def training_step(model, batch, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 1e-6, 0.9)
    model.train()
    optimizer.zero_grad()
    total_loss(*model(*batch), ALPHA).backward()
    optimizer.step()


def alpha_update(model, batch, terms):
    """As train.py's by default: step by the curvature, several batches for v and for c, here all
    the same."""
    with eval_mode(model, batch_statistics=True):
        ours(model, batch, terms, None, SETTINGS.draws)


def update(rounds=15):
    """One alpha update in training steps of the same batch of keypad."""
    data = train.DATASETS["keypad"]()
    model = Losses(MultimodalModel([1, 1], data["n_classes"]))
    batch = next(Batches(data["train"], SETTINGS.batch_size, [0], "cpu").epoch(1))
    step = functools.partial(
        training_step, model, batch, torch.optim.SGD(model.parameters(), 1e-6, 0.9)
    )
    step()  # warm up
    print(f"two cnn encoders, batches of {SETTINGS.batch_size}, {torch.get_num_threads()} threads")
    for terms in (1, 5, 20):
        (ratio,) = in_units(step, rounds, functools.partial(alpha_update, model, batch, terms))
        print(f"{terms:2d} terms: {spread(ratio, 1)} training steps")


def line(sizes, times):
    """time(n) = a + b n through the measured times: a function of n."""
    return np.poly1d(np.polyfit(sizes, times, 1))


def full_size_shares(n, steps, usual, terms, sizes=(2, 6), rounds=3):
    """The share of an update with batches of n in `steps` training steps of `usual`, by time, in
    each round.

    Pictures and spectrograms have their full size. Two small batches are measured; larger ones lie
    on the line through them.
    """
    model, (x, y) = two_resnets((max(sizes), (257, 299), (224, 224)))
    optimizer = torch.optim.SGD(model.parameters(), 1e-6, 0.9)
    batches, shares = [([x_j[:size] for x_j in x], y[:size]) for size in sizes], []
    training_step(model, batches[-1], optimizer)  # warm up
    for _ in range(rounds):
        times = []
        for batch in batches:
            one = functools.partial(training_step, model, batch, optimizer)
            before, own, after = map(
                seconds, (one, functools.partial(alpha_update, model, batch, terms), one)
            )
            times.append([(before + after) / 2, own])
        step, update = (line(sizes, column) for column in zip(*times))
        shares.append(100 * update(n) / (steps * step(usual)))
    return shares


def epoch(rounds=5, terms=5):
    """The share of one alpha update in an epoch of CREMA-D, with the batch of a step, with 64 and
    with 32 of its 256."""
    usual = defaults("cremad")["batch_size"]
    steps = SETS["cremad"]["paper"][0] // usual
    size = (16, (113, 131), (96, 96))
    memory, work = fresh(costs, training_step, size)
    model, (x, y) = two_resnets(size)
    optimizer = torch.optim.SGD(model.parameters(), 1e-6, 0.9)
    step = functools.partial(training_step, model, (x, y), optimizer)
    step()  # warm up
    rows = [["batch of the update", "FLOPs", "time", "memory", "of the epoch, by FLOPs", "by time"]]
    for part in (1, 4, 8):
        n = size[0] // part
        batch = [x_j[:n] for x_j in x], y[:n]
        (duration,) = in_units(step, rounds, functools.partial(alpha_update, model, batch, terms))
        peak, total = fresh(costs, alpha_update, (n, *size[1:]), terms)
        rows.append(
            [
                usual // part,
                f"{total / work:.2f}",
                spread(duration),
                f"{peak / memory:.2f}",
                f"{total / work / steps:.1%}",
                f"{statistics.median(duration) / steps:.1%}",
            ]
        )
        largest = int(0.1 * steps * work / total * usual / part)
    print(f"""An epoch of {steps} training steps of {usual} (CREMA-D), an update of
alpha with {terms} terms and {SETTINGS.draws} draws; two ResNet18,
{size_text(*size)}, one thread.
FLOPs, time and memory of the update in those of a training step ({memory:.0f} MiB). Time has a part
that does not grow with the batch, work on theta alone; with larger batches it comes near the FLOPs.
""")
    print(markdown.table(*rows))
    print(f"\nBy FLOPs, under 10 % of the epoch with up to {largest} samples.")
    n = defaults("cremad")["alpha_batch"]
    shares = full_size_shares(n, steps, usual, terms)
    print(f"""By time, with pictures of 224 x 224 and spectrograms of 257 x 299, an update with
batches of {n} takes {spread(shares, 1)} % of the epoch (extrapolated from batches of 2 and 6).""")


def in_memory(n, size, channels):
    """n random samples of `size` pixels that are in memory: an entry of DATASETS, called."""
    x = [torch.randint(256, (n, c, *s), dtype=torch.uint8) for c, s in zip(channels, size)]
    train_set = Samples(x, torch.arange(n) % len(CREMAD), [identity, identity])
    return {"modalities": ["audio", "video"], "train": train_set, "test": train_set.subset([0, 1])}


def plain_loop(model, data, s):
    """An epoch as it is usually written: both losses in place, the numbers of every step taken to
    the CPU."""
    optimizer = torch.optim.SGD(model.parameters(), s.lr, 0.9, weight_decay=s.weight_decay)
    model.train()
    total = 0.0
    for *x, y in DataLoader(data["train"], s.batch_size, shuffle=True, drop_last=True):
        z, logits = model(x)
        a, b = (normalize(z_j) for z_j in z)
        similarities, target = a @ b.T / s.tau, torch.arange(len(y))
        l_mm = (cross_entropy(similarities, target) + cross_entropy(similarities.T, target)) / 2
        loss = 0.5 * cross_entropy(logits, y) + 0.5 * l_mm
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()


def step(rounds=7):
    """An epoch of train.py at constant alpha, evaluation of two samples included, against
    `plain_loop`."""
    torch.set_num_threads(1)
    rows = [["encoders", "batch", "steps", "here, in plain loops", "with --bf16"]]
    for encoder, n, batch, size in [
        ("cnn", 6400, 64, [(20, 20), (65, 24)]),
        ("resnet18", 96, 16, [(64, 64)] * 2),
    ]:
        s = train.Settings(method="constant:0.5", epochs=1, batch_size=batch)
        data = in_memory(n, size, [1, 1])
        model = MultimodalModel([1, 1], len(CREMAD), encoder)
        usual = functools.partial(plain_loop, model, data, s)
        usual()  # warm up
        both = (s, dataclasses.replace(s, bf16=True))
        ratios = in_units(
            usual, rounds, *(functools.partial(epoch_of, s, data, model) for s in both)
        )
        rows.append([encoder, batch, n // batch, *map(spread, ratios)])
    print("One thread, on the CPU.\n")
    print(markdown.table(*rows))


def text(rounds=7, batch=128):
    """A step of a text encoder by texts cut to the batch's longest, as train.py has them, in that
    by 128 tokens each."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 1024}
    model, width = random_bert(num_hidden_layers=4, num_attention_heads=4, **sizes)
    model.eval()
    lengths = (26 * torch.exp(0.45 * torch.randn(batch))).long().clamp(3, 128)
    ids = [torch.randint(1, model.net.config.vocab_size, (n,)) for n in lengths]
    texts = [(torch.stack([i, torch.ones_like(i)]), 0) for i in ids]
    empty = torch.zeros(2, 128, dtype=torch.int64), 0  # one of 128 tokens sets the length
    cut, whole = collate(texts)[0], collate([*texts, empty])[0][:-1]
    differ = (model(cut) - model(whole)).abs().max() / model(whole).abs().max()

    def step(x):
        model(x).square().sum().backward()

    (ratio,) = in_units(lambda: step(whole), rounds, lambda: step(cut))
    print(f"""BERT of 4 layers, {width} wide, random; {batch} random texts as long as
tweets (median {int(lengths.median())} tokens, longest {cut.shape[-1]}); one thread.
A forward and a backward pass take {spread(ratio)} of the time by 128 tokens each;
the results differ by {differ:.0e}, relative.""")


class NoFolder:
    """In place of utils.run.Run: nothing is written."""

    def resume(self, alpha, *parts):
        return 1, alpha

    def progress(self, batches, t):
        return batches.epoch(t)

    def save(self, *_):
        pass


def epoch_of(s, data, model):
    """The epochs of train.py for settings and a model, as train.main calls them."""
    train.train(s, data, model, NoFolder())


def compiled(rounds=7, size=(8, (113, 131), (96, 96))):
    """A training step with torch.compile in those without, and whether Eq. 3 can be taken of what
    it made."""
    model, batch = two_resnets(size)
    quick, optimizer = torch.compile(model), torch.optim.SGD(model.parameters(), 1e-6, 0.9)
    steps = [functools.partial(training_step, m, batch, optimizer) for m in (model, quick)]
    first = seconds(steps[1])
    (ratio,) = in_units(steps[0], rounds, steps[1])
    print(f"""Two ResNet18, {size_text(*size)}, one thread.
A compiled step takes {spread(ratio)} of a plain one, after {first:.0f} s of compiling.""")
    try:
        alpha_update(quick, batch, 2)
    except RuntimeError as error:
        print(f"Eq. 3: {error}")


def make_clips(root, name, n, seconds, rate):
    """n clips of a set below root, all of them in both splits: noise as wav, ten smooth pictures as
    frames; prepared.

    Returns the paths of (wav, frames).
    """
    rng, clips = np.random.default_rng(0), []
    for i in range(n):
        clip = (
            f"{1001 + i}_DFA_{CREMAD[i % 6]}_XX" if name == "cremad" else f"{i:011d}_000010_000020"
        )
        frames = Path(root, "prepared", "video", clip if name == "cremad" else clip[:-7])
        frames.mkdir(parents=True)
        for k in range(10):
            small = Image.fromarray(rng.integers(256, size=(18, 24, 3), dtype=np.uint8))
            small.resize((341, 256), Image.BICUBIC).save(frames / f"{k + 1:05d}.jpg", quality=90)
        wav = Path(root, f"{frames.name}.wav")
        soundfile.write(wav, 0.1 * rng.standard_normal(int(seconds * rate)), rate)
        clips.append((clip, wav, frames))
    for split in ("train", "test"):
        rows = (
            f"{clip},{CREMAD[i % 6]}" if name == "cremad" else f"{clip},10,{i % 31}"
            for i, (clip, *_) in enumerate(clips)
        )
        Path(root, f"{split}.csv" if name == "cremad" else f"my_{split}.txt").write_text(
            "\n".join(rows)
        )
    prepare.main([name, "--root", str(root), "--workers", "1"])
    return [paths for _, *paths in clips]


class AsReleased(Dataset):
    """The same clips read the way of the authors' release: sound at 22,050 Hz repeated to 20 s and
    transformed each time, frames in the order in which the folder lists them. It reads one frame of
    a clip; the paper has three."""

    def __init__(self, clips, frames):
        from torchvision import transforms

        self.clips, self.frames = clips, frames
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(224),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            ]
        )

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, i):
        import librosa

        wav, frames = self.clips[i]
        wave, _ = librosa.load(wav, sr=22050)
        wave = np.resize(wave, 22050 * 20).clip(-1, 1)
        x = np.log(np.abs(librosa.stft(wave, n_fft=512, hop_length=353)) + 1e-7)  # (257, 1250)
        names = os.listdir(frames)[: self.frames]
        return x, torch.stack(
            [self.transform(Image.open(frames / name).convert("RGB")) for name in names]
        )


def clips_a_second(loader, batches=8):
    """Of a loader with one worker, once it runs."""
    loader = iter(loader)
    next(loader), next(loader)
    start = time.perf_counter()
    n = sum(len(next(loader)[0]) for _ in range(batches))
    return n / (time.perf_counter() - start)


def read(name, seconds, rate, rounds, n=64, batch=32):
    """[frames, clips a second as released, here, with frames kept --raw, and these two's ratios of
    all rounds], by one frame of a clip and by three."""
    quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    rows = []
    with tempfile.TemporaryDirectory() as root, quiet[0], quiet[1]:
        clips = make_clips(root, name, n, seconds, rate)
        samples = train.DATASETS[name](root, lambda m: ["resnet18"] * m)["train"]
        sound, pictures = samples.sources
        raw = [decode.pack_frames(Path(folder)) for folder in pictures]
        keys = [
            list(itertools.islice(keys, batch))
            for keys in [itertools.cycle((i, i) for i in range(n))] * 12
        ]
        for frames in (1, 3):
            readers = samples.readers[0], functools.partial(datasets.clip, frames=frames)
            ways = [DataLoader(AsReleased(clips * 6, frames), batch, num_workers=1)]
            ways += [
                make_loader(Samples([sound, kept], samples.y, readers), keys, "cpu", 1).loader
                for kept in (pictures, raw)
            ]
            speeds = [[clips_a_second(way) for way in ways] for _ in range(rounds)]
            ratios = [[row[k] / row[0] for row in speeds] for k in (1, 2)]
            rows.append([frames, *map(statistics.median, zip(*speeds)), *ratios])
    return rows


def loader(rounds=5):
    """Reading prepared clips with one worker, against reading them as the authors' release does."""
    rows = [["clips", "frames", "as released", "here", "here, --raw", "times faster", "--raw"]]
    for name, seconds, rate in [("cremad", 2.5, 16000), ("kinetics-sounds", 10, 44100)]:
        for frames, *speeds, ordinary, raw in read(name, seconds, rate, rounds):
            row = [f"{name}: {seconds} s at {rate} Hz", frames, *(f"{v:.0f}" for v in speeds)]
            rows.append([*row, spread(ordinary, 1), spread(raw, 1)])
    print("Clips a second, one worker.\n")
    print(markdown.table(*rows))


# of a spectrogram and a frame
def gpu(device="cuda", n=2048, batch=256, size=((257, 299), (224, 224))):
    """Clips trained a second with and without bfloat16, and the share of the time that waits for
    the data."""
    if device == "cuda" and not torch.cuda.is_available():
        print("not run: no CUDA device here")
        return
    device = torch.device(device)
    rows = [["", "clips a second", "of the time, waiting for data"]]
    for bf16 in (False, True):
        s = train.Settings(batch_size=batch, bf16=bf16, workers=os.cpu_count())
        model = MultimodalModel([1, 3], len(CREMAD), "resnet18").to(device).train()
        model.to(memory_format=torch.channels_last if bf16 else torch.contiguous_format)
        optimizer = torch.optim.SGD(model.parameters(), s.lr)
        data = in_memory(n, size, [1, 3])["train"]
        rounds = 2 * (n // batch)
        batches = Batches(data, batch, [0], device, s.workers, inner_iters=rounds + 1).epoch(1)
        one = next(batches)
        took = []
        for source in (itertools.repeat(one), batches):
            for k in range(rounds):
                if k == n // batch:  # warmed up
                    next(model.parameters()).sum().item()  # waits for the device
                    start = time.perf_counter()
                x, y = next(source)
                train.inner_step(model, optimizer, x, y, ALPHA, s)
            next(model.parameters()).sum().item()
            took.append(time.perf_counter() - start)
        rows.append(
            [
                "bf16" if bf16 else "float32",
                f"{n / took[1]:.0f}",
                f"{max(0, 1 - took[0] / took[1]):.0%}",
            ]
        )
    print(f"Two ResNet18, one frame a clip, batch {batch}, {s.workers} workers, {device}.\n")
    print(markdown.table(*rows))


def startup(rounds=5):
    """The start of train.py against importing torch, and which of HEAVY a run of keypad imports."""

    def run(code):
        command = [sys.executable, "-c", code]
        options = {"cwd": ROOT, "check": True, "text": True, "stdout": subprocess.PIPE}
        return subprocess.run(command, **options).stdout

    torch_alone, parts = functools.partial(run, "import torch"), {"import train": "import train"}
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--out", f"{folder}/run", "--overwrite"]
        parts["train.py on keypad until its first step"] = (
            "import os, train; train.inner_step = lambda *_: os._exit(0); "
            f"train.main({arguments}); raise SystemExit('no step')"
        )
        calls = [functools.partial(run, code) for code in parts.values()]
        calls[-1]()  # warm up
        ratios = in_units(torch_alone, rounds, *calls)
    print(f"In times of import torch, which takes {seconds(torch_alone):.1f} s here:")
    for name, ratio in zip(parts, ratios):
        print(f"{name}: {spread(ratio)}")
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["--epochs", "1", "--inner-iters", "1", "--out", f"{folder}/run"]
        last = f"print([m for m in {HEAVY} if m in sys.modules])"
        imported = run(
            f"import sys, train; assert train.main({arguments}) == 0; {last}"
        ).splitlines()[-1]
    print(f"imported by a run of keypad, of {', '.join(HEAVY)}: {imported}")


class Live(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive; `peak`: the most at once.

    Tensors can be fake or on the meta device: they have a size, but no values, and cost no time.
    A number that is asked for is then 1.
    """

    def __init__(self):
        super().__init__()
        self.known, self.live, self.peak = weakref.WeakSet(), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 1.0
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if torch.is_tensor(leaf) and (storage := leaf.untyped_storage()) not in self.known:
                self.known.add(storage)
                self.add(storage.nbytes())
                weakref.finalize(storage, self.add, -storage.nbytes())
        return result

    def add(self, size):
        self.live += size
        self.peak = max(self.peak, self.live)


SHAPES = {  # of a sample's input, with its channels and its dtype
    "video": ((3, 3, 224, 224), 3, torch.uint8),
    "image": ((3, 224, 224), 3, torch.uint8),
    "text": ((2, 128), 0, torch.int64),
    "rgb": ((8, 3, 224, 224), 3, torch.uint8),
    "flow": ((8, 2, 224, 224), 2, torch.float32),
    "depth": ((8, 1, 224, 224), 1, torch.uint8),
}
WAYS = ["step", "step, --bf16", "update of alpha"]


def random_bert(*_, **sizes):
    """BERT, of base size or of these of its BertConfig, with random weights, as an encoder."""
    from transformers import BertConfig, BertModel

    config = BertConfig(**sizes, attn_implementation="eager")
    return Pretrained(BertModel(config), "pooler_output"), config.hidden_size


def first_use(name, way, n, device):
    """A training step of n samples of a set with its own shapes and settings, twice; or an update
    of alpha after a step of two samples.

    Two draws and three terms: more of them take more time, but no more memory.
    """
    kinds = [*SETS[name]["modalities"]]
    sound = (1, *media.spectrogram_shape(SETS[name].get("seconds", 10)))
    shapes = [SHAPES.get(kind, (sound, 1, torch.float16)) for kind in kinds]
    s = train.Settings(**defaults(name) | {"draws": 2, "terms": 3, "bf16": "bf16" in way})
    with torch.device(device):
        model = MultimodalModel([c for _, c, _ in shapes], SETS[name]["n_classes"], s.encoders)
        x = [torch.zeros(n, *shape, dtype=dtype) for shape, _, dtype in shapes]
        y = torch.zeros(n, dtype=torch.int64)
    optimizer, _ = train.make_optimizer(s, model.parameters())
    if "step" in way:
        for _ in range(2):
            train.inner_step(model.train(), optimizer, x, y, ALPHA, s)
    else:
        training_step(Losses(model), ([x_j[:2] for x_j in x], y[:2]), optimizer)
        batches = SimpleNamespace(draw=lambda t: itertools.repeat((x, y)))
        train.alpha_gradient(model, batches, batches, ALPHA, 1, s)


def needed(name, way, n):
    """The most GiB that a first_use takes: measured on CUDA if there is one, else counted."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        try:
            first_use(name, way, n, "cuda")
        except torch.OutOfMemoryError:
            return math.inf
        return torch.cuda.max_memory_allocated() / 2**30
    # autocast wants a device, Eq. 3 its numbers: fake tensors for the one, meta for the other
    fake = FakeTensorMode() if "step" in way else contextlib.nullcontext()
    caches = media.per_channel.cache_clear, modules.grid_matrix.cache_clear
    for clear in caches:
        clear()
    with fake, Live() as live:
        first_use(name, way, n, "cpu" if "step" in way else "meta")
    for clear in caches:  # what they hold now has no values
        clear()
    return live.peak / 2**30


def memory(sizes=(8, 32, 64, 128, 256), cards=(8, 24, 80)):
    """What a training step and an update of alpha take by batch size, and what a card holds."""
    ENCODERS["bert"] = random_bert
    measured = torch.cuda.is_available()
    rows = [["set", "GiB of", *sizes, *(f"in {card} GB" for card in cards)]]
    usual = [["set", "batch", *WAYS[:2], "update's batch", WAYS[2]]]
    usual[0] += ["float32 in 24 GB", "--bf16 in 24 GB"]
    for name in SETS:
        own, takes = defaults(name), {}
        for way in WAYS:
            counted = sizes if measured else (32, 64)
            took = [needed(name, way, n) for n in counted]
            grows = line(counted[:2], took[:2])
            asked = [*sizes, own["batch_size"], own["alpha_batch"]]
            takes[way] = {n: grows(n) for n in asked} | dict(zip(counted, took))
            most = [int((grows - card).roots[0]) for card in cards]
            rows.append([name, way, *(f"{takes[way][n]:.1f}" for n in sizes), *most])
        step, half, update = (
            takes[way][n] for way, n in zip(WAYS, (own["batch_size"],) * 2 + (own["alpha_batch"],))
        )
        fit = ["yes" if max(x, update) <= 24 else "no" for x in (step, half)]
        row = [own["batch_size"], f"{step:.1f}", f"{half:.1f}", own["alpha_batch"]]
        usual.append([name, *row, f"{update:.1f}", *fit])
    how = (
        f"torch.cuda.max_memory_allocated on {torch.cuda.get_device_name()}"
        if measured
        else ("tensors counted for batches of 32 and 64; the others by the line through these two")
    )
    print(f"The most memory at once: {how}.\n")
    print(markdown.table(*rows))
    print("\nWhat the defaults take, in GiB.\n")
    print(markdown.table(*usual))


def one_epoch(times):
    """(samples, MiB of them, seconds, peak memory) of an epoch of keypad whose samples stand
    `times` times."""
    torch.set_num_threads(1)
    data, s = train.DATASETS["keypad"](), train.Settings(epochs=1)
    train_set = data["train"] = data["train"].subset(list(range(len(data["train"]))) * times)
    model = MultimodalModel([1, 1], data["n_classes"])
    took = []
    peak = peak_memory(
        lambda: took.append(seconds(lambda: train.train(s, data, model, NoFolder())))
    )
    size = sum(x.nbytes for x in train_set.sources) / 2**20
    return len(train_set), size, took[0], peak


def growth(rounds=3):
    """An epoch of keypad, evaluation and alpha update included, with more and more samples."""
    rows = [["samples", "they take, MiB", "peak over that, MiB", "time", "time per sample"]]
    many = (1, 2, 4, 8)
    measured = [[fresh(one_epoch, times) for times in many] for _ in range(rounds)]
    base = [first[2] for first, *_ in measured]
    for times, column in zip(many, zip(*measured)):
        n, size, _, peak = column[0]
        ratios = [took / one for (_, _, took, _), one in zip(column, base)]
        each = [ratio / times for ratio in ratios]
        rows.append([n, f"{size:.0f}", f"{peak:.0f}", spread(ratios), spread(each)])
    print(
        "One epoch of keypad, its samples repeated; one thread; time in those of the first row "
        f"({statistics.median(base):.1f} s).\n"
    )
    print(markdown.table(*rows))


def methods(rounds=4):
    """An epoch of keypad by each method, evaluation and what it does between epochs included."""
    torch.set_num_threads(1)
    epochs, counted, cycle = [], [], 4  # reconboost's epochs are of four kinds
    rows = list(sweep.rows_of("all", None))
    flags = ["--epochs", "1", "--val-fraction", "0.1", "--method"]
    data = train.load_data(train.parse([*flags, rows[0]]), lambda m: ["cnn"] * m)
    for row in rows:
        args = train.parse([*flags, *row.split()])
        model = train.make_model(args, data)
        epochs.append(functools.partial(epoch_of, args, data, model))
        short = [dataclasses.replace(args, epochs=cycle, inner_iters=n) for n in (1, 2)]
        one, two = (flops(functools.partial(epoch_of, s, data, model)) / cycle for s in short)
        counted.append(one + (len(data["train"]) // args.batch_size - 1) * (two - one))
    times = in_units(epochs[0], rounds, *epochs)
    print(f"One thread; {rounds} rounds; in an epoch of {rows[0]}.\n")
    lines = [[row, f"{c / counted[0]:.2f}", spread(t)] for row, c, t in zip(rows, counted, times)]
    print(markdown.table(["method", "FLOPs", "time"], *lines))


def many_clips(root, n):
    """A prepared VGGSound of n clips: hard links to one sound and one picture, ten a clip."""
    made = Path(root, "prepared")
    for kind in ("audio", "video"):
        (made / kind).mkdir(parents=True)
    sound, picture = made / "sound.npy", made / "picture.jpg"
    listed, table = [], ["split,label,group,status,audio,video,problem"]
    for i in range(n):
        video, split = f"{i:011d}", "train" if i % 10 else "test"
        name = f"{video}_000030"
        if i % 5000 == 0:  # a file can have 65,000 links
            sound.unlink(missing_ok=True)
            picture.unlink(missing_ok=True)
            np.save(sound, np.zeros((257, 1004), np.float16))
            Image.new("RGB", (341, 256)).save(picture)
        os.link(sound, made / f"audio/{name}.npy")
        (made / f"video/{name}").mkdir()
        for k in range(10):
            os.link(picture, made / f"video/{name}/{k:05d}.jpg")
        listed.append(f"{video},30,label {i % 309},{split}")
        paths = f"prepared/audio/{name}.npy,prepared/video/{name}"
        table.append(f"{split},{i % 309},{video},usable,{paths},")
    Path(root, "vggsound.csv").write_text("\n".join(listed))
    (made / "samples.csv").write_text("\n".join(table))


def find_all(root):
    """Look for every file of the set, as prepare does."""
    return list(find_samples("vggsound", root, SETS["vggsound"]["modalities"]))


def read_list(root):
    """What training does instead: read samples.csv."""
    return datasets.load("vggsound", root, lambda m: ["resnet18"] * m)


def time_and_memory(function, root):
    """(seconds, MiB) of function(root), whose result is kept."""
    took, kept = [], []
    with contextlib.redirect_stdout(io.StringIO()):
        peak = peak_memory(lambda: took.append(seconds(lambda: kept.append(function(root)))))
    return took[0], peak


def start(rounds=3):
    """How long a set of VGGSound's size takes to be found, by its files and by samples.csv."""
    rows = [["clips", "by", "seconds", "times", "MiB", "bytes a clip"]]
    ways = {"its files": find_all, "samples.csv": read_list}
    for n in (20000, 182585):
        with tempfile.TemporaryDirectory() as root:
            many_clips(root, n)
            measured = [
                [fresh(time_and_memory, way, root) for way in ways.values()] for _ in range(rounds)
            ]
        for by, column in zip(ways, zip(*measured)):
            took, peaks = zip(*column)
            times = [own / by_list[0] for own, (*_, by_list) in zip(took, measured)]
            peak = statistics.median(peaks)
            kept = [f"{peak:.0f}", f"{peak * 2**20 / n:.0f}"]
            rows.append([n, by, f"{statistics.median(took):.1f}", spread(times, 1), *kept])
    print("Clips with ten pictures each, hard links, just written (in the system's cache).\n")
    print(markdown.table(*rows))


COMMANDS = {
    "update": update,
    "hypergradient": compare,
    "epoch": epoch,
    "step": step,
    "text": text,
    "compile": compiled,
    "loader": loader,
    "gpu": gpu,
    "startup": startup,
    "memory": memory,
    "growth": growth,
    "methods": methods,
    "start": start,
}


def main(names):
    """Exit status 0, or 2 and one sentence for an unknown part."""
    with cli.one_sentence("benchmarks") as program:
        program.stopped = lambda: "stopped; of the part that was running nothing is kept"
        for name in names:
            cli.check_choice("part", name, COMMANDS)
        program.started = True
        for name in names or COMMANDS:
            print(f"## {name}\n")
            COMMANDS[name]()
            print()
    return program.status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
