"""The gain of methods over joint training, drawn from finished runs (figures of RESULTS.md).

    python -m scripts.gain runs/study --out docs/gain.png
    python -m scripts.gain runs/images --x groups --out docs/images.png

The gain is the difference in fused ACC to the run of constant:0 with the same data and seed: the
mean over seeds, and its 95 % interval (Student's t). x: the data sets in the order of the perf_gap
of constant:0, or the number of training groups (--train-groups).
"""

import sys
from pathlib import Path

import numpy as np
from scipy import stats

from scripts.figures import differences
from scripts.plots import COLOURS, GREY, legend, panels, save, unusual
from scripts.sweep import JOINT
from utils import cli
from utils.cli import SettingsError
from utils.run import read_log

METHODS = ["constant:0.5", "heuristic", "learning-based", "heads"]
METHODS += ["learning-based --heads --matching classes", "released:quintic", "unimodal"]


def rows_of(logs):
    """{row: {seed: test scores}} of runs on the same data.

    A row is a method with its flags, as in the sweep, in alphabetical order. A flag that all runs
    have is left out, and so is a data set's default.
    """
    rows, flags = {}, [unusual(log.first["settings"]) for log in logs]
    shared = {k for k in flags[0] if all(own.get(k) == flags[0][k] for own in flags)}
    for own, log in zip(flags, logs):
        settings = log.first["settings"]
        apart = {k: own[k] for k in sorted(own.keys() - shared)}
        row = " ".join([settings["method"], *cli.as_flags(apart)])
        if settings["seed"] in rows.setdefault(row, {}):
            twice = f"{row} with seed {settings['seed']} of {settings['dataset']}"
            raise SettingsError(f"two runs are {twice}; leave the folder of one of them out")
        rows[row][settings["seed"]] = log.test
    return rows


def scores_of(folders):
    """{(data set, train_groups): rows_of its runs} of all finished runs below folders."""
    found = {}
    for path in sorted(path for folder in folders for path in Path(folder).glob("**/log.jsonl")):
        log = read_log(path.parent)
        settings = log.first["settings"]
        if log.test:
            place = Path(settings["dataset"]).name, settings.get("train_groups", 0)
            found.setdefault(place, []).append(log)
    if not found:
        raise SettingsError(f"{', '.join(folders)} has no finished run; give the --runs of a sweep")
    return {place: rows_of(logs) for place, logs in found.items()}


def gain(rows, row):
    """(mean, half of the 95 % interval) of fused ACC - that of constant:0; None below two seeds."""
    difference = differences(rows.get(row, {}), rows.get(JOINT, {}))
    n = len(difference)
    if n < 2:
        return None
    return difference.mean(), stats.t.ppf(0.975, n - 1) * difference.std(ddof=1) / n**0.5


def perf_gap(rows):
    """The mean perf_gap of constant:0 over seeds."""
    return np.mean([test["perf_gap"] for test in rows[JOINT].values()])


def points_of(found, at, row):
    """Arrays (at, mean, half) of a method, ascending; at: {place: its x}."""
    points = [(at[place], gain(found[place], row)) for place in sorted(found, key=at.get)]
    return np.array([(x, *value) for x, value in points if value]).reshape(-1, 3).T


def draw(found, x, methods, out):
    """Points with intervals for each method; x: perf_gap or groups.

    A line names the methods without a point. SettingsError if no method has one, or too many.
    """
    by_gap = x == "perf_gap"
    found = {at: rows for at, rows in found.items() if JOINT in rows and (by_gap or at[1])}
    at = {place: place[1] for place in found}
    if by_gap:  # by rank, and the methods beside each other: else the points hide each other
        gaps = {place: perf_gap(rows) for place, rows in found.items()}
        at = {place: k for k, place in enumerate(sorted(gaps, key=gaps.get))}
    points = {row: points_of(found, at, row) for row in methods}
    if absent := [row for row in methods if not points[row].size]:
        print(f"not drawn, without two seeds that {JOINT} has, too: {', '.join(absent)}")
    methods = [row for row in methods if points[row].size]
    if not 0 < len(methods) <= len(COLOURS):
        expected = f"expected 1 to {len(COLOURS)}, run with the data and seeds of {JOINT}"
        raise SettingsError(f"{len(methods)} methods to draw, {expected}")
    figure, ((axis,),) = panels(1, 1, 7.5, 4.5)
    step = 0.09 if by_gap else 0
    for k, (row, colour) in enumerate(zip(methods, COLOURS)):
        place, mean, half = points[row]
        style = {"fmt": "o" if by_gap else "o-", "capsize": 2, "lw": 1.2, "color": colour}
        axis.errorbar(place + step * (k - len(methods) / 2), mean, half, label=row, **style)
    axis.axhline(0, color=GREY, lw=1)
    axis.set_ylabel("gain in fused ACC, points")
    if by_gap:
        axis.set_xlabel("data set, and the perf_gap of constant:0 on it in points")
        axis.set_xticks([*at.values()], [f"{place[0]}\n{gaps[place]:.1f}" for place in at])
    else:
        axis.set(xlabel="groups to train on (of keypad: images)", xscale="log")
        axis.set_xticks([*at.values()], [*map(str, at.values())])
        axis.minorticks_off()
    legend(figure, axis, ncols=2)
    save(figure, out)


def main(arguments=None):
    """Draw the runs below some folders; returns the exit status."""
    with cli.one_sentence("gain") as program:
        parser = cli.Parser("gain", description=__doc__)
        parser.add_argument("folders", nargs="+", help="folders with runs, as --runs of sweep")
        parser.add_argument("--x", choices=["perf_gap", "groups"], default="perf_gap")
        parser.add_argument("--methods", nargs="+", default=METHODS, help="at most seven rows")
        parser.add_argument("--out", default="gain.png", help="the picture (default gain.png)")
        args = parser.parse_args(arguments)
        draw(scores_of(args.folders), args.x, args.methods, args.out)
    return program.status


if __name__ == "__main__":
    sys.exit(main())
