"""docs/omega.ipynb: every cell runs, again and again; a student's broken omega(t) is one sentence.

Jupyter is not needed: the cells' sources are executed here, with a stand-in for IPython.display.
"""

import functools
import json
import linecache
import sys
import types
from pathlib import Path

import pytest
import torch

import data
import train
from losses import SCHEDULES

NOTEBOOK = Path(__file__).parents[2] / "docs/omega.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]
TEXT = "\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")


def cell(words):
    """The number of the first code cell with these words."""
    return next(k for k, source in enumerate(CODE) if words in source)


keypad = functools.cache(data.keypad)  # made once, to be quick
MINE = cell("def mine")
LEARN = cell('learn("mine")')


class Notebook:
    """The cells in one namespace, as a kernel runs them: a plain SystemExit stops a cell only."""

    def __init__(self, folder):
        self.names, self.folder, self.shown = {}, folder, []

    def display(self, thing, display_id=False):
        self.shown.append(thing)
        return types.SimpleNamespace(update=self.shown.append) if display_id else None

    def run(self, k, source=None):
        """Run cell k, or a student's source in its place; few epochs, in a folder of the test."""
        source = CODE[k] if source is None else source
        source = source.replace("EPOCHS = 10", "EPOCHS = 2")
        source = source.replace("FLAGS = [", 'FLAGS = ["--inner-iters", "2", ')
        source = source.replace('"runs/omega"', repr(str(self.folder / "omega")))
        name = f"/tmp/ipykernel_1/{k}.py"
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        exec(compile(source, name, "exec"), self.names)


@pytest.fixture
def notebook(monkeypatch, tmp_path):
    """A fresh kernel, started in docs/ as Jupyter does."""
    made = Notebook(tmp_path)
    fake = types.ModuleType("IPython.display")
    fake.display, fake.Image = made.display, lambda path: Path(path).read_bytes()[:4]
    fake.Audio = lambda wave, rate: (len(wave), rate)
    parent = types.ModuleType("IPython")
    parent.version_info, parent.get_ipython = (9, 0), lambda: None  # matplotlib asks for them
    monkeypatch.setitem(sys.modules, "IPython", parent)
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    monkeypatch.setattr(data, "keypad", keypad)
    monkeypatch.setitem(data.DATASETS, "keypad", keypad)
    monkeypatch.chdir(NOTEBOOK.parent)
    monkeypatch.delitem(SCHEDULES, "mine", raising=False)
    monkeypatch.setattr(train, "Run", train.Run)  # a cell replaces it
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "path", list(sys.path))
    threads = torch.get_num_threads()
    yield made
    torch.set_num_threads(threads)


def test_the_notebook_runs_from_top_to_bottom_and_again(notebook, capsys):
    """Every cell, twice: samples, a sound, a picture after each epoch, and all runs compared."""
    for _ in range(2):
        notebook.shown.clear()
        for k in range(len(CODE)):
            notebook.run(k)
        said = capsys.readouterr()
        assert said.err == "" and "| learning-based --epochs 2" in said.out
        assert notebook.shown.count(b"\x89PNG") == 1 + 3 * 2 + 2  # samples; 3 runs, 2 epochs; both
        assert (2000, 4000) in notebook.shown  # half a second at 4 kHz
    assert list(notebook.names["finished"]) == ["constant:0", "mine", "learning-based"]
    assert (notebook.folder / "omega/mine/log.jsonl").is_file()


BROKEN = {  # the body of mine: (why, the line to mend)
    "return 1 / (t - 1)": ("division by zero", "line 2 of its cell: return 1 / (t - 1)"),
    "return alpha": ("'alpha' is not defined", "line 2 of its cell: return alpha"),
    "pass": ("'NoneType'", "line 1 of its cell: def mine(t, T):"),
    "return float('nan')": ("nan", "line 1 of its cell: def mine(t, T):"),
}


def test_a_broken_omega_names_the_line_and_the_next_cell_works(notebook, capsys):
    """One sentence for the check and for the training, no traceback; the mended cell then runs."""
    for k in range(MINE):
        notebook.run(k)
    for body, (why, line) in BROKEN.items():
        notebook.run(MINE, f'def mine(t, T):\n    {body}\n\n\nSCHEDULES["mine"] = mine\n')
        capsys.readouterr()
        for k in range(MINE + 1, LEARN + 1):
            notebook.run(k)
            said = capsys.readouterr().err
            assert said.count("\n") == 1 and why in said and said.endswith(f"mend mine, {line}\n")
    notebook.run(len(CODE) - 1)
    assert list(notebook.names["finished"]) == ["constant:0"]
    for k in (MINE, LEARN):
        notebook.run(k)
    assert list(notebook.names["finished"]) == ["constant:0", "mine"]


def test_an_omega_outside_0_and_1_is_told(notebook, capsys):
    """It is clipped, as train.py clips it, and the cell before the training says so."""
    for k in range(MINE):
        notebook.run(k)
    notebook.run(MINE, 'def mine(t, T):\n    return 2\n\n\nSCHEDULES["mine"] = mine\n')
    capsys.readouterr()
    for k in range(MINE + 1, LEARN + 1):
        notebook.run(k)
    said = capsys.readouterr().out
    told = "t =  1  mine returns 2, alpha = 1.000  <- is outside [0, 1] and is clipped: mend the"
    assert told in said and "mine" in notebook.names["finished"]


def test_without_the_project_the_first_cell_says_what_to_set(notebook, monkeypatch, tmp_path):
    """It clones only an address that was given."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="set PROJECT"):
        notebook.run(0)


def test_the_notebook_is_committed_with_its_outputs():
    """Run in order, without an error, a warning or a path of the machine it ran on; under 1 MB."""
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 6
    assert sum("<audio" in str(output.get("data", {})) for output in outputs) == 1
    assert all(o["output_type"] != "error" and o.get("name") != "stderr" for o in outputs)
    assert NOTEBOOK.stat().st_size < 1e6 and ".venv" not in NOTEBOOK.read_text()


def test_the_notebook_asks_three_questions_with_hidden_answers():
    """Each answer opens by a click."""
    assert TEXT.count("<details><summary>Answer</summary>\n\n") == 3 == TEXT.count("</details>")
