"""Pictures and tables from the logs and checkpoints of runs (Fig. 1 to 4, Tables 1, 3 and 4).

    python -m scripts.figures curves runs/keypad-constant0-seed0 runs/keypad-learning-based-seed0
    python -m scripts.figures curves class/*                       thirty runs: small panels
    python -m scripts.figures alpha runs/*-learning-based-seed0 --out alpha.pdf            Fig. 3
    python -m scripts.figures gap runs/keypad-constant0-seed0 runs/keypad-heuristic-seed0  Fig. 2
    python -m scripts.figures gradcam RUN RUN --modality sound     with --keep 9,          Fig. 4
    python -m scripts.figures table runs/keypad-* --metric map     Tables 1, 3, 4; Fig. 1
    python -m scripts.figures confusion RUN                        which class is taken for which
    python -m scripts.figures mistakes RUN --split val             the samples surely called wrong
    python -m scripts.figures landscape                            Eq. 2, 3; needs no run

curves, alpha and table read only RUN/log.jsonl; the others also read checkpoints and data. The
picture of one run is written into the run's folder, of several runs into the current folder; --out
names another file.
"""

import dataclasses
import functools
import inspect
import itertools
import os
import sys
import textwrap
from pathlib import Path

import numpy as np
import torch
from torch import nn

import train
from data import DATASETS, defaults, load_data
from losses import make_schedule
from model import encoder_names
from scripts import predict
from scripts.landscape import draw
from scripts.predict import Predictor
from utils import cli
from utils.cli import SettingsError
from utils.loader import eval_loader
from utils.modules import GridMean, eval_mode
from utils.run import checkpoint_epochs, load_best, load_checkpoint, load_state, read_log

# Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = ["#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
BLACK, *_, PINK, ORANGE, SKY = COLOURS
COLUMNS = 7  # runs that `curves` draws side by side
SHOWN = 8  # samples that `mistakes` draws
METRICS = {"acc": "ACC", "map": "MAP", "f1": "macro-F1"}


def read_epochs(folder):
    """(first record, epochs) of a run's log; SettingsError if it has no finished epoch."""
    first, epochs, _ = read_log(folder)
    if not epochs:
        raise SettingsError(f"{folder} has no finished epoch to draw")
    return first, epochs


def load_run(folder):
    """(data, model without its weights, title) of a run; SettingsError without a checkpoint."""
    first, _ = read_epochs(folder)
    args = train.parse(["--eval", folder])
    encoders = functools.partial(encoder_names, args.encoders)
    data = load_data(args, encoders, trained=load_checkpoint(folder)["data"])
    return data, train.make_model(args, data), titled(folder, first["settings"])


def pyplot():
    """matplotlib's pyplot, imported only to draw, and without a screen."""
    os.environ["MPLBACKEND"] = "Agg"  # a notebook's own value may name a missing module
    import matplotlib.pyplot as plt

    return plt


def panels(rows, columns, width, height, **options):
    """(figure, axes): rows x columns panels, `width` x `height` inches in total."""
    options |= {"squeeze": False, "layout": "constrained"}
    figure, axes = pyplot().subplots(rows, columns, figsize=(width, height), **options)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
    return figure, axes


def legend(figure, axis, place="lower", **options):
    """One legend for the figure, outside its panels, with the names of one axis."""
    handles = axis.get_legend_handles_labels()
    figure.legend(*handles, loc=f"outside {place} center", frameon=False, **options)


def save(figure, out):
    """Write the picture in the format of its file ending, say so, and close it."""
    try:
        figure.savefig(out, dpi=150)
    except ValueError as error:  # a format that matplotlib does not know
        raise SettingsError(f"{out} cannot be drawn: {error}") from error
    pyplot().close(figure)
    print(f"wrote {out}")


def label(settings):
    """The run's method and each setting that differs from the data set's default, as flags.

    The defaults are the ones without a GPU; train.py's if your own data are no longer there.
    """
    usual, name = dataclasses.asdict(train.Settings()), settings["dataset"]
    usual |= defaults(name, "cpu") if name in DATASETS or Path(name).is_dir() else {}
    silent = cli.changeable(train.Settings) | {"dataset", "method", "seed"}
    apart = {k: v for k, v in settings.items() if k not in silent and v != usual.get(k)}
    return " ".join([settings["method"], *cli.as_flags(apart)])


def titled(folder, settings):
    """The label; if --out gave the folder a name, with it, because only the code may differ."""
    name = Path(folder).name
    return label(settings) if name.startswith(settings["dataset"]) else f"{name}: {label(settings)}"


def spread(scores, modalities, metric):
    """perf_gap of any metric: the best modality's score minus the worst's, in points."""
    single = [scores[name][metric] for name in modalities]
    return max(single) - min(single)


def cell(values):
    """mean ± std over seeds (n - 1), one decimal."""
    std = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{std}"


def one_table(lines):
    """Lines of cells, the head first, as a Markdown table."""
    head, *rows = ["| " + " | ".join(map(str, line)) + " |" for line in lines]
    return "\n".join([head, "|---" * len(lines[0]) + "|", *rows])


def score_lines(names, rows, metric):
    """The lines of one data set's table, lists of cells; the head first.

    names: the data set and its modalities; rows: {label: {seed: test scores}}.
    """
    dataset, *modalities = names
    of_metric = METRICS[metric]
    head = [dataset, "seeds", *METRICS.values(), *(f"{m} {of_metric}" for m in modalities)]
    lines = [[*head, "perf_gap" if metric == "acc" else f"perf_gap of {of_metric}"]]
    for name, of_seeds in rows.items():
        tests = of_seeds.values()
        fused = [cell([test["fused"][key] for test in tests]) for key in METRICS]
        single = [cell([test[m][metric] for test in tests]) for m in modalities]
        single.append(cell([spread(test, modalities, metric) for test in tests]))
        if name.split()[0] == "unimodal":  # nothing is fused: a row for the summed logits
            lines.append([name, len(tests), "", "", "", *single])
            lines.append([f"{name}, logits summed", len(tests), *fused, *[""] * len(single)])
        else:
            lines.append([name, len(tests), *fused, *single])
    return lines


def table(runs, metric="acc"):
    """Test scores in percent, mean and std over seeds: a Markdown row per setting.

    metric: acc (Table 4), map or f1 (Table 3), for the single modalities and perf_gap, too.
    """
    cli.check_choice("metric", metric, METRICS)
    groups = {}
    for folder in runs:
        first, _, test = read_log(folder)
        if test is None:
            raise SettingsError(f"{folder} has no test scores; its run did not finish")
        name, seed = label(first["settings"]), first["settings"]["seed"]
        rows = groups.setdefault((first["settings"]["dataset"], *first["modalities"]), {})
        if seed in rows.setdefault(name, {}):
            raise SettingsError(f"{folder} repeats seed {seed} of {name!r}; give each seed once")
        rows[name][seed] = test
    tables = [score_lines(names, rows, metric) for names, rows in groups.items()]
    return "\n\n".join(map(one_table, tables))


def plot(axis, lines):
    """Draw lines over t = 1, 2, ...; lines: {name: (values, colour, style)}."""
    for name, (values, colour, style) in lines.items():
        width = 2.5 if name == "fused" else 1.5
        axis.plot(range(1, 1 + len(values)), values, style, color=colour, lw=width)


def name_ends(axis, lines):
    """Write each line's name at its right end; names do not overlap and stay inside the axis."""
    low, high = axis.get_ylim()
    height, place = (high - low) / 12, -np.inf
    ends = sorted((line[-1], len(line), name, colour) for name, (line, colour, _) in lines.items())
    style = {"textcoords": "offset points", "va": "center", "fontsize": 9}
    for above, (value, t, name, colour) in zip(range(len(ends), 0, -1), ends):
        place = min(max(value, place + height), high + height - above * height)
        axis.annotate(name, (t, place), (4, 0), color=colour, **style)


def curves(runs, out="curves.png", metric="acc"):
    """Scores, perf_gap, losses and alpha over the epochs, one column per run.

    metric: acc, map or f1. Eight runs or more have one small panel each, without the losses.
    """
    cli.check_choice("metric", metric, METRICS)
    logs = [read_epochs(folder) for folder in runs]
    if len(runs) > COLUMNS:
        return small_multiples(runs, logs, out, metric)
    shared = {"sharex": "col", "sharey": "row", "height_ratios": [3, 2, 1]}
    figure, axes = panels(3, len(runs), 4.5 * len(runs), 7, **shared)
    axes[0, 0].set(ylabel=f"{METRICS[metric]}, %; its perf_gap, points", ylim=(0, 100))
    axes[1, 0].set_ylabel("losses of training, nats")
    axes[2, 0].set(ylabel=r"$\alpha$", ylim=(-0.05, 1.05))
    named = []
    for (above, middle, below), folder, (first, epochs) in zip(axes.T, runs, logs):
        modalities, settings = first["modalities"], first["settings"]
        scores, losses = {}, {}
        for name, colour in zip(["fused", *modalities], COLOURS):
            scores[name] = [r[name][metric] for r in epochs], colour, "-"
        scores["perf_gap"] = [spread(r, modalities, metric) for r in epochs], "#777777", "--"
        for name, colour, style in (("CLS", ORANGE, "-"), ("MM", SKY, "-"), ("Total", BLACK, ":")):
            losses[f"L_{name}"] = [r[f"l_{name.lower()}"] for r in epochs], colour, style
        plot(above, scores)
        plot(middle, losses)
        plot(below, {"alpha": ([r["alpha"] for r in epochs], PINK, "-")})
        named += [(above, scores), (middle, losses)]
        title = f"{titled(folder, settings)}\n{settings['dataset']}, {epochs[0]['split']} split"
        above.set_title(title, fontsize=10)
        below.set_xlabel("epoch t")
    for axis, lines in named:  # once all runs are drawn: they share their limits
        name_ends(axis, lines)
    save(figure, out)


def small_multiples(runs, logs, out, metric):
    """curves of many runs: a panel each, with the run's fused score, perf_gap and alpha.

    Behind them the fused scores of all runs are thin and grey, and their median is dotted.
    """
    columns, T = 6, max(len(epochs) for _, epochs in logs)
    rows = -(-len(runs) // columns)
    figure, axes = panels(rows, columns, 2.6 * columns, 2.2 * rows + 0.6, sharex=True, sharey=True)
    fused = [[r["fused"][metric] for r in epochs] for _, epochs in logs]
    median = [np.median([v[t] for v in fused if t < len(v)]) for t in range(T)]
    for axis, folder, own, (first, epochs) in zip(axes.flat, runs, fused, logs):
        for values in fused:
            axis.plot(range(1, 1 + len(values)), values, color="#dddddd", lw=0.6)
        axis.plot(range(1, 1 + T), median, ":", color=BLACK, lw=1, label="median of fused")
        t, gaps = range(1, 1 + len(own)), [spread(r, first["modalities"], metric) for r in epochs]
        axis.plot(t, own, color=BLACK, lw=1.8, label="fused")
        axis.plot(t, gaps, "--", color=COLOURS[2], lw=1.8, label="perf_gap")
        axis.plot(t, [100 * r["alpha"] for r in epochs], color=PINK, lw=1.8, label="100 α")
        axis.set_title(f"{Path(folder).resolve().name}: fused {own[-1]:.1f}", fontsize=8)
    for axis in axes.flat[len(runs) :]:
        axis.set_visible(False)
    axes[0, 0].set(ylim=(0, 102))
    figure.supylabel(f"{METRICS[metric]}, %; its perf_gap, points; 100 α", fontsize=9)
    figure.supxlabel("epoch t", fontsize=9)
    legend(figure, axes[0, 0], "upper", ncols=4)
    save(figure, out)


def alpha(runs, out="alpha.png"):
    """alpha over t/T of any runs, and omega(t) for comparison (Fig. 3)."""
    logs = [read_epochs(folder) for folder in runs]
    figure, ((axis,),) = panels(1, 1, 6, 5)
    for folder, (first, epochs), colour in zip(runs, logs, itertools.cycle(COLOURS[1:])):
        settings = first["settings"]
        name = f"{settings['dataset']}, {titled(folder, settings)}, seed {settings['seed']}"
        progress = [r["t"] / settings["epochs"] for r in epochs]
        axis.plot(progress, [r["alpha"] for r in epochs], color=colour, lw=2, label=name)
    omega, T = make_schedule("heuristic"), max(first["settings"]["epochs"] for first, _ in logs)
    progress = [t / T for t in range(1, T + 1)]
    values = [omega(t, T) for t in range(1, T + 1)]
    axis.plot(progress, values, "k--", lw=1.5, label=f"ω(t), T = {T}")
    axis.set(xlabel="t / T", ylabel=r"$\alpha$", xlim=(0, 1), ylim=(-0.02, 1.02))
    axis.set_title("α over the course of training")
    legend(figure, axis, fontsize=8)
    save(figure, out)


@torch.no_grad()
def features(data, model):
    """The normalized features of the test split, as s(., .) uses them: m arrays (n, d)."""
    device = next(model.parameters()).device
    with eval_mode(model):
        batches = eval_loader(data.splits["test"], 64, device)
        z = [model(x)[0] for *x, _ in batches]
    return [nn.functional.normalize(torch.cat(z_j), dim=1).cpu().numpy() for z_j in zip(*z)]


def modality_gap(z):
    """|mean of z^(j) - mean of z^(l)|, averaged over all pairs of modalities: 0 to 2.

    z: m arrays (n, d) of unit rows. Fig. 2, by the definition of the paper's [25].
    """
    return np.mean([np.linalg.norm(a.mean(0) - b.mean(0)) for a, b in itertools.combinations(z, 2)])


def principal_plane(z):
    """The m arrays (n, d) projected on their first two principal components: m arrays (n, 2)."""
    everything = np.concatenate(z)
    centre = everything.mean(0)
    _, _, directions = np.linalg.svd(everything - centre, full_matrices=False)
    return [(z_j - centre) @ directions[:2].T for z_j in z]


def gap(runs, out="gap.png"):
    """The modalities' features and the modality gap (Fig. 2) on the test split, a panel per run."""
    drawn = []  # only after all runs are read: a run that cannot be read leaves no picture
    for folder in runs:
        data, model, name = load_run(folder)
        title = f"{name}, epoch {load_best(folder, model)}"
        drawn.append((title, data.modalities, features(data, model)))
    figure, axes = panels(1, len(runs), 4.5 * len(runs), 5.3, sharex=True, sharey=True)
    for axis, (title, modalities, z) in zip(axes[0], drawn):
        styles = zip(modalities, principal_plane(z), COLOURS[1:], "o^sDv")
        for modality, points, colour, marker in styles:
            axis.scatter(*points[:1000].T, s=8, color=colour, marker=marker, alpha=0.4, lw=0)
            name = f"{modality}; large: its mean"
            axis.plot(*points.mean(0), marker, color=colour, ms=11, mec="black", label=name)
        axis.set_xlabel("first principal component")
        axis.set_title(f"{title}\nmodality gap {modality_gap(z):.2f}", fontsize=10)
    axes[0, 0].set_ylabel("second principal component")
    legend(figure, axes[0, 0], ncols=5)
    save(figure, out)


def grad_cam(model, x, j, k):
    """Grad-CAM (Fig. 4): relu(sum_c w_c A_c), with w_c the mean of d logit_k / d A_c.

    A: the maps that the encoder averages at its end; x: list of m inputs (1, ...). Returns (H, W)
    in 0..1, of a clip for its middle frame. SettingsError for an encoder without such maps.
    """
    kinds = (nn.AdaptiveAvgPool2d, GridMean)
    pools = [module for module in model.phi[j].modules() if isinstance(module, kinds)]
    if not pools:
        raise SettingsError("gradcam needs cnn or a ResNet; this modality's encoder has no maps")
    seen = []
    hook = pools[-1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with eval_mode(model):
        logit = model.logits(model(x)[0])[0, k]
    hook.remove()
    A = seen[0]  # (F, C, h, w), a frame a row
    w = torch.autograd.grad(logit, A)[0].mean((2, 3), keepdim=True)
    cam = (w * A).sum(1, keepdim=True).relu()  # (F, 1, h, w)
    cam = nn.functional.interpolate(cam, x[j].shape[-2:], mode="bilinear")
    cam = cam[len(cam) // 2, 0].detach()  # (H, W)
    return cam / cam.max().clamp(min=1e-12)


def shown(x_j):
    """An input as a picture in 0..1: (C, H, W), or a clip's middle frame -> (H, W) or (H, W, 3)."""
    x_j = x_j[len(x_j) // 2] if x_j.dim() == 4 else x_j
    x_j = x_j if len(x_j) == 3 else x_j.float().mean(0, keepdim=True)
    x_j = (x_j - x_j.min()) / (x_j.max() - x_j.min()).clamp(min=1e-12)
    return x_j.permute(1, 2, 0).squeeze(2).numpy()


def grad_cams(folder, modality, sample):
    """A run's row of gradcam: (label, modality, input, class, [(t, Grad-CAM), ...])."""
    data, model, name = load_run(folder)
    modality = cli.check_choice("modality", modality or data.modalities[0], data.modalities)
    j, test, epochs = (
        data.modalities.index(modality),
        data.splits["test"],
        checkpoint_epochs(folder),
    )
    if len(epochs) < 3:
        found = cli.amount(len(epochs), "checkpoint")
        problem = f"{folder} has {found}, gradcam needs three"
        raise SettingsError(f"{problem}; train with --keep 9")
    if not 0 <= sample < len(test):
        limits = f"0 to {len(test) - 1}, one of the test split"
        raise SettingsError(f"--sample is {sample}, expected {limits}")
    *x, k = test[sample]
    maps, device = [], next(model.parameters()).device
    for t in [epochs[0], epochs[len(epochs) // 2], epochs[-1]]:
        load_state(load_checkpoint(folder, t), model=model)
        heat = grad_cam(model, [x_j[None].to(device) for x_j in x], j, int(k))
        maps.append((t, heat.cpu().numpy()))
    return name, modality, shown(x[j]), int(k), maps


def gradcam(runs, out="gradcam.png", modality="", sample=0):
    """Where an encoder looks after the first, a middle and the last epoch (Fig. 4).

    A row per run, each with three checkpoints or more; modality: the first one without a name.
    """
    rows = [grad_cams(folder, modality, sample) for folder in runs]
    _, modality, picture, k, _ = rows[0]
    origin = "lower" if modality in ("audio", "sound") else "upper"  # low pitch below
    width = 2 + 10 * min(picture.shape[1] / picture.shape[0], 1.5)
    figure, axes = panels(len(runs), 4, width, 3 * len(runs))
    for row, (name, _, picture, _, maps) in zip(axes, rows):
        for axis in row:
            axis.imshow(picture, "gray", origin=origin)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(True)
        for axis, (t, heat) in zip(row[1:], maps):
            heat = axis.imshow(heat, "inferno", vmin=0, vmax=1, alpha=0.6, origin=origin)
            axis.set_title(f"epoch {t}", fontsize=10)
        row[0].set_ylabel(name)
    figure.colorbar(heat, ax=axes, label="Grad-CAM, of its maximum")
    title = f"where the encoder of {modality} looks: test sample {sample}, class {k}"
    figure.suptitle(title, fontsize=10)
    save(figure, out)


def plain(text):
    """A user's text as matplotlib shows it: a dollar sign begins no formula."""
    return text.replace("$", r"\$")


def answers(records, modalities):
    """{"fused" or modality: (label, predicted) of each sample}, from the records of predict."""
    pairs = {"fused": [(r["label"], r["prediction"].label) for r in records]}
    for name in modalities:
        pairs[name] = [(r["label"], r["prediction"].alone[name]) for r in records]
    return pairs


def confusion(run, split="test", root="", out="confusion.png"):
    """Which class is taken for which, by the fused model and by each modality alone.

    A row is a label, a column a predicted class. Returns the three largest confusions, in words.
    """
    from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

    cli.check_choice("split", split, train.SPLITS)
    predictor = Predictor(run)
    records, classes = predict.own_records(predictor, run, split, root), predictor.classes
    pairs, names = answers(records, predictor.kinds), [*map(plain, classes)]
    few, size = len(classes) <= 15, min(8, 2.5 + 0.3 * len(classes))
    figure, axes = panels(1, len(pairs), size * len(pairs), size)
    lines = []
    for axis, (name, found) in zip(axes[0], pairs.items()):
        labels, predicted = [pair[0] for pair in found], [pair[1] for pair in found]
        matrix = confusion_matrix(labels, predicted, labels=classes)
        display = ConfusionMatrixDisplay(matrix, display_labels=names)
        options = {"cmap": "Blues", "colorbar": False, "values_format": "d"}
        display.plot(ax=axis, include_values=few, xticks_rotation="vertical", **options)
        axis.grid(False)
        if not few:
            axis.set(xticks=[], yticks=[])
        right = f"{np.trace(matrix)} of {matrix.sum()} right"
        axis.set_title(f"{name if name == 'fused' else f'{name} alone'}: {right}", fontsize=10)
        lines += [f"{name}: {right}", *(f"  {line}" for line in predict.confusions(found))]
    figure.suptitle(f"{Path(run).resolve().name}, epoch {predictor.t}, {split} split", fontsize=10)
    save(figure, out)
    return "\n".join(lines)


def show_input(axis, name, kind, x_j, source):
    """Draw a sample's input as its modality is seen: a picture, a spectrogram, a text, numbers."""
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    if kind == "text":
        axis.text(0.5, 0.5, plain(textwrap.fill(source, 30)), ha="center", va="center", wrap=True)
    elif x_j.dim() == 1:
        axis.bar(range(len(x_j)), x_j.tolist(), width=1.0, color=COLOURS[1])
    else:
        low_pitch_below = kind.startswith("audio") or name == "sound"
        axis.imshow(shown(x_j), "gray", origin="lower" if low_pitch_below else "upper")
        axis.set_aspect("auto" if low_pitch_below else "equal")


def mistakes(run, split="test", root="", out="mistakes.png"):
    """The samples that are wrong with the highest probability, a row each.

    A row has the sample's inputs and the class by each modality alone. Returns the rows as text.
    """
    cli.check_choice("split", split, train.SPLITS)
    predictor = Predictor(run)
    samples = predict.own_samples(run, split, root)
    records = predict.sample_records(predictor, samples, split)
    wrong = [i for i, r in enumerate(records) if r["label"] != r["prediction"].label]
    said = f"wrong: {len(wrong)} of {cli.amount(len(records), 'sample')} of the {split} split"
    if not wrong:
        return said
    wrong = sorted(wrong, key=lambda i: -records[i]["prediction"].probability)[:SHOWN]
    figure, axes = panels(len(wrong), len(predictor.kinds), 2 + 2.5 * len(predictor.kinds), 1)
    figure.set_figheight(2.2 * len(wrong) + 0.5)
    for row, i in zip(axes, wrong):
        record, prediction, (*x, _) = records[i], records[i]["prediction"], samples[i]
        for j, (axis, (name, kind)) in enumerate(zip(row, predictor.kinds.items())):
            show_input(axis, name, kind, x[j].cpu(), samples.sources[j][i])
            axis.set_title(plain(f"{name} alone: {prediction.alone[name]}"), fontsize=9)
        probability = f"{prediction.label} ({prediction.probability:.3f})"
        text = f"{record['label']}, taken for\n{probability}\n{Path(record['sample']).name}"
        row[0].set_ylabel(plain(text), rotation=0, ha="right", va="center", fontsize=9)
    save(figure, out)
    rows = predict.table([records[i] for i in wrong], predictor.kinds)
    return "\n".join([f"{said}; with the highest probability:", *predict.aligned(rows)])


def landscape(out="landscape.png", seed=0):
    """The outer loss L_CLS(theta*(alpha)) of a small problem, with Eq. 3 as tangents (Eq. 2, 3)."""
    figure, axes = panels(2, 2, 10, 8, sharex="row", height_ratios=[3, 2])
    draw(axes, seed, [SKY, ORANGE, BLACK])
    legend(figure, axes[0, 0], ncols=4)
    save(figure, out)


COMMANDS = [curves, alpha, gap, gradcam, table, confusion, mistakes, landscape]
COMMANDS = {command.__name__: command for command in COMMANDS}
OPTIONS = {
    "out": "picture to write; its ending says the format (default {} in the run's folder; with "
    "several runs, or none, here)",
    "metric": f"one of {', '.join(METRICS)}",
    "modality": "whose encoder",
    "sample": "number of the test split's sample",
    "root": "folder of the run's own data, if it has moved",
    "seed": "of the small problem's data",
    "split": f"one of {', '.join(train.SPLITS)}",
}


def place(options, usual):
    """The picture to write: --out, else the usual name in the folder of the one run, else here."""
    runs = options.get("runs", [options.get("run", "")])
    return options["out"] or os.path.join(runs[0] if len(runs) == 1 else "", usual)


def main(arguments=None):
    """Exit status 0, or 2 and one sentence."""
    with cli.one_sentence("figures") as program:
        parser = cli.Parser("figures", description=__doc__)
        commands = parser.add_subparsers(dest="command", required=True)
        for name, function in COMMANDS.items():
            command = commands.add_parser(name, help=function.__doc__.split("\n")[0])
            for option, parameter in inspect.signature(function).parameters.items():
                if option in ("run", "runs"):
                    number = {"nargs": "+"} if option == "runs" else {}
                    command.add_argument(option, metavar="RUN", help="folder of a run", **number)
                    continue
                usual, text = parameter.default, OPTIONS[option].format(parameter.default)
                default = "" if option == "out" else usual
                command.add_argument(f"--{option}", type=type(usual), default=default, help=text)
        options = vars(parser.parse_args(arguments))
        function = COMMANDS[options.pop("command")]
        if "out" in options:
            options["out"] = place(options, inspect.signature(function).parameters["out"].default)
        if text := function(**options):
            print(text)
    return program.status


if __name__ == "__main__":
    sys.exit(main())
