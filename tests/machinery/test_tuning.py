"""scripts/tuning.py: which values --tune tries, and which one it chooses."""

import re
from pathlib import Path

import numpy as np
import pytest

import train
from baselines import numbers_of, requirements
from scripts import sweep, tuning
from utils.cli import SettingsError

ALL = list(sweep.rows_of(["all"], None))


def search(row, dataset="keypad", extra=()):
    [one] = tuning.searches(dataset, [row], [*extra])
    return one


def tried(one, acc, broken=()):
    """({value: mean ACC}, the accs) after all rounds; acc: a function of the value, broken: values
    whose runs fail."""
    rows = [one.trials[value] for value in one.first]
    values, accs = {row: value for value, row in one.trials.items()}, {}
    while rows:
        for row in rows:
            assert row not in accs
            scores = [acc(values[row])] * len(tuning.SEEDS)
            accs[row] = [] if values[row] in broken else scores
        rows = tuning.untried(one, accs)
    return [value for value, row in one.trials.items() if row in accs], accs


@pytest.mark.parametrize("row", ALL)
def test_every_row_has_a_grid_around_its_default(row):
    """Four values first, the default among them, a constant ratio between two but for rounding, and
    at most two values beyond them on each side; train.py takes each, in a folder of its own."""
    one = search(row)
    usual = [value for value, trial in one.trials.items() if trial == row]
    assert len(usual) == 1 and usual[0] in one.first and len(one.first) == 4
    values = [*one.trials]
    assert values == sorted(values) and len(values) <= 8
    k = values.index(one.first[0])
    assert values[k : k + 4] == one.first and k <= 2 and len(values) - k - 4 <= 2
    if not isinstance(usual[0], int):
        assert np.ptp(np.diff(np.log(values))) < 0.01
    jobs = sweep.jobs_of("keypad", one.trials.values(), [0], "runs", [], hold_out=True)
    assert len({job.folder for job in jobs}) == len(values)
    assert all(job.flags[2:4] == ["--val-fraction", "0.1"] for job in jobs)
    if one.number.startswith("--"):
        field = one.number.strip("-").replace("-", "_")
        assert [getattr(job.settings, field) for job in jobs] == values
    else:
        given = [
            numbers_of(job.settings.method, requirements(row.split()[0]).begin) for job in jobs
        ]
        assert all(g[0] == v for g, v in zip(given, values) if v != usual[0])


def test_the_number_of_a_method_is_its_own_and_of_others_the_learning_rate():
    """Joint training, heads, unimodal, fusions and constants have as many values as the rest."""
    assert search("heuristic --heads").number == "--tau"
    assert search("learning-based --matching classes").number == "--eta-alpha"
    assert search("mses").number == "patience" and search("ogm").number == "alpha"
    lr = ["constant:0", "constant:0.5", "heads", "unimodal", "stepwise:0", "released:quintic"]
    for row in [*lr, "constant:0 --fusion lstm"]:
        assert search(row).number == "--lr" and search(row).first == [0.005, 0.01, 0.02, 0.04]
    assert search("greedy --fusion channel").trials[1] == "greedy:1 --fusion channel"
    assert search("constant:0 --fusion lstm").trials[0.04] == "constant:0 --fusion lstm --lr 0.04"


def test_the_default_is_the_data_sets_or_the_flags():
    """eta_alpha of the paper's sets is 0.2; flags after -- hold for all."""
    assert search("learning-based", "cremad").first == [0.1, 0.2, 0.4, 0.8]
    one = search("constant:0", extra=["--lr", "0.01234"])
    assert one.first == [0.00309, 0.00617, 0.01234, 0.0247] and one.trials[0.01234] == "constant:0"


def test_a_number_that_the_row_gives_is_kept():
    """The learning rate is then tried; if the row gives this one, too, there is one trial."""
    for row in ("ogm:0.3", "heuristic --tau=0.3", "mslr:1:0.5"):
        one = search(row)
        assert one.number == "--lr" and one.first == [0.005, 0.01, 0.02, 0.04]
        assert one.trials[0.02] == row and one.trials[0.04] == f"{row} --lr 0.04"
    assert search("heuristic --lr 0.04").number == "--tau"
    for row in ("constant:0 --lr 0.1", "ogm:0.3 --lr=0.04", "heuristic --lr 0.04 --tau 0.3"):
        one = search(row)
        assert one.number == "" and [*one.trials.values()] == [row]
        assert tuning.untried(one, {row: [1.0, 1.0]}) == []


def test_bounds_of_the_methods():
    """Whole numbers from 1 on; 2 every < T of g-blend; gamma tau < 0.25 of domfn, with tau 0.2."""
    assert [*search("g-blend").trials] == [1, 2, 3, 4]
    assert [*search("g-blend", extra=["--epochs", "5"]).trials] == [1, 2]
    assert search("g-blend", extra=["--epochs", "100"]).first == [1, 2, 3, 4]
    assert [*search("mses").trials][0] == 1 and [*search("etmc").trials][0] == 1
    assert [*search("domfn").trials][-1] == 1.2


def test_mslr_has_a_rate_for_each_modality():
    """The first one is chosen; a data set of two has two, NVGesture three."""
    assert search("mslr").trials[0.5] == "mslr:0.5:1"
    assert search("mslr", "nvgesture").trials[2] == "mslr:2:1:1"


def test_values_are_tried_until_the_best_is_inside():
    """A peak inside needs no more; one beyond is found with both neighbours; else the bound."""
    one = search("heuristic")
    values = [*one.trials]
    for peak, first, last, place in [
        (0.1, 0.05, 0.4, "inside"),
        (0.4, 0.05, 0.8, "inside"),
        (0.8, 0.05, 1.6, "inside"),
        (99, 0.05, 1.6, "at the bound"),
        (0.025, 0.0125, 0.4, "inside"),
        (0, 0.0125, 0.4, "at the bound"),
    ]:
        some, accs = tried(one, lambda value: -abs(value - peak))
        assert some == values[values.index(first) : values.index(last) + 1]
        best = min(some, key=lambda value: abs(value - peak))
        assert tuning.best_of(one, accs) == best
        assert tuning.line_of(one, accs)[-2:] == [f"`{one.trials[best]}`", place]


def test_the_default_is_chosen_of_equals_and_what_failed_is_not():
    """A value that failed was tried: its neighbour is inside. Where all failed, nothing changes."""
    one = search("mla")
    some, accs = tried(one, lambda value: 50.0)
    assert some == one.first and tuning.best_of(one, accs) == 0.1
    some, accs = tried(one, lambda value: value, broken=[1.0])
    assert some == one.first and tuning.best_of(one, accs) == 0.1
    line = tuning.line_of(one, accs)
    assert line[2].endswith("**0.1: 0.1 ± 0.0**, 1: failed") and line[-1] == "inside"
    some, accs = tried(one, lambda value: value, broken=[*one.trials])
    assert tuning.best_of(one, accs) == 0.1
    accs = {one.trials[0.01]: [60.0, 50.0], one.trials[1.0]: [99.0], "mla": [50.0, 60.0]}
    assert tuning.best_of(one, accs) == 0.1
    accs[one.trials[0.01]] = [60.0, 51.0]
    assert tuning.best_of(one, accs) == 0.01


def test_the_report_has_all_values():
    """A line for each row: what was tried and chosen, or that the row gives its numbers."""
    given = "ogm:0.3 --lr 0.1"
    searches = [search("mla"), search(given)]
    accs = {trial: [50.0, 60.0] for trial in searches[0].trials.values()} | {given: [1.0, 3.0]}
    lines = tuning.report(searches, accs).splitlines()
    assert lines[2].startswith("| `mla` | ridge | 1e-05: 55.0 ± 7.1, ")
    assert lines[2].endswith(" | `mla` | inside |") and "**0.1: 55.0 ± 7.1**" in lines[2]
    assert lines[3] == f"| `{given}` | given | **2.0 ± 1.4** |  |  |"
    assert train.Settings().tau == 0.1 and "seeds 0 and 1" in lines[-1]


def test_the_test_split_chooses_nothing(tiny_data):
    """A run without held-out samples is refused."""
    flags = ["--dataset", "tiny", "--method", "heuristic", "--epochs", "1", "--out", "run"]
    assert train.main(flags) == 0
    with pytest.raises(SettingsError, match="run has no held-out samples, which --tune needs"):
        tuning.validation_acc("run")


def test_runs_md_has_the_values_that_are_tried_first():
    """A line for each method of GRIDS, and one for all others; the default is bold."""
    text = (Path(sweep.HERE).parent / "docs/RUNS.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| `([^`]+)`.* \| `?(\S+?)`?(?:,.*)? \| (.*\*\*.*) \|$", text, re.M)
    shown = {}
    for row, number, values in lines:
        one = search(row)
        cells = [f"{value:g}" for value in one.first]
        k = [one.trials[value] for value in one.first].index(row)
        cells[k] = f"**{cells[k]}**"
        assert (number, values) == (one.number, " ".join(cells))
        shown[row.split()[0]] = number
    assert {*shown} == {*tuning.GRIDS, "constant:0"}


def test_sets_with_a_validation_part_hold_nothing_out():
    """train.py refuses --val-fraction for them, so that a sweep must not give it."""
    sets = ["isl", "phone-watch", "sarcasm", "keypad"]
    assert list(filter(tuning.has_val, sets)) == sets[:-1]


def test_a_folder_named_like_a_set_is_not_that_set(tmp_path, monkeypatch):
    """As `--runs keypad` makes it: train.py takes the set, too."""
    monkeypatch.chdir(tmp_path)
    for name in ("keypad", "isl", "cremad"):
        Path(name).mkdir()
    assert not tuning.has_val("keypad") and tuning.has_val("isl")
    assert tuning.modalities_of("keypad") == tuning.modalities_of("cremad") == 2
