"""Pictures and tables from what training wrote (Fig. 3, Tables 3 and 4). Reads RUN/log.jsonl, nothing imports it.

    python figures.py curves runs/keypad-constant0-seed0 runs/keypad-learning-based-seed0 --out curves.png
    python figures.py alpha runs/*-learning-based-seed0 --out alpha.png
    python figures.py table runs/keypad-*
"""

import argparse
import dataclasses
import itertools
import json
import sys
from pathlib import Path

import numpy as np

from losses import schedule
from train import Settings

COLOURS = ["#000000", "#0072B2", "#D55E00", "#009E73"]  # Okabe and Ito: fused, then the modalities


def read(folder):
    """A run's log: (first line, list of epochs, test scores or None). ValueError where it is none."""
    path = Path(folder) / "log.jsonl"
    if not path.is_file():
        raise ValueError(f"{folder} holds no run: {path} is missing; give a folder that train.py wrote")
    lines = path.read_text().splitlines()
    try:
        first, *rest = map(json.loads, lines)
        epochs = [r for r in rest if "alpha" in r]
        first["settings"]["seed"], first["modalities"]
        return first, epochs, next((r["test"] for r in rest if "test" in r), None)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a log of train.py ({error}); its run may have been cut off") from error


def drawn(folder):
    """A run's (first line, list of epochs), to be drawn; ValueError where there is no epoch."""
    first, epochs, _ = read(folder)
    if not epochs:
        raise ValueError(f"{folder} has no finished epoch to draw")
    return first, epochs


def pyplot():
    """matplotlib's pyplot, imported only where something is drawn, and without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def label(settings):
    """The run's method and every setting that is not the default, as on the command line."""
    usual = dataclasses.asdict(Settings())
    apart = [f"--{k.replace('_', '-')} {v}" for k, v in settings.items()
             if k not in ("dataset", "method", "root", "seed", "device") and v != usual.get(k)]  # fmt: skip
    return " ".join([settings["method"], *apart])


def table(folders):
    """Mean and std over seeds of the test scores in percent, a Markdown row per setting, in the order given."""
    groups = {}
    for folder in folders:
        first, _, test = read(folder)
        if test is None:
            raise ValueError(f"{folder} has no test scores; its run did not finish")
        name, seed = label(first["settings"]), first["settings"]["seed"]
        rows = groups.setdefault((first["settings"]["dataset"], *first["modalities"]), {})
        if seed in rows.setdefault(name, {}):
            raise ValueError(f"{folder} repeats seed {seed} of {name!r}; give each seed once")
        rows[name][seed] = test
    return "\n\n".join(one_table(dataset, modalities, rows) for (dataset, *modalities), rows in groups.items())


def row(name, n, fused, single):
    return f"| {name} | {n} | " + " | ".join([*fused, *single]) + " |"


def one_table(dataset, modalities, rows):
    """The Markdown table of one data set; rows: {label: {seed: test scores}}."""
    lines = [f"| {dataset} | seeds | ACC | MAP | " + " | ".join(f"{m} ACC" for m in modalities) + " | perf_gap |"]
    lines.append("|---" * (5 + len(modalities)) + "|")
    for name, tests in rows.items():
        tests = list(tests.values())
        fused = [cell([t["fused"][key] for t in tests]) for key in ("acc", "map")]
        single = [cell([t[m]["acc"] for t in tests]) for m in modalities] + [cell([t["perf_gap"] for t in tests])]
        if name == "unimodal":  # nothing is fused: the summed logits have a row of their own
            lines.append(row(name, len(tests), [""] * 2, single))
            lines.append(row("unimodal, logits summed", len(tests), fused, [""] * len(single)))
        else:
            lines.append(row(name, len(tests), fused, single))
    return "\n".join(lines)


def cell(values):
    """mean +- std over seeds (the sample's, n - 1), one decimal."""
    std = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{std}"


def curves(folders, out):
    """ACC of the fused model and of each modality over the epochs, and alpha below: one column per run."""
    plt = pyplot()
    figure, axes = plt.subplots(2, len(folders), figsize=(4.5 * len(folders), 4.5), sharex="col", sharey="row",
                                squeeze=False, height_ratios=[3, 1], layout="constrained")  # fmt: skip
    for (above, below), folder in zip(axes.T, folders):
        first, epochs = drawn(folder)
        t = [r["t"] for r in epochs]
        for name, colour in zip(["fused", *first["modalities"]], COLOURS):
            acc = [r[name]["acc"] for r in epochs]
            above.plot(t, acc, color=colour, lw=2 if name == "fused" else 1.5)
            above.annotate(name, (t[-1], acc[-1]), (4, 0), textcoords="offset points", color=colour, va="center")
        title = f"{label(first['settings'])}\n{first['settings']['dataset']}, {epochs[0]['split']} split"
        above.set_title(title, fontsize=10)
        below.plot(t, [r["alpha"] for r in epochs], color="#CC79A7", lw=2)
        below.set(xlabel="epoch t", ylim=(-0.05, 1.05))
        for axis in (above, below):
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set(ylabel="ACC, %", ylim=(0, 100))
    axes[1, 0].set_ylabel(r"$\alpha$")
    figure.savefig(out, dpi=150)
    plt.close(figure)


def alpha(folders, out):
    """alpha over t/T of any runs, with omega(t) of the longest for comparison (Fig. 3)."""
    plt = pyplot()
    figure, axis = plt.subplots(figsize=(6, 5), layout="constrained")
    longest = 0
    for folder, colour in zip(folders, itertools.cycle(COLOURS[1:] + ["#CC79A7", "#E69F00", "#56B4E9"])):
        first, epochs = drawn(folder)
        T = first["settings"]["epochs"]
        longest = max(longest, T)
        name = f"{first['settings']['dataset']}, {label(first['settings'])}, seed {first['settings']['seed']}"
        axis.plot([r["t"] / T for r in epochs], [r["alpha"] for r in epochs], color=colour, lw=2, label=name)
    t = range(1, longest + 1)
    omega = schedule("heuristic")
    axis.plot([i / longest for i in t], [omega(i, longest) for i in t], "k--", lw=1.5, label=f"ω(t), T = {longest}")
    axis.set(xlabel="t / T", ylabel=r"$\alpha$", xlim=(0, 1), ylim=(-0.02, 1.02), title="α over the course of training")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", fontsize=8, frameon=False)
    figure.savefig(out, dpi=150)
    plt.close(figure)


def main(arguments=None):
    """Exit status 0, or 2 and one sentence."""
    pictures = {"curves": curves, "alpha": alpha}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function in [*pictures.items(), ("table", table)]:
        command = commands.add_parser(name, help=function.__doc__)
        command.add_argument("runs", nargs="+", metavar="RUN", help="folder that train.py wrote")
        if name in pictures:
            command.add_argument("--out", default=f"{name}.png", help="picture to write; its ending says the format")
    options = parser.parse_args(arguments)
    try:
        if options.command == "table":
            print(table(options.runs))
        else:
            pictures[options.command](options.runs, options.out)
            print(f"wrote {options.out}")
    except (ValueError, OSError) as error:
        print(f"figures.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
