"""Algorithm 1: train, evaluate, log; the command line (Alg. 1, Sec. 4.1).

    python train.py                                     keypad, learning-based
    python train.py --method heuristic --seed 1
    python train.py --dataset spoken-digits --root DIR  real recordings
    python train.py --help                              every setting with its default

A run writes OUT/log.jsonl: first line the settings, one line an epoch, last line the test scores.
"""

import argparse
import copy
import dataclasses
import functools
import json
import math
import platform
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import accuracy_score, average_precision_score, f1_score
from torch.utils.data import DataLoader
from tqdm import tqdm

from bilevel import SOLVERS, evaluating, hypergradient
from data import DATASETS, Batches, defaults
from losses import SCHEDULES, classification_loss, modality_matching_loss, schedule, total_loss
from media import Broken
from model import ENCODERS, FUSIONS, Model, Unimodal, encoder_names, known

METHODS = ["learning-based", "unimodal", *SCHEDULES]


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
    alpha_0: float = setting(0.95, "learning-based: alpha of the first epoch")
    eta_alpha: float = setting(0.5, "learning-based: learning rate of alpha")
    solver: str = setting("neumann", f"learning-based: inverse of the Hessian, one of {', '.join(SOLVERS)}")
    terms: int = setting(5, "learning-based: terms of the solver")
    step: float = setting(0.5, "learning-based: step of the solver, in units of theta's learning rate")
    damping: float = setting(0.0, "learning-based: added to the diagonal of the Hessian, besides the weight decay")
    outer: str = setting("train", "learning-based: the outer batch of Eq. 3, train or held-out")
    val_fraction: float = setting(0.0, "part of the training split held out (0.1 for --outer held-out)")
    seed: int = setting(0, "seed of the weights and of the order of the batches")
    workers: int = setting(0, "processes that read the data; 0: none besides the main one")
    device: str = setting("auto", "cpu, cuda, mps, or auto: cuda where there is one, else cpu")


def losses(model, x, y, tau):
    """(L_CLS, L_MM) of one batch."""
    z = model(x)
    return sum(classification_loss(logits, y) for logits in model.fitted(z)), modality_matching_loss(z, tau)


def optimizer_of(s, params):
    """theta's optimiser, and what lowers its learning rate on a plateau of the loss (Sec. 4.1)."""
    if s.optimizer == "adam":
        optimizer = torch.optim.Adam(params, s.lr, weight_decay=s.weight_decay)
    else:
        optimizer = torch.optim.SGD(params, s.lr, s.momentum, weight_decay=s.weight_decay)
    # Paper silent: which loss's plateau, and how long a one. Here: L_Total of the epoch; never for the built-in sets.
    patience = s.plateau or s.epochs
    return optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=patience)


def endless(dataset, batch_size, seed, device, workers=0):
    """Training batches (x, y) on the device, pass after pass, each pass in a new order.

    What else draws random numbers does not change their order.
    """
    loader = DataLoader(dataset, batch_sampler=Batches(len(dataset), batch_size, seed), num_workers=workers,
                        pin_memory=device.type == "cuda")  # fmt: skip
    for *x, y in loader:
        yield [x_j.to(device, non_blocking=True) for x_j in x], y.to(device, non_blocking=True)


def scores(logits, y):
    """ACC, MAP and macro-F1 in percent (Sec. 4.1, Evaluation Metrics): logits (n, c), y (n,)."""
    if not logits.isfinite().all():
        raise FloatingPointError("the model's scores are not finite; try a smaller --lr")
    present = np.unique(y)  # the average precision of a class that no sample has is not defined
    precisions = [average_precision_score(y == k, logits.softmax(1)[:, k]) for k in present]
    predicted = logits.argmax(1)
    return {
        "acc": 100 * accuracy_score(y, predicted),
        "map": 100 * float(np.mean(precisions)),
        "f1": 100 * f1_score(y, predicted, average="macro"),
    }


@torch.no_grad()
def evaluate(model, dataset, modalities, s, device):
    """Scores of the fused model and of each modality on a data set: {"fused" or modality: scores, "perf_gap": ...}.

    perf_gap: the best modality's ACC minus the worst's, in points (GAP of Table 3, there of MAP or F1).
    """
    logits, labels = [], []
    with evaluating(model):
        for *x, y in DataLoader(dataset, s.batch_size, num_workers=s.workers):
            z = model([x_j.to(device) for x_j in x])
            logits.append(torch.stack([model.logits(z), *(model.score(z, j) for j in range(len(z)))]).cpu())
            labels.append(y)
    labels = torch.cat(labels).numpy()
    result = {name: scores(o, labels) for name, o in zip(["fused", *modalities], torch.cat(logits, dim=1))}
    # Departs from paper: Table 3's GAP is of MAP or F1; of ACC it is what Table 4 shows.
    accs = [result[name]["acc"] for name in modalities]
    return result | {"perf_gap": max(accs) - min(accs)}


def mean_losses(steps, t):
    """The epoch's mean of each loss from its steps' [L_Total, L_CLS, L_MM]; FloatingPointError if one is not finite."""
    steps = torch.stack(steps).cpu()  # (Inner_Iters, 3)
    bad = (~steps.isfinite()).any(1).nonzero()
    names = ["l_total", "l_cls", "l_mm"]
    if len(bad):
        i = int(bad[0])
        values = ", ".join(f"{n} = {v:.4g}" for n, v in zip(names, steps[i].tolist()))
        raise FloatingPointError(f"epoch {t}, step {i + 1}: a loss is not finite ({values}); try a smaller --lr")
    return dict(zip(names, steps.mean(0).tolist()))


def outer_problem(s, data, model):
    """Eq. 3 on the batches that the settings name, as a function (alpha, lr) -> (hypergradient or None, report)."""
    device = next(model.parameters()).device
    held_out, few = s.outer == "held-out", min(s.workers, 1)  # a batch an epoch
    train_batches = endless(data["train"], s.batch_size, s.seed + 2**32, device, few)
    held_out_batches = endless(data["val"], s.batch_size, s.seed + 2**33, device, few) if held_out else None
    generator = torch.Generator().manual_seed(s.seed)

    # Paper silent: the batches of Eq. 3. Here: one fresh training batch for both levels, or a held-out outer one.
    def inner():
        return losses(model, *next(train_batches), s.tau)

    def outer():
        return losses(model, *next(held_out_batches), s.tau)[0]

    def alpha_gradient(alpha, lr):
        with evaluating(model):
            return hypergradient(
                inner, model.parameters(), alpha, outer if held_out else None, s.solver, s.terms, s.step * lr,
                s.damping + s.weight_decay, generator,
            )  # fmt: skip

    return alpha_gradient


def train(s, data, model, omega, log):
    """Algorithm 1. s: Settings; data: an entry of DATASETS, called; omega: (t, T) -> alpha, None for learning-based.

    log is called with one dict an epoch. Raises FloatingPointError where a loss is not finite.
    """
    device = next(model.parameters()).device
    optimizer, plateau = optimizer_of(s, model.parameters())
    batches = endless(data["train"], s.batch_size, s.seed, device, s.workers)
    inner_iters = s.inner_iters or max(1, len(data["train"]) // s.batch_size)
    alpha_gradient = outer_problem(s, data, model)
    split = "val" if "val" in data else "test"
    T = s.epochs
    alpha = s.alpha_0 if omega is None else omega(1, T)

    for t in range(1, T + 1):
        # updating neural network parameters theta
        model.train()
        steps = []
        for _ in tqdm(range(inner_iters), f"epoch {t}/{T}", leave=False, unit="batch", disable=None):
            x, y = next(batches)
            l_cls, l_mm = losses(model, x, y, s.tau)
            l_total = total_loss(l_cls, l_mm, alpha)
            optimizer.zero_grad()
            l_total.backward()
            optimizer.step()
            steps.append(torch.stack([l_total, l_cls, l_mm]).detach())
        lr = optimizer.param_groups[0]["lr"]
        record = {"t": t, "alpha": alpha, "lr": lr, **mean_losses(steps, t), "split": split}

        # updating weighting parameter alpha based on the chosen method
        if omega is None:
            gradient, report = alpha_gradient(alpha, lr)
            alpha = max(0.0, min(1.0, alpha - s.eta_alpha * (gradient or 0.0)))
            record |= {"hypergradient": gradient, **report}
        else:
            # Departs from paper: Alg. 1 has omega(t) here, so that epoch t + 1 would train with it and epoch 1 with a
            # value not given. Sec. 3.3 has alpha_t = omega(t): epoch t trains with omega(t), this is the next one's.
            alpha = omega(min(t + 1, T), T)
        plateau.step(record["l_total"])
        log(record | evaluate(model, data[split], data["modalities"], s, device))


def check(s):
    """Raise ValueError for a setting that no run can have."""
    for name, table in [("dataset", DATASETS), ("solver", SOLVERS), ("fusion", FUSIONS),
                        ("outer", ["train", "held-out"]), ("optimizer", ["sgd", "adam"])]:  # fmt: skip
        known(name, getattr(s, name), table)
    for encoder in s.encoders.split(","):
        encoder_names(encoder, 1)
    name = s.method.split(":")[0]
    known("method", name if name in SCHEDULES else s.method, METHODS)
    ranges = {
        "2 or more": (lambda v: v >= 2, ["batch_size"]),  # batch norm and L_MM need a partner
        "more than 0": (lambda v: 0 < v < math.inf, ["epochs", "lr", "tau", "terms", "step"]),
        "0 or more": (
            lambda v: 0 <= v < math.inf,
            ["inner_iters", "momentum", "weight_decay", "plateau", "eta_alpha", "damping", "workers"],
        ),
        "0 to 1": (lambda v: 0 <= v <= 1, ["alpha_0", "val_fraction"]),
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


def prepare(s):
    """(folder, data, model, omega) of a run; ValueError or OSError, in one sentence, where they cannot be had."""
    check(s)
    name = f"{s.dataset}-{s.method.replace(':', '')}{'-held-out' * (s.outer == 'held-out')}-seed{s.seed}"
    folder = Path(s.out or f"runs/{name}")
    if (folder / "log.jsonl").exists() and not s.overwrite:
        raise FileExistsError(f"{folder} holds a run already; choose another --out, or --overwrite to start over")
    if s.outer == "held-out" and s.method != "learning-based":
        raise ValueError(f"--outer held-out is for learning-based; with {s.method} use --val-fraction 0.1")
    data = DATASETS[s.dataset](s.root, functools.partial(encoder_names, s.encoders))
    if "val" in data and s.val_fraction:
        raise ValueError(f"{s.dataset} has a validation part of its own; --val-fraction is for sets without one")
    if s.outer == "held-out" and "val" not in data:
        s.val_fraction = s.val_fraction or 0.1
    if s.val_fraction:
        data["train"], data["val"] = hold_out(data["train"], data["groups"], s.val_fraction, s.seed)
    torch.manual_seed(s.seed)
    channels = [x_j.shape[-3] if x_j.is_floating_point() else 0 for x_j in data["train"][0][:-1]]  # 0: text
    kind = Unimodal if s.method == "unimodal" else Model
    model = kind(channels, data["n_classes"], s.encoders, s.fusion, s.pretrained).to(pick_device(s.device))
    fixed = {"learning-based": None, "unimodal": schedule("constant:0")}
    omega = fixed[s.method] if s.method in fixed else schedule(s.method)
    folder.mkdir(parents=True, exist_ok=True)
    return folder, data, model, omega


def pick_device(name):
    """cpu, cuda, mps; auto is cuda where there is one, else cpu. ValueError for one that is not here."""
    there = ["cpu"] + ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    if name == "auto":
        return "cuda" if "cuda" in there else "cpu"
    if name not in there:
        raise ValueError(f"device {name!r} is not here; choose from {['auto', *there]}")
    return name


def table(result, modalities):
    """The scores of `evaluate` as lines of text."""
    lines = [f"{'test split':12}{'ACC %':>8}{'MAP %':>8}{'macro-F1 %':>12}"]
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


def run(s, folder, data, model, omega):
    """One whole run, from what `prepare` gave: Algorithm 1, the log, the table. Returns the test scores."""
    names, path, best = data["modalities"], folder / "log.jsonl", {"acc": -1.0}
    kept = {k: v for k, v in dataclasses.asdict(s).items() if k not in ("out", "overwrite")}
    device = next(model.parameters()).device
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    counts = {split: len(data[split]) for split in ("train", "val", "test") if split in data}
    print(f"{s.dataset}, {s.method}, seed {s.seed}, {device}: {counts} samples of {' + '.join(names)}; writing {path}")
    with open(path, "w", buffering=1) as file:
        def write(record):
            file.write(json.dumps(record) + "\n")

        def log(record):
            write(record)
            tqdm.write(line(record, names, s.epochs))
            if "val" in data and record["fused"]["acc"] > best["acc"]:
                best.update(t=record["t"], acc=record["fused"]["acc"], model=copy.deepcopy(model.state_dict()))

        write({"settings": kept, "modalities": names, "samples": counts, "device": str(device), "versions": versions})
        start = time.perf_counter()
        train(s, data, model, omega, log)
        print(f"trained in {time.perf_counter() - start:.0f} s")
        if "val" in data:
            model.load_state_dict(best["model"])
        chosen = best.get("t", s.epochs)
        result = evaluate(model, data["test"], names, s, device)
        write({"test": result, "t": chosen})
    print(f"epoch {chosen}, {'the best on the validation part' if 'val' in data else 'the last'}:")
    print(table(result, names))
    print(f"to see it: python figures.py curves {folder}")
    return result


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
    return Settings(**defaults(given.get("dataset")) | given)


def main(arguments=None):
    """Exit status 0; 2 for settings or data that are wrong, 1 for a run that failed, 130 for Ctrl-C: one sentence."""
    s = parse(arguments)
    status = 2
    try:
        prepared = prepare(s)
        status = 1
        run(s, *prepared)
    except KeyboardInterrupt:
        error, status = "stopped; the epochs so far are in the log", 130
    except (FloatingPointError, OSError, Broken) as e:
        error = str(e).strip().splitlines()[-1].removeprefix("media.Broken: ")  # a worker's comes with its traceback
    except ValueError as e:
        if status == 1:
            raise  # a fault of ours, not of the input
        error = e
    else:
        return 0
    print(f"train.py: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
