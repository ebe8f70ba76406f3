"""docs/EXERCISES.md and docs/ANSWERS.md: each exercise is whole and has its answer; the numbers by
hand are those of losses.py; every command runs."""

import importlib.util
import math
import re
import shlex
from pathlib import Path

import pytest
import torch
from conftest import small_keypad

import train
from bilevel import SOLVERS
from data import DATASETS
from losses import SCHEDULES, modality_matching_loss
from model import FUSIONS
from scripts import figures

ROOT = Path(__file__).parents[2]
EXERCISES = (ROOT / "docs/EXERCISES.md").read_text()
ANSWERS = (ROOT / "docs/ANSWERS.md").read_text().split("\n## ")[0]
PARTS = re.split(r"^## ", EXERCISES.split("\n## A project")[0], flags=re.M)[1:]
MINUTES = ["five minutes", "ten minutes", "fifteen minutes", "twenty minutes", "forty minutes"]
MINUTES += ["an hour", "an afternoon"]
BY_HAND = ["3", "7"]


def answer(number):
    """The text of an answer."""
    return re.search(rf"^{number}\. (.*?)(?=^\d+\. |\Z)", ANSWERS, re.M | re.S)[1]


def commands(text):
    """The lines of a text's sh blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    return [line for block in blocks for line in block.splitlines()]


def test_every_exercise_has_its_parts_and_its_answer():
    """Goal, level, time, needs, edit, a prediction, a hint; runs with one thread, and a picture of
    its own, or nothing but paper; an answer to each, in order."""
    numbers = [part.split(".")[0] for part in PARTS]
    assert numbers == [str(n + 1) for n in range(len(PARTS))] and len(PARTS) == 15
    assert re.findall(r"^(\d+)\. ", ANSWERS, re.M) == numbers
    for number, part in zip(numbers, PARTS):
        words = ("Goal", "Level", "Time", "Needs", "Edit", "Predict")
        assert all(f"**{word}:**" in part for word in words), number
        assert part.count("<details><summary>Hint</summary>") == part.count("</details>") == 1
        assert part.index("**Predict:**") < part.index("Hint</summary>"), number
        assert not re.search(r"^ +\d+\. ", part, re.M), f"{number}: a line that becomes a list"
        if number in BY_HAND:
            assert "no computer" in " ".join(part.split()) and not commands(part)
            continue
        *runs, picture = commands(part)
        program = r"(OMP_NUM_THREADS=1 python train\.py |python -m scripts\.figures )"
        assert all(re.match(program, run) for run in runs), number
        assert re.match(r"python -m scripts\.figures (curves|alpha|gradcam) ", picture)
        assert picture.endswith(f"--out exercise{number}.png")


def test_the_exercises_rise():
    """By their level, and inside a level by their time."""
    levels = [int(re.search(r"\*\*Level:\*\* (\d)", part)[1]) for part in PARTS]
    flat = [" ".join(part.split()) for part in PARTS]
    times = [MINUTES.index(re.search(r"\*\*Time:\*\* ([^.]*)\.", part)[1]) for part in flat]
    assert sorted(zip(levels, times)) == list(zip(levels, times)) and set(levels) == {1, 2, 3}


def test_four_pairs_by_hand_are_l_mm():
    """The three numbers of exercise 3, and the formula of its last part."""
    one, tau = torch.eye(4).double(), 1 / math.log(2)
    exchanged, equal = one[[1, 0, 2, 3]], torch.ones(4, 4).double()
    pairs = [[one, one], [one, exchanged], [equal, equal]]
    found = [f"{modality_matching_loss(z, tau):.3f}" for z in pairs]
    said = answer(3)
    assert re.findall(r"\d\.\d{3}", said) == found
    assert "log(1 + 3 e^(-1/τ))" in said
    expected = math.log(1 + 3 * math.exp(-1 / 0.4))
    assert modality_matching_loss([one, one], 0.4).item() == pytest.approx(expected)


def test_the_sentence_about_t_from_0_is_the_programs(tmp_path):
    """Exercise 5's edit of losses.py, in a copy: the error is the one that the answer shows."""
    text = (ROOT / "losses.py").read_text()
    old, new = "return 1 - math.exp(-1 / t)\n", "return 1 - math.exp(-1 / (t - 1))\n"
    assert text.count(old) == 1
    (tmp_path / "losses.py").write_text(text.replace(old, new))
    spec = importlib.util.spec_from_file_location("edited", tmp_path / "losses.py")
    edited = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(edited)
    with pytest.raises(FloatingPointError) as caught:
        edited.make_schedule("heuristic")(1, 10)
    line = re.compile(r"line \d+ of")  # it moves with every change above it
    assert line.sub("", f"`train.py: {caught.value}`") in line.sub("", answer(5))


@pytest.mark.slow
def test_every_command_of_the_exercises_runs(tmp_path, monkeypatch, capsys):
    """With three short epochs, and entries of the edits' names: every picture is drawn."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(DATASETS, "keypad", small_keypad)
    for name in ("linear", "fitted"):
        monkeypatch.setitem(SCHEDULES, name, lambda t, T: 1 - t / T)
    for name in ("product", "maximum"):
        monkeypatch.setitem(FUSIONS, name, FUSIONS["add"])
    monkeypatch.setitem(SOLVERS, "released", SOLVERS["neumann"])
    for command in commands(EXERCISES.split("\n## A project")[0]):
        program, _, arguments = command.removeprefix("OMP_NUM_THREADS=1 ").partition(" ")
        module, *flags = shlex.split(arguments.removeprefix("-m "))
        assert program == "python"
        if module == "train.py":
            assert train.main([*flags, "--epochs", "3", "--inner-iters", "2"]) == 0, command
        else:
            assert figures.main(flags) == 0, command
    pictures = {path.name for path in tmp_path.glob("*.png")}
    numbers = [n + 1 for n in range(len(PARTS)) if str(n + 1) not in BY_HAND]
    assert pictures == {*(f"exercise{n}.png" for n in numbers), "exercise6-sound.png"}
    assert capsys.readouterr().err == ""
