"""utils/run.py: stopping, resuming, evaluating, and the checkpoints that are refused."""

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import os
import pickle
import random
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import raising, sentence
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

import data
import losses
import train
from losses import SCHEDULES
from utils import run as runs
from utils.cli import SettingsError

ROOT = Path(__file__).parents[2]
TINY = ["--dataset", "tiny", "--epochs", "4", "--batch-size", "16"]
EXACT = ["--deterministic"]  # a GPU then gives the same numbers to the last digit


def start(out, *flags):
    return train.main([*TINY, "--out", out, *flags])


def files(folder="run"):
    """{file of a run: its content}."""
    return {path: path.read_bytes() for path in Path(folder).iterdir()}


def refused(capsys, *arguments, folder="run"):
    """The sentence with which train.py refuses; the run's files stay as they are."""
    before = files(folder)
    capsys.readouterr()
    assert train.main(arguments) in (1, 2) and files(folder) == before
    return sentence(capsys)


def stop_at(monkeypatch, n):
    """The next run is stopped in its n-th step."""
    real, calls = torch.optim.SGD.step, []

    def step(self):
        calls.append(1)
        if len(calls) == n:
            monkeypatch.setattr(torch.optim.SGD, "step", real)
            raise KeyboardInterrupt
        real(self)

    monkeypatch.setattr(torch.optim.SGD, "step", step)


FLAGS = ["--method heuristic", "--method unimodal", "--eta-alpha 5", "--solver randomised"]
FLAGS += ["--outer shared", "--outer held-out", "--inner-iters 2"]
FLAGS += ["--method stepwise:0.05 --val-fraction 0.2"]


@pytest.mark.parametrize("flags, t", [(flags, 1 + 2 * (k % 2)) for k, flags in enumerate(FLAGS)])
def test_a_resumed_run_is_the_uninterrupted_one(tiny_data, monkeypatch, capsys, flags, t):
    """The same log, byte for byte, and the same parameters; the sentence says how to go on."""
    flags = [*flags.split(), *EXACT]
    assert start("whole", *flags) == 0
    assert runs.load_checkpoint("whole")["t"] == 4
    steps = json.loads(Path("whole/log.jsonl").read_text().split("\n")[0])["samples"]["train"] // 16
    stop_at(monkeypatch, t * (2 if "--inner-iters" in flags else steps) + 2)
    assert start("cut", *flags) == 130 and runs.load_checkpoint("cut")["t"] == t
    assert sentence(capsys) == "stopped; resume with: python train.py --resume cut"
    assert train.main(["--resume", "cut"]) == 0
    assert Path("cut/log.jsonl").read_bytes() == Path("whole/log.jsonl").read_bytes()
    a, b = (runs.load_checkpoint(folder) for folder in ("cut", "whole"))
    assert all(torch.equal(a["model"][k], b["model"][k]) for k in a["model"])
    assert a["alpha"] == b["alpha"]
    assert train.main(["--resume", "cut"]) == 0  # a run that has ended ends the same again
    assert Path("cut/log.jsonl").read_bytes() == Path("whole/log.jsonl").read_bytes()


TRAIN_TINY = """import sys, data, train, conftest
data.DATASETS["tiny"] = conftest.tiny
train.main(sys.argv[1:])"""


@pytest.mark.slow
def test_a_killed_process_resumes(tiny_data):
    """kill -9 at a random moment, then --resume, ends in the uninterrupted log; every checkpoint is
    whole."""
    flags = [*TINY, *EXACT, "--epochs", "20", "--inner-iters", "1"]
    flags += ["--method", "heuristic", "--out"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    assert train.main([*flags, "whole"]) == 0
    command, quiet = [sys.executable, "-c", TRAIN_TINY, *flags, "cut"], subprocess.DEVNULL
    process = subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet)
    while process.poll() is None and not list(Path().glob("cut/t*.pt")):
        time.sleep(0.05)
    time.sleep(random.uniform(0, 0.2))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    for t in runs.checkpoint_epochs("cut"):
        runs.load_checkpoint("cut", t)
    assert train.main(["--resume", "cut"]) == 0
    assert Path("cut/log.jsonl").read_bytes() == Path("whole/log.jsonl").read_bytes()


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_with_their_status(tiny_data, monkeypatch, capsys, number, status):
    """Also while a checkpoint is written: the one before stays."""
    real = os.fsync

    def fsync(file):
        if runs.checkpoint_epochs("my run"):
            os.kill(os.getpid(), number)
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    handler = signal.getsignal(signal.SIGINT)
    assert start("my run") == status
    assert sentence(capsys) == "stopped; resume with: python train.py --resume 'my run'"
    monkeypatch.setattr(os, "fsync", real)
    assert signal.getsignal(signal.SIGINT) is handler and runs.load_checkpoint("my run")
    assert not list(Path("my run").glob(".part*"))


def test_no_room_leaves_the_checkpoint_before(tiny_data, monkeypatch, capsys):
    """One sentence, status 1; with room again, --resume gives the uninterrupted log."""
    assert start("whole", "--method", "heuristic") == 0
    real = os.fsync

    def fsync(file):
        if runs.checkpoint_epochs("cut") == [1, 2]:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    assert start("cut", "--method", "heuristic") == 1
    message = sentence(capsys)
    assert "cannot be written (No space left on device); its old content is intact" in message
    assert message.count("cannot be written") == 1 and runs.load_checkpoint("cut")["t"] == 2
    assert not list(Path("cut").glob(".part*"))
    monkeypatch.setattr(os, "fsync", real)
    assert train.main(["--resume", "cut"]) == 0
    assert Path("cut/log.jsonl").read_bytes() == Path("whole/log.jsonl").read_bytes()


def validation_accs(monkeypatch, accs):
    """Make these the fused ACC on the validation part of 12 samples, one for each epoch."""
    left, real = iter(accs), train.evaluate

    def evaluate(model, loader, *rest):
        result = real(model, loader, *rest)
        if len(loader.dataset) == 12:
            result["fused"]["acc"] = next(left)
        return result

    monkeypatch.setattr(train, "evaluate", evaluate)


def test_what_is_kept(tiny_data, monkeypatch):
    """The last, the best on validation, and as many before the last as asked for."""
    validation_accs(monkeypatch, [10.0, 60.0, 20.0, 60.0])
    start("best", "--val-fraction", "0.25", "--keep", "0", "--method", "heuristic")
    assert runs.checkpoint_epochs("best") == [2, 4]
    start("last", "--keep", "0", "--method", "heuristic")
    assert runs.checkpoint_epochs("last") == [4]
    start("all", "--keep", str(2**32 - 1), "--method", "heuristic")  # no list of so many epochs
    assert runs.checkpoint_epochs("all") == [1, 2, 3, 4]
    start("all", "--keep", "0", "--method", "heuristic", "--overwrite", "--epochs", "2")
    assert runs.checkpoint_epochs("all") == [2]


def test_eval_scores_the_tested_epoch_and_writes_nothing(tiny_data, capsys):
    """On the test split the run's own table; on another split that split's."""
    start("run", "--val-fraction", "0.25", "--method", "heuristic")
    table = capsys.readouterr().out.split("validation part:\n")[1].split("to see")[0]
    before = files()
    assert train.main(["--eval", "run"]) == 0
    said_of_test = capsys.readouterr().out
    assert table in said_of_test
    last = said_of_test.splitlines()[-1]
    assert last == "to see the largest confusions: python -m scripts.figures confusion run"
    assert train.main(["--eval", "run", "--split", "val"]) == 0
    out, epochs = capsys.readouterr().out, runs.read_log("run").epochs
    best = max(record["fused"]["acc"] for record in epochs)
    assert out.endswith("confusion run --split val\n")
    assert "val split" in out and f"{best:.2f}" in out and before == files()
    start("no-val", "--method", "heuristic")
    assert train.main(["--eval", "no-val", "--split", "val"]) == 2
    assert "has no validation part" in sentence(capsys)


@pytest.mark.parametrize("flags", ["--lr 0.5", "--method cubic", "--epochs 3"])
def test_another_setting_is_refused_by_name(tiny_data, capsys, flags):
    """It would be another run; the settings that change no number may differ."""
    start("run")
    message = refused(capsys, "--resume", "run", *flags.split())
    assert message.startswith(f"{flags} would make run another run")
    if "--epochs" in flags:
        assert "another run: it has 4, and a run cannot become shorter; start a new" in message
        longer = train.parse(shlex.split(message.split(": python train.py ")[1]))
        assert longer.out == "run-epochs3" and longer.epochs == 3 and longer.batch_size == 16
    assert train.main(["--resume", "run", "--keep", "3", "--device", "cpu"]) == 0


COMMANDS = ["", "--method cubic:26 --heads --lr 0.5 --encoders mlp"]
COMMANDS += ["--dataset cremad --bf16 --lr 0.02 --epochs 10 --device cpu"]
COMMANDS += ["--dataset cremad --no-bf16 --root 'my data'"]


@pytest.mark.parametrize("flags", COMMANDS)
def test_the_command_of_a_run_has_its_settings(monkeypatch, flags):
    """Parsed again, it gives them: also where a flag has train.py's default and the set another."""
    monkeypatch.setattr("utils.distributed.has_bf16", lambda device: device != "cpu")
    settings = dataclasses.asdict(train.parse(shlex.split(flags)))
    command = runs.command_of(settings, train.Settings, data.defaults, "my run")
    words = shlex.split(command)
    assert words[:2] == ["python", "train.py"] and len(words) < 20  # not the defaults
    assert dataclasses.asdict(train.parse(words[2:])) == settings | {"out": "my run"}


def test_a_longer_run_keeps_its_best_epoch(tiny_data, monkeypatch):
    """The last epoch was the best, and is worse when it is trained again: then the best of before
    is tested, whose checkpoint is there."""
    validation_accs(monkeypatch, [50.0, 40.0, 30.0, 60.0, 35.0, 34.0])
    start("run", "--val-fraction", "0.25", "--method", "heuristic")
    assert runs.checkpoint_epochs("run") == [1, 3, 4]
    assert train.main(["--resume", "run", "--epochs", "5"]) == 0
    assert [record["fused"]["acc"] for record in runs.read_log("run").epochs[3:]] == [35, 34]
    assert json.loads(Path("run/log.jsonl").read_text().splitlines()[-1])["t"] == 1


LONGER = ["heuristic", "learning-based", "mine", "g-blend", "released", "reconboost"]


@pytest.mark.parametrize("method", LONGER)
def test_a_run_that_has_ended_can_be_longer(tiny_data, monkeypatch, capsys, method):
    """3 -> 5 epochs are, to the bit, 5 from the start; the log says what happened."""
    monkeypatch.setitem(SCHEDULES, "mine", lambda t, T: 1 / (t + 1))
    assert start("whole", *EXACT, "--method", method, "--epochs", "5") == 0
    assert start("run", *EXACT, "--method", method, "--epochs", "3") == 0
    test = runs.read_log("run").test
    stop_at(monkeypatch, 5)  # in epoch 4 or 5
    assert train.main(["--resume", "run", "--epochs", "5"]) == 130
    printed = capsys.readouterr()
    said = "the run had 3 epochs, now it has 5; it begins at epoch 3, trained again\n"
    assert said in printed.out
    assert "resume with: python train.py --resume run --epochs 5\n" in printed.err
    left = 5 - runs.checkpoint_epochs("run")[-1]
    assert train.main(["--resume", "run", "--epochs", "5"]) == 0
    epochs = "epoch" if left == 1 else "epochs"
    assert f"trained {left} {epochs} in " in capsys.readouterr().out
    first, *rest = map(json.loads, Path("run/log.jsonl").read_text().splitlines())
    expected, *others = map(json.loads, Path("whole/log.jsonl").read_text().splitlines())
    assert first.pop("before") == [{"epochs": 3, "test": test}]
    assert first == expected and rest == others
    a, b = (runs.load_checkpoint(folder) for folder in ("run", "whole"))
    assert all(torch.equal(a["model"][k], b["model"][k]) for k in b["model"])
    assert (a["alpha"], a["plateau"], a["settings"]) == (b["alpha"], b["plateau"], b["settings"])


@pytest.mark.parametrize("flags", ["--method stepwise:0.9", "--method cubic:26", "--epochs 1"])
def test_a_run_whose_alpha_depends_on_t_cannot_be_longer(tiny_data, capsys, flags):
    """Nor one of a single epoch; --eval takes no --epochs."""
    start("run", *flags.split())
    message = refused(capsys, "--resume", "run", "--epochs", "9")
    assert message.startswith("--epochs 9 would make run another run: alpha's schedule can depend")
    assert "--epochs 9" in refused(capsys, "--eval", "run", "--epochs", "9")


def record(names, **more):
    """An epoch's record whose numbers are as wide as they get."""
    scores = {name: {"acc": 100.0} for name in ["fused", *names]}
    losses = {"l_total": 9.999, "l_cls": 9.999, "l_mm": 9.999}
    return {"t": 7, "alpha": 1.0, "perf_gap": 99.9, **losses, **scores, **more}


def test_an_epoch_is_a_line_of_100_columns():
    """Of two modalities with six letters; with more of them the scores go on in a second line."""
    line = runs.epoch_line(record(["speech", "camera"]), ["speech", "camera"], 100)
    assert line == (
        "t   7/100  alpha 1.000  L_CLS 9.999 L_MM 9.999  fused 100.0 speech 100.0 camera 100.0 "
        "perf_gap 99.9"
    )
    assert len(line) <= 100
    names = ["speech", "camera", "a-long-name"]
    lines = runs.epoch_line(record(names, note="refused"), names, 100).splitlines()
    assert len(lines) == 2 and max(map(len, lines)) <= 100 and lines[1].startswith("    ")
    words = " ".join(lines).split()
    assert words[-7:] == ["camera", "100.0", "a-long-name", "100.0", "perf_gap", "99.9", "refused"]


def test_few_samples_are_warned_of(tiny_data, monkeypatch, capsys):
    """One line before the training, with the classes and the split; none for many samples."""
    expected = "warning: few samples, the scores are unreliable: fewer than {}\n"
    assert start("run", "--method", "heuristic", "--epochs", "1") == 0
    said = capsys.readouterr().out
    assert said.startswith(expected.format("30 to evaluate on in test (15)"))
    assert "; 1 epoch, batches" in said
    assert train.main(["--eval", "run", "--split", "train"]) == 0
    assert "warning" not in capsys.readouterr().out
    monkeypatch.setitem(data.DATASETS, "tiny", lambda root: tiny_data(n=29))
    assert start("few", "--method", "heuristic", "--epochs", "1", "--batch-size", "8") == 0
    both = "10 to train on in 2 (9); fewer than 30 to evaluate on in test (15)"
    assert capsys.readouterr().out.startswith(expected.format(both))
    many = {f"class {k}": 9 for k in range(25)}
    assert runs.few_samples(many, {"test": 30}, []).endswith("class 19 (9), ...")
    assert not runs.few_samples({"a": 10}, {"test": 30}, [])
    absent = [*map(str, range(21))]
    assert runs.few_samples({}, {"test": 30}, absent[:2]).endswith("none to evaluate on of 0, 1")
    assert runs.few_samples({}, {"test": 30}, absent).endswith(", 18, 19, ...")


def test_a_class_without_test_samples_is_warned_of(tiny_data, monkeypatch, capsys):
    """By name and split, before the training."""
    made = tiny_data(n=48)
    made.splits["test"].y[:] = torch.arange(15) % 2
    monkeypatch.setitem(data.DATASETS, "tiny", lambda root: made)
    assert start("run", "--method", "heuristic", "--epochs", "1") == 0
    assert "; none to evaluate on of 2 (test)\n" in capsys.readouterr().out


def test_a_modality_near_chance_is_named():
    """With enough samples to be sure; never a modality that is better, nor with few samples."""
    result, names = {"image": {"acc": 12.0}, "sound": {"acc": 20.0}}, ["image", "sound"]
    result["fused"] = {"acc": 30.0}
    (line,) = runs.near_chance(result, names, [40, 30] + 8 * [29])
    says = "its ACC is 12.0, one class for all samples gives 13.2"
    assert line == f"image alone is near chance: {says}"
    assert not runs.near_chance(result, names, [3] * 10)
    result = {"image": {"acc": 80.0}, "fused": {"acc": 12.0}}
    assert runs.near_chance(result, ["image"], [40, 30] + 8 * [29]) == [
        f"the fused model is near chance: {says}"
    ]
    result = {"image": {"acc": 74.0}, "fused": {"acc": 80.0}}
    assert runs.near_chance(result, ["image"], [750, 250])  # always the larger class
    assert not runs.near_chance(result, ["image"], [500, 500])


def test_the_time_that_is_left_is_said_once(tiny_data, monkeypatch, capsys):
    """After the first epoch, from its time, if it is long; after a resume once more."""
    clock = iter(range(0, 10**6, 100))
    monkeypatch.setattr(runs, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    stop_at(monkeypatch, 7)
    assert start("run", "--method", "heuristic") == 130
    assert "\nabout 10:00 ([h:]mm:ss) for 3 more epochs\n" in capsys.readouterr().out
    assert train.main(["--resume", "run"]) == 0
    assert capsys.readouterr().out.count("about") == 1
    monkeypatch.setattr(runs, "LONG", 10**9)
    assert start("quick", "--method", "heuristic") == 0
    assert "about" not in capsys.readouterr().out


def signed(state):
    """A state as the bytes of a checkpoint."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest()


class Evil:
    def __reduce__(self):
        return os.mkdir, ("owned",)


def test_foreign_checkpoint_is_rejected(tiny_data, capsys):
    """Truncated at 8 places, one bit flipped at 8, another run's, another model's, a pickle that
    runs code: one sentence each, nothing executed, nothing overwritten."""
    start("run", "--method", "heuristic")
    start("other", "--method", "heuristic", "--seed", "1")
    path, other = Path("run/t0004.pt"), Path("other/t0004.pt").read_bytes()
    good, state, evil = path.read_bytes(), runs.load_checkpoint("run"), pickle.dumps(Evil())
    places = [len(good) * i // 8 for i in range(8)]
    damaged = [good[:n] for n in places]
    damaged += [good[:n] + bytes([good[n] ^ 1]) + good[n + 1 :] for n in places]
    damaged += [other, b"", evil, evil + hashlib.sha256(evil).digest()]
    damaged += [signed(state | {"alpha": Evil()}), signed(state | {"model": {}})]
    damaged.append(signed(state | {"settings": state["settings"] | {"lost": 1}}))
    for content in damaged:
        path.write_bytes(content)
        assert refused(capsys, "--resume", "run")
    for content in damaged[-2:]:
        path.write_bytes(content)
        assert refused(capsys, "--eval", "run")
    assert not Path("owned").exists()


@pytest.mark.parametrize("flag", ["--resume", "--eval"])
@pytest.mark.parametrize("name", ["t0004.pt", "log.jsonl"])
def test_a_folder_in_place_of_a_file_is_one_sentence(tiny_data, capsys, name, flag):
    """As a file that may not be read; the sentence says what to do."""
    start("run", "--method", "heuristic")
    Path("run", name).unlink()
    Path("run", name).mkdir()
    capsys.readouterr()
    assert train.main([flag, "run"]) == 2
    message = sentence(capsys)
    assert message.startswith(f"run/{name} cannot be read (Is a directory); ")
    assert "remove" in message


def test_what_a_kill_left_half_written_is_removed(tiny_data):
    """Nothing unreadable stays behind once the run has gone on."""
    start("run", "--method", "heuristic")
    Path("run/.part-1-t0005.pt").write_bytes(b"half")
    assert train.main(["--resume", "run"]) == 0
    assert {p.name for p in Path("run").iterdir()} == {".lock", "log.jsonl", "t0003.pt", "t0004.pt"}


@pytest.mark.parametrize("flag", ["--resume", "--eval"])
def test_a_folder_that_is_no_run_is_said(tiny_data, capsys, flag):
    """Neither a folder that is not there nor an empty one is made into a run."""
    assert train.main([flag, "nowhere"]) == 2
    assert "nowhere is not a folder" in sentence(capsys) and not Path("nowhere").exists()
    Path("empty").mkdir()
    assert train.main([flag, "empty"]) == 2
    none = "is not the folder of a run (it has no log.jsonl);"
    assert sentence(capsys) == f"empty {none} give the folder of a run, like runs/NAME"
    assert not list(Path("empty").iterdir())
    for name in ("a", "b c"):
        assert start(f"runs/{name}", "--method", "heuristic", "--epochs", "1") == 0
    capsys.readouterr()
    assert train.main([flag, "runs"]) == 2
    assert sentence(capsys) == f"runs {none} it holds the runs 'runs/b c', runs/a; give one of them"
    Path("runs/a/t0001.pt").unlink()
    assert train.main([flag, "runs/a"]) == 2
    assert sentence(capsys) == "runs/a has no checkpoint; train it again"


def test_two_runs_in_one_folder_are_refused(tiny_data, capsys):
    """The second, whether it starts over or resumes."""
    start("run", "--method", "heuristic")
    with FileLock("run/.lock"):
        for arguments in (["--resume", "run"], [*TINY, "--out", "run", "--overwrite"]):
            assert "another process writes into run" in refused(capsys, *arguments)
    assert train.main(["--resume", "run"]) == 0


def test_other_data_are_refused(tiny_data, monkeypatch, capsys):
    """Fewer samples than the run was begun with would make another run in silence."""
    start("run", "--method", "heuristic")
    monkeypatch.setitem(data.DATASETS, "tiny", lambda *_: tiny_data(n=46))
    message = refused(capsys, "--resume", "run")
    assert "began with 48 train, 15 test samples, now there are 46 train, 15" in message
    assert message.endswith("resume it with the same data")


def test_the_global_random_state_is_part_of_it(tiny_data):
    """The random state behind dropout is resumed."""
    start("run", "--epochs", "1", "--keep", "1")
    expected = torch.rand(3)
    torch.manual_seed(99)
    assert train.main(["--resume", "run"]) == 0
    assert torch.equal(torch.rand(3), expected)


def test_the_log_begins_with_what_made_it(tiny_data):
    """Settings, versions, device, numbers of samples, and the code's revision if it is in git."""
    start("run", "--device", "cpu")
    first = runs.read_log("run").first
    assert first["settings"]["batch_size"] == 16 and first["device"] == "cpu"
    assert first["samples"]["train"] == 48
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert first["versions"]["torch"] == torch.__version__
    assert first["versions"]["git"].startswith(done.stdout.strip())


def test_deterministic_asks_torch_for_it(tiny_data, monkeypatch):
    """During the run alone; on the CPU it changes no number."""
    seen, real = [], torch.optim.SGD.step

    def step(self):
        name = "CUBLAS_WORKSPACE_CONFIG"
        seen.append((torch.are_deterministic_algorithms_enabled(), os.environ.get(name)))
        real(self)

    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with monkeypatch.context() as watched:
        watched.setattr(torch.optim.SGD, "step", step)
        start("a", "--deterministic", "--device", "cpu")
    assert set(seen) == {(True, ":4096:8")}
    assert not torch.are_deterministic_algorithms_enabled()
    start("b", "--device", "cpu")
    assert runs.read_log("a")[1:] == runs.read_log("b")[1:]


@pytest.mark.parametrize("flag", ["--resume", "--eval"])
def test_a_log_that_is_none_is_said(tiny_data, capsys, flag):
    """Empty, binary, truncated, another file's: one sentence, nothing written."""
    start("run", "--method", "heuristic", "--epochs", "2")
    Path("alone").mkdir()
    advice = "choose another folder, or remove it"
    none = f"alone/log.jsonl is not a log of train.py; {advice}$"
    for content in (b"", b"\xff\xfe\x00", b"[1]\n", b"3\n", b'{"settings": 1', b"{}\n"):
        for folder in ("run", "alone"):
            Path(folder, "log.jsonl").write_bytes(content)
        message = refused(capsys, flag, "run")
        assert "log.jsonl is not a log of train.py; remove it, the checkpoint has" in message
        with pytest.raises(runs.RunError, match=none):
            runs.read_log("alone")


def test_a_file_of_yours_is_not_overwritten(tiny_data, capsys):
    """A log.jsonl of something else, also with --overwrite; one of a run is."""
    Path("mine").mkdir()
    Path("mine/log.jsonl").write_text("precious")
    assert start("mine", "--method", "heuristic", "--overwrite") == 2
    assert "mine/log.jsonl is a file of yours, which would be lost" in sentence(capsys)
    assert Path("mine/log.jsonl").read_text() == "precious"
    flags = ["--method", "heuristic", "--epochs", "1", "--overwrite"]
    assert [start("run", *flags), start("run", *flags)] == [0, 0]


def test_a_checkpoint_of_yours_is_not_overwritten(tiny_data, capsys):
    """A file of that name which train.py did not write, or a damaged one; nothing is deleted."""
    Path("run").mkdir()
    Path("run/t0005.pt").write_text("precious")
    said = refused(capsys, *TINY, "--out", "run", "--overwrite")
    assert said.startswith("run/t0005.pt is damaged, or a file of yours, and would be lost; move")
    assert Path("run/t0005.pt").read_text() == "precious"


def test_the_only_checkpoint_is_not_to_be_removed(tiny_data, capsys):
    """With --keep 0 there is none before it."""
    start("run", "--method", "heuristic", "--keep", "0")
    content = Path("run/t0004.pt").read_bytes()
    Path("run/t0004.pt").write_bytes(content[:-1])
    said = refused(capsys, "--eval", "run")
    assert said.endswith(
        "(wrong checksum); there is no other; train the run again with --overwrite"
    )


def test_a_new_file_has_no_old_content(tmp_path):
    """A full disk says so of a file that was there alone."""
    (tmp_path / "a").write_text("")  # a file where a folder should be
    with pytest.raises(OSError) as error:
        runs.write_bytes(tmp_path / "a/log.jsonl", b"")
    assert "cannot be written" in str(error.value) and "old content" not in str(error.value)


def test_a_log_that_is_lost_is_written_again(tiny_data, monkeypatch):
    """The checkpoint has a copy: --eval needs no log, --resume restores it."""
    start("run", "--method", "heuristic")
    log = Path("run/log.jsonl").read_bytes()
    Path("run/log.jsonl").unlink()
    assert train.main(["--eval", "run"]) == 0 and not Path("run/log.jsonl").exists()
    assert train.main(["--resume", "run"]) == 0
    assert Path("run/log.jsonl").read_bytes() == log


def test_a_run_that_ended_before_epoch_1_is_begun_again(tiny_data, monkeypatch, capsys):
    """--resume says so, with the command, which starts the same run."""
    stop_at(monkeypatch, 2)
    assert start("run", "--method", "heuristic") == 130
    again = "stopped before epoch 1 ended; run the same command again"
    assert sentence(capsys) == again
    assert train.main(["--resume", "run"]) == 2
    message, command = sentence(capsys).split(": python train.py ")
    before = runs.read_log("run").first
    assert message == f"run {again}" and train.main(shlex.split(command)) == 0
    assert runs.read_log("run").first == before


@pytest.mark.parametrize("flag", ["--resume", "--eval"])
def test_a_checkpoint_without_a_part_is_refused(tiny_data, capsys, flag):
    """Its checksum is right, a key is missing or has another kind of value: one sentence."""
    start("run", "--method", "heuristic")
    state, short = runs.load_checkpoint("run"), '{"settings": {"seed": 0}, "samples": {}}\n'
    changes = [{k: v for k, v in state.items() if k != part} for part in runs.PARTS]
    changes += [state | change for change in ({"random": {"cpu": 0}}, {"log": ""}, {"log": short})]
    changes.append(state | {"data": {}})
    for change in changes:
        Path("run/t0004.pt").write_bytes(signed(change))
        assert "t0004.pt is not a checkpoint of train.py" in refused(capsys, flag, "run")


def test_a_run_of_another_version_is_refused(tiny_data, capsys):
    """A setting that the run does not have would get today's default in silence."""
    start("run", "--method", "heuristic")
    path, state = Path("run/t0004.pt"), runs.load_checkpoint("run")
    Path("run/log.jsonl").unlink()
    settings = {k: v for k, v in state["settings"].items() if k != "draws"}
    path.write_bytes(signed(state | {"settings": settings}))
    differs = "run comes from another version of train.py, which differs in"
    assert refused(capsys, "--resume", "run").startswith(f"{differs} draws;")
    path.write_bytes(signed({k: v for k, v in state.items() if k != "data"}))
    assert refused(capsys, "--eval", "run").startswith(f"{differs} data;")


def test_flags_that_exclude_each_other_are_refused(tiny_data, capsys):
    """None of them is ignored in silence, and nothing is written."""
    start("run", "--method", "heuristic")
    for flags, expected in {
        "--resume run --eval run": "--resume and --eval exclude each other",
        "--resume run --out new": "--resume and --out exclude each other",
        "--eval run --overwrite": "--eval and --overwrite exclude each other",
        "--resume run --split val": "--split is for --eval",
        "--resume=": "--resume is empty",
        "--out=": "--out is empty",
    }.items():
        assert expected in refused(capsys, *flags.split())
    assert not Path("new").exists() and not Path("runs").exists()


def test_a_run_whose_checkpoints_were_deleted_is_not_resumable(tiny_data, capsys):
    """The sentence does not propose what cannot be done."""
    start("run", "--method", "heuristic")
    held = "run holds a run already; "
    assert refused(capsys, *TINY, "--out", "run").startswith(f"{held}resume it with --resume run, ")
    for path in Path("run").glob("t*.pt"):
        path.unlink()
    assert refused(capsys, *TINY, "--out", "run").startswith(f"{held}choose another --out, or")


def test_no_epoch_is_logged_before_its_checkpoint(tiny_data, monkeypatch):
    """A kill between the two leaves a log that is resumed, never an epoch without a checkpoint."""
    real, logged = runs.write_bytes, []

    def write_bytes(path, content):
        logged.append((path.name, len(content.splitlines()) if path.suffix == ".jsonl" else None))
        real(path, content)

    monkeypatch.setattr(runs, "write_bytes", write_bytes)
    start("run", "--method", "heuristic", "--epochs", "2")
    logs = [("log.jsonl", n) for n in (1, 2, 3, 4)]
    assert logged == [logs[0], ("t0001.pt", None), logs[1], ("t0002.pt", None), *logs[2:]]


def test_fewer_gpus_than_before_resume(tiny_data, monkeypatch):
    """Of two random states of CUDA the first alone is put back where there is one GPU."""
    start("run", "--method", "heuristic", "--epochs", "2")
    state = runs.load_checkpoint("run")
    states = [torch.zeros(16, dtype=torch.uint8), torch.ones(16, dtype=torch.uint8)]
    both = state | {"random": state["random"] | {"cuda": states}}
    Path("run/t0002.pt").write_bytes(signed(both))
    put_back = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda s, i: put_back.append((i, s.sum())))
    assert train.main(["--resume", "run", "--device", "cpu"]) == 0
    assert put_back == [(0, 0)]


def test_another_schedule_cannot_resume_a_run(tiny_data, monkeypatch, capsys):
    """omega(t) was edited between the two: the log would mix two schedules. Rounding may differ."""
    monkeypatch.setitem(SCHEDULES, "mine", lambda t, T: 0.75)
    start("run", "--method", "mine", "--epochs", "1")
    monkeypatch.setitem(SCHEDULES, "mine", lambda t, T: 0.75 + 1e-9)  # as on another processor
    assert train.main(["--resume", "run"]) == 0
    monkeypatch.setitem(SCHEDULES, "mine", lambda t, T: 0.9)
    said = refused(capsys, "--resume", "run")
    assert said.startswith("run has alpha 0.75 in epoch 1, now it would be 0.9; the schedule has")
    assert train.main(["--eval", "run"]) == 0  # its weights are what they were


def test_a_schedule_that_differs_later_cannot_resume_a_run(tiny_data, monkeypatch, capsys):
    """1 / t and 1 / t^3 are equal in epoch 1."""
    monkeypatch.setitem(SCHEDULES, "mine", lambda t, T: 1 / t)
    start("run", "--method", "mine", "--epochs", "3")
    monkeypatch.setitem(SCHEDULES, "mine", lambda t, T: 1 / t**3)
    said = refused(capsys, "--resume", "run")
    assert said.startswith("run has alpha 0.5 in epoch 2, now it would be 0.125; the schedule has")


def test_stopping_an_evaluation_proposes_no_resume(tiny_data, monkeypatch, capsys):
    """There is nothing to resume."""
    start("run", "--method", "heuristic")
    capsys.readouterr()
    monkeypatch.setattr(train, "evaluate", raising(KeyboardInterrupt))
    assert train.main(["--eval", "run"]) == 130
    assert sentence(capsys) == "stopped"


WORDS = [f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(train.Settings)]
VALUES = ["learning-based", "unimodal", *losses.SCHEDULES, "constant:", "cubic:nan", "tiny", "cnn"]
VALUES += ["0", "-1", "1e999", "nan", "train"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(WORDS) | st.sampled_from(VALUES) | st.text(max_size=8), max_size=6))
def test_no_command_line_gives_a_traceback(arguments):
    """Settings, or --help, or an error of one sentence: never another error."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            train.check(train.parse(arguments))
    except SystemExit as error:
        assert error.code == 0
    except (SettingsError, OSError, FloatingPointError) as error:
        assert "\n" not in str(error)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from([*losses.SCHEDULES, ""]) | st.text(max_size=12),
    st.lists(st.floats() | st.integers() | st.text(max_size=3), max_size=2),
    st.integers(1, 10**6),
    st.integers(1, 10**6),
)
def test_a_schedule_is_one_or_says_why_not(name, numbers, t, T):
    """Every accepted text gives a number in [0, 1] for all t up to T."""
    try:
        alpha = losses.make_schedule(":".join([name, *map(str, numbers)]))
    except ValueError:
        return
    assert 0 <= alpha(min(t, T), T) <= 1
