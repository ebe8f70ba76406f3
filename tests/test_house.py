"""The house: sizes of files and functions, and imports that point one way."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FIVE = ["losses.py", "bilevel.py", "model.py", "data.py", "train.py"]
FILES = sorted(p for folder in (".", "utils", "scripts") for p in (ROOT / folder).glob("*.py"))
FLOORS = ["utils", "losses", "bilevel", "model", "data", "baselines", "train", "scripts"]


def test_the_five_files_are_short():
    """At most 1,100 lines together, as one scrolls them: docstrings and blank lines included."""
    lines = {name: len((ROOT / name).read_text().splitlines()) for name in FIVE}
    assert sum(lines.values()) <= 1100, lines


def test_the_root_shows_the_paper():
    """Five files, baselines.py, and nothing else that is Python."""
    assert {p.name for p in ROOT.glob("*.py")} == {*FIVE, "baselines.py"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_lines_and_functions_fit_on_a_screen(path):
    """At most 100 columns, and 45 lines a function; the formatter is never switched off."""
    text = path.read_text()
    assert max(map(len, text.splitlines())) <= 100
    assert "noqa" not in text and "fmt: " not in text
    if path.name in FIVE:
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 45, node.name


def test_algorithm_1_is_on_the_first_two_screens():
    """`for t` begins before line 85 of train.py, and inner_step and alpha_gradient are above it."""
    lines = (ROOT / "train.py").read_text().splitlines()
    loop = next(n for n, line in enumerate(lines, 1) if line.startswith("    for t in "))
    above = [line.split("(")[0] for line in lines[:loop] if line.startswith("def ")]
    assert loop < 85 and above == [
        "def losses",
        "def inner_step",
        "def alpha_gradient",
        "def train",
    ]


def imports(path):
    """The files and folders of ours that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    """utils <- losses <- bilevel <- model, data <- baselines <- train <- scripts."""
    own = path.parent.name if path.parent != ROOT else path.stem
    for name in set(imports(path)) & set(FLOORS):
        level = FLOORS.index(name)
        assert level < FLOORS.index(own) or name == own in ("utils", "scripts"), name
    assert own != "data" or "model" not in set(imports(path))
