"""The README's commands run, and the functions that it names exist."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import figures
import losses
import prepare
import train

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FIRST_SCREEN = README.split("\n## ")[0]
EXERCISES = README.split("## Exercises")[1].split("\n## ")[0]
INSTALL = "python3 -m venv .venv && .venv/bin/python -m pip install -r requirements.txt && "
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"^```sh\n(.*?)^```", README, re.M | re.S)
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip()
]


def test_the_first_screen_has_two_commands_that_install():
    """One line each, install included: the main job, and the tests as .ci/run calls them."""
    first = [c for c in COMMANDS if c in FIRST_SCREEN]
    assert first == [INSTALL + ".venv/bin/python train.py", INSTALL + ".venv/bin/python -m pytest"]
    pattern = re.search(r"grep -m 1 -E '(.*?)' README.md", (ROOT / ".ci/run").read_text())[1]
    assert re.search(pattern, README, re.M).group() == first[1]


def test_the_main_job_runs(tmp_path):
    """The first command after its install, one short epoch of it: from no argument to the table."""
    arguments = ["--epochs", "1", "--inner-iters", "2", "--out"]
    done = subprocess.run([sys.executable, ROOT / "train.py", *arguments, tmp_path / "run"], text=True, cwd=tmp_path,
                          capture_output=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.stdout.startswith("keypad, learning-based, seed 0")
    assert (
        re.search(r"^fused +\d", done.stdout, re.M) and "perf_gap" in done.stdout.splitlines()[-2]
    )


@pytest.mark.parametrize("command", [c for c in COMMANDS if re.search(r"(train|figures|data)\.py", c)])
def test_every_command_of_the_readme_parses(command, monkeypatch, tmp_path):
    """Flags and method names exist; shell variables stand for a seed or a method."""
    monkeypatch.setitem(losses.SCHEDULES, "linear", lambda t, T: 1 - t / T)  # the README's own omega(t)
    monkeypatch.setattr(train, "METHODS", [*train.METHODS, "linear"])
    monkeypatch.chdir(tmp_path)
    script, *arguments = re.search(r"(train|figures|data)\.py(.*?)(?=;|&&|$)", command).group().split()
    values = {"$seed": "0", "$method": "heuristic", "$data": "keypad", "$decay": "0.1", "DIR": "."}
    arguments = [values.get(a.strip("'\""), a) for a in arguments]
    if script == "train.py":
        monkeypatch.setattr(train, "continued", lambda folder, given: given)
        s = train.parse([a for a in arguments if not a.startswith("$")])
        train.check(s)
    elif script == "data.py":
        monkeypatch.setattr(prepare, "prepare", lambda *_: None)
        assert prepare.main(arguments) == 0
    else:
        assert figures.main(arguments) == 2  # no such run, but every flag is one


def test_three_lines_add_a_schedule(tmp_path):
    """The README's own omega(t), put between the marks: its --method name and its test are there at once."""
    block = re.search(r"^```python\n(.*?)^```", README, re.M | re.S)[1]
    assert block.count("\n") == 3
    for path in [*ROOT.glob("*.py"), ROOT / "tests/test_losses.py", ROOT / "pyproject.toml"]:
        text = path.read_text()
        if path.name == "losses.py":
            text = text.replace("# --- end ---", block + "# --- end ---", 1)
        (tmp_path / path.name).write_text(text)
    code = "import train; train.check(train.parse(['--method', 'linear']))"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    tests = [sys.executable, "-m", "pytest", "-q", "test_losses.py", "-k", "every_schedule and linear"]
    done = subprocess.run(tests, cwd=tmp_path, capture_output=True, text=True)
    assert "3 passed" in done.stdout, done.stdout


def test_the_readme_names_what_exists():
    """Every `file.py:name` is there."""
    names = re.findall(r"`(\w+)\.py:(\w+(?:\.\w+)?)`", README)
    assert len(names) > 10
    for module, name in names:
        thing = importlib.import_module(module)
        for part in name.split("."):
            thing = getattr(thing, part)


def test_every_exercise_has_its_commands_and_its_answer():
    """Flags and methods in the table of the exercises exist, and ANSWERS.md answers each in its order."""
    rows = re.findall(r"^\| (\d+) \|.*", EXERCISES, re.M)
    assert rows == [str(n + 1) for n in range(len(rows))] and len(rows) >= 8
    assert re.findall(r"^(\d+)\. ", (ROOT / "ANSWERS.md").read_text(), re.M) == rows
    looks = re.findall(r"; `(\w+)`", EXERCISES)
    assert len(looks) == len(rows) and set(looks) <= set(figures.COMMANDS)
    commands = re.findall(r"`train\.py (--.*?)`", EXERCISES)
    assert len(commands) > 6
    known = {"linear": "heuristic", "fitted": "heuristic", "product": "sum", "maximum": "sum", "released": "cg"}
    for command in commands:
        arguments = [known.get(word, word) for word in command.split()]  # the student's own
        train.check(train.parse(arguments))


def test_the_exercises_runs_do_not_meet(monkeypatch, tmp_path):
    """Every command of the exercises, in their order, has a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "METHODS", [*train.METHODS, "linear", "fitted"])
    commands = re.findall(r"train\.py (--.*?)(?:`|$)", EXERCISES, re.M)
    folders = [str(train.folder_of(train.parse(command.split()))) for command in commands]
    assert len(folders) > 15 and len(set(folders)) == len(folders)


def test_the_lines_that_fit_a_cubic_run(monkeypatch, tmp_path, capsys):
    """The exercise's own, on a log as train.py writes it: its four numbers are those of the curve."""
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)[1]
    log = tmp_path / re.search(r'open\("(.*?)"\)', code)[1]
    log.parent.mkdir(parents=True)
    lines = [{"settings": {}}, *({"t": t, "alpha": 1 - 0.1 * t + 0.002 * t**3} for t in range(1, 11)), {"test": {}}]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    exec(code, {})
    numbers = [float(x) for x in capsys.readouterr().out.strip(" []\n").split()]
    assert numbers == pytest.approx([0.002, 0, -0.1, 1], abs=1e-6)


def marked(mark):
    """{file.py:name} of every function or class that holds `# mark:`, the innermost one."""
    places = set()
    for path in ROOT.glob("*.py"):
        tree, lines = ast.parse(path.read_text()), path.read_text().splitlines()
        for n in [n for n, text in enumerate(lines, 1) if f"# {mark}:" in text]:
            around = [(tree.body, "")]
            for body, outer in around:
                for node in body:
                    if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.lineno <= n <= node.end_lineno:
                        name = f"{outer}.{node.name}".strip(".")
                        around.append((node.body if isinstance(node, ast.ClassDef) else [], name))
            places.add(f"{path.name}:{around[-1][1]}")
    return places


def test_every_silence_and_departure_is_in_the_readme():
    """A `# Paper silent:` or `# Departs from paper:` in the code has its row there, and the other way round."""
    for mark in ("Paper silent", "Departs from paper"):
        section = re.search(rf"^{mark}:.*?\n(.*?)(?=^#|\Z)", README, re.M | re.S)[1]
        named = {row.split("|")[-2].strip(" `") for row in section.splitlines() if row.startswith("| ")}
        assert marked(mark) == named - {"where"}, mark
