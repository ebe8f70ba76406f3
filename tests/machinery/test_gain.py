"""scripts/gain.py: the gain over joint training, its interval, the pictures."""

import json

import pytest

from data import defaults
from scripts import gain
from utils.cli import SettingsError


def write_run(folder, acc, **settings):
    """A finished run of keypad with a fused ACC and a perf_gap of 30 points."""
    settings = {"dataset": "keypad", "method": "constant:0", "seed": 0, "epochs": 3} | settings
    test = {"fused": {"acc": acc}, "perf_gap": 30.0}
    folder.mkdir(parents=True)
    lines = [{"settings": settings, "modalities": ["image", "sound"]}, {"test": test}]
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))


@pytest.fixture
def runs(tmp_path):
    """constant:0 at 50, 52, 54 and heads 1, 2, 6 points above, seed by seed; a seed of heads more.

    Of 9 groups: constant:0 at 40, 42; heads the same, with classes matched.
    """
    for seed, better in enumerate([1, 2, 6]):
        write_run(tmp_path / f"joint{seed}", 50 + 2 * seed, seed=seed)
        write_run(tmp_path / f"heads{seed}", 50 + 2 * seed + better, seed=seed, method="heads")
    write_run(tmp_path / "more", 0, seed=3, method="heads")
    for seed in (0, 1):
        few = {"seed": seed, "train_groups": 9}
        write_run(tmp_path / f"few{seed}", 40 + 2 * seed, **few)
        few |= {"method": "heuristic", "heads": True, "matching": "classes"}
        write_run(tmp_path / f"own{seed}", 40 + 2 * seed, **few)
    return tmp_path


def test_the_gain_is_of_equal_seeds(runs):
    """Differences 1, 2, 6: mean 3, and t(0.975, 2) = 4.3027 times std / sqrt(3) = 1.5275."""
    found = gain.scores_of([runs])
    assert {*found} == {("keypad", 0), ("keypad", 9)}
    mean, half = gain.gain(found["keypad", 0], "heads")
    assert mean == pytest.approx(3) and half == pytest.approx(4.3027 * 1.5275, rel=1e-4)
    few = found["keypad", 9]
    assert gain.gain(few, "heuristic --heads --matching classes") == (0, 0)
    assert gain.gain(few, "heads") is None
    assert gain.perf_gap(few) == 30


def test_another_fusion_is_another_row(runs):
    """It does not replace the run of constant:0 with the same seed."""
    write_run(runs / "z", 99, fusion="add")
    rows = gain.scores_of([runs])["keypad", 0]
    assert {*rows} == {"constant:0", "constant:0 --fusion add", "heads"}
    assert rows["constant:0"][0]["fused"]["acc"] == 50


def test_two_runs_of_one_row_and_seed_are_refused(runs):
    """Neither replaces the other in silence."""
    write_run(runs / "again", 99)
    with pytest.raises(SettingsError, match="two runs are constant:0 with seed 0 of keypad"):
        gain.scores_of([runs])


def test_a_default_of_the_data_set_is_no_flag(tmp_path):
    """isl has an alpha_limit of its own, which one run replaces."""
    limit = defaults("isl")["alpha_limit"]
    for seed, alpha_limit in enumerate([limit, limit, 0.3]):
        write_run(tmp_path / f"{seed}", 50, dataset="isl", seed=seed, alpha_limit=alpha_limit)
    assert {*gain.scores_of([tmp_path])["isl", 0]} == {"constant:0", "constant:0 --alpha-limit 0.3"}


def test_a_method_has_a_point_wherever_it_was_run(runs):
    found = gain.scores_of([runs])
    at = {("keypad", 0): 1198, ("keypad", 9): 9}
    assert gain.points_of(found, at, "heads")[0].tolist() == [1198]
    assert gain.points_of(found, at, "constant:0")[0].tolist() == [9, 1198]
    assert gain.points_of(found, at, "ogm").shape == (3, 0)


@pytest.mark.parametrize("x, absent", [("perf_gap", ["ogm"]), ("groups", ["heads", "ogm"])])
def test_both_pictures_are_drawn(runs, capsys, x, absent):
    """A line names the rows without a point: nobody ran ogm, and heads only with all groups."""
    out = runs / "new.png"
    methods = ["heads", "ogm", "heuristic --heads --matching classes"]
    flags = [str(runs), "--x", x, "--out", str(out), "--methods", *methods]
    assert gain.main(flags) == 0 and out.stat().st_size > 10_000
    said = f"not drawn, without two seeds that constant:0 has, too: {', '.join(absent)}\n"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("methods", [["ogm"], ["heads"] * 8])
def test_a_picture_of_nothing_or_of_too_much_is_refused(runs, capsys, methods):
    assert gain.main([str(runs), "--out", str(runs / "new.png"), "--methods", *methods]) == 2
    assert "expected 1 to 7, run with the data and seeds of" in capsys.readouterr().err
    assert not (runs / "new.png").exists()


def test_a_folder_without_runs_is_one_sentence(tmp_path, capsys):
    assert gain.main([str(tmp_path)]) == 2
    assert f"{tmp_path} has no finished run; give the --runs of" in capsys.readouterr().err
