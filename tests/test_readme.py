"""The README's commands run, and the functions that it names exist."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import figures
import train

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
FIRST_SCREEN = README.split("\n## ")[0]
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
    found = subprocess.run(["grep", "-m", "1", "-E", "^python3 -m venv .* -m pytest$", ROOT / "README.md"],
                           capture_output=True, text=True, check=True)  # fmt: skip
    assert found.stdout.strip() == first[1]
    assert re.search(r"command=\$\((.*?) README.md\)", (ROOT / ".ci/run").read_text())[1] == " ".join(
        ["grep -m 1 -E", "'^python3 -m venv .* -m pytest$'"])  # fmt: skip


def test_the_main_job_runs(tmp_path):
    """The first command after its install, one short epoch of it: from no argument to the table."""
    arguments = ["--epochs", "1", "--inner-iters", "2", "--out"]
    done = subprocess.run([sys.executable, ROOT / "train.py", *arguments, tmp_path / "run"], text=True, cwd=tmp_path,
                          capture_output=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    assert done.stdout.startswith("keypad, learning-based, seed 0")
    assert (
        re.search(r"^fused +\d", done.stdout, re.M) and "perf_gap" in done.stdout.splitlines()[-2]
    )


@pytest.mark.parametrize("command", [c for c in COMMANDS if "train.py" in c or "figures.py" in c])
def test_every_command_of_the_readme_parses(command, monkeypatch):
    """Flags and method names exist; shell variables stand for a seed or a method."""
    script, *arguments = re.search(r"(train|figures)\.py(.*?)(?=;|&&|$)", command).group().split()
    values = {"$seed": "0", "$method": "heuristic", "$data": "keypad", "DIR": "."}
    arguments = [values.get(a.strip("'\""), a) for a in arguments]
    if script == "train.py":
        s = train.parse([a for a in arguments if not a.startswith("$")])
        train.check(s)
    else:
        monkeypatch.setattr(figures, "table", lambda runs: "")
        monkeypatch.setattr(figures, "curves", lambda runs, out: None)
        assert figures.main(arguments) == 0


def test_the_readme_names_what_exists():
    """Every `file.py:name` is there."""
    names = re.findall(r"`(\w+)\.py:(\w+(?:\.\w+)?)`", README)
    assert len(names) > 10
    for module, name in names:
        thing = importlib.import_module(module)
        for part in name.split("."):
            thing = getattr(thing, part)


def test_every_silence_and_departure_is_in_the_readme():
    """A `# Paper silent:` or `# Departs from paper:` in the code has its row there, and the other way round."""
    for mark in ("Paper silent", "Departs from paper"):
        marked = {path.name for path in ROOT.glob("*.py") if f"{mark}:" in path.read_text()}
        section = re.search(rf"^#+ .*{mark}.*?\n(.*?)(?=^#|\Z)", README, re.M | re.S)[1]
        assert marked == set(re.findall(r"`(\w+\.py)", section)), mark
