"""utils/distributed.py: two processes of torchrun give what one gives on the same batches."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import tiny
from torch import nn

import data
import model
import train
from utils import run as runs

ROOT = Path(__file__).parents[2]
FLAGS = ["--dataset", "tiny", "--epochs", "3", "--batch-size", "16", "--eta-alpha", "1"]
FLAGS += ["--device", "cpu", "--keep", "9", "--encoders"]  # two processes need two GPUs


def plain(channels, pretrained=False, source=""):
    """An encoder without batch norm."""
    return nn.Sequential(nn.Conv2d(channels, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(288, 16)), 16


def tiny_run(arguments):
    """train.py with the tiny data set and the plain encoder; KILLED: the one that writes dies in
    the second epoch."""
    model.ENCODERS["plain"] = plain
    data.DATASETS["tiny"] = tiny
    torch.set_num_threads(1)
    save = runs.save_checkpoint

    def save_or_die(folder, state, kept):
        if state["t"] == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        save(folder, state, kept)

    if "KILLED" in os.environ:
        runs.save_checkpoint = save_or_die
    return train.main(arguments)


def torchrun(*arguments, **environment):
    """Two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths} | environment
    command += [__file__, *arguments]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)


def first_epoch_of(folder, target):
    """A run as it stood after its first epoch."""
    target.mkdir()
    state = runs.load_checkpoint(folder, 1)
    runs.save_checkpoint(target, state, [])
    (target / "log.jsonl").write_text(state["log"])


def numbers(thing):
    """Every number of a log's record, in order."""
    if isinstance(thing, dict):
        return [n for key in sorted(thing, key=str) for n in numbers(thing[key])]
    return [thing] if isinstance(thing, (int, float)) else []


def alike(folder, other):
    """The same log and the same parameters, to 1e-4."""
    logs = [dict(enumerate(runs.read_log(f)[1])) | runs.read_log(f)[2] for f in (folder, other)]
    states = [runs.load_checkpoint(f)["model"] for f in (folder, other)]
    assert len(logs[0]) == len(logs[1]) == 3 + 4
    assert numbers(logs[0]) == pytest.approx(numbers(logs[1]), abs=1e-4)
    for name, value in states[0].items():
        assert torch.allclose(value, states[1][name], atol=1e-4), name


FLAGS_OF = ["--outer held-out --val-fraction 0.33", "--solver randomised --matching classes"]


@pytest.mark.slow
@pytest.mark.parametrize("flags", FLAGS_OF)
def test_two_processes_are_one(tmp_path, monkeypatch, flags):
    """Losses, scores, alpha and parameters of one process with the same batches; also where one of
    them is killed and the run is resumed with as many, with more or with fewer processes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(model.ENCODERS, "plain", None)
    monkeypatch.setitem(data.DATASETS, "tiny", None)
    run = [*FLAGS, "plain", *flags.split(), "--out"]
    assert tiny_run([*run, "one"]) == 0
    first_epoch_of("one", tmp_path / "more")
    assert torchrun(*run, "two", KILLED="1").returncode != 0
    assert runs.checkpoint_epochs("two") == [1]
    first_epoch_of("two", tmp_path / "fewer")
    for folder in ("two", "more"):
        done = torchrun("--resume", folder)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("test split") == 1  # the first alone prints
    assert tiny_run(["--resume", "fewer"]) == 0
    for other in ("two", "more", "fewer"):
        alike(tmp_path / "one", tmp_path / other)


@pytest.mark.slow
def test_two_processes_evaluate_one_model(tmp_path, monkeypatch):
    """With batch norm, whose statistics each process has of its own shard: the last epoch's scores
    are those of the checkpoint, to the last digit."""
    monkeypatch.chdir(tmp_path)
    done = torchrun(*FLAGS, "cnn", "--method", "heuristic", "--lr", "0.001", "--out", "two")
    assert done.returncode == 0, done.stderr
    _, epochs, test = runs.read_log("two")
    assert test == {name: epochs[-1][name] for name in test}


@pytest.mark.parametrize("batch", ["16", "3"])
def test_a_batch_that_cannot_be_shared_is_refused(tiny_data, monkeypatch, capsys, batch):
    """One sentence before anything is written: 16 samples for three processes, or one for each."""
    monkeypatch.setattr("utils.distributed.world_size", lambda: 3)
    assert train.main(["--dataset", "tiny", "--batch-size", batch, "--out", "run"]) == 2
    said = f"a batch of {batch} training samples cannot be shared by 3 processes"
    assert said in capsys.readouterr().err
    assert not Path("run").exists()


def test_a_split_with_fewer_samples_than_processes_is_refused(tiny_data, monkeypatch, capsys):
    """One of them would have nothing to evaluate."""
    monkeypatch.setattr("utils.distributed.world_size", lambda: 8)
    flags = ["--batch-size", "24", "--val-fraction", "0.1", "--out", "run"]
    assert train.main(["--dataset", "tiny", *flags]) == 2
    said = "the split val has 4 samples, fewer than 8 processes; start fewer"
    assert said in capsys.readouterr().err and not Path("run").exists()


if __name__ == "__main__":
    sys.exit(tiny_run(sys.argv[1:]))
