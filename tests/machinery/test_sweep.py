"""scripts/sweep.py: which runs are made, resumed or left alone, and what the table says of them."""

import csv
import dataclasses
import json
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import sentence, tiny
from scipy import stats
from test_samples import vectors

import data
import train
from baselines import BASELINES
from scripts import sweep, tuning

TINY = ["--dataset", "tiny", "--seeds", "2"]
QUICK = ["--", "--epochs", "1", "--batch-size", "16"]


@pytest.fixture
def calls(monkeypatch, tiny_data):
    """train.py runs in this process; a list of the arguments of each call."""
    made, one = [], threading.Lock()

    def call(command, started):
        with one:  # the threads share torch's random state
            made.append(command[2:])
            return "" if train.main(command[2:]) == 0 else "train.py: it failed"

    monkeypatch.setattr(sweep, "call", call)
    return made


@pytest.mark.parametrize("preset", sweep.PRESETS)
def test_every_preset_has_runs_and_the_papers_rows(preset):
    """train.py takes the flags of every row, and each has a folder of its own; the rows are those
    that the paper prints."""
    rows = sweep.rows_of(["all"], preset)
    jobs = sweep.jobs_of("cremad", rows, [0, 1], "runs", ["--root", "DIR"])
    assert len({job.folder for job in jobs}) == len(jobs) == 2 * len(rows)
    with open(sweep.HERE / "paper.csv", newline="") as file:
        printed = {line["row"] for line in csv.DictReader(file) if line["table"] == preset}
    assert printed == ({*sweep.PRESETS[preset]} if preset not in ("fig1", "losses") else set())


def test_the_papers_numbers_are_found():
    """Table 1's fused scores, Table 4's with the single modalities; nothing for keypad."""
    assert sweep.printed("table1", "MMPareto", "kinetics-sounds") == "70.00 / 78.50"
    assert sweep.printed("table1", "ReconBoost", "nvgesture") == "84.13 / 86.32"
    assert sweep.printed("table4", "h(0.95)", "cremad") == "71.45; 60.18, 55.32"
    assert sweep.printed("table1", "Concat", "keypad") == ""


def test_all_is_table_1_the_release_and_heads():
    """Joint training comes first; every method of baselines.py is there, and ours with heads."""
    rows = list(sweep.rows_of(["all"], None))
    assert rows[0] == "constant:0" and len(rows) == len({*rows})
    assert {row.split()[0] for row in rows} >= {*BASELINES}
    for method in ("constant:0.5", "heuristic", "learning-based"):
        variants = {method, f"{method} --heads", f"{method} --matching classes"}
        assert variants <= {*rows} and variants <= {*sweep.rows_of([], "losses")}
    assert {"constant:0", "heads"} <= {*sweep.rows_of([], "losses")}


def test_the_row_to_compare_with_is_added_with_a_word(capsys):
    """Not where it was given."""
    assert list(sweep.rows_of(["heads", "constant:0"], None)) == ["constant:0", "heads"]
    assert not capsys.readouterr().err
    assert list(sweep.rows_of(["heuristic"], None, "heads")) == ["heads", "heuristic"]
    said = "heads is added, which all rows are compared with; --against ROW names another\n"
    assert capsys.readouterr().err == said


def test_a_flag_of_train_belongs_behind_the_two_dashes(capsys):
    """The sentence says where; --dataset is the sweep's, too, and --seed is meant for --seeds."""
    assert sweep.main(["--dataset", "keypad", "--methods", "heuristic", "--epochs=2"]) == 2
    hint = "write it at the end after --, as in: -- --epochs VALUE"
    assert sentence(capsys, "sweep") == f"--epochs is a flag of train.py; {hint}"
    assert sweep.main(["--methods", "heuristic", "--seed", "2"]) == 2
    assert "'--seed' (did you mean --seeds?)" in sentence(capsys, "sweep")


def test_greedy_gets_the_fusion_that_it_needs():
    """And keeps it where it is given."""
    given = sweep.rows_of(["greedy", "heuristic"], None)
    assert set(given) == {"constant:0", "greedy --fusion channel", "heuristic"}
    assert set(sweep.rows_of(["greedy --fusion channel"], None)) == {*given} - {"heuristic"}


def test_rows_with_equal_settings_are_one(calls, capsys):
    """A default, or a number written in another way; a second program of a method is another."""
    rows = ["mses", "mses:3", "mses:3.0", "mses:4", "constant:0", "constant:0 --lr 0.02"]
    rows += ["constant:.0", "released", "released:quintic", "ogm:0.1:1:50", "ogm"]
    kept = ["mses", "mses:4", "constant:0", "released", "released:quintic", "ogm:0.1:1:50"]
    jobs = sweep.jobs_of("keypad", rows, [0], "runs", [])
    assert [job.row for job in jobs] == kept
    flags = [*TINY, "--seeds", "1", "--methods", "constant:0", "constant:0 --tau 0.1"]
    assert sweep.main([*flags, *QUICK]) == 0 and len(calls) == 1
    said = "constant:0 --tau 0.1 is left out: a row before it has the same settings"
    assert said in capsys.readouterr().err


def test_a_file_of_yours_is_no_table(monkeypatch, tmp_path, capsys):
    """OUT.md is written over only if it is a table; found before a run starts."""
    monkeypatch.chdir(tmp_path)
    Path("notes.md").write_text("mine")
    assert sweep.main(["--methods", "heuristic", "--out", "notes"]) == 2
    assert "notes.md is a file of yours" in capsys.readouterr().err and not Path("runs").exists()


def test_a_run_has_a_folder_of_its_own(monkeypatch):
    """Named by its row; two runs share none."""
    for row, name in {
        "heuristic": "heuristic",
        "constant:0.5 --heads --lr 0.01": "constant0.5-heads-lr-0.01",
        "mses:5 --pretrained": "mses5-pretrained",
        "constant:0 --encoders=cnn,bert:a/b": "constant0-encoders-cnn,bertab",
    }.items():
        assert sweep.folder_of("keypad", row, 3) == f"keypad-{name}-seed3"
    rows = ["learning-based --alpha-0 0.3", "learning-based --alpha-limit 0.3"]
    assert len(sweep.jobs_of("keypad", rows, [0], "runs", [])) == 2
    monkeypatch.setattr(sweep, "folder_of", lambda *_: "one")
    with pytest.raises(ValueError, match="share runs/one; leave one out"):
        sweep.jobs_of("keypad", rows, [0], "runs", [])


def test_all_runs_hold_out_samples_where_one_needs_them():
    """So that all train on the same samples; never for a set with a validation part of its own."""
    for dataset, methods, flag in [
        ("keypad", ["mses", "ogm"], ["--val-fraction", "0.1"]),
        ("keypad", ["ogm"], []),
        ("twitter2015", ["mses", "ogm"], []),
    ]:
        jobs = sweep.jobs_of(dataset, sweep.rows_of(methods, None), [0], "runs", ["--root", "DIR"])
        assert all(job.flags[4 : 4 + len(flag)] == flag for job in jobs)
        assert all(("--val-fraction" in job.flags) == bool(flag) for job in jobs)
    for flag in (["--val-fraction", "0.2"], ["--val-fraction=0.2"]):
        jobs = sweep.jobs_of("keypad", {"mses": ""}, [0], "runs", flag)
        assert train.parse(jobs[0].flags).val_fraction == 0.2
    outer = ["constant:0", "learning-based --outer held-out"]
    for job in sweep.jobs_of("keypad", outer, [0], "runs", []):
        assert job.settings.val_fraction == train.parse(job.flags).val_fraction == 0.1
    with pytest.raises(ValueError, match="held-out samples are needed; leave it out"):
        sweep.jobs_of("keypad", outer, [0], "runs", ["--val-fraction", "0"])


def test_your_own_validation_part_is_used(tmp_path):
    """A samples.csv with rows of the split val, or without."""
    for split, held_out in [("dev", False), ("train", True)]:
        rows = [f"{split},a,x,y", "train,a,x,y", "test,b,x,y"]
        (tmp_path / "samples.csv").write_text("\n".join(["split,label,image,text", *rows]))
        [job, _] = sweep.jobs_of(str(tmp_path), ["constant:0", "mses"], [0], "runs", [])
        assert ("--val-fraction" in job.flags) == held_out
        assert job.folder == Path(f"runs/{tmp_path.name}-constant0-seed0")


def test_rows_that_do_not_fit_the_flags_are_left_out(capsys):
    """ETMC has no labels to smooth; an error that all rows have is raised."""
    names = sweep.rows_of(["all"], "table1")
    fit = sweep.fitting("keypad", names, ["--smoothing", "0.3"])
    assert {*names} - {*fit} == {"etmc"}
    assert "etmc is left out: --smoothing changes nothing" in capsys.readouterr().err
    assert sweep.fitting("sarcasm", names, ["--root", "DIR"]) == names
    with pytest.raises(ValueError, match="--epochs is 0"):
        sweep.fitting("sarcasm", names, ["--epochs", "0"])
    names = sweep.rows_of(["all"], None, "etmc")  # all are to be compared with it
    with pytest.raises(ValueError, match="--smoothing changes nothing"):
        sweep.fitting("keypad", names, ["--smoothing", "0.3"])


def test_a_sweep_trains_compares_and_draws(calls, capsys):
    """A folder per run with the usual name, the table on the screen and in a file, a picture."""
    flags = [*TINY, "--methods", "heads,constant:0 --fusion affine", "--jobs", "2"]
    assert sweep.main([*flags, *QUICK]) == 0
    folders = {path.parent.name for path in Path("runs").glob("*/log.jsonl")}
    names = ("constant0", "heads", "constant0-fusion-affine")
    assert folders == {f"tiny-{name}-seed{seed}" for name in names for seed in (0, 1)}
    table = Path("runs/sweep-tiny-methods.md").read_text()
    assert table in capsys.readouterr().out
    head, _, *rows = table.split("\n\n")[0].splitlines()
    assert "| ACC | MAP | macro-F1 | " in head
    assert head.endswith("| perf_gap | ACC - ACC of constant:0 | p, Holm |")
    names = ["| constant:0", "| heads †", "| constant:0 --fusion affine"]
    assert [row.split(" | ")[0] for row in rows] == names
    assert rows[0].endswith("|  |") and rows[1].split(" | ")[1] == "2"
    assert "†: a modality is scored by a classifier of its own" in table
    assert "Scores of the test split, mean ± std over the seeds. " in table
    assert "p: a two-sided paired t-test" in table and "hold out" not in table
    assert sweep.main([*flags, "--seeds", "1", "--out", "one", *QUICK]) == 0
    table = Path("one.md").read_text()
    assert "Scores of the test split. " in table and "p:" not in table and "±" not in table
    assert Path("runs/sweep-tiny-methods.png").read_bytes().startswith(b"\x89PNG")


def test_tune_chooses_on_held_out_samples(calls, capsys):
    """Four values of ogm, seeds 0 and 1, and more until the best has both neighbours; the best mean
    validation ACC is trained and compared, and OUT-tune.md has the logged scores."""
    flags = [*TINY, "--methods", "ogm,heads --lr 0.3", "--tune", "--out", "new/table", *QUICK]
    assert sweep.main(flags) == 0
    values = [0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2]
    means = {}
    for value in values:
        name = "ogm" if value == 0.1 else f"ogm{value:g}"
        logs = [sweep.read_log(f) for f in sorted(Path("runs").glob(f"tiny-{name}-seed?"))]
        assert all(log.first["settings"]["val_fraction"] == 0.1 for log in logs)
        assert all(record["split"] == "val" for log in logs for record in log.epochs)
        if logs:
            assert len(logs) == 2
            means[value] = sum(log.epochs[-1]["fused"]["acc"] for log in logs) / 2
    best = max(means, key=lambda value: (means[value], value == 0.1))
    k = values.index(best)
    assert {0.1, 0.2, 0.4, 0.8, *values[max(k - 1, 0) : k + 2]} <= {*means}
    chosen = "ogm" if best == 0.1 else f"ogm:{best:g}"
    table = Path("new/table.md").read_text()
    rows = [line.split(" | ")[0] for line in table.split("\n\n")[0].splitlines()[2:]]
    assert rows[0].startswith("| constant:0") and rows[1:] == [f"| {chosen}", "| heads --lr 0.3 †"]
    text = Path("new/table-tune.md").read_text()
    [line] = [line for line in text.splitlines() if line.startswith("| `ogm`")]
    assert f"**{best:g}: {means[best]:.1f} ± " in line and f" | `{chosen}` | " in line
    assert all(f"{value:g}: {mean:.1f} ± " in line for value, mean in means.items())
    assert "| `heads --lr 0.3` | given | " in text and text in capsys.readouterr().out
    assert "All runs hold out 10% of the training split." in table


def test_rows_that_choose_the_same_are_said(calls, monkeypatch, capsys):
    """constant:0 with its best learning rate is the row that gives this rate: one of them stays."""
    monkeypatch.setattr(
        tuning, "best_of", lambda search, accs: 0.04 if len(search.trials) > 1 else "given"
    )
    flags = [*TINY, "--methods", "constant:0,constant:0 --lr 0.04", "--tune", "--out", "t", *QUICK]
    assert sweep.main(flags) == 0
    said = "constant:0 --lr 0.04 is left out: constant:0 --lr 0.04 was also chosen before it"
    assert said in capsys.readouterr().err


THREE = ["--dataset", "mine", "--tune", "--seeds", "1", "--methods"]
SHORT = ["--", "--epochs", "3", "--inner-iters", "2", "--batch-size", "8"]


@pytest.mark.slow
def test_all_methods_are_tuned_on_own_data_of_three_modalities(calls, monkeypatch, capsys):
    """train.py takes the flags of every run; the table has every row with a chosen value. A real
    log is the model of all; the scores are drawn by the run's name."""
    vectors(Path("mine"), 36)
    flags = ["--dataset", "mine", "--method", "heads", "--val-fraction", "0.1", "--out", "one"]
    assert train.main([*flags, *SHORT[1:]]) == 0
    first, *epochs, test = map(json.loads, Path("one/log.jsonl").read_text().splitlines())
    capsys.readouterr()

    def call(command, started):
        settings = train.parse(command[2:])
        train.check(settings)
        calls.append(settings)
        for record in epochs:
            record["fused"]["acc"] = zlib.crc32(Path(settings.out).name.encode()) % 100
        records = [first | {"settings": dataclasses.asdict(settings)}, *epochs, test]
        Path(settings.out).mkdir(parents=True)
        lines = "".join(json.dumps(record) + "\n" for record in records)
        Path(settings.out, "log.jsonl").write_text(lines)
        return ""

    monkeypatch.setattr(sweep, "call", call)
    assert sweep.main([*THREE, "all", *SHORT]) == 0
    text = Path("runs/sweep-mine-methods-tune.md").read_text()
    _, _, *lines = text.split("\n\n")[0].splitlines()
    assert len(lines) == 34 and all(line.count("**") == 2 for line in lines)
    assert len(calls) == 2 * sum(line.split(" | ")[2].count(":") for line in lines)
    assert {line.split(" | ")[-1] for line in lines} == {"inside |", "at the bound |"}
    [line] = [line for line in lines if line.startswith("| `g-blend`")]
    assert line.endswith("** | `g-blend` | at the bound |")  # 2 every < 3 epochs
    assert {"mslr", "mslr:0.5:1:1"} <= {settings.method for settings in calls}
    assert "34 rows: 266 runs to choose" in capsys.readouterr().err
    table = Path("runs/sweep-mine-methods.md").read_text().split("\n\n")[0]
    assert len(table.splitlines()) == 2 + 34 + 1  # unimodal has two lines
    assert Path("runs/sweep-mine-methods.png").exists()


def test_the_validation_acc_is_of_the_tested_epoch(tmp_path):
    """The first best one; on a test split, nothing is best, and it would be the last."""
    record = {"alpha": 0, "split": "val"}
    epochs = [record | {"t": t, "fused": {"acc": acc}} for t, acc in enumerate((5, 9, 9, 7), 1)]
    lines = [{"settings": {}, "modalities": [], "samples": {}}, *epochs]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert tuning.validation_acc(tmp_path) == 9


def test_it_says_how_many_runs_there_are_and_how_long_they_take(calls, monkeypatch, capsys):
    """Two runs took two minutes; two are left, and six come later: eight minutes."""
    clock = [0, 120]  # at the beginning, and after two runs
    monkeypatch.setattr(sweep, "time", SimpleNamespace(monotonic=lambda: clock.pop(0)))
    args = sweep.parse([*TINY, "--methods", "heuristic", *QUICK])
    jobs = sweep.jobs_of("tiny", ["constant:0", "heuristic"], [0, 1], "runs", args.extra)
    assert sweep.run_all(jobs, args, 6) == {} and len(calls) == 4
    out = capsys.readouterr().out
    assert "4 runs, 0 of them complete already" in out
    assert "about 08:00 ([h:]mm:ss) for the other 8 runs" in out
    names = ["constant:0", "ogm:0.3", "mses"]
    plan = tuning.plan(tuning.searches("keypad", names, []), 9)
    assert plan.startswith("3 rows: 24 runs to choose, 2 more ")  # 4 values each, two seeds
    assert plan.endswith("; then 9 runs to compare")


def test_what_is_complete_is_left_alone_and_the_rest_resumed(calls, capsys):
    """A second sweep makes no run; an interrupted run gets --resume, one without epochs starts."""
    flags = [*TINY, "--methods", "heuristic", *QUICK]
    assert sweep.main(flags) == 0 and len(calls) == 4
    logs = {path: path.read_bytes() for path in Path("runs").glob("*/log.jsonl")}
    assert sweep.main(flags) == 0 and len(calls) == 4
    assert "4 runs, 4 of them complete already" in capsys.readouterr().out
    cut = Path("runs/tiny-heuristic-seed1/log.jsonl")
    cut.write_bytes(b"".join(cut.read_bytes().splitlines(True)[:-1]))
    empty = Path("runs/tiny-constant0-seed0")
    empty.joinpath("t0001.pt").unlink()
    empty.joinpath("log.jsonl").unlink()
    assert sweep.main(flags) == 0
    assert [command[-2:] for command in calls[4:]] == [
        ["--out", str(empty)],
        ["--resume", str(cut.parent)],
    ]
    assert logs == {path: path.read_bytes() for path in Path("runs").glob("*/log.jsonl")}


def test_print_starts_nothing_and_tables_what_is_finished(calls, capsys):
    """Its lines are the commands of the incomplete runs; with --tune of the trials first."""
    flags = [*TINY, "--runs", "two words"]
    assert sweep.main([*flags, "--methods", "heuristic", *QUICK]) == 0
    capsys.readouterr()
    flags += ["--methods", "heuristic", "ogm", "--print"]
    assert sweep.main([*flags, *QUICK]) == 0 and len(calls) == 4
    out, err = capsys.readouterr()
    assert "| heuristic | 2 |" in err and "| ogm" not in err
    commands = [shlex.split(line) for line in out.splitlines()]
    assert [command[-1] for command in commands] == [
        f"two words/tiny-ogm-seed{seed}" for seed in (0, 1)
    ]
    for command in commands:
        assert command[:2] == ["OMP_NUM_THREADS=1", sys.executable]
        assert train.main(command[3:]) == 0
    capsys.readouterr()
    assert sweep.main([*flags, *QUICK]) == 0
    out, err = capsys.readouterr()
    assert out == "" and "| ogm | 2 |" in err
    assert sweep.main([*flags, "--tune", "--runs", "new", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "new/tiny-ogm0.8-seed0" in out and not Path("new").exists()


def test_lists_are_words_or_commas():
    """Of methods and of seeds; one number of seeds is how many."""
    for methods, seeds in [(["a", "b --tau 1"], ["0", "3"]), (["a,b --tau 1"], ["0,3"])]:
        args = sweep.parse(["--methods", *methods, "--seeds", *seeds, "--", "--lr", "1"])
        assert args.methods == ["a", "b --tau 1"] and args.seeds == [0, 3]
        assert args.extra == ["--lr", "1"]
    assert sweep.parse(["--seeds", "3"]).seeds == [0, 1, 2]


def test_a_comma_in_a_flag_begins_no_row():
    """Of two encoders, in the middle and at the end; a method after it does."""
    given = "heads,constant:0 --encoders cnn,mlp,ogm:0.3 --encoders cnn,bert:DIR --lr 1, heuristic"
    rows = ["heads", "constant:0 --encoders cnn,mlp", "ogm:0.3 --encoders cnn,bert:DIR --lr 1"]
    assert sweep.parse(["--methods", given, "mses"]).methods == [*rows, "heuristic", "mses"]


def test_own_classifiers_have_a_dagger(calls):
    """By the method, by --heads and by --fusion weight, of a row or of all rows."""
    rows = ["constant:0", "constant:0 --heads", "constant:0 --fusion weight", "released"]
    assert sweep.main([*TINY, "--seeds", "1", "--methods", *rows, *QUICK]) == 0
    one = [*TINY, "--seeds", "1", "--methods", "constant:0", "--runs", "other", "--out", "one"]
    assert sweep.main([*one, *QUICK, "--heads"]) == 0
    shown = {}
    for path in ("runs/sweep-tiny-methods.md", "one.md"):
        lines = Path(path).read_text().split("\n\n")[0].splitlines()[2:]
        shown[path] = [line.split(" | ")[0] for line in lines]
    first, second = shown.values()
    assert first == ["| constant:0", *(f"| {row} †" for row in rows[1:])]
    assert second == ["| constant:0 †"]


def test_a_failed_run_is_named_and_the_others_go_on(calls, monkeypatch, capsys):
    """Status 1; the table has what finished."""
    real = train.evaluate

    def evaluate(model, *rest):
        if torch.initial_seed() == 1:
            raise FloatingPointError("no scores")
        return real(model, *rest)

    monkeypatch.setattr(train, "evaluate", evaluate)
    assert sweep.main([*TINY, "--methods", "heuristic", *QUICK]) == 1
    out, err = capsys.readouterr()
    assert "sweep: 2 runs are left out; the first is runs/tiny-" in err
    assert "| heuristic | 1 |" in out and "runs/tiny-heuristic-seed1 failed: train.py" in out + err


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--seeds", "0"], "--seeds is 0, expected 1 or more"),
        (["--seeds", "2", "2"], "--seeds is 2 2, expected how many, or different seeds"),
        (["--seeds", "few"], "--seeds is few, expected how many"),
        (["--preset", "table9"], "unknown preset 'table9' (did you mean table5?)"),
        (["--jobs", "-1"], "--jobs is -1, expected 1 or more"),
        (["--", "--epochs", "0"], "--epochs is 0, expected more than 0"),
        (["--", "--seed", "1"], "--seed is set by the sweep itself; leave it out"),
        (["--methods", "heuristic --out a"], "--out is set by the sweep itself; leave it out"),
        (["--methods", "heuristic,,ogm"], "--methods has an empty row; put one comma between two"),
    ],
)
def test_flags_that_do_not_fit_are_one_sentence(tiny_data, capsys, flags, said):
    """Before any run starts."""
    assert sweep.main(["--dataset", "tiny", *flags]) == 2
    assert said in capsys.readouterr().err and not Path("runs").exists()


def test_a_folder_with_other_settings_is_not_mixed_in(calls, capsys):
    """The same name, another learning rate: one sentence, and the run stays."""
    assert sweep.main([*TINY, "--methods", "heuristic", *QUICK]) == 0
    assert sweep.main([*TINY, "--methods", "heuristic", *QUICK, "--lr", "0.5"]) == 2
    said = capsys.readouterr().err
    assert "holds a run with --lr 0.02, expected 0.5; give --runs another folder" in said
    path = Path("runs/tiny-heuristic-seed0/log.jsonl")
    path.write_text(path.read_text().replace('"val_fraction": 0.0', '"val_fraction": 0.1'))
    assert sweep.main([*TINY, "--methods", "heuristic", *QUICK]) == 2
    said = capsys.readouterr().err
    assert "expected 0.0; write -- --val-fraction 0.1 at the end, or give --runs another" in said
    assert len(calls) == 4


def test_a_folder_with_a_slash_is_the_same_data_set():
    """A shell that completes a folder's name adds one."""
    assert sweep.parse(["--dataset", "mine/"]).dataset == "mine"


def test_the_log_of_an_earlier_version_has_fewer_settings(calls):
    """The ones that it lacks are the defaults: such a run is complete."""
    flags = [*TINY, "--seeds", "1", "--methods", "constant:0", *QUICK]
    assert sweep.main(flags) == 0
    path = Path("runs/tiny-constant0-seed0/log.jsonl")
    first, *rest = path.read_text().splitlines(True)
    record = json.loads(first)
    del record["settings"]["heads"]
    path.write_text(json.dumps(record) + "\n" + "".join(rest))
    assert sweep.main(flags) == 0 and len(calls) == 1
    assert sweep.main([*flags, "--heads"]) == 2


def test_runs_of_a_machine_with_another_precision_count(calls, capsys):
    """Where the data set chooses it, not where a flag does."""
    flags = [*TINY, "--methods", "constant:0", *QUICK]
    assert sweep.main([*flags, "--bf16"]) == 0 and len(calls) == 2
    assert sweep.main([*flags, "--no-bf16"]) == 2
    assert "holds a run with --bf16 True, expected False" in capsys.readouterr().err
    assert sweep.main(flags) == 0 and len(calls) == 2
    out = Path("runs/sweep-tiny-methods.md")
    assert "bfloat16" not in out.read_text()
    assert sweep.main([*TINY, "--methods", "constant:0,heuristic", *QUICK]) == 0
    note = "Some runs trained in bfloat16 (--bf16), others in float32.\n"
    assert out.read_text().endswith(note)


def test_a_run_on_other_data_is_named_and_left_out(calls, monkeypatch, capsys):
    """One of four has a sample of class 0 in class 1: it is in no row, and the status is 1."""
    flags = [*TINY, "--methods", "heuristic", *QUICK]
    assert sweep.main(flags) == 0
    usual = Path("runs/sweep-tiny-methods.md").read_text(encoding="utf-8")
    assert "left out" not in usual and "most frequent class" not in usual
    folder = Path("runs/tiny-heuristic-seed1")
    shutil.rmtree(folder)

    def relabelled(*_):
        full = tiny()
        full.splits["train"].y[0] = 1
        return full

    with monkeypatch.context() as changed:
        changed.setitem(data.DATASETS, "tiny", relabelled)
        assert sweep.main(flags) == 1
    why = "it has other labels or files than most runs"
    text = Path("runs/sweep-tiny-methods.md").read_text(encoding="utf-8")
    assert text.endswith(f"{folder} is left out: {why}.\n") and "| heuristic | 1 |" in text
    assert f"1 runs are left out; the first is {folder}: {why}" in capsys.readouterr().err


def test_runs_are_compared_by_their_data():
    """Classes, modalities, samples; a log that names none; not a seed's held-out part.

    With --train-groups each seed has samples of its own.
    """
    data = {"kinds": {"a": "image"}, "classes": ["x", "y"], "samples": "12"}
    firsts = {name: {"data": data} for name in ("one", "two")}
    firsts["seed"] = {"data": data | {"class_counts": {"val": [1, 2]}}}
    assert sweep.on_other_data(firsts) == {}
    changes = {"classes": ["x", "z"], "modalities": {"b": "image"}, "labels or files": "13"}
    for fact, name in sweep.COMPARED.items():
        other = {"data": data | {fact: changes[name]}}
        assert sweep.on_other_data(firsts | {"three": other}) == {
            "three": f"it has other {name} than most runs"
        }
    assert list(sweep.on_other_data(firsts | {"three": {}})) == ["three"]
    few = {n: {"settings": {"train_groups": 9}, "data": data | {"samples": n}} for n in "123"}
    assert sweep.on_other_data(few) == {}


def test_the_most_frequent_class_is_a_baseline_where_classes_are_unequal():
    """6 of 8 test samples are dogs: 75 %; nothing is said of equal classes."""
    first = {"settings": {"val_fraction": 0, "bf16": False}}
    first["data"] = {"classes": ["cat", "dog"], "class_counts": {"test": [2, 6]}}
    sentence = "Always saying the most frequent class, dog, would have ACC 75.0."
    assert sweep.notes_of([first], {}) == [sentence]
    first["data"]["class_counts"]["test"] = [4, 4]
    assert sweep.notes_of([first], {}) == []


def test_a_table_says_what_its_runs_hold_out():
    """All the same part, or not."""
    runs = [{"settings": {"val_fraction": part, "bf16": False}} for part in (0.1, 0.2)]
    assert sweep.notes_of(runs[:1], {}) == ["All runs hold out 10% of the training split."]
    said = "The runs hold out 10% or 20% of the training split: they are not alike."
    assert sweep.notes_of(runs, {}) == [said]


def test_compared_is_the_paired_test():
    """Mean difference over common seeds; t = mean / (std / sqrt(n)), two-sided, n - 1 degrees."""
    accs = {0: 51.0, 1: 53.0, 2: 57.0, 9: 0.0}, {0: 50.0, 1: 50.0, 2: 55.0, 3: 99.0}
    tests, joint = ({s: {"fused": {"acc": acc}} for s, acc in a.items()} for a in accs)
    error = 1 / 3**0.5  # of the mean of the differences 1, 3, 2
    low, high = 2 - error * stats.t.ppf(0.975, 2), 2 + error * stats.t.ppf(0.975, 2)
    text, p = sweep.compared(tests, joint)
    assert text == f"+2.0 [{low:+.1f}, {high:+.1f}]" == "+2.0 [-0.5, +4.5]"
    assert p == pytest.approx(2 * stats.t.sf(2 / error, 2))
    assert sweep.compared({0: tests[0]}, joint) == ("+1.0", None)
    of_60 = [(59, 60), (58, 59)]  # right answers; equal differences but for rounding
    rounded = [{s: {"fused": {"acc": 100 * n / 60}} for s, n in enumerate(row)} for row in of_60]
    assert sweep.compared(*rounded) == ("+1.7", None)
    assert sweep.compared({9: tests[9]}, joint) == ("", None)


def test_holm_corrects_for_the_number_of_comparisons():
    """The smallest of three p three times, the next twice; in the same order, at most 1."""
    assert sweep.holm({"a": 0.03, "b": 0.01, "c": 0.5}) == {"b": 0.03, "a": 0.06, "c": 0.5}
    assert sweep.holm({"a": 0.02, "b": 0.0125, "c": 0.021}) == pytest.approx(
        {"b": 0.0375, "a": 0.04, "c": 0.04}
    )
    assert sweep.holm({"a": 0.7, "b": 0.6}) == {"a": 1.0, "b": 1.0} and sweep.holm({}) == {}


def test_another_row_can_be_the_one_to_compare_with():
    """It comes first, once; a preset's joint training keeps its flags."""
    assert list(sweep.rows_of(["heuristic", "heads"], None, "heads")) == ["heads", "heuristic"]
    assert next(iter(sweep.rows_of([], "losses", "heads"))) == "heads"
    assert next(iter(sweep.rows_of([], "table5"))) == "constant:0 --encoders clip"


def test_unimodal_has_two_rows_and_the_papers_numbers():
    """The sum of the logits is compared; the paper's single modalities are beside their own row."""
    one = {"acc": 50.0, "map": 60.0, "f1": 50.0}
    test = {"fused": one, "audio": one, "video": one}
    better = {name: {key: value + 5 for key, value in one.items()} for name in test}
    rows = {"constant:0": {0: test}, "unimodal": {0: better}}
    names = {"constant:0": "Concat", "unimodal": "Unimodal"}
    daggers = {"constant:0": "", "unimodal": " †"}
    text = sweep.table("cremad", ["audio", "video"], rows, names, "table1", "acc", daggers)
    _, _, joint, alone, summed = text.split("\n\n")[0].splitlines()
    assert joint.endswith("|  |  | Concat | 63.31 / 68.41 |")
    cells = "|  |  |  | 55.0 | 55.0 | 0.0 |  |  | Unimodal | 63.17, 45.83 |"
    assert alone == f"| unimodal † | 1 {cells}"
    cells = "| 55.0 | 65.0 | 55.0 |  |  |  | +5.0 |  |  |  |"
    assert summed == f"| unimodal, logits summed † | 1 {cells}"


def test_call_gives_one_thread_and_the_last_line():
    """ "" for a success; of a failure what it said last, or its status."""
    python = [sys.executable, "-c"]
    threads = "import os, sys; sys.exit(os.environ['OMP_NUM_THREADS'] != '1')"
    assert sweep.call([*python, threads], []) == ""
    assert sweep.call([*python, "import sys; sys.exit('first\\nlast')"], []) == "last"
    assert sweep.call([*python, "import os; os._exit(3)"], []) == "ended with status 3"


def test_a_stopped_sweep_stops_its_runs(monkeypatch, tiny_data, capsys):
    """Ctrl-C: status 130, and no process is left."""
    processes, waits = [], threading.Event()

    class Popen(subprocess.Popen):
        def __init__(self, command, **rest):
            super().__init__([sys.executable, "-c", "import time; time.sleep(60)"], **rest)
            processes.append(self)

        def communicate(self):
            waits.set()  # the sweep knows of the process now
            return super().communicate()

    def tqdm(finished, *rest):
        waits.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Popen)
    monkeypatch.setattr(sweep, "tqdm", tqdm)
    assert sweep.main([*TINY, "--methods", "heuristic", *QUICK]) == 130
    assert "stopped" in capsys.readouterr().err
    assert [process.poll() for process in processes] == [-signal.SIGTERM]
