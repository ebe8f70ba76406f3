"""Algorithm 1: train, evaluate, log; the command line (Alg. 1, Sec. 4.1).

python train.py                      learn alpha on keypad, which is built in
python train.py --dataset FOLDER     learn alpha on your own data (docs/DATA.md)
python train.py --resume runs/RUN    resume a run; --eval runs/RUN scores it"""

import dataclasses
import sys
from types import SimpleNamespace

import numpy as np
import torch

from baselines import Baseline, class_of, methods, requirements, schedule_of
from bilevel import SOLVERS, hypergradient
from data import DATASETS, Batches, defaults, load_data
from losses import SCHEDULES, classification_loss, make_schedule, modality_matching_loss, total_loss
from model import ENCODERS, FUSIONS, MultimodalModel, encoder_names
from utils import cli, distributed
from utils.cli import SettingsError, setting
from utils.loader import eval_loader
from utils.modules import FEW_STEPS, eval_mode, renew_statistics
from utils.run import Run, check_together, mean_losses, resumed_settings


def losses(z, o, y, args):
    """(L_CLS, L_MM) of one batch, from what the model returns (Sec. 3.1, 3.2)."""
    # Departs from paper: with --heads or --fusion weight L_CLS has each modality's own loss, too.
    l_cls = sum(classification_loss(o_k.float(), y, args.smoothing) for o_k in o)
    classes = distributed.labels_of(z[0], y) if args.matching == "classes" else None
    return l_cls, modality_matching_loss([z_j.float() for z_j in z], args.tau, classes)


def inner_step(model, optimizer, x, y, alpha, args):
    """One step of theta against the gradient of L_Total; returns the three losses, (3,), to log."""
    with torch.autocast(y.device.type, torch.bfloat16, enabled=args.bf16):
        z, o = model(x)
    l_cls, l_mm = losses(z, o, y, args)
    l_total = total_loss(l_cls, l_mm, alpha)
    optimizer.zero_grad()
    l_total.backward()
    optimizer.step()
    return torch.stack([l_total, l_cls, l_mm]).detach()


def alpha_gradient(model, inner, outer, alpha, t, args):
    """Eq. 3 after epoch t: (hypergradient or None, report), from bilevel.hypergradient."""
    # Paper silent: the batches of Eq. 3. Here: v, c and H each have their own, drawn by seed and t.
    inner_batches, outer_batches = inner.draw(t), outer.draw(t)
    shared = next(inner_batches) if args.outer == "shared" else None

    def inner_losses():
        x, y = shared or next(inner_batches)
        return losses(*model(x), y, args)

    def outer_loss():
        x, y = shared or next(outer_batches)
        return losses(*model(x), y, args)[0]

    options = {"solver": args.solver, "terms": args.terms, "decay": args.weight_decay}
    draws = 1 if shared else args.draws
    rng = torch.Generator().manual_seed(args.seed + t * 2**32)
    # Paper silent: batch norm, dropout in Eq. 3. Here: batch statistics as in training, no dropout.
    with eval_mode(model, batch_statistics=True):
        return hypergradient(
            outer_loss, inner_losses, model.parameters(), alpha, draws=draws, rng=rng, **options
        )


def train(args, data, model, run):
    """Algorithm 1. data: from load_data; run: a Run, which logs and saves each epoch."""
    T = args.epochs
    method = method_of(args, model)
    alpha = args.alpha_0 if args.method == "learning-based" else method.omega(1, T)
    optimizer, plateau = make_optimizer(args, method.groups(args.lr))
    batches, inner, outer, eval_batches = make_batches(args, data, next(model.parameters()).device)
    ddp_model = distributed.data_parallel(model)
    start, alpha = run.resume(alpha, model, optimizer, plateau)  # a new run: 1, the same alpha

    for t in range(start, T + 1):
        # update the network's parameters theta
        model.train()
        step_losses = []
        for x, y in run.progress(batches, t):  # Inner_Iters batches
            step_losses.append(method.inner_step(ddp_model, optimizer, x, y, alpha, args))
        lr = optimizer.param_groups[-1]["lr"]
        record = {"t": t, "alpha": alpha, "lr": lr, **mean_losses(step_losses, t)}

        # update the weighting parameter alpha with the chosen method
        report = {}
        if args.method == "learning-based":
            gradient, details = alpha_gradient(model, inner, outer, alpha, t, args)
            if gradient is not None:  # None: it was not finite, and alpha stays
                # Departs from paper: one update moves alpha by at most alpha_limit, because the
                # size of the gradient differs a hundredfold between models and epochs.
                move = max(-args.alpha_limit, min(args.alpha_limit, args.eta_alpha * gradient))
                alpha = max(0.0, min(1.0, alpha - move))
            report = {"hypergradient": gradient, **details}
        elif t < T:
            # Departs from paper: Alg. 1 sets omega(t) after epoch t. Here: omega(t + 1), so that
            # each epoch t, the first too, trains with alpha_t = omega(t) of Sec. 3.3.
            alpha = method.omega(t + 1, T)

        # not in Algorithm 1: lower the learning rate, evaluate, log, save
        plateau.step(record["l_cls"])
        if len(batches) < FEW_STEPS:
            # Departs from paper: after few steps batch norm's running statistics lag behind.
            renew_statistics(model, inner.draw(t))
        result = evaluate(model, eval_batches, data.modalities)
        split = "val" if "val" in data.splits else "test"
        after = method.end_of_epoch(optimizer, eval_batches)
        record = {**record, **report, "split": split, **result, **after}
        run.save(record, alpha, model, optimizer, plateau)


def method_of(args, model):
    """The parts of Algorithm 1 that a model of baselines.py replaces, or the paper's own."""
    if isinstance(model, Baseline):
        return model
    return SimpleNamespace(
        omega=None if args.method == "learning-based" else make_schedule(args.method),
        groups=lambda lr: model.parameters(),
        inner_step=inner_step,
        end_of_epoch=lambda optimizer, batches: {},
    )


def make_optimizer(args, params):
    """theta's optimizer, and the scheduler that lowers its rate on a plateau (Sec. 4.1)."""
    if args.optimizer == "adam":
        optimizer = torch.optim.Adam(params, args.lr, weight_decay=args.weight_decay)
    else:
        optimizer = torch.optim.SGD(params, args.lr, 0.9, weight_decay=args.weight_decay)
    # Paper silent: which loss reaches a plateau, and for how long. Here: the epoch's mean L_CLS.
    patience = args.plateau or args.epochs
    return optimizer, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "min", 0.1, patience)


def make_batches(args, data, device):
    """Batches for theta's steps, for Eq. 3's inner and outer level, and for the evaluation."""
    workers, shard = args.workers, distributed.shard  # seeds are below 2**32: no two keys are equal
    samples, seed = data.splits["train"], [args.seed]
    batches = Batches(samples, args.batch_size, seed, device, workers, args.inner_iters, shard)
    inner = Batches(samples, args.alpha_batch, [args.seed + 2**32], device, workers)
    outer_data = data.splits["val"] if args.outer == "held-out" else samples
    outer = Batches(outer_data, args.alpha_batch, [args.seed + 2 * 2**32], device, workers)
    eval_data = data.splits.get("val", data.splits["test"])
    return batches, inner, outer, eval_loader(eval_data, args.batch_size, device, workers, shard)


def scores(logits, y):
    """ACC, MAP and macro-F1 in percent (Sec. 4.1, Evaluation Metrics): logits (n, c), y (n,)."""
    from sklearn.metrics import accuracy_score, average_precision_score, f1_score

    if not logits.isfinite().all():
        raise FloatingPointError("the model's scores are not finite; try a smaller --lr")
    # Paper silent: MAP where a class has no sample. Here: such a class is not counted.
    present = np.unique(y)
    precisions = [average_precision_score(y == k, logits.softmax(1)[:, k]) for k in present]
    predicted = logits.argmax(1)
    return {
        "acc": 100 * accuracy_score(y, predicted),
        "map": 100 * float(np.mean(precisions)),
        "f1": 100 * f1_score(y, predicted, average="macro"),
    }


@torch.no_grad()
def evaluate(model, loader, modalities):
    """{"fused": scores, modality: scores, ..., "perf_gap": number} on the split of the loader.

    perf_gap is the best modality's ACC minus the worst's, in points (GAP of Table 3).
    """
    logits, labels = [], []
    distributed.broadcast_buffers(model)
    with eval_mode(model):
        for *x, y in loader:
            z = [phi(x_j) for phi, x_j in zip(model.phi, x)]
            alone = [model.unimodal_logits(z, j) for j in range(len(z))]
            logits.append(torch.stack([model.logits(z), *alone]).cpu())
            labels.append(y.clone())  # a worker's own tensor would keep a file open
    parts = distributed.all_gather_object((torch.cat(logits, dim=1), torch.cat(labels)))
    logits = torch.cat([part for part, _ in parts], dim=1)  # (1 + m, n, c)
    labels = torch.cat([part for _, part in parts]).numpy()
    result = {name: scores(o, labels) for name, o in zip(["fused", *modalities], logits)}
    # Departs from paper: GAP in Table 3 is of MAP or F1; this one is of ACC, the scores of Table 4.
    accs = [result[name]["acc"] for name in modalities]
    return result | {"perf_gap": max(accs) - min(accs)}


OUTER = ["train", "held-out", "shared"]
SPLITS = ["train", "val", "test"]


@dataclasses.dataclass
class Settings:
    """One run. Every field is a flag of the command line."""

    dataset: str = setting(
        "keypad", "the data set (defaults: keypad's), or your folder", group="run", listed=DATASETS
    )
    method: str = setting("learning-based", "how alpha moves, or Table 1's ogm:0.3", listed=methods)
    root: str = setting("", "folder of the data set (default data/DATASET)", changeable=True)
    out: str = setting("", "folder of the run (default runs/DATASET-METHOD-seedN)", changeable=True)
    overwrite: bool = setting(False, "start over in a folder that holds a run", changeable=True)
    resume: str = setting("", "folder of a run to resume, with its settings", changeable=True)
    eval: str = setting("", "folder of a run to evaluate; nothing is trained", changeable=True)
    split: str = setting("test", "what --eval evaluates", choices=SPLITS, changeable=True)
    keep: int = setting(1, "checkpoints besides the last and the best", least=0, changeable=True)
    seed: int = setting(0, "of the weights and the order of batches", least=0, most=2**32 - 1)
    # Paper silent: T and Inner_Iters.
    epochs: int = setting(10, "T of Alg. 1", group="training of theta", above=0)
    inner_iters: int = setting(0, "Inner_Iters of Alg. 1 in batches; 0: one pass", least=0)
    # Departs from paper: these are for small encoders; data.defaults has those of the paper's sets.
    batch_size: int = setting(64, "n_b, samples in a batch", least=2)  # L_MM needs a partner
    optimizer: str = setting("sgd", "of theta", choices=["sgd", "adam"])
    lr: float = setting(0.02, "learning rate of theta", above=0)
    weight_decay: float = setting(1e-4, "of theta, in the inner problem of Eq. 2", least=0)
    plateau: int = setting(0, "patience on a plateau of L_CLS, then lr / 10; 0: never", least=0)
    val_fraction: float = setting(0.0, "part of the training split to hold out", least=0, most=1)
    train_groups: int = setting(0, "train on so many groups (keypad: images); 0: all", least=0)
    encoders: str = setting(
        "cnn", "resnet18, or one each: cnn,bert:FOLDER", group="model and losses", listed=ENCODERS
    )
    pretrained: bool = setting(False, "start ResNets from torchvision's ImageNet weights")
    fusion: str = setting("concat", "fusion f of the features", choices=FUSIONS)
    # Paper silent: tau, and all settings of alpha. How they were chosen: docs/CHOICES.md.
    tau: float = setting(0.1, "temperature of L_MM", above=0)
    matching: str = setting("pairs", "who matches in L_MM", choices=["pairs", "classes"])
    heads: bool = setting(False, "a classifier per modality besides, its loss part of L_CLS")
    smoothing: float = setting(0.0, "weight of uniform labels in L_CLS", least=0, most=1)
    alpha_0: float = setting(0.95, "alpha of epoch 1", group="learning-based", least=0, most=1)
    eta_alpha: float = setting(2.0, "learning rate of alpha", least=0)
    alpha_limit: float = setting(0.1, "the most that one update moves alpha", least=0, most=1)
    solver: str = setting("lanczos", "inverse of the Hessian", choices=SOLVERS)
    terms: int = setting(5, "terms of the series, or iterations of cg", above=0)
    alpha_batch: int = setting(64, "samples in each batch of Eq. 3", least=2)
    draws: int = setting(4, "batches averaged for v, and for c, in Eq. 3", above=0)
    outer: str = setting("train", "v's batches; shared: one batch for v, c and H", choices=OUTER)
    device: str = setting("auto", "cpu, cuda, mps, auto", group="machine", changeable=True)
    workers: int = setting(0, "processes that read the data", least=0, most=512, changeable=True)
    bf16: bool = setting(False, "theta's steps in bfloat16; Eq. 3 stays in float32", off=True)
    deterministic: bool = setting(False, "cuda: only deterministic kernels; slower")


def parse(argv=None):
    """Settings from the flags and the data set's defaults, or of the run to resume or evaluate."""
    given = cli.parse(Settings, argv, __doc__)
    check_together(given)
    if folder := given.get("resume") or given.get("eval"):
        found = resumed_settings(folder, given, Settings, DATASETS, defaults, schedule_of)
        return Settings(**found)
    return Settings(**defaults(given.get("dataset"), given.get("device", "auto")) | given)


def check(args):
    """Raise ValueError for settings that no run can have."""
    cli.check(args)
    name = args.method.split(":")[0]
    if name in SCHEDULES:
        omega = make_schedule(args.method)
        for t in range(1, args.epochs + 1):
            omega(t, args.epochs)  # an error now, not in epoch t
    elif rival := class_of(args.method):
        rival.check(args)
    else:
        cli.check_choice("method", args.method, methods())
    if args.outer != "train" and args.method != "learning-based":
        hint = f"leave it out with {args.method}; --val-fraction holds samples out"
        raise SettingsError(f"--outer {args.outer} is for learning-based; {hint}")


def make_model(args, data):
    """The model on its device, with weights from the seed."""
    torch.manual_seed(args.seed)
    model_class = class_of(args.method) or MultimodalModel
    options = args.encoders, args.fusion, args.pretrained, args.heads
    model = model_class(data.channels, len(data.classes), *options)
    if isinstance(model, Baseline):
        model.start(args, data)
    layout = torch.channels_last if args.bf16 else torch.preserve_format
    return model.to(distributed.pick_device(args.device), memory_format=layout)


def main(argv=None):
    """Train or evaluate; returns the exit status: 0, 1 (failed), 2 (wrong input), 130 or 143."""
    with cli.one_sentence("train.py") as program:
        args = parse(argv)
        check(args)
        distributed.init(distributed.pick_device(args.device))
        run = Run(args, program)
        needs_val = requirements(args.method).needs_val
        data = load_data(args, lambda m: encoder_names(args.encoders, m), needs_val, run.trained)
        distributed.check_batch(args.batch_size, data.splits)
        model = make_model(args, data)
        with run.started(data, model):
            if not args.eval:
                train(args, data, model, run)
            t = run.load_best(model)
            part = data.splits[args.split if args.eval else "test"]
            loader = eval_loader(part, args.batch_size, run.device, args.workers, distributed.shard)
            run.report(t, evaluate(model, loader, data.modalities))
        distributed.destroy()
    return program.status


if __name__ == "__main__":
    sys.exit(main())
