"""Algorithm 1: train, evaluate, log; the command line (Alg. 1, Sec. 4.1).

    python train.py                                     keypad, learning-based
    python train.py --method heuristic --seed 1
    python train.py --dataset spoken-digits --root DIR  real recordings
    python train.py --resume runs/RUN                   go on with a run that was stopped
    python train.py --eval runs/RUN --split val         score a run's model on any split
    python train.py --help                              every setting with its default

A run writes OUT/log.jsonl: first line the settings, one line an epoch, last line the test scores; and checkpoints.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import json
import math
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import accuracy_score, average_precision_score, f1_score
from torch.utils.data import DataLoader
from tqdm import tqdm

import checkpoint
import parallel
from bilevel import SOLVERS, evaluating, hypergradient
from checkpoint import Unfit
from data import DATASETS, SETS, Batches, defaults
from losses import SCHEDULES, classification_loss, modality_matching_loss, schedule, total_loss
from media import Broken
from model import ENCODERS, FUSIONS, Model, Unimodal, encoder_names, known

PYTHON = Path(sys.executable)  # as a command shown to the user begins
if PYTHON.is_relative_to(Path.cwd()):
    PYTHON = PYTHON.relative_to(Path.cwd())
METHODS = ["learning-based", "unimodal", *SCHEDULES]
OUTER = ["train", "held-out", "shared"]  # shared: one batch for all of Eq. 3, to see the bias that this brings


# What may differ between a run and its continuation; none of it changes a number on one machine.
OUTSIDE = {"out", "overwrite", "resume", "eval", "split", "keep", "root", "workers", "device"}


def setting(default, text):
    return field(default=default, metadata={"help": text})


@dataclass
class Settings:
    """One run. Every field is a flag of the command line."""

    dataset: str = setting("keypad", f"one of {', '.join(DATASETS)}")
    method: str = setting("learning-based", f"how alpha moves: one of {', '.join(METHODS)}, the latter with arguments: "
                          "constant:0.5, stepwise:0.05")  # fmt: skip
    root: str = setting("", "folder of the data set; keypad needs none")
    out: str = setting("", "folder of the run (default runs/DATASET-METHOD-seedN)")
    overwrite: bool = setting(False, "start over in a folder that holds a run already")
    resume: str = setting("", "folder of a run to go on with; its settings are the run's")
    eval: str = setting("", "folder of a run whose model is scored, nothing is trained")
    split: str = setting("test", "with --eval: train, val or test")
    keep: int = setting(1, "checkpoints to keep besides the last and the best on the validation part")
    # Paper silent: T and Inner_Iters.
    epochs: int = setting(10, "T of Alg. 1")
    inner_iters: int = setting(0, "Inner_Iters of Alg. 1, in batches; 0 is one pass over the training data")
    # Departs from paper: these are for the small encoders of the built-in sets; for the paper's six see data.defaults.
    batch_size: int = setting(64, "n_b")
    optimizer: str = setting("sgd", "of theta, sgd or adam")
    lr: float = setting(0.02, "learning rate of theta")
    momentum: float = setting(0.9, "momentum of sgd")
    weight_decay: float = setting(1e-4, "weight decay of theta, part of the inner problem of Eq. 2")
    plateau: int = setting(0, "divide lr by ten after so many epochs without a lower L_Total; 0: never")
    encoders: str = setting("cnn", f"one of {', '.join(ENCODERS)} for all modalities, or one each: resnet50,bert; bert "
                            "and clip load a model by name or from a local folder, bert:FOLDER")  # fmt: skip
    pretrained: bool = setting(False, "start ResNets from torchvision's ImageNet weights")
    fusion: str = setting("concat", f"one of {', '.join(FUSIONS)}")
    # Paper silent: tau, and all of the hypergradient's settings. Chosen on a validation part, see the README.
    tau: float = setting(0.1, "temperature of L_MM")
    smoothing: float = setting(0.0, "weight of uniform labels in L_CLS; Fig. 1 has 0.3")
    alpha_0: float = setting(0.95, "learning-based: alpha of the first epoch")
    eta_alpha: float = setting(2.0, "learning-based: learning rate of alpha")
    alpha_limit: float = setting(0.1, "learning-based: the most that one update moves alpha; 1: any move")
    solver: str = setting("neumann", f"learning-based: inverse of the Hessian, one of {', '.join(SOLVERS)}")
    terms: int = setting(5, "learning-based: terms of the solver")
    alpha_batch: int = setting(64, "learning-based: samples of each batch of Eq. 3")
    draws: int = setting(4, "learning-based: batches that each gradient of Eq. 3 is the mean of")
    outer: str = setting("train", f"learning-based: the outer batches of Eq. 3, one of {', '.join(OUTER)}")
    val_fraction: float = setting(0.0, "part of the training split held out (0.1 for --outer held-out)")
    seed: int = setting(0, "seed of the weights and of the order of the batches")
    workers: int = setting(0, "processes that read the data; 0: none besides the main one")
    bf16: bool = setting(False, "theta's steps in bfloat16 with channels last; Eq. 3 and the scores stay in float32")
    deterministic: bool = setting(False, "cuda: only kernels that give the same bits every time; slower")
    device: str = setting("auto", "cpu, cuda, mps, or auto: cuda where there is one, else cpu")


def losses(model, x, y, s):
    """(L_CLS, L_MM) of one batch, with the settings' smoothing and tau."""
    with torch.autocast(y.device.type, torch.bfloat16, enabled=s.bf16 and model.training):  # Eq. 3 has it in eval mode
        z = model(x)
    z = [z_j.float() for z_j in z] if s.bf16 else z
    l_cls = sum(classification_loss(logits, y, s.smoothing) for logits in model.fitted(z))
    if isinstance(model, parallel.Shared):
        z = [parallel.everywhere(z_j) for z_j in z]
    return l_cls, modality_matching_loss(z, s.tau)


def optimizer_of(s, params):
    """theta's optimiser, and what lowers its learning rate on a plateau of the loss (Sec. 4.1)."""
    if s.optimizer == "adam":
        optimizer = torch.optim.Adam(params, s.lr, weight_decay=s.weight_decay)
    else:
        optimizer = torch.optim.SGD(params, s.lr, s.momentum, weight_decay=s.weight_decay)
    # Paper silent: which loss's plateau, and how long a one. Here: L_Total of the epoch; never for the built-in sets.
    patience = s.plateau or s.epochs
    return optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=patience)


def endless(dataset, order, device, workers=0):
    """The batches (x, y) of an order, see Batches, on the device. They draw none of the global random numbers."""
    loader = DataLoader(dataset, batch_sampler=order, num_workers=workers, pin_memory=device.type == "cuda",
                        generator=torch.Generator())  # fmt: skip
    for *x, y in loader:
        yield [x_j.to(device, non_blocking=True) for x_j in x], y.to(device, non_blocking=True)


def scores(logits, y):
    """ACC, MAP and macro-F1 in percent (Sec. 4.1, Evaluation Metrics): logits (n, c), y (n,)."""
    if not logits.isfinite().all():
        raise FloatingPointError("the model's scores are not finite; try a smaller --lr")
    # Paper silent: MAP where a class has no sample, whose average precision is not defined. Here: not counted.
    present = np.unique(y)
    precisions = [average_precision_score(y == k, logits.softmax(1)[:, k]) for k in present]
    predicted = logits.argmax(1)
    return {
        "acc": 100 * accuracy_score(y, predicted),
        "map": 100 * float(np.mean(precisions)),
        "f1": 100 * f1_score(y, predicted, average="macro"),
    }


def in_order(dataset, s, device):
    """Loader of this process's part of a split, to score it; its workers stay from one epoch to the next."""
    return DataLoader(dataset, s.batch_size, sampler=parallel.own(range(len(dataset))), num_workers=s.workers,
                      persistent_workers=s.workers > 0, pin_memory=device.type == "cuda",
                      generator=torch.Generator())  # fmt: skip


@torch.no_grad()
def evaluate(model, loader, modalities):
    """Scores of the fused model and of each modality on a split: {"fused" or modality: scores, "perf_gap": ...}.

    perf_gap: the best modality's ACC minus the worst's, in points (GAP of Table 3, there of MAP or F1).
    """
    logits, labels, device = [], [], next(model.parameters()).device
    with evaluating(model):
        for *x, y in loader:
            z = model([x_j.to(device, non_blocking=True) for x_j in x])
            logits.append(torch.stack([model.logits(z), *(model.score(z, j) for j in range(len(z)))]).cpu())
            labels.append(y)
    logits, labels = zip(*parallel.everyone((torch.cat(logits, dim=1), torch.cat(labels))))
    logits, labels = torch.cat(logits, dim=1), torch.cat(labels).numpy()
    result = {name: scores(o, labels) for name, o in zip(["fused", *modalities], logits)}
    # Departs from paper: Table 3's GAP is of MAP or F1; of ACC it is what Table 4 shows.
    accs = [result[name]["acc"] for name in modalities]
    return result | {"perf_gap": max(accs) - min(accs)}


def mean_losses(steps, t):
    """The epoch's mean of each loss from its steps' [L_Total, L_CLS, L_MM]; FloatingPointError if one is not finite."""
    steps = parallel.mean([torch.stack(steps)])[0].cpu()  # (Inner_Iters, 3)
    bad = (~steps.isfinite()).any(1).nonzero()
    names = ["l_total", "l_cls", "l_mm"]
    if len(bad):
        i = int(bad[0])
        values = ", ".join(f"{n} = {v:.4g}" for n, v in zip(names, steps[i].tolist()))
        raise FloatingPointError(f"epoch {t}, step {i + 1}: a loss is not finite ({values}); try a smaller --lr")
    return dict(zip(names, steps.mean(0).tolist()))


def alpha_gradient(s, data, model, alpha, t):
    """Eq. 3 after epoch t: (hypergradient or None, report), see bilevel.hypergradient. Alike in every process."""
    device, few = next(model.parameters()).device, min(s.workers, 1)  # a few batches an epoch
    outer_split = "val" if s.outer == "held-out" else "train"
    # Paper silent: the batches of Eq. 3. Here: fresh ones for each of its three factors, drawn by the seed and t.
    inner_batches, outer_batches = (
        endless(data[split], Batches(len(data[split]), s.alpha_batch, [s.seed + stream * 2**32, t]), device, few)
        for stream, split in enumerate(["train", outer_split], 1)
    )
    if s.outer == "shared":
        inner_batches = outer_batches = itertools.repeat(next(inner_batches))
    # Paper silent: batch norm and dropout in Eq. 3. Here: batch norm as it is trained, with the batch's statistics, of
    # which the running ones are a late copy with other gradients; no dropout; nothing is updated.
    with evaluating(model, batch_statistics=True):
        return hypergradient(
            lambda: losses(model, *next(outer_batches), s)[0], lambda: losses(model, *next(inner_batches), s),
            model.parameters(), alpha, s.solver, s.terms, damping=s.weight_decay,
            draws=1 if s.outer == "shared" else s.draws,
            generator=torch.Generator().manual_seed(s.seed + t * 2**32),
        )  # fmt: skip


def state_of(t, alpha, model, optimizer, plateau):
    """All that continues a run after epoch t."""
    parts = {"model": model, "optimizer": optimizer, "plateau": plateau}
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    random = {"cpu": torch.get_rng_state(), "cuda": cuda}
    return {"t": t, "alpha": alpha, "random": random} | {name: part.state_dict() for name, part in parts.items()}


def restore(state, model, optimizer, plateau):
    """Put back what state_of gave: (t, alpha). Unfit where it is of another model."""
    checkpoint.fill(state, model=model, optimizer=optimizer, plateau=plateau)
    torch.set_rng_state(state["random"]["cpu"])
    if state["random"]["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["random"]["cuda"])
    return state["t"], state["alpha"]


def train(s, data, model, omega, log, state=None):
    """Algorithm 1. s: Settings; data: an entry of DATASETS, called; omega: (t, T) -> alpha, None for learning-based.

    log is called once an epoch, with a dict of its numbers and the state that continues after it; state: such a one,
    to go on from. Raises FloatingPointError where a loss is not finite.
    """
    device = next(model.parameters()).device
    optimizer, plateau = optimizer_of(s, model.parameters())
    T, split = s.epochs, "val" if "val" in data else "test"
    done, alpha = 0, s.alpha_0 if omega is None else omega(1, T)
    if state:
        done, alpha = restore(state, model, optimizer, plateau)
    inner_iters = s.inner_iters or max(1, len(data["train"]) // s.batch_size)
    order = map(parallel.own, Batches(len(data["train"]), s.batch_size, [s.seed], done * inner_iters))
    batches = endless(data["train"], order, device, s.workers)
    scored = in_order(data[split], s, device)
    shared, hidden = parallel.shared(model), parallel.rank() > 0 or None  # None: where stderr is no terminal

    for t in range(done + 1, T + 1):
        # updating neural network parameters theta
        model.train()
        steps = []
        for _ in tqdm(range(inner_iters), f"epoch {t}/{T}", leave=False, unit="batch", disable=hidden):
            x, y = next(batches)
            l_cls, l_mm = losses(shared, x, y, s)
            l_total = total_loss(l_cls, l_mm, alpha)
            optimizer.zero_grad()
            l_total.backward()
            optimizer.step()
            steps.append(torch.stack([l_total, l_cls, l_mm]).detach())
        parallel.agree(model)
        lr = optimizer.param_groups[0]["lr"]
        record = {"t": t, "alpha": alpha, "lr": lr, **mean_losses(steps, t), "split": split}

        # updating weighting parameter alpha based on the chosen method
        if omega is None:
            gradient, report = alpha_gradient(s, data, model, alpha, t)
            # Departs from paper: one update moves alpha by at most alpha_limit, whatever the size of the gradient,
            # which differs a hundredfold between models and epochs.
            move = max(-s.alpha_limit, min(s.alpha_limit, s.eta_alpha * (gradient or 0.0)))
            alpha = max(0.0, min(1.0, alpha - move))
            record |= {"hypergradient": gradient, **report}
        else:
            # Departs from paper: Alg. 1 has omega(t) here, so that epoch t + 1 would train with it and epoch 1 with a
            # value not given. Sec. 3.3 has alpha_t = omega(t): epoch t trains with omega(t), this is the next one's.
            alpha = omega(min(t + 1, T), T)
        plateau.step(record["l_total"])
        record |= evaluate(model, scored, data["modalities"])
        log(record, state_of(t, alpha, model, optimizer, plateau))


def check(s):
    """Raise ValueError for a setting that no run can have."""
    for name, table in [("dataset", DATASETS), ("solver", SOLVERS), ("fusion", FUSIONS),
                        ("outer", OUTER), ("optimizer", ["sgd", "adam"])]:  # fmt: skip
        known(name, getattr(s, name), table)
    for encoder in s.encoders.split(","):
        encoder_names(encoder, 1)
    name = s.method.split(":")[0]
    known("split", s.split, ["train", "val", "test"])
    known("method", name if name in SCHEDULES else s.method, METHODS)
    ranges = {
        "2 or more": (lambda v: v >= 2, ["batch_size", "alpha_batch"]),  # batch norm and L_MM need a partner
        "more than 0": (lambda v: 0 < v < math.inf, ["epochs", "lr", "tau", "terms", "draws"]),
        "0 or more": (
            lambda v: 0 <= v < math.inf,
            ["inner_iters", "momentum", "weight_decay", "plateau", "eta_alpha", "workers", "keep"],
        ),
        "0 to 1": (lambda v: 0 <= v <= 1, ["alpha_0", "alpha_limit", "smoothing", "val_fraction"]),
        "0 to 4294967295": (lambda v: 0 <= v < 2**32, ["seed"]),
    }
    for expected, (fits, names) in ranges.items():
        for name in names:
            value = getattr(s, name)
            if not fits(value):
                raise ValueError(f"--{name.replace('_', '-')} is {value}, expected {expected}")


def hold_out(dataset, groups, fraction, seed):
    """(rest, held out): about that fraction of a data set, so that no group, (n,) ints, is in both."""
    members = np.random.default_rng(seed).permutation(np.unique(groups))
    held_out = np.isin(groups, members[: max(1, round(fraction * len(members)))])
    if held_out.all():
        raise ValueError(f"--val-fraction {fraction} leaves nothing to train on; expected less than 1")
    return dataset.subset(np.flatnonzero(~held_out)), dataset.subset(np.flatnonzero(held_out))


def folder_of(s):
    """The run's folder; FileExistsError where it holds a run that is not to be gone on with or written over."""
    name = f"{s.dataset}-{s.method.replace(':', '')}{'' if s.outer == 'train' else f'-{s.outer}'}-seed{s.seed}"
    folder = Path(s.resume or s.eval or s.out or f"runs/{name}")
    log = folder / "log.jsonl"
    holds = checkpoint.epochs(folder) or (log.is_file() and len(log.read_bytes().splitlines()) > 1)
    if holds and not (s.overwrite or s.resume or s.eval):
        raise FileExistsError(f"{folder} holds a run already; go on with it by --resume {folder}, choose another "
                              "--out, or --overwrite to start over")  # fmt: skip
    return folder


def prepare(s):
    """(folder, data, model, omega) of a run; ValueError or OSError, in one sentence, where they cannot be had."""
    check(s)
    folder = folder_of(s)
    if s.outer != "train" and s.method != "learning-based":
        raise ValueError(f"--outer {s.outer} is for learning-based; with {s.method} use --val-fraction 0.1")
    data = DATASETS[s.dataset](s.root, functools.partial(encoder_names, s.encoders))
    if "val" in data and s.val_fraction:
        raise ValueError(f"{s.dataset} has a validation part of its own; --val-fraction is for sets without one")
    if s.outer == "held-out" and "val" not in data:
        s.val_fraction = s.val_fraction or 0.1
    if s.val_fraction:
        data["train"], data["val"] = hold_out(data["train"], data["groups"], s.val_fraction, s.seed)
    if s.eval and s.split not in data:
        raise ValueError(f"{s.eval} has no validation part; choose --split train or test")
    if s.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    if len(data["train"]) < 2:
        raise ValueError(f"{s.dataset} has {len(data['train'])} training sample here, expected 2 or more")
    batch, n = min(len(data["train"]), s.batch_size), parallel.ranks()
    if n > 1 and (batch % n or batch < 2 * n):
        raise ValueError(f"a batch of {batch} training samples cannot be shared by {n} processes; choose a "
                         "--batch-size of 2 or more for each, the same for all")  # fmt: skip
    torch.manual_seed(s.seed)
    channels = [0 if x_j.dtype == torch.int64 else x_j.shape[-3] for x_j in data["train"][0][:-1]]  # 0: text
    kind = Unimodal if s.method == "unimodal" else Model
    model = kind(channels, data["n_classes"], s.encoders, s.fusion, s.pretrained).to(pick_device(s.device))
    if s.bf16:
        model.to(memory_format=torch.channels_last)
    fixed = {"learning-based": None, "unimodal": schedule("constant:0")}
    omega = fixed[s.method] if s.method in fixed else schedule(s.method)
    folder.mkdir(parents=True, exist_ok=True)
    return folder, data, model, omega


def pick_device(name):
    """cpu, cuda, mps; auto is cuda where there is one, else cpu. ValueError for one that is not here."""
    there = ["cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if "cuda" in there else "cpu"
    if name not in there:
        raise ValueError(f"device {name!r} is not here; choose from {['auto', *there]}")
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if name == "cuda" else name


def table(result, modalities, split):
    """The scores of `evaluate` as lines of text."""
    lines = [f"{split + ' split':12}{'ACC %':>8}{'MAP %':>8}{'macro-F1 %':>12}"]
    for name in ["fused", *modalities]:
        lines.append("{:12}{acc:8.2f}{map:8.2f}{f1:12.2f}".format(name, **result[name]))
    return "\n".join([*lines, f"perf_gap {result['perf_gap']:.2f} points of ACC"])


def line(record, modalities, T):
    """One epoch's record as a line of text."""
    parts = [f"t {record['t']:3d}/{T}  alpha {record['alpha']:.3f}"]
    parts += [f"{name} {record[key]:.3f}" for name, key in
              [("L_Total", "l_total"), ("L_CLS", "l_cls"), ("L_MM", "l_mm")]]  # fmt: skip
    parts += [f"{name} {record[name]['acc']:5.1f}" for name in ["fused", *modalities]]
    parts += [f"perf_gap {record['perf_gap']:4.1f}", record.get("note", "")]
    return "  ".join(filter(None, parts))


def chosen(records):
    """The epoch that is tested: the first of the highest fused ACC on the validation part, without one the last."""
    epochs = [r for r in records if "alpha" in r]
    if epochs[-1]["split"] != "val":
        return epochs[-1]["t"]
    return max(epochs, key=lambda r: r["fused"]["acc"])["t"]


def tested(folder, model):
    """Put the weights of the run's tested epoch into the model; its t. Unfit where they are of another model."""
    state = checkpoint.load(folder)
    t = chosen(checkpoint.lines(state))
    checkpoint.fill(state if t == state["t"] else checkpoint.load(folder, t), model=model)
    return t


def first_line(s, data, device):
    """What a log begins with: settings, versions, the code's git revision where there is one, numbers of samples."""
    counts = {split: len(data[split]) for split in ("train", "val", "test") if split in data}
    here = ["git", "-C", Path(__file__).parent, "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        revision = subprocess.run(here, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git on this machine
        revision = ""
    versions = {"python": platform.python_version(), "torch": torch.__version__, "git": revision}
    kept = {k: v for k, v in dataclasses.asdict(s).items() if k not in OUTSIDE - {"root", "workers", "device"}}
    return {"settings": kept, "modalities": data["modalities"], "samples": counts, "device": str(device),
            "processes": parallel.ranks(), "versions": versions}  # fmt: skip


def run(s, folder, data, model, omega):
    """One whole run, from what `prepare` gave: Algorithm 1, log and checkpoints, the table. Returns the test scores.

    Of several processes the first alone writes.
    """
    names, path, device = data["modalities"], folder / "log.jsonl", next(model.parameters()).device
    writes = parallel.rank() == 0  # the others compute alike
    with checkpoint.locked(folder) if writes else contextlib.nullcontext():
        state = checkpoint.load(folder) if s.resume else None
        first = first_line(s, data, device)
        records = checkpoint.lines(state) if state else [first]
        if records[0]["samples"] != first["samples"]:
            raise Unfit(f"{folder} was begun with {records[0]['samples']} samples, here are {first['samples']}; "
                        "get the same data")  # fmt: skip
        for t in checkpoint.epochs(folder) if writes and not state else []:
            checkpoint.name(folder, t).unlink()  # of the run that is written over
        print(f"{s.dataset}, {s.method}, seed {s.seed}, {device}: {first['samples']} samples of "
              f"{' + '.join(names)}; writing {path}")  # fmt: skip

        def write():
            text = "".join(json.dumps(record) + "\n" for record in records)
            if writes:
                checkpoint.write_bytes(path, text.encode())
            return text

        def log(record, state):
            records.append(record)
            state |= {"log": write(), "settings": records[0]["settings"]}
            tqdm.write(line(record, names, s.epochs))
            if writes:
                checkpoint.save(folder, state, {chosen(records), *range(record["t"] - s.keep, record["t"])})

        if not state:
            write()
        start = time.perf_counter()
        train(s, data, model, omega, log, state)
        print(f"trained in {time.perf_counter() - start:.0f} s")
        parallel.wait()  # until the first has written
        t = tested(folder, model)
        result = evaluate(model, in_order(data["test"], s, device), names)
        records.append({"test": result, "t": t})
        write()
    print(f"epoch {t}, {'the best on the validation part' if 'val' in data else 'the last'}:")
    print(table(result, names, "test"))
    print(f"to see it: {PYTHON} figures.py curves {folder}")
    return result


def score(s, folder, data, model, omega):
    """--eval: the scores of the run's tested epoch on a split, as a table. Nothing is written."""
    t = tested(folder, model)
    print(f"{folder}, epoch {t}:")
    loader = in_order(data[s.split], s, next(model.parameters()).device)
    result = evaluate(model, loader, data["modalities"])
    print(table(result, data["modalities"], s.split))


def parse(arguments=None):
    """Settings from the command line; exits with status 2 and one sentence where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    for f in dataclasses.fields(Settings):
        flag = "--" + f.name.replace("_", "-")
        text = f.metadata["help"].replace("%", "%%")
        if f.type in (bool, "bool"):
            parser.add_argument(flag, action="store_true", default=None, help=text)
        else:
            shown = "" if f.default == "" else f" (default {f.default})"
            kind, metavar = type(f.default), {str: "NAME", int: "N", float: "X"}[type(f.default)]
            parser.add_argument(flag, type=kind, help=text + shown, metavar=metavar)
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    if folder := given.get("resume") or given.get("eval"):
        return Settings(**continued(folder, given))
    return Settings(**defaults(given.get("dataset")) | given)


def continued(folder, given):
    """The settings of a run to go on with or to score; ValueError for a flag that would make it another run.

    Unfit where the folder's checkpoint and log do not belong together, or not to this program.
    """
    state, names = checkpoint.load(folder), {f.name for f in dataclasses.fields(Settings)}
    settings, log = state["settings"], Path(folder) / "log.jsonl"
    if not log.is_file() or json.loads(log.read_text().split("\n")[0] or "{}").get("settings") != settings:
        raise Unfit(f"the checkpoint in {folder} is not of the run that {log} begins with; nothing was written")
    if unknown := set(settings) - names:
        raise Unfit(f"{folder} has settings that this train.py does not know, {sorted(unknown)}; use its own version")
    for name, value in given.items():
        if name not in OUTSIDE and value != settings.get(name):
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} {value} would make another run of {folder}, which has {settings.get(name)}; "
                             "leave it out, or start a run of its own with --out")  # fmt: skip
    return settings | given


def stop(number, frame):
    raise KeyboardInterrupt(number)


def main(arguments=None):
    """Exit status 0; 2 for settings or data that are wrong, 1 for a run that failed, 130 and 143 for Ctrl-C and
    SIGTERM: one sentence."""
    status, folder = 2, None
    signal.signal(signal.SIGTERM, stop)
    try:
        s = parse(arguments)
        parallel.start(pick_device(s.device).startswith("cuda"))
        folder, *prepared = prepare(s)
        status = 1
        (score if s.eval else run)(s, folder, *prepared)
    except KeyboardInterrupt as e:
        status = 128 + (e.args[0] if e.args else signal.SIGINT)
        there = folder and checkpoint.epochs(folder)
        go_on = f"; go on with: {PYTHON} train.py --resume {folder}"
        error = "stopped" + (go_on if there else " before an epoch ended")
    except (FloatingPointError, OSError, Broken, Unfit) as e:
        error = str(e).strip().splitlines()[-1].removeprefix("media.Broken: ")  # a worker's comes with its traceback
        if folder and s.dataset in SETS and isinstance(e, Broken):
            error += f"; {PYTHON} data.py prepare {s.dataset} --root {s.root} finds all such files and leaves them out"
    except ValueError as e:
        if status == 1:
            raise  # a fault of ours, not of the input
        error = e
    else:
        parallel.stop()
        return 0
    if status == 1 or parallel.rank() == 0:  # wrong settings are every process's, said once
        print(f"train.py: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
