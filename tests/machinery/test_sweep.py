"""scripts/sweep.py: which runs are made, resumed or left alone, and what the table says of them."""

import csv
import json
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from conftest import tiny
from scipy import stats

import data
import train
from scripts import sweep

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
    assert printed == ({*sweep.PRESETS[preset]} if preset != "fig1" else set())


def test_the_papers_numbers_are_found():
    """Table 1's fused scores, Table 4's with the single modalities; nothing for keypad."""
    assert sweep.printed("table1", "MMPareto", "kinetics-sounds") == "70.00 / 78.50"
    assert sweep.printed("table1", "ReconBoost", "nvgesture") == "84.13 / 86.32"
    assert sweep.printed("table4", "h(0.95)", "cremad") == "71.45; 60.18, 55.32"
    assert sweep.printed("table1", "Concat", "keypad") == ""


def test_all_is_table_1_and_heads():
    """Joint training comes first; greedy gets the fusion that it needs."""
    rows = list(sweep.rows_of(["all"], None))
    assert rows[0] == "constant:0" and "heads" in rows and "mmpareto" in rows
    assert {row.split()[0] for row in rows} >= set(train.BASELINES)
    given = sweep.rows_of(["greedy", "heuristic"], None)
    assert set(given) == {"constant:0", "greedy --fusion channel", "heuristic"}
    assert set(sweep.rows_of(["greedy --fusion channel"], None)) == {*given} - {"heuristic"}


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


def test_a_sweep_trains_compares_and_draws(calls, capsys):
    """A folder per run with the usual name, the table on the screen and in a file, a picture."""
    flags = [*TINY, "--methods", "heads,constant:0 --fusion affine", "--jobs", "2"]
    assert sweep.main([*flags, *QUICK]) == 0
    folders = {path.parent.name for path in Path("runs").glob("*/log.jsonl")}
    names = ("constant0", "heads", "constant0-affine")
    assert folders == {f"tiny-{name}-seed{seed}" for name in names for seed in (0, 1)}
    table = Path("runs/sweep-tiny-methods.md").read_text()
    assert table in capsys.readouterr().out
    head, _, *rows = table.split("\n\n")[0].splitlines()
    assert "| ACC | MAP | macro-F1 | " in head
    assert head.endswith("| perf_gap | ACC - ACC of constant:0 |")
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
    """Three values of ogm, seeds 0 and 1; the best mean validation ACC is trained and compared;
    what has no number is trained once. The choice is the highest of the logged scores."""
    flags = [*TINY, "--methods", "ogm,heads", "--tune", "--out", "new/table", *QUICK]
    assert sweep.main(flags) == 0
    trials = ["ogm", "ogm:0.3", "ogm:0.8"]
    means = {}
    for trial in trials:
        folders = [Path(f"runs/tiny-{trial.replace(':', '')}-seed{seed}") for seed in (0, 1)]
        logs = [sweep.read_log(folder) for folder in folders]
        assert all(log[0]["settings"]["val_fraction"] == 0.1 for log in logs)
        assert all(record["split"] == "val" for log in logs for record in log[1])
        means[trial] = sum(log[1][-1]["fused"]["acc"] for log in logs)
    best = max(trials, key=means.get)
    table = Path("new/table.md").read_text()
    rows = [line.split(" | ")[0] for line in table.split("\n\n")[0].splitlines()[2:]]
    assert rows == ["| constant:0", f"| {best}", "| heads †"]
    assert len(calls) == 2 * (3 + 2)
    chosen = Path("new/table-tune.md").read_text()
    assert f"**`{best}` " in chosen and chosen.count("**") == 2
    assert "heads" not in chosen and chosen in capsys.readouterr().out
    assert chosen.endswith("mean ± std over seeds 0 and 1; the chosen value is bold.\n")
    assert "All runs hold out 10% of the training split." in Path("new/table.md").read_text()


def test_tuned_takes_the_default_of_equals_and_skips_what_failed():
    """A trial without both seeds is not chosen, and flags stay behind the number."""
    accs = {"mla": [50.0, 60.0], "mla:0.01": [60.0, 50.0], "mla:1": [99.0]}
    rows, text = sweep.tuned({"constant:0": "Concat", "mla": "MLA"}, accs)
    assert rows == {"constant:0": "Concat", "mla": "MLA"}
    assert "| mla | **`mla` 55.0 ± 7.1**, `mla:0.01` 55.0 ± 7.1 |" in text
    accs["mla:0.01"] = [60.0, 51.0]
    assert sweep.tuned({"mla": ""}, accs)[0] == {"mla:0.01": ""}
    assert sweep.tuned({"mla": ""}, {})[0] == {"mla": ""}
    trials = sweep.trials_of("greedy --fusion channel")
    assert trials == [f"greedy{x} --fusion channel" for x in ("", ":0.001", ":0.1")]
    assert sweep.trials_of("learning-based")[1] == "learning-based --eta-alpha 1"


def test_the_validation_acc_is_of_the_tested_epoch(tmp_path):
    """The first best one; on a test split, nothing is best, and it would be the last."""
    record = {"alpha": 0, "split": "val"}
    epochs = [record | {"t": t, "fused": {"acc": acc}} for t, acc in enumerate((5, 9, 9, 7), 1)]
    lines = [{"settings": {}, "modalities": [], "samples": {}}, *epochs]
    (tmp_path / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert sweep.validation_acc(tmp_path) == 9


def test_every_trial_is_a_run():
    """train.py takes it, in a folder of its own; without samples held out nothing can be chosen."""
    rows = [row for row in sweep.rows_of(["all"], None) if row.split()[0] in sweep.TRIALS]
    trials = [trial for row in rows for trial in sweep.trials_of(row)]
    jobs = sweep.jobs_of("keypad", trials, [0], "runs", [], hold_out=True)
    assert len({job.folder for job in jobs}) == 3 * len(sweep.TRIALS)
    assert all(job.flags[2:4] == ["--val-fraction", "0.1"] for job in jobs)


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
    assert "new/tiny-ogm0.3-seed0" in out and not Path("new").exists()


def test_lists_are_words_or_commas():
    """Of methods and of seeds; one number of seeds is how many."""
    for methods, seeds in [(["a", "b --tau 1"], ["0", "3"]), (["a,b --tau 1"], ["0,3"])]:
        args = sweep.parse(["--methods", *methods, "--seeds", *seeds, "--", "--lr", "1"])
        assert args.methods == ["a", "b --tau 1"] and args.seeds == [0, 3]
        assert args.extra == ["--lr", "1"]
    assert sweep.parse(["--seeds", "3"]).seeds == [0, 1, 2]


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
        (["--methods", "ogn"], "unknown method 'ogn'"),
        (["--dataset", "nowhere"], "unknown data set or folder 'nowhere'"),
        (["--", "--epochs", "0"], "--epochs is 0, expected more than 0"),
        (["--", "--seed", "1"], "--seed after -- is set by the sweep itself; leave it out"),
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
    assert len(calls) == 4


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
    """Classes, modalities, samples; a log that names none; not a seed's held-out part."""
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


def test_the_most_frequent_class_is_a_baseline_where_classes_are_unequal():
    """6 of 8 test samples are dogs: 75 %; nothing is said of equal classes."""
    first = {"settings": {"val_fraction": 0, "bf16": False}}
    first["data"] = {"classes": ["cat", "dog"], "class_counts": {"test": [2, 6]}}
    sentence = "Always saying the most frequent class, dog, would have ACC 75.0."
    assert sweep.notes_of([first], {}) == [sentence]
    first["data"]["class_counts"]["test"] = [4, 4]
    assert sweep.notes_of([first], {}) == []


def test_compared_is_the_paired_test():
    """Mean difference over common seeds; t = mean / (std / sqrt(n)), two-sided, n - 1 degrees."""
    accs = {0: 51.0, 1: 53.0, 2: 57.0, 9: 0.0}, {0: 50.0, 1: 50.0, 2: 55.0, 3: 99.0}
    tests, joint = ({s: {"fused": {"acc": acc}} for s, acc in a.items()} for a in accs)
    p = 2 * stats.t.sf(2 / (1 / 3**0.5), 2)  # differences 1, 3, 2
    assert sweep.compared(tests, joint) == f"+2.0 (p {p:.2g})"
    assert sweep.compared({0: tests[0]}, joint) == "+1.0"
    assert sweep.compared({9: tests[9]}, joint) == ""


def test_unimodal_has_two_rows_and_the_papers_numbers():
    """The sum of the logits is compared; the paper's single modalities are beside their own row."""
    one = {"acc": 50.0, "map": 60.0, "f1": 50.0}
    test = {"fused": one, "audio": one, "video": one}
    better = {name: {key: value + 5 for key, value in one.items()} for name in test}
    rows = {"constant:0": {0: test}, "unimodal": {0: better}}
    names = {"constant:0": "Concat", "unimodal": "Unimodal"}
    text = sweep.table("cremad", ["audio", "video"], rows, names, "table1", "acc")
    _, _, joint, alone, summed = text.split("\n\n")[0].splitlines()
    assert joint.endswith("|  | Concat | 63.31 / 68.41 |")
    assert alone == "| unimodal † | 1 |  |  |  | 55.0 | 55.0 | 0.0 |  | Unimodal | 63.17, 45.83 |"
    assert summed == "| unimodal, logits summed † | 1 | 55.0 | 65.0 | 55.0 |  |  |  | +5.0 |  |  |"


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
