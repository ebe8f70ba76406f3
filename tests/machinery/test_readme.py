"""README.md and docs/: the commands run, the names and the links exist."""

import ast
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_jpg, make_wav

import baselines
import bilevel
import data
import losses
import model
import train
from baselines import BASELINES
from scripts import figures, prepare, sweep
from utils.modalities import MODALITIES
from utils.run import folder_of

ROOT = Path(__file__).parents[2]
PATHS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = {path: path.read_text() for path in PATHS}
README, ALL = PAGES[ROOT / "README.md"], "\n".join(PAGES.values())
TRY_IT = README.split("## Try it")[1].split("\n## ")[0]
EXERCISES = PAGES[ROOT / "docs/EXERCISES.md"]
ANSWERS = PAGES[ROOT / "docs/ANSWERS.md"]
CHOICES = PAGES[ROOT / "docs/CHOICES.md"]
SOURCES = sorted(p for folder in (".", "utils", "scripts") for p in (ROOT / folder).glob("*.py"))
INSTALL = "python3 -m venv .venv && . .venv/bin/activate && pip install -r "


def code(text, language):
    """The blocks of code in that language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def commands(text):
    """A page's commands: each line of its sh blocks, and each `python ...` in the text."""
    lines = [line for block in code(text, "sh") for line in block.splitlines() if line.strip()]
    return lines + re.findall(r"`(python [^`]*)`", text)


def scripts(command):
    """(program, its arguments) of each of our programs that a command calls, in order."""
    program = r"\b(train\.py|scripts\.(?:figures|gain|prepare|sweep|why))(.*?)(?=;|&&| #|$)"
    return [(call[1], shlex.split(call[2])) for call in re.finditer(program, command)]


def test_the_first_commands_install_and_run_everything():
    """One line each on a fresh machine: the main job, and the tests as .ci/run calls them."""
    first = code(TRY_IT, "sh")[0].splitlines()
    assert first == [
        INSTALL + "requirements.txt && python train.py",
        INSTALL + "requirements-dev.txt && python -m pytest",
    ]
    assert (ROOT / "requirements-dev.txt").read_text().startswith("-r requirements.txt\n")
    ci = (ROOT / ".ci/run").read_text()
    assert "cat requirements.txt requirements-dev.txt " in ci  # either one makes a new .venv
    pattern = re.search(r"grep -m 1 -E '(.*?)' README.md", ci)[1]
    assert re.search(pattern, README, re.M).group() == first[1]


def test_the_readme_is_short():
    """At most 180 lines of 120 columns, tables included, and 1,500 words; the rest is in docs/."""
    lines = README.splitlines()
    assert len(lines) <= 180 and len(README.split()) <= 1500
    assert [line for line in lines if len(line) > 120] == []


def test_no_command_names_the_environment():
    """It is activated once; after that a command is plain `python ...`."""
    assert ".venv/bin/python" not in ALL


def anchors(text):
    """The headings of a page as GitHub makes links of them; of HTML the ids."""
    if text.startswith("<!doctype html>"):
        return set(re.findall(r'id="([^"]*)"', text))
    headings = re.findall(r"^#+ (.*)", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_and_picture_exists(page):
    """Each relative link leads to a file or a folder, and to a heading of it where it names one."""
    for target in re.findall(r"\]\(([^)]*)\)", PAGES[page]):
        if not re.match(r"\w+:", target):
            path, _, heading = target.partition("#")
            path = (page.parent / path).resolve() if path else page
            assert path.exists(), target
            assert not heading or heading in anchors(path.read_text()), target


def test_every_page_and_picture_is_reached():
    """Every file in docs/ has a link from another page."""
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page, text in PAGES.items()
        for target in re.findall(r"\]\(([^)#:]+)", text)
    }
    assert set((ROOT / "docs").iterdir()) <= linked


@pytest.mark.slow
def test_the_main_job_runs(tmp_path):
    """The first command after its install, one short epoch of it: from no argument to the table."""
    command = [sys.executable, ROOT / "train.py", "--epochs", "1", "--inner-iters", "2"]
    command += ["--out", tmp_path / "run"]
    how = {"cwd": tmp_path, "text": True, "capture_output": True, "check": True}
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **how)
    assert done.stdout.startswith("keypad, learning-based, seed 0")
    assert re.search(r"^fused +\d", done.stdout, re.M)
    assert re.search(r"^perf_gap \d", done.stdout, re.M)


def own_data(folder):
    """The README's example of your own data, with the files that it names."""
    (table,) = code(README, "csv")
    make = {".jpg": make_jpg, ".wav": make_wav}
    for name in re.findall(r"\w+/\w+\.\w+", table):
        make[Path(name).suffix](folder / name)
    (folder / "samples.csv").write_text(table)


def test_the_example_of_own_data_trains(tmp_path, monkeypatch, capsys):
    """The README's table and command, for one epoch."""
    monkeypatch.chdir(tmp_path)
    own_data(tmp_path / "mine")
    (command,) = [c for c in commands(README) if "--dataset mine" in c]
    ((_, arguments),) = scripts(command)
    assert train.main([*arguments, "--epochs", "1", "--inner-iters", "2"]) == 0
    assert "2 classes: cat, dog" in capsys.readouterr().out


@pytest.mark.parametrize("script, arguments", [call for c in commands(ALL) for call in scripts(c)])
def test_every_command_parses(script, arguments, monkeypatch, tmp_path, capsys):
    """Flags and names exist; a shell variable is a seed."""
    monkeypatch.setitem(losses.SCHEDULES, "linear", lambda t, T: 1 - t / T)  # as in the README
    monkeypatch.setitem(BASELINES, "mine", baselines.Baseline)  # likewise
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(losses.SCHEDULES, "fitted", losses.cubic)  # as in the exercises
    monkeypatch.setitem(bilevel.SOLVERS, "released", bilevel.neumann)
    for name in ("product", "maximum"):
        monkeypatch.setitem(model.FUSIONS, name, model.Add)
    values = {"$seed": "0", "DIR": ".", "NAME": "cremad", "FOLDER": "mine"}
    own_data(tmp_path / "mine")
    arguments = [values.get(a, a) for a in arguments]
    if script == "train.py":
        monkeypatch.setattr(train, "resumed_settings", lambda folder, given, *_: given)
        train.check(train.parse(arguments))
    elif script == "scripts.sweep":
        monkeypatch.setattr(sweep, "run_all", lambda *_: {})
        monkeypatch.setattr(sweep, "validation_acc", lambda _: 0.0)
        assert sweep.main(arguments) == 0
    elif script == "scripts.prepare":
        monkeypatch.setattr(prepare, "prepare", lambda *_: None)
        monkeypatch.setattr(prepare, "write_samples", lambda *_: None)
        assert prepare.main(arguments) == 0
    else:
        monkeypatch.setattr(figures, "draw", lambda *_: None)  # landscape needs no run
        status = importlib.import_module(script).main(arguments)
        assert status == 2 or arguments[0] == "landscape"
        said = capsys.readouterr().err  # no such run, but every flag is one
        assert "usage" not in said and "unknown" not in said and "invalid" not in said, said


def test_every_program_of_a_command_exists():
    """`python NAME.py` and `python -m scripts.NAME`, also where no test parses the flags."""
    text = "\n".join(commands(ALL))
    names = set(re.findall(r"python ([\w/.]+\.py)", text))
    names |= {name.replace(".", "/") + ".py" for name in re.findall(r"-m (scripts\.\w+)", text)}
    assert {"train.py", "scripts/costs.py"} <= names
    assert [name for name in names if not (ROOT / name).is_file()] == []


def test_three_lines_add_a_schedule(monkeypatch):
    """The README's omega(t), between the marks of losses.py, is a `--method` and is tested."""
    block = code(README, "python")[0]
    assert len(list(filter(None, block.splitlines()))) == 3
    monkeypatch.setitem(losses.SCHEDULES, "linear", None)  # removed again at the end
    exec(block, vars(losses).copy())
    train.check(train.parse(["--method", "linear"]))
    assert 0 < losses.make_schedule("linear")(1, 7) <= 1
    tests = (ROOT / "tests/method/test_losses.py").read_text()
    assert '@pytest.mark.parametrize("name", SCHEDULES)' in tests


def test_five_lines_add_a_method(tmp_path, monkeypatch):
    """The README's class, at the end of baselines.py, is a `--method` that trains."""
    block = code(README, "python")[1]
    assert len(block.splitlines()) == 5
    monkeypatch.setitem(BASELINES, "mine", None)  # removed again at the end
    exec(block, vars(baselines).copy())
    arguments = ["--method", "mine", "--epochs", "1", "--inner-iters", "2"]
    assert train.main([*arguments, "--out", str(tmp_path / "run")]) == 0
    log = (tmp_path / "run/log.jsonl").read_text().splitlines()
    epoch = json.loads(log[1])
    assert epoch["alpha"] == 0 and epoch["l_total"] > 3  # log 10 for the fused loss, 2.3 for own


def test_one_entry_adds_a_kind_of_data(tmp_path, monkeypatch):
    """The README's reader, in data.py, makes a column `sensor` of samples.csv train."""
    block = code(README, "python")[2]
    monkeypatch.setitem(MODALITIES, "sensor", None)  # removed again at the end
    exec(block, vars(data).copy())
    monkeypatch.chdir(tmp_path)
    lines = ["split,label,sensor,sensor:other"]
    for n in range(12):
        np.savetxt(f"{n}.txt", np.arange(5.0) + n % 2)
        lines.append(f"{'test' if n > 7 else 'train'},{'ab'[n % 2]},{n}.txt,{n}.txt")
    Path("samples.csv").write_text("\n".join(lines))
    arguments = ["--dataset", ".", "--method", "heuristic", "--epochs", "1", "--workers", "0"]
    assert train.main([*arguments, "--out", "run"]) == 0
    *_, scores = map(json.loads, Path("run/log.jsonl").read_text().splitlines())
    assert {"sensor", "other"} <= set(scores["test"])


def test_the_pages_name_what_exists():
    """Every `file.py:name` is there."""
    names = re.findall(r"`([\w/]+)\.py:(\w+(?:\.\w+)?)`", ALL)
    assert len(names) > 40
    for module, name in names:
        thing = importlib.import_module(module.replace("/", "."))
        for part in name.split("."):
            thing = getattr(thing, part)


def test_the_exercises_runs_do_not_meet(monkeypatch, tmp_path):
    """Every command of the exercises, in their order, has a folder of its own."""
    monkeypatch.chdir(tmp_path)
    runs = re.findall(r"^OMP_NUM_THREADS=1 python train\.py (--.*)$", EXERCISES, re.M)
    folders = [str(folder_of(train.parse(command.split()))) for command in runs]
    assert len(folders) > 15 and len(set(folders)) == len(folders)


def test_the_lines_that_fit_a_cubic_run(monkeypatch, tmp_path, capsys):
    """On a log as train.py writes it, they print the coefficients of its curve."""
    monkeypatch.chdir(tmp_path)
    fit, _ = code(EXERCISES, "python")
    log = tmp_path / re.search(r'open\("(.*?)"\)', fit)[1]
    log.parent.mkdir(parents=True)
    epochs = [{"t": t, "alpha": 1 - 0.1 * t + 0.002 * t**3} for t in range(1, 11)]
    lines = [{"settings": {}}, *epochs, {"test": {}}]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    exec(fit, {})
    numbers = [float(x) for x in capsys.readouterr().out.strip(" []\n").split()]
    assert numbers == pytest.approx([0.002, 0, -0.1, 1], abs=1e-6)


def test_the_lines_of_the_released_formula_run(monkeypatch):
    """Its value is the mean of H v over the first tensor, without a minus."""
    _, lines = code(EXERCISES, "python")
    monkeypatch.setattr(bilevel, "SOLVERS", dict(bilevel.SOLVERS))
    exec(lines, {"SOLVERS": bilevel.SOLVERS})
    a, b = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([3.0], requires_grad=True)
    l_cls, l_mm = lambda: (a**3).sum() + a.sum() * b.sum(), lambda: (b**2).sum()
    value, report = bilevel.hypergradient(l_cls, lambda: (l_cls(), l_mm()), [a, b], 0.5, "released")
    v = [3 + 3, 12 + 3, 1 + 2]  # grad L_CLS
    expected = 0.5 * ((6 * v[0] + v[2]) + (12 * v[1] + v[2])) / 2  # the rows of a of 0.5 Hess L_CLS
    assert value == pytest.approx(expected) and report["terms"] == 1


def columns(table):
    """[(first cell, [cells])] of a table in Markdown, without its head."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return [(first, cells) for first, *cells in rows[2:]]


def short(row):
    """`mla:1 †` -> `mla`: a chosen number differs between the sets."""
    return re.split("[: ,]", row)[0]


def in_full(heading):
    """[(row, `ACC`, `difference *`)] of the table below a heading of TABLES.md; *: p < 0.05."""
    part = PAGES[ROOT / "docs/TABLES.md"].split(f"## {heading}\n\n")[1].split("\n\n")[0]
    found = []
    for row, (_, acc, *_, difference, p) in columns(part):
        star = " *" if p and float(p) < 0.05 else ""
        found += [(short(row), acc, difference + star)] if acc else []
    return found


CONDENSED = {"The losses": "The losses: {}", "Table 1": "Table 1: {}"}


@pytest.mark.parametrize("part", CONDENSED)
def test_the_tables_of_results_are_those_of_all_tables(part):
    """Each row's ACC, difference and star, for each data set, in the same order; of Table 1 without
    the last nine, which vary the losses."""
    text = PAGES[ROOT / "docs/RESULTS.md"]
    table = re.search(r"^\| \|.*?(?=\n\n)", text[text.index(f"## {part}") :], re.M | re.S)[0]
    heads = [cell.strip() for cell in table.splitlines()[0].split("|")[2:-1:2]]
    assert len(heads) > 1
    for j, head in enumerate(heads):
        shown = [(short(row), *cells[2 * j : 2 * j + 2]) for row, cells in columns(table)]
        expected = in_full(CONDENSED[part].format(head))
        assert shown == (expected[:-9] if part == "Table 1" else expected)


def innermost(tree, n):
    """The name of the innermost function or class around line n, as in `Run.save`."""
    names, body = [], tree.body
    while node := next((x for x in body if x.lineno <= n <= x.end_lineno), None):
        if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            break
        names.append(node.name)
        body = node.body if isinstance(node, ast.ClassDef) else []
    return ".".join(names)


def marked(mark):
    """file.py:name around each `# mark:` of the code, in order, as often as there are marks."""
    places = []
    for path in SOURCES:
        text = path.read_text()
        tree = ast.parse(text)
        for n, line in enumerate(text.splitlines(), 1):
            if f"# {mark}:" in line:
                places.append(f"{path.relative_to(ROOT)}:{innermost(tree, n)}")
    return sorted(places)


def test_every_silence_and_departure_has_a_row():
    """The marks in the code and the rows of docs/CHOICES.md agree."""
    for mark in ("Paper silent", "Departs from paper"):
        section = re.search(rf"^{mark}:.*?\n(.*?)(?=^#|\Z)", CHOICES, re.M | re.S)[1]
        rows = [row for row in section.splitlines() if row.startswith("| ")][1:]  # without the head
        assert marked(mark) == sorted(row.split("|")[-2].strip(" `") for row in rows), mark
