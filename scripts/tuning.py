"""Which values `sweep --tune` tries, and which one it chooses.

Every row has one number to choose: its method's own, as tau of heuristic and eta_alpha of
learning-based; the learning rate if the method has none, or if the row gives it. The values are a
geometric grid around the default. Four are tried first; then one more wherever the best value has
no neighbour on a side, until it has both or there is no further value.
"""

import dataclasses
import inspect
import math
import os
from typing import NamedTuple

import numpy as np

import train
from baselines import requirements
from data import DATASETS, SETS
from scripts.figures import cell, one_table
from utils import cli
from utils.cli import SettingsError
from utils.run import best_epoch, read_log
from utils.samples import own_table, split_of

OWN_VAL = ["sarcasm", "twitter2015", "isl", "phone-watch"]  # sets that have a validation part
SEEDS = (0, 1)  # of every trial
BEYOND = 2  # the most values that are tried beyond the first four, on each side


class Grid(NamedTuple):
    """The values default * ratio ** k, up to `most`; k = first, ..., first + 3 are tried first.

    flag: of the number; "": it is the first one after the method's name.
    """

    flag: str = "--lr"
    ratio: float = 2
    first: int = -2
    most: float = math.inf


GRIDS = {  # all other methods: Grid(), the learning rate
    "heuristic": Grid("--tau", 2, -1),
    "learning-based": Grid("--eta-alpha", 2, -1),
    "mses": Grid("", 2, -2),
    "g-blend": Grid("", 1.6, 0),
    "ogm": Grid("", 2, 0),
    "greedy": Grid("", 10, -1),
    "domfn": Grid("", 1.5, -2, most=1.2),  # gamma tau < 0.25, above which two modalities agree
    "mslr": Grid("", 2, -2),  # the rate of the first modality; the others have 1
    "pmr": Grid("", 2, -1),
    "agm": Grid("", 2, -1),
    "mla": Grid("", 10, -2),
    "reconboost": Grid("", 2, -1),
    "mmpareto": Grid("", 1.5, -2),
    "etmc": Grid("", 3, -1),
}


class Search(NamedTuple):
    """The values that may be tried for a row.

    number: the name of the number, "" if the row gives all and there is nothing to choose;
    trials: {value: the row with it}, ascending; first: the values that are tried first.
    """

    row: str
    number: str
    trials: dict
    first: list


def is_own(dataset):
    """Whether it is a folder of your own data; a folder named like a set is not."""
    return dataset not in DATASETS and os.path.isdir(dataset)


def modalities_of(dataset):
    """The number of modalities of a data set, or of a folder of your own data."""
    if is_own(dataset):
        return len(own_table(dataset)[0])
    return len(SETS[dataset]["kinds"]) if dataset in SETS else 2


def has_val(dataset):
    """Whether a data set, or a folder of your own data, has a validation part of its own."""
    if not is_own(dataset):
        return dataset in OWN_VAL
    return any(split_of(row) == "val" for _, row in own_table(dataset)[1])


def validation_acc(folder):
    """The fused ACC of a run on the validation part, of the epoch that is tested.

    SettingsError for a run without one: the test split chooses nothing.
    """
    epochs = read_log(folder).epochs
    if epochs[-1]["split"] != "val":
        raise SettingsError(f"{folder} has no held-out samples, which --tune needs")
    return epochs[best_epoch(epochs) - 1]["fused"]["acc"]


def in_full(settings):
    """A run's settings with all numbers of its method: of `mses` and `mses:3` they are equal."""
    name, *given = settings.method.split(":")
    numbers = [word if word.isalpha() else float(word) for word in given]
    parameters = inspect.signature(requirements(name).begin).parameters.values()
    usual = [p.default for p in parameters if p.default is not p.empty]
    method = (name, *numbers, *usual[len(numbers) :])
    return method, dataclasses.astuple(dataclasses.replace(settings, method=""))


def number_of(row, settings):
    """(grid, name, default) of the number to choose: the first one that the row does not give.

    They are its method's own and the learning rate; the name is "" if the row gives both.
    """
    method, *flags = row.split()
    name, *numbers = method.split(":")
    own, rate, given = GRIDS.get(name, Grid()), Grid(), {word.split("=")[0] for word in flags}
    if not own.flag and not numbers:
        _, parameter, *_ = inspect.signature(requirements(name).begin).parameters.values()
        return own, parameter.name, 1.0 if name == "mslr" else parameter.default
    for grid in (own, rate):
        if grid.flag and grid.flag not in given:
            return grid, grid.flag, getattr(settings, grid.flag.strip("-").replace("-", "_"))
    return rate, "", None


def with_number(row, grid, value, m):
    """The row with a value of its number; m: the number of modalities."""
    if grid.flag:
        return f"{row} {grid.flag} {value:g}"
    name, *own = row.split()
    others = [":1"] * (m - 1) if name == "mslr" else []
    return " ".join([f"{name}:{value:g}" + "".join(others), *own])


def with_row(settings, row):
    """train.Settings with the method and the flags of a row; SettingsError if train.py refuses."""
    flags = cli.parse(train.Settings, ["--method", *row.split()], train.__doc__)
    changed = dataclasses.replace(settings, **flags)
    train.check(changed)
    return changed


def accepted(row, settings):
    """Whether train.py accepts a row."""
    try:
        with_row(settings, row)
    except SettingsError:
        return False
    return True


def search_of(row, settings, m):
    """The Search of a row; settings: train.Settings before its flags; m: the number of modalities.

    The values are the ones that train.py accepts; the values of a whole number are whole.
    """
    grid, number, default = number_of(row, with_row(settings, row))
    if not number:
        return Search(row, "", {"given": row}, ["given"])
    trials, first = {}, []
    for k in range(grid.first - BEYOND, grid.first + 4 + BEYOND):
        value = default * grid.ratio**k if k else default
        if isinstance(default, int):
            value = round(value)
        elif k:
            value = float(f"{value:.3g}")
        trial = row if value == default else with_number(row, grid, value, m)
        if value <= grid.most and accepted(trial, settings):
            trials.setdefault(value, trial)
            if grid.first <= k < grid.first + 4 and value not in first:
                first.append(value)
    return Search(row, number, trials, first)


def searches(dataset, rows, extra):
    """The Search of each row; extra: flags for every train.py."""
    common, m = train.parse(["--dataset", dataset, *extra]), modalities_of(dataset)
    return [search_of(row, common, m) for row in rows]


def plan(searches, later):
    """How many runs there will be; later: the runs of the chosen values with other seeds."""
    first = len(SEEDS) * sum(len(search.first) for search in searches)
    further = f"{len(SEEDS)} more for each value beyond them, where the best one is at an edge"
    return f"{len(searches)} rows: {first} runs to choose, {further}; then {later} runs to compare"


def best_of(search, accs):
    """The value with the highest mean ACC; of equal ones the default, else the lowest.

    accs: {row: [ACC on held-out samples of each seed]}; a row without all SEEDS is not chosen, and
    without any other one the row stays as it is.
    """
    known = [v for v, trial in search.trials.items() if len(accs.get(trial, ())) == len(SEEDS)]
    usual = next(v for v, trial in search.trials.items() if trial == search.row)
    means = {v: (np.mean(accs[search.trials[v]]), v == usual) for v in known}
    return max(known, key=means.get, default=usual)


def neighbours(search, accs):
    """The values just below and just above the best one; fewer at a bound."""
    values = [*search.trials]
    k = values.index(best_of(search, accs))
    return values[max(k - 1, 0) : k] + values[k + 1 : k + 2]


def untried(search, accs):
    """The rows to try next: neighbours of the best value that have not been tried."""
    rows = [search.trials[value] for value in neighbours(search, accs)]
    return [row for row in rows if row not in accs]


def line_of(search, accs):
    """The line of a row in OUT-tune.md, a list of cells."""
    best, cells = best_of(search, accs), []
    for value, trial in search.trials.items():
        if trial in accs:
            scores = cell(accs[trial]) if len(accs[trial]) == len(SEEDS) else "failed"
            shown = f"{value:g}: {scores}" if search.number else scores
            cells.append(f"**{shown}**" if value == best else shown)
    place = "inside" if len(neighbours(search, accs)) == 2 else "at the bound"
    number = search.number or "given"
    chosen = [f"`{search.trials[best]}`", place] if search.number else ["", ""]
    return [f"`{search.row}`", number, ", ".join(cells), *chosen]


def report(searches, accs):
    """The table of all trials in Markdown, with the sentences that explain it."""
    head = ["method", "number", "held-out ACC, by value", "chosen", "the chosen value is"]
    lines = [line_of(search, accs) for search in searches]
    seeds = " and ".join(map(str, SEEDS))
    text = (
        f"ACC on held-out samples, mean ± std over seeds {seeds}; the chosen value is bold. "
        "Inside: a smaller and a larger value were tried, too. At the bound: there is no further "
        "value, because train.py refuses it, because gamma of domfn would be above 1.2 (two "
        "modalities always agree where gamma tau is 0.25), or because it would be the third one "
        "beyond the first four. The number of mslr is the rate of the first modality; the others "
        "have 1."
    )
    return f"{one_table([head, *lines])}\n\n{text}"
