"""The house: sizes of files and functions, and imports that point one way."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FIVE = ["losses.py", "bilevel.py", "model.py", "data.py", "train.py"]
FILES = sorted(p for folder in (".", "utils", "scripts") for p in (ROOT / folder).glob("*.py"))
FLOORS = ["utils", "losses", "bilevel", "model", "data", "baselines", "train", "scripts"]


def test_the_five_files_are_short():
    """At most 1,150 lines together, as one scrolls them: docstrings and blank lines included."""
    lines = {name: len((ROOT / name).read_text().splitlines()) for name in FIVE}
    assert sum(lines.values()) <= 1150, lines


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


def test_each_rival_is_a_short_class():
    """At most 30 lines, docstring included; Baseline, whose parts they replace, is longer."""
    classes = ast.parse((ROOT / "baselines.py").read_text()).body
    sizes = {c.name: c.end_lineno - c.lineno + 1 for c in classes if isinstance(c, ast.ClassDef)}
    assert len(sizes) > 15 and max(sizes[name] for name in {*sizes} - {"Baseline"}) <= 30, sizes


def crammed(tree):
    """(line, what) of everything at which a reader would have to stop."""
    for node in ast.walk(tree):
        name = getattr(node, "id", getattr(node, "attr", getattr(node, "name", None)))
        if name in ("ChainMap", "__import__", "__next__"):
            yield node.lineno, name
        if isinstance(node, ast.FunctionDef):
            inner = [x for x in ast.walk(node) if isinstance(x, ast.FunctionDef) and x is not node]
            for function in inner:
                if any("cache" in ast.unparse(d) for d in function.decorator_list):
                    yield function.lineno, "a cache inside a function"
        if isinstance(node, ast.Call):
            starred = any(isinstance(a, ast.Starred) for a in node.args)
            if ast.unparse(node.func) == "zip" and starred:
                yield node.lineno, "zip(*"
            if re.fullmatch(r"(itertools\.)?repeat\(next\(.*", ast.unparse(node)):
                yield node.lineno, "repeat(next("
        if isinstance(node, ast.Expr) and isinstance(node.value, (ast.ListComp, ast.GeneratorExp)):
            yield node.lineno, "a comprehension as a statement"
        if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
            numbers = [v for v in node.values if isinstance(v, ast.Constant)]
            if any(type(v.value) in (int, float) for v in numbers):
                yield node.lineno, "or on a number"
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith("args."):
            yield node.lineno, "a function that changes its argument's settings"


@pytest.mark.parametrize("name", [*FIVE, "baselines.py"])
def test_nothing_is_crammed(name):
    """None of the tricks that save a line and stop a reader."""
    assert not list(crammed(ast.parse((ROOT / name).read_text())))


TRICKS = ["x = ChainMap(a, b)", "f = losses.__next__", "a, b = zip(*pairs)", "x = y or 0.0"]
TRICKS += ["def f():\n @functools.cache\n def g(): pass", "x = itertools.repeat(next(y))"]
TRICKS += ["[f(t) for t in range(3)]", "args.val_fraction = 0.1"]


@pytest.mark.parametrize("trick", TRICKS)
def test_a_trick_is_found(trick):
    """The test above sees each of them."""
    assert list(crammed(ast.parse(trick)))


def test_algorithm_1_is_on_the_first_two_screens():
    """`for t` begins before line 85 of train.py, and inner_step and alpha_gradient are above it."""
    lines = (ROOT / "train.py").read_text().splitlines()
    loop = next(n for n, line in enumerate(lines, 1) if line.startswith("    for t in "))
    above = [line.split("(")[0] for line in lines[:loop] if line.startswith("def ")]
    assert loop < 85 and len(above) == 4
    assert above[1:] == ["def inner_step", "def alpha_gradient", "def train"]


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
