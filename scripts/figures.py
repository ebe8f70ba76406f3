"""Pictures and tables from the logs and checkpoints of runs (Fig. 1 to 4, Tables 1, 3 and 4).

    python -m scripts.figures curves runs/keypad-constant0-seed0 runs/keypad-learning-based-seed0
    python -m scripts.figures curves class/*                       thirty runs: small panels
    python -m scripts.figures alpha runs/*-learning-based-seed0 --out alpha.pdf            Fig. 3
    python -m scripts.figures scatter runs                         alpha against the scores
    python -m scripts.figures gap runs/keypad-constant0-seed0 runs/keypad-heuristic-seed0  Fig. 2
    python -m scripts.figures gradcam RUN RUN --modality sound     with --keep 9,          Fig. 4
    python -m scripts.figures animate RUN                          with --keep 9; a GIF
    python -m scripts.figures table runs/keypad-* --metric map     Tables 1, 3, 4; Fig. 1
    python -m scripts.figures probe runs/keypad-*                  the table, by linear probes
    python -m scripts.figures confusion RUN                        which class is taken for which
    python -m scripts.figures mistakes RUN --split val             the samples surely called wrong
    python -m scripts.figures landscape                            Eq. 2, 3; needs no run

curves, alpha, scatter and table read only log.jsonl; the others also read checkpoints and data. The
picture of one run is written into the run's folder, of several runs into the current folder; --out
names another file.
"""

import contextlib
import functools
import inspect
import itertools
import os
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

import train
from losses import make_schedule
from scripts.errors import confusion, mistakes
from scripts.inside import animate, gap, gradcam, probed
from scripts.landscape import draw
from scripts.plots import (
    BLACK,
    COLOURS,
    GREY,
    ORANGE,
    PINK,
    RED,
    SKY,
    in_words,
    label,
    legend,
    panels,
    read_epochs,
    save,
    titled,
)
from utils import cli
from utils.cli import SettingsError
from utils.run import read_log

COLUMNS = 7  # runs that `curves` draws side by side
BELOW = 10  # points of fused ACC below the best that `scatter` shows; worse runs are at the edge
METRICS = {"acc": "ACC", "map": "MAP", "f1": "macro-F1"}


def spread(scores, modalities, metric):
    """perf_gap of any metric: the best modality's score minus the worst's, in points."""
    single = [scores[name][metric] for name in modalities]
    return max(single) - min(single)


def differences(tests, reference):
    """tests' fused ACC - reference's, of their common seeds in order; both {seed: test scores}."""
    seeds = sorted({*tests} & {*reference})
    return np.array([tests[s]["fused"]["acc"] - reference[s]["fused"]["acc"] for s in seeds])


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


def tables(runs, metric, scores_of):
    """A Markdown table for each data set, a row per setting; scores_of(folder, its test scores)."""
    groups = {}
    for folder in runs:
        first, _, test = read_log(folder)
        if test is None:
            raise SettingsError(f"{folder} has no test scores; its run did not finish")
        name, seed = label(first["settings"]), first["settings"]["seed"]
        rows = groups.setdefault((first["settings"]["dataset"], *first["modalities"]), {})
        if seed in rows.setdefault(name, {}):
            raise SettingsError(f"{folder} repeats seed {seed} of {name!r}; give each seed once")
        rows[name][seed] = scores_of(folder, test)
    parts = [score_lines(names, rows, metric) for names, rows in groups.items()]
    return "\n\n".join(map(one_table, parts))


def table(runs, metric="acc"):
    """Test scores in percent, mean and std over seeds: a Markdown row per setting.

    metric: acc (Table 4), map or f1 (Table 3), for the single modalities and perf_gap, too.
    """
    cli.check_choice("metric", metric, METRICS)
    return tables(runs, metric, lambda folder, test: test)


def probe(runs, root=""):
    """The table, with the ACC of each modality by a linear classifier on its frozen features.

    This scores the encoder; the scores of `table` also depend on what the run's classifier uses.
    """
    scores_of = functools.partial(probed, root=root)
    with contextlib.redirect_stdout(sys.stderr):  # what each run's data say of themselves
        return tables(tqdm(runs, "probes", disable=None), "acc", scores_of)


def plot(axis, lines):
    """Draw lines over t = 1, 2, ...; lines: {name: (values, colour, style)}."""
    for name, (values, colour, style) in lines.items():
        width = 2.5 if name == "fused" or name.startswith("α") else 1.5
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
    shared = {"sharex": "col", "sharey": "row", "height_ratios": [3, 2, 2]}
    figure, axes = panels(3, len(runs), 4.5 * len(runs), 8, **shared)
    axes[0, 0].set(ylabel=f"{METRICS[metric]}, %; perf_gap, points", ylim=(0, 100))
    axes[1, 0].set(ylabel="weight of L_MM, α", ylim=(-0.05, 1.05))
    axes[2, 0].set_ylabel("losses of training, nats")
    named = []
    for (above, weight, below), folder, (first, epochs) in zip(axes.T, runs, logs):
        modalities, settings = first["modalities"], first["settings"]
        scores, losses = {}, {}
        for name, colour in zip(["fused", *modalities], COLOURS):
            scores[name] = [r[name][metric] for r in epochs], colour, "-"
        scores["perf_gap"] = [spread(r, modalities, metric) for r in epochs], GREY, "--"
        for name, colour, style in (("CLS", ORANGE, "-"), ("MM", SKY, "-"), ("Total", BLACK, ":")):
            losses[f"L_{name}"] = [r[f"l_{name.lower()}"] for r in epochs], colour, style
        values = [r["alpha"] for r in epochs]
        lines = {f"α {values[-1]:.2f}": (values, PINK, ".-")}
        weight.fill_between(range(1, 1 + len(values)), values, color=PINK, alpha=0.15, lw=0)
        named += [(above, scores), (weight, lines), (below, losses)]
        title = f"{titled(folder, settings)}\n{settings['dataset']}, {epochs[0]['split']} split"
        above.set_title(title, fontsize=10)
        below.set_xlabel("epoch t")
        below.xaxis.get_major_locator().set_params(integer=True)
    for axis, lines in named:
        plot(axis, lines)
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
        axis.plot(t, gaps, "--", color=RED, lw=1.8, label="perf_gap")
        axis.plot(t, [100 * r["alpha"] for r in epochs], color=PINK, lw=1.8, label="100 α")
        name = Path(folder).resolve().name
        if name.startswith(first["settings"]["dataset"]):
            name = f"{in_words(first['settings'])}, seed {first['settings']['seed']}"
        axis.set_title(f"{name}: fused {own[-1]:.1f}", fontsize=8)
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
    looks = itertools.cycle(itertools.product(("-", ":", "-."), COLOURS[1:]))
    for folder, (first, epochs), (style, colour) in zip(runs, logs, looks):
        settings = first["settings"]
        name = f"{settings['dataset']}, {titled(folder, settings)}, seed {settings['seed']}"
        progress = [r["t"] / settings["epochs"] for r in epochs]
        axis.plot(progress, [r["alpha"] for r in epochs], style, color=colour, lw=2, label=name)
    omega, T = make_schedule("heuristic"), max(first["settings"]["epochs"] for first, _ in logs)
    progress = [t / T for t in range(1, T + 1)]
    values = [omega(t, T) for t in range(1, T + 1)]
    axis.plot(progress, values, "k--", lw=1.5, label=f"ω(t), T = {T}")
    axis.set(xlabel="t / T", ylabel=r"$\alpha$", xlim=(0, 1), ylim=(-0.02, 1.02))
    axis.set_title("α over the course of training")
    legend(figure, axis, fontsize=8)
    save(figure, out)


def scatter(folder, out="scatter.png"):
    """alpha against fused ACC and perf_gap: a dot for each finished run in a folder.

    A row of panels for each data set. A dot is at the mean of the run's alpha over its epochs; its
    line goes from the smallest alpha to the largest.
    """
    logs = [read_log(path.parent) for path in sorted(Path(folder).glob("*/log.jsonl"))]
    finished = [log for log in logs if log.test]
    if not finished:
        raise SettingsError(f"{folder} has no finished run; name a folder that has folders of runs")
    if len(finished) < len(logs):
        print(f"left out: {cli.amount(len(logs) - len(finished), 'run')} without test scores")
    kinds = {}
    for log in finished:
        settings = log.first["settings"]
        groups = kinds.setdefault(settings["dataset"], {})
        groups.setdefault(in_words(settings), []).append(log)
    heights = [max(3.5, 1 + len(groups) / 4) for groups in kinds.values()]
    shared = {"sharex": True, "height_ratios": heights}
    figure, axes = panels(len(kinds), 2, 12, sum(heights), **shared)
    for row, (dataset, groups) in zip(axes, kinds.items()):
        scatter_row(row, groups)
        row[0].set(title=f"{dataset}: fused ACC, %", xlim=(-0.03, 1.03))
        row[1].set(title=f"{dataset}: perf_gap, points")
    for axis in axes[-1]:
        axis.set_xlabel("α: mean over the epochs (mark), smallest to largest (line)")
    save(figure, out)


def scatter_row(row, groups):
    """Draw one data set's runs into its two panels; groups: {name: their logs}."""
    looks = itertools.product("os^Dv*", COLOURS[1:])
    best = max(log.test["fused"]["acc"] for logs in groups.values() for log in logs)
    for (name, logs), (marker, colour) in zip(groups.items(), itertools.cycle(looks)):
        for log in logs:
            alphas, acc = [r["alpha"] for r in log.epochs], log.test["fused"]["acc"]
            place = max(acc, best - BELOW)
            if place > acc:
                style = {"textcoords": "offset points", "fontsize": 8, "va": "center"}
                row[0].annotate(f"↓ {acc:.0f}", (np.mean(alphas), place), (7, 0), **style)
            for axis, value in zip(row, (place, log.test["perf_gap"])):
                axis.plot([min(alphas), max(alphas)], [value] * 2, color=colour, lw=1, alpha=0.5)
                axis.plot(np.mean(alphas), value, marker, color=colour, ms=7, mec="white")
        row[1].plot([], [], marker, color=colour, label=f"{name} ({len(logs)})")
    row[0].set_ylim(best - BELOW - 0.5, best + 1)
    place = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}
    row[1].legend(**place, frameon=False, fontsize=9, title="setting (runs)")


def landscape(out="landscape.png", seed=0):
    """The outer loss L_CLS(theta*(alpha)) of a small problem, with Eq. 3 as tangents (Eq. 2, 3)."""
    if seed < 0:
        raise SettingsError(f"--seed is {seed}, expected 0 or more")
    figure, axes = panels(2, 2, 10, 8, sharex="row", height_ratios=[3, 2])
    draw(axes, seed, [SKY, ORANGE, BLACK])
    legend(figure, axes[0, 0], ncols=4)
    save(figure, out)


COMMANDS = [curves, alpha, scatter, gap, gradcam, animate, table, probe, confusion, mistakes]
COMMANDS += [landscape]
COMMANDS = {command.__name__: command for command in COMMANDS}
FOLDERS = {"RUN": "folder of a run", "FOLDER": "folder with the folders of runs"}
OPTIONS = {
    "out": "picture to write; its ending says the format (default {} in the run's folder; with "
    "several runs, or none, here)",
    "metric": f"one of {', '.join(METRICS)}",
    "modality": "whose encoder",
    "sample": "numbers of samples of the test split, with commas (default four)",
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
                if parameter.default is parameter.empty:
                    number = {"nargs": "+"} if option == "runs" else {}
                    metavar = "FOLDER" if option == "folder" else "RUN"
                    command.add_argument(option, metavar=metavar, help=FOLDERS[metavar], **number)
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
