"""utils/cli.py: the errors of the machine, each as one sentence that names a flag."""

import functools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError

import numpy as np
import pytest
import torch
from conftest import tiny

import data
import train
from data import Samples
from model import ENCODERS, FUSIONS
from scripts import costs, figures, page, predict, prepare, response, sweep
from utils.cli import SettingsError, amount, as_flags, line_of, one_sentence
from utils.loader import eval_loader

FLAGS = ["--dataset", "tiny", "--epochs", "2", "--batch-size", "16", "--out", "run"]
MEMORY, SHARED, KILLED = "out of memory; choose", "no room in shared memory", "reads the data was"
FILES, CACHE, PROCESSES = "too many open files; choose", "NUMBA_CACHE_DIR", "fewer --workers"
ROOT = Path(__file__).parents[2]
PROGRAMS = [train, costs, figures, page, predict, prepare, response, sweep]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_name_that_the_terminal_cannot_show_is_escaped(encoding):
    """Redirected output on Windows, LC_ALL=C: it ended the run with "can't encode character"."""
    text = "with one_sentence('x') as program: class_index(['cafe\\u0301', 'dog'])\n"
    text = f"from utils.cli import one_sentence; from utils.samples import class_index\n{text}"
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    command = [sys.executable, "-c", text + "sys = __import__('sys'); sys.exit(program.status)"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
    expected = (0, b"2 classes: cafe\\u0301, dog", b"")
    assert (done.returncode, done.stdout.strip(), done.stderr) == expected


@pytest.mark.skipif(os.name != "posix", reason="a closed pipe is another error there")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("lines", [1, 9999])
def test_an_output_that_nobody_reads_ends_without_a_word(lines, unbuffered):
    """As after `| head`: in the middle, or when the last lines are written at the end."""
    text = f"from utils.cli import one_sentence as o\nwith o('x') as p: print('y\\n' * {lines})\n"
    ours, its = os.pipe()
    os.close(ours)
    command = [sys.executable, "-c", f"{text}import sys; sys.exit(p.status)"]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=its, stderr=subprocess.PIPE)
    os.close(its)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_broken_pipe_of_another_process_is_said(capsys):
    """A worker's end is a fault of the machine's, which you have to know."""
    with one_sentence("x") as program:
        raise BrokenPipeError(32, "Broken pipe")
    assert program.status == 2 and "Broken pipe" in capsys.readouterr().err


@pytest.mark.parametrize("rank, lines", [("0", 1), ("1", 0)])
def test_rank_0_alone_speaks_before_the_start(monkeypatch, capsys, rank, lines):
    """A wrong flag under torchrun is one sentence, not one for each process."""
    monkeypatch.setenv("RANK", rank)
    with one_sentence("train.py") as program:
        raise SettingsError("--lr is 0")
    assert program.status == 2 and capsys.readouterr().err.count("--lr is 0") == lines


def of_a_worker(kind, last):
    """As a DataLoader raises what a worker raised."""
    text = f"Caught {kind.__name__} in DataLoader worker process 0.\nOriginal Traceback (most"
    return kind(f'{text} recent call last):\n  File "x.py", line 1, in x\n{last}\n')


ERRORS = {  # what torch, the system and DataLoader's workers say
    MEMORY: [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB, max allowed: 9 GB)"),
        RuntimeError("unable to mmap 9 bytes from file </torch_1>: Cannot allocate memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to"),
        MemoryError(),
        OSError(12, "Cannot allocate memory"),
        of_a_worker(MemoryError, "MemoryError"),
    ],
    SHARED: [
        RuntimeError("unable to write to file </torch_1_2_0>: No space left on device (28)"),
        of_a_worker(RuntimeError, "RuntimeError: </torch_1_2_0>: No space left on device (28)"),
        RuntimeError("DataLoader worker (pid 1) is killed by signal: Bus error. It is"),
        RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: Success (0)"),
    ],
    KILLED: [
        RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed. "),
        RuntimeError("DataLoader worker (pid(s) 1, 2) exited unexpectedly"),
        RuntimeError("Pin memory thread exited unexpectedly"),
        ConnectionResetError(104, "Connection reset by peer"),
        EOFError(),
    ],
    FILES: [
        OSError(24, "Too many open files"),
        of_a_worker(OSError, "OSError: [Errno 24] Too many open files: '/x/y'"),
        RuntimeError("received 0 items of ancdata"),
        RuntimeError("unable to open shared memory object </torch_1>: Too many open files (24)"),
    ],
    CACHE: [RuntimeError("cannot cache function 'f': no locator available for file 'x.py'")],
    PROCESSES: [
        BlockingIOError(11, "Resource temporarily unavailable"),
        RuntimeError("can't start new thread"),
    ],
    # A path can hold any word, and a download's connection is not a worker's.
    "memory is not a folder": [FileNotFoundError("/data/allocated/shared memory is not a folder")],
    "/allocate cannot be used (No such file or directory)": [
        FileNotFoundError(2, "No such file or directory", "/allocate")
    ],
    "urlopen error": [OSError("<urlopen error [Errno 104] Connection reset by peer>")],
    "HTTP Error 404": [HTTPError("https://x.org", 404, "Not Found", {}, None)],
}


@pytest.mark.parametrize("expected", ERRORS)
def test_an_error_of_the_machine_names_the_flag(expected, capsys):
    """One line on stderr, and a status."""
    for error in ERRORS[expected]:
        with one_sentence("train.py") as program:
            program.started = True
            raise error
        assert program.status == 1
        message = capsys.readouterr().err
        assert message.count("\n") == 1 and expected in message, error


def test_version_names_the_project_and_its_libraries(capsys):
    """--version of every program; the revision where the code is in git."""
    for program in PROGRAMS:
        with pytest.raises(SystemExit) as end:
            program.main(["--version"])
        assert end.value.code == 0
        text = capsys.readouterr().out
        assert re.match(
            rf"lfm \d+\.\d+, python 3\.\d+\.\d+, torch {re.escape(torch.__version__)}\b", text
        )


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_unknown_flag_is_one_sentence(program, capsys):
    """Of every program, with exit status 2."""
    first = {predict: ["run"], figures: ["landscape"], response: ["table"]}.get(program, [])
    assert program.main([*first, "--sedd=1"]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "unknown flag '--sedd=1'" in said.err and not said.out


def test_help_is_as_wide_as_the_terminal_and_begins_with_commands(monkeypatch, capsys):
    """Three commands in its first ten lines; no name of a method is divided."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        train.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    commands = [line.split("   ")[0] for line in lines[:10] if line.startswith("python train.py")]
    assert commands == [
        "python train.py",
        "python train.py --dataset FOLDER",
        "python train.py --resume runs/RUN",
    ]
    assert not [line for line in lines if line.endswith("-")]


def test_a_number_and_its_noun_agree():
    """1 epoch, 2 epochs, 2 classes."""
    found = [
        amount(n, noun) for n, noun in [(1, "epoch"), (2, "epoch"), (0, "sample"), (2, "class")]
    ]
    assert found == ["1 epoch", "2 epochs", "0 samples", "2 classes"]


def test_settings_as_flags_are_words_of_a_command():
    """Numbers, texts with spaces, and switches."""
    settings = {"alpha_0": 0.5, "root": "my data", "heads": True, "bf16": False}
    assert as_flags(settings) == ["--alpha-0 0.5", "--root 'my data'", "--heads", "--no-bf16"]


@pytest.mark.parametrize("error", [KeyError("x"), TypeError("allocate"), RuntimeError("shape")])
def test_a_fault_of_the_code_keeps_its_traceback(error):
    """Also where its text has a word that the machine's errors have."""
    with pytest.raises(type(error)), one_sentence("train.py") as program:
        program.started = True
        raise error


@pytest.mark.parametrize("flag", ["--dataset", "--encoders", "--fusion"])
def test_a_students_own_error_keeps_its_traceback(tiny_data, monkeypatch, flag):
    """Python's own ValueError names file and line, also before the training starts."""

    def broken(*_):
        (_, _) = range(3)

    entries = {"--dataset": data.DATASETS, "--encoders": ENCODERS, "--fusion": FUSIONS}
    monkeypatch.setitem(entries[flag], "mine", broken)
    with pytest.raises(ValueError, match="too many values to unpack") as raised:
        train.main([*FLAGS, flag, "mine"])
    assert raised.traceback[-1].name == "broken"


@pytest.mark.parametrize("where", ["inner_step", "hypergradient", "scores", "make_model"])
def test_no_memory_is_said_wherever_it_ends(tiny_data, monkeypatch, capsys, where):
    """In a step, in Eq. 3, in the evaluation, before the start."""

    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    if where == "inner_step":
        monkeypatch.setattr(torch.optim.SGD, "step", fail)
    else:
        monkeypatch.setattr(train, where, fail)
    assert train.main(FLAGS) == (2 if where == "make_model" else 1)
    assert MEMORY in capsys.readouterr().err


def test_a_killed_reader_is_said(tiny_data, monkeypatch, capsys):
    """A worker that the system kills, as it does for lack of memory."""

    class Killed(Samples):
        def __getitem__(self, key):
            if torch.utils.data.get_worker_info():
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getitem__(key)

    def killed(*_):
        full = tiny()
        split = full.splits["train"]
        full.splits["train"] = Killed(split.sources, split.y, split.readers)
        return full

    monkeypatch.setitem(data.DATASETS, "tiny", killed)
    assert train.main([*FLAGS, "--workers", "1"]) == 1
    assert KILLED in capsys.readouterr().err


def test_an_evaluation_keeps_no_file_of_a_reader_open(tiny_data):
    """As many batches as there are samples: their labels are copies, which need no open file."""
    loader = eval_loader(tiny(n=300).splits["train"], 1, "cpu", workers=1)
    model = train.MultimodalModel([1, 2], 3)
    opened = []

    class Counting:
        def __iter__(self):
            for batch in loader:
                opened.append(len(os.listdir("/proc/self/fd")))
                yield batch

    train.evaluate(model, Counting(), ["image", "sound"])
    assert len(opened) == 300 and np.ptp(opened) < 100


def test_line_of_names_the_line_that_raised_or_the_first():
    """Of the function itself, not of what it calls; of a notebook's cell without its file name."""

    def mine(t, T):
        return len(t)

    with pytest.raises(TypeError) as raised:
        mine(1, 2)
    start = mine.__code__.co_firstlineno
    assert line_of(mine, raised.value) == f"mine, line {start + 1} of test_cli.py: return len(t)"
    assert line_of(mine, ValueError()) == f"mine, line {start} of test_cli.py: def mine(t, T):"
    names = {}
    exec(compile("\ndef cell(t, T): pass", "/tmp/ipykernel_1/2.py", "exec"), names)
    assert line_of(names["cell"], ValueError()).startswith("cell, line 2 of its cell")
    assert line_of(functools.partial(mine, 1), ValueError()).startswith("functools.partial(")
