"""docs/omega.ipynb and scripts/classroom.py: every cell runs, again and again, and comes empty; a
student's odd omega(t) is one sentence; finished runs are found again.

Jupyter is not needed: the cells' sources are executed here, with a stand-in for IPython.
"""

import json
import linecache
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from conftest import small_keypad

import data
import train
from losses import SCHEDULES
from scripts import render

NOTEBOOK = Path(__file__).parents[2] / "docs/omega.ipynb"
RENDERED = NOTEBOOK.with_name("omega-rendered.html")
CELLS = json.loads(NOTEBOOK.read_text())["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]
TEXT = "\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")


def cell(words):
    """The number of the first code cell with these words."""
    return next(k for k, source in enumerate(CODE) if words in source)


MINE, LEARN, FIRST_RUN = cell("def mine(t, T)"), cell('learn("mine")'), cell('learn("constant:0")')
COMPARE = cell("runs = finished(EPOCHS)")


class Notebook:
    """The cells in one namespace, as a kernel runs them."""

    def __init__(self, folder):
        self.names, self.folder, self.shown, self.after = {}, folder, [], []

    def display(self, thing, display_id=None, update=False):
        self.shown.append(thing)

    def prepare(self):
        """Run the cells before the first training, and define learn."""
        for k in range(FIRST_RUN):
            self.run(k)
        self.run(FIRST_RUN, CODE[FIRST_RUN].replace('learn("constant:0")', ""))

    def register(self, event, function):
        if event == "post_run_cell":  # matplotlib registers another one
            self.after.append(function)

    def run(self, k, source=None):
        """Run cell k, or a student's source in its place; few epochs, in a folder of the test.

        As in Jupyter, nothing of a cell with an error of syntax is run.
        """
        source = CODE[k] if source is None else source
        source = source.replace("EPOCHS = 10", "EPOCHS = 2")
        source = source.replace('"--overwrite"]', '"--overwrite", "--inner-iters", "2"]')
        source = source.replace("runs/omega", str(self.folder / "omega"))
        source = source.replace("train.Run = LiveRun", "train.Run = LiveRun; move_runs()")
        name, error = f"/tmp/ipykernel_1/{k}.py", None
        linecache.cache[name] = (len(source), None, source.splitlines(True), name)
        try:
            program = compile(source, name, "exec")
        except SyntaxError as found:
            program, error = "", found
        exec(program, self.names)
        for function in self.after:
            function(types.SimpleNamespace(error_before_exec=error))


@pytest.fixture
def notebook(monkeypatch, tmp_path):
    """A fresh kernel, started in docs/ as Jupyter does."""
    made = Notebook(tmp_path)

    def move_runs():
        monkeypatch.setattr(sys.modules["scripts.classroom"], "RUNS", tmp_path / "omega")

    made.names["move_runs"] = move_runs
    fake, parent = types.ModuleType("IPython.display"), types.ModuleType("IPython")
    fake.display, fake.Image = made.display, lambda path: Path(path).read_bytes()[:4]
    fake.Audio = lambda wave, rate: (len(wave), rate)
    events = types.SimpleNamespace(register=made.register)
    parent.version_info, parent.display = (9, 0), fake  # matplotlib asks for the version
    parent.get_ipython = lambda: types.SimpleNamespace(events=events)
    monkeypatch.setitem(sys.modules, "IPython", parent)
    monkeypatch.setitem(sys.modules, "IPython.display", fake)
    monkeypatch.delitem(sys.modules, "scripts.classroom", raising=False)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    monkeypatch.setattr(data, "keypad", small_keypad)
    monkeypatch.setitem(data.DATASETS, "keypad", small_keypad)
    monkeypatch.chdir(NOTEBOOK.parent)
    monkeypatch.setattr(train, "Run", train.Run)  # a cell replaces it
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(sys, "path", list(sys.path))
    threads = torch.get_num_threads()
    yield made
    torch.set_num_threads(threads)
    SCHEDULES.pop("mine", None)
    sys.modules.pop("scripts.classroom", None)


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom_and_again(notebook, capsys):
    """Every cell: a sample, two sounds, a picture after each epoch, all runs compared; the second
    time the first training and the comparison."""
    for cells in (range(len(CODE)), [*range(FIRST_RUN + 1), COMPARE, len(CODE) - 1]):
        notebook.shown.clear()
        for k in cells:
            notebook.run(k)
        said, runs = capsys.readouterr(), 4 if len(cells) == len(CODE) else 1
        assert said.err == "" and "| learning-based --epochs 2" in said.out
        assert notebook.shown.count(b"\x89PNG") == 1 + runs * 2 + 3  # sample; 2 epochs each; all
        assert notebook.shown.count((2000, 4000)) == 2  # half a second at 4 kHz, clean and noisy
        assert "4 runs of 2 epochs have come to their end" in said.out
    assert (notebook.folder / "omega/keypad-mine/log.jsonl").is_file()


def test_finished_runs_are_found_after_a_restart(notebook, capsys):
    """By a new kernel, from the disk; of the same number of epochs, and not one that was stopped;
    without any, the last cell says so."""
    for k in range(FIRST_RUN):
        notebook.run(k)
    notebook.run(COMPARE)
    assert "0 runs of 2 epochs have come to their end" in capsys.readouterr().out
    notebook.run(FIRST_RUN)
    notebook.run(FIRST_RUN, "learn('constant:0.5')")
    log = notebook.folder / "omega/keypad-constant0.5/log.jsonl"
    log.write_text("".join(log.read_text().splitlines(True)[:-1]))  # stopped before the test
    notebook.names = {"move_runs": notebook.names["move_runs"]}
    for k in [*range(FIRST_RUN), COMPARE]:
        notebook.run(k)
    said = capsys.readouterr()
    assert "1 runs of 2 epochs" in said.out
    assert "| constant:0 --epochs 2 --inner-iters 2 |" in said.out
    assert said.err == "" and notebook.names["finished"](3) == []


ODD = {  # the body of mine: what is said about it
    "return 1 / (t - 1)": r"mine: t = 1 \(ZeroDivisionError: division by zero\); mend mine, line 2",
    "return alpha": r"mine: t = 1 \(NameError: name 'alpha' is not defined\); mend mine, line 2",
    "pass": r"mine: t = 1 \(TypeError: None: a return line is missing\); mend mine, line 1",
    "return float('nan')": r"mine: t = 1 \(ValueError: nan\); mend mine, line 1 of its cell",
    "return [0.5]": r"mine: t = 1 \(TypeError: .*'list'\); mend mine",
    "return 1j": r"mine: t = 1 \(TypeError: .*complex.*\); mend mine",
    "return mine(t, T)": r"mine: t = 1 \(RecursionError: .*\); mend mine, line 2",
    "return T / 0 if t == 2 else 0": r"mine: t = 2 \(ZeroDivisionError: .*\); mend mine, line 2",
}


def test_an_odd_omega_names_the_line_and_the_next_cell_works(notebook, capsys):
    """One sentence for the check; no training; the mended cell then runs."""
    notebook.prepare()
    notebook.run(MINE)  # a good one, which must not stay
    capsys.readouterr()
    for body, sentence in ODD.items():
        notebook.run(MINE, f"def mine(t, T):\n    {body}\n\n\ncheck(mine, EPOCHS)\n")
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and re.match(sentence, said), said
        notebook.run(LEARN)
        said = capsys.readouterr()
        assert said.err == "" and said.out.startswith("mine is not defined: run the cell")
    for k in (MINE, LEARN):
        notebook.run(k)
    assert notebook.names["finished"](2)[-1].endswith("keypad-mine")


CLIPPED = "it leaves [0, 1] and is clipped; change its return line\n"
VALUES = {  # the value of mine: alpha, and the note
    "'0.5'": (0.5, ""),
    "np.float32(0.5)": (0.5, ""),
    "torch.tensor(0.5)": (0.5, ""),
    "-1": (0.0, CLIPPED),
    "float('inf')": (1.0, CLIPPED),
}


@pytest.mark.slow
def test_the_check_and_the_training_have_the_same_alpha(notebook, capsys):
    """A value that is nearly a number counts as one; outside [0, 1] it is clipped, and said."""
    notebook.prepare()
    notebook.run(FIRST_RUN, "import numpy as np\n")
    for value, (alpha, note) in VALUES.items():
        capsys.readouterr()
        notebook.run(MINE, f"def mine(t, T):\n    return {value}\n\n\ncheck(mine, EPOCHS)")
        assert capsys.readouterr().out == f"alpha: {alpha:.2f} {alpha:.2f}\n{note}"
        notebook.run(LEARN)
        said = capsys.readouterr()
        assert said.err == "" and f"2/2  alpha {alpha:.3f}" in said.out


def test_other_parameters_are_one_sentence(notebook, capsys):
    """An omega has the two that Algorithm 1 gives it."""
    notebook.prepare()
    for parameters in ("t", "t, T, p", ""):
        notebook.run(MINE, f"def mine({parameters}):\n    return 0.5\n\n\ncheck(mine, EPOCHS)\n")
        said = capsys.readouterr().err
        assert said == "mine: it needs exactly two parameters: def mine(t, T):\n"
        assert "mine" not in SCHEDULES


def test_after_an_error_of_syntax_the_old_function_is_not_trained(notebook, capsys):
    """Python runs nothing of that cell, so that the schedule before it is still there."""
    notebook.prepare()
    notebook.run(MINE)
    assert "mine" in SCHEDULES
    notebook.run(MINE, "def mine(t, T)\n    return 0.5\n\n\ncheck(mine, EPOCHS)\n")
    capsys.readouterr()
    notebook.run(LEARN)
    assert capsys.readouterr().out.startswith("mine is not defined")


def test_a_stopped_run_says_what_to_do(notebook, capsys, monkeypatch):
    """Run the cell again: the command line does not know the notebook's schedule."""
    notebook.prepare()
    notebook.run(MINE)
    live = sys.modules["scripts.classroom"].LiveRun
    monkeypatch.setattr(live, "progress", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    capsys.readouterr()
    notebook.run(LEARN)
    assert capsys.readouterr().err == "train.py: stopped; run this cell again to start over\n"


def test_an_unknown_key_is_one_sentence(notebook, capsys):
    """hear(12); the text "5" is the key 5."""
    notebook.prepare()
    capsys.readouterr()
    notebook.run(FIRST_RUN, "hear(12)")
    said = capsys.readouterr().err
    assert said.startswith("hear: unknown key '12'") and said.count("\n") == 1
    notebook.run(FIRST_RUN, "hear('5')")
    assert capsys.readouterr().err == "" and notebook.shown[-1] == b"\x89PNG"


def test_without_the_project_the_first_cell_says_what_to_set(notebook, monkeypatch, tmp_path):
    """In one line, all that Jupyter prints of it; it clones only an address that was given."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match="set PROJECT in this cell") as caught:
        notebook.run(0)
    assert caught.value._render_traceback_() == [str(caught.value)]
    wrong = CODE[0].replace('PROJECT = ""', f"PROJECT = {str(tmp_path / 'nothing')!r}")
    with pytest.raises(Exception, match="git could not clone .*nothing: check the address"):
        notebook.run(0, wrong)


def test_the_notebook_comes_empty():
    """No output and no answer: the class predicts first. Eq. 1 to 3 are typeset."""
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert "<details>" not in TEXT and TEXT.count("**Write down first") == 4
    assert TEXT.count("$$") == 6 and NOTEBOOK.stat().st_size < 20_000


def test_the_rendered_notebook_is_this_one():
    """All lines of the cells, with their pictures, without an error or a path of a machine."""
    import html

    text = RENDERED.read_text(encoding="utf-8")
    assert RENDERED.stat().st_size < 1.5e6
    shown = re.sub(r"\s", "", html.unescape(re.sub(r"<[^>]*>", "", text)))
    for source in CODE:
        for line in source.splitlines():
            assert re.sub(r"\s", "", line) in shown, f"{line}; render it again: docs/TEACHING.md"
    assert len(re.findall(r"<img\b", text)) == 8 and "Traceback" not in text and "/work" not in text


def test_the_rendered_equations_need_no_network():
    """They are MathML, with the LaTeX as alternative text; there is no script. A star in one begins
    no emphasis."""
    text = RENDERED.read_text(encoding="utf-8")
    assert "<script" not in text and text.count("<math alttext=") == len(
        re.findall(r"\$+[^$]+\$+", TEXT)
    )
    assert "$$" not in text
    made = render.with_mathml("a $\\theta^*$ and *b*\n\n$$x\n= 1$$")
    assert made.count("<math ") == 2 and "$" not in made and made.count("*") == 2
    assert 'display="block"' in made.split("*b*")[1]


def test_the_plumbing_is_short():
    """At most 90 lines."""
    assert len((NOTEBOOK.parents[1] / "scripts/classroom.py").read_text().splitlines()) <= 90
