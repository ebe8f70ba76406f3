"""utils/trained.py: a run names its classes and modalities, and finds them again by name."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import sentence, tiny

import data
import train
from data import Samples, identity
from utils.run import load_checkpoint
from utils.trained import as_trained, describe

HEADER = "split,label,array:left,array:right"
FAST = ["--epochs", "4", "--batch-size", "8", "--method", "constant:0", "--lr", "0.1"]
FAST += ["--inner-iters", "0"]
LABELS = ("ant", "bee", "cat")
COUNTS = {"train": 39, "test": 7}  # few: prepared in this process


def write_own(folder, labels=LABELS, header=HEADER, counts=COUNTS, swapped=False):
    """Vectors that tell the three classes apart, `left` well, `right` badly."""
    rng, rows = np.random.default_rng(0), [header]
    Path(folder).mkdir(exist_ok=True)
    for split, n in counts.items():
        for i in range(n):
            k = i % len(labels)
            hot = np.eye(3)[LABELS.index(labels[k]) if labels[k] in LABELS else k]
            cells = [f"{split}{i}-{side}.npy" for side in ("left", "right")]
            np.save(Path(folder, cells[0]), 5 * hot + rng.normal(size=3))
            np.save(Path(folder, cells[1]), 0.5 * hot + rng.normal(size=3))
            rows.append(",".join([split, labels[k], *(cells[::-1] if swapped else cells)]))
    Path(folder, "samples.csv").write_text("\n".join(rows))
    shutil.rmtree(Path(folder, "prepared"), ignore_errors=True)


def edit(folder, change):
    """Change the text of FOLDER/samples.csv, which is then prepared again."""
    path = Path(folder, "samples.csv")
    path.write_text(change(path.read_text()))
    shutil.rmtree(Path(folder, "prepared"), ignore_errors=True)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A run on data of one's own: ./run on ./mine."""
    monkeypatch.chdir(tmp_path)
    write_own("mine")
    assert train.main(["--dataset", "mine", *FAST, "--out", "run"]) == 0


def scores(capsys, *arguments):
    """The table that --eval prints."""
    capsys.readouterr()
    assert train.main(["--eval", "run", *arguments]) == 0
    return re.split(r"epoch \d:\n", capsys.readouterr().out)[1]


def said(capsys, *arguments):
    """The sentence of a refused --resume or --eval, which leaves the run as it is."""
    before = {path: path.read_bytes() for path in Path("run").iterdir()}
    capsys.readouterr()
    assert train.main(arguments) in (1, 2)
    assert before == {path: path.read_bytes() for path in Path("run").iterdir()}
    return sentence(capsys)


def test_log_and_checkpoint_name_the_data(own):
    """Classes in order of index, kinds, channels, counts by class, the folder twice."""
    expected = {
        "folder": {"given": "mine", "absolute": os.path.abspath("mine")},
        "classes": ["ant", "bee", "cat"],
        "kinds": {"left": "vector", "right": "vector"},
        "channels": [3, 3],
        "class_counts": {"train": [13, 13, 13], "test": [3, 2, 2]},
    }
    first = json.loads(Path("run/log.jsonl").read_text().splitlines()[0])
    assert first["data"] == load_checkpoint("run")["data"]
    assert len(first["data"].pop("samples")) == len(first["data"].pop("validation")) == 64
    assert first["data"] == expected
    assert [*first["data"]["kinds"]] == first["modalities"] == ["left", "right"]
    assert first["samples"] == {"train": 39, "test": 7}


def test_a_built_in_set_has_its_digits(tiny_data):
    """Numbers as names, no folder, and counts also of the held-out part."""
    full = data.load_data(settings("--val-fraction", "0.25"), lambda m: ["cnn"] * m)
    record = describe(full)
    assert record["classes"] == ["0", "1", "2"] and record["folder"] is None
    assert record["kinds"] == {"image": "tensor", "sound": "tensor"}
    totals = {split: sum(counts) for split, counts in record["class_counts"].items()}
    assert totals == {"train": 36, "val": 12, "test": 15}


def settings(*flags):
    return train.parse(["--dataset", "tiny", *flags])


@pytest.mark.parametrize("flag", ["--eval", "--resume"])
def test_a_renamed_class_is_refused(own, capsys, flag):
    """`ant` became `zebra`: sorted anew, every index would mean another class."""
    edit("mine", lambda text: text.replace(",ant,", ",zebra,"))
    message = said(capsys, flag, "run")
    assert message.startswith("the run does not know the class 'zebra'; its classes are 'ant', 'b")
    assert message.endswith("rename the class, or train a new run")


def test_a_subset_of_the_classes_keeps_their_indices(own, capsys):
    """Without `ant`, `bee` and `cat` are still classes 1 and 2; --resume needs all samples."""
    whole = scores(capsys)
    edit("mine", lambda text: "\n".join(x for x in text.splitlines() if ",ant," not in x))
    part = scores(capsys)
    left = [float(next(x for x in t.splitlines() if "left" in x).split()[1]) for t in (whole, part)]
    assert left == [100.0, 100.0]
    message = said(capsys, "--resume", "run")
    assert message.startswith("run began with 39 train, 7 test samples, now there are")


def test_as_trained_maps_classes_by_name():
    """Today's a, c are the run's c (index 0), b, a (index 2)."""
    full = dataclasses.replace(tiny(n=6), classes=["a", "c"])
    for samples in full.splits.values():
        samples.y = samples.y.clamp(max=1)
    y = full.splits["train"].y
    trained = describe(as_trained(full, None)) | {"classes": ["c", "b", "a"]}
    mapped = as_trained(full, trained)
    assert mapped.splits["train"].y.tolist() == [2, 0, 0, 2, 0, 0]
    assert y is full.splits["train"].y and y.tolist() == [0, 1, 1, 0, 1, 1]
    assert mapped.classes == ["c", "b", "a"]


def test_the_order_of_columns_changes_nothing(own, capsys):
    """right,left instead of left,right: columns are found by name, by --eval and --resume."""
    table, log = scores(capsys), Path("run/log.jsonl").read_bytes()
    write_own("mine", header="split,label,array:right,array:left", swapped=True)
    assert scores(capsys) == table
    assert train.main(["--resume", "run"]) == 0 and Path("run/log.jsonl").read_bytes() == log


def test_an_encoder_stays_with_its_column(tmp_path, monkeypatch, capsys):
    """Of `cnn,mlp`, the vectors have mlp also where their column has come first."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    lines = []
    for split, n in COUNTS.items():
        for i in range(n):
            np.save(f"{split}{i}-grid.npy", rng.normal(size=(1, 8, 8)) + i % 3)
            np.save(f"{split}{i}-vector.npy", rng.normal(size=3) + i % 3)
            lines.append([split, "abc"[i % 3], f"{split}{i}-grid.npy", f"{split}{i}-vector.npy"])
    for swap in (False, True):
        rows = [["split", "label", "array:grid", "array:vector"], *lines]
        rows = [[*row[:2], *(row[:1:-1] if swap else row[2:])] for row in rows]
        Path("samples.csv").write_text("\n".join(map(",".join, rows)))
        shutil.rmtree("prepared", ignore_errors=True)
        if not swap:
            assert train.main(["--dataset", ".", *FAST, "--out", "run"]) == 0
            table = scores(capsys)
    assert load_checkpoint("run")["settings"]["encoders"] == "cnn,mlp"
    assert scores(capsys) == table


@pytest.mark.parametrize("flag, column", [("--eval", "array:back"), ("--resume", "text:right")])
def test_other_modalities_are_refused(own, capsys, flag, column):
    """A renamed column, a column of another kind: both are named."""
    edit("mine", lambda text: text.replace(HEADER, f"split,label,array:left,{column}"))
    message = said(capsys, flag, "run")
    now = {"array:back": "back (vector)", "text:right": "right (text)"}[column]
    expected = f"these data have left (vector), {now}"
    assert "trained on the modalities left (vector), right (vector); " + expected in message
    assert message.endswith("give them the names and kinds of the run, or train a new run")


def test_a_further_column_is_passed_over(own, capsys):
    """A run on left and right can be evaluated where a third modality was added."""
    table = scores(capsys)

    def add(text):
        head, *rows = text.splitlines()
        return "\n".join([f"{head},text:remark", *(f"{row},a note" for row in rows)])

    edit("mine", add)
    assert scores(capsys) == table


@pytest.mark.parametrize("flag", ["--eval", "--resume"])
def test_a_data_set_of_code_is_compared_too(tiny_data, monkeypatch, capsys, flag):
    """Its modalities in another order, another number of channels, more classes."""
    assert train.main(["--dataset", "tiny", *FAST, "--out", "run"]) == 0

    def changed(change):
        monkeypatch.setitem(data.DATASETS, "tiny", lambda *_: change(tiny()))
        return said(capsys, flag, "run")

    swapped = {"sound": "tensor", "image": "tensor"}
    message = changed(lambda d: dataclasses.replace(d, kinds=swapped))
    assert message.startswith("image has 2 channels, the run was trained on 1; give data")
    other = {"image": "tensor", "noise": "tensor"}
    message = changed(lambda d: dataclasses.replace(d, kinds=other))
    assert "image (tensor), sound (tensor); these data have image (tensor), noise" in message
    ones = Samples([torch.zeros(48, 1, 8, 8)] * 2, torch.arange(48) % 3, [identity] * 2)
    ones = {"train": ones, "test": ones}
    message = changed(lambda d: dataclasses.replace(d, splits=ones))
    assert message.startswith(
        "sound has 1 channels, the run was trained on 2; give data of the same"
    )
    message = changed(lambda d: dataclasses.replace(d, classes=[*d.classes, "3"]))
    assert message.startswith("the run does not know the class '3'; its classes are '0', '1', '2'")


def test_the_classes_of_a_resumed_run_have_equal_counts(tiny_data, monkeypatch, capsys):
    """As many samples, but one of class 0 became one of class 1."""
    assert train.main(["--dataset", "tiny", *FAST, "--out", "run"]) == 0

    def relabelled(*_):
        full = tiny()
        full.splits["train"].y[0] = 1
        return full

    monkeypatch.setitem(data.DATASETS, "tiny", relabelled)
    message = said(capsys, "--resume", "run")
    assert message == "run began with other labels or files; resume it with the same data"
    assert train.main(["--eval", "run"]) == 0


def test_other_labels_or_files_of_the_same_counts_are_refused(own, capsys):
    """Two labels that changed places; lines in another order are the same samples."""
    header, *rows = Path("mine/samples.csv").read_text().splitlines()
    Path("mine/samples.csv").write_text("\n".join([header, *rows[::-1]]))
    assert train.main(["--resume", "run"]) == 0
    first, second, *rest = rows
    rows = [first.replace(",ant,", ",bee,"), second.replace(",bee,", ",ant,"), *rest]
    Path("mine/samples.csv").write_text("\n".join([header, *rows]))
    message = "run began with other labels or files; resume it with the same data"
    assert said(capsys, "--resume", "run") == message


def test_samples_that_moved_to_the_validation_part_are_refused(tmp_path, monkeypatch, capsys):
    """As many samples in each part, but an `ant` changed places with a `bee`."""
    monkeypatch.chdir(tmp_path)
    write_own("mine", counts=COUNTS | {"val": 4})
    assert train.main(["--dataset", "mine", *FAST, "--out", "run"]) == 0
    ant, bee = "train,ant,train0-", "val,bee,val1-"
    moved = {ant: ant.replace("train,", "val,"), bee: bee.replace("val,", "train,")}
    for old, new in moved.items():
        edit("mine", lambda text, old=old, new=new: text.replace(old, new))
    message = "run began with other labels or files; resume it with the same data"
    assert said(capsys, "--resume", "run") == message


def test_another_order_holds_out_other_samples(tmp_path, monkeypatch, capsys):
    """--val-fraction draws rows by their number: the run resumes with none of them, and its own
    validation part is not scored with samples that it was trained on."""
    monkeypatch.chdir(tmp_path)
    write_own("mine")
    flags = ["--val-fraction", "0.3"]
    assert train.main(["--dataset", "mine", *FAST, *flags, "--out", "run"]) == 0
    table = scores(capsys, "--split", "val")
    text = Path("mine/samples.csv").read_text()
    header, *rows = text.splitlines()
    of_class = [[row for row in rows[:39] if f",{k}," in row][::-1] for k in LABELS]
    rows[:39] = [row for three in zip(*of_class) for row in three]  # the classes stay in their rows
    edit("mine", lambda _: "\n".join([header, *rows]))
    for arguments in (["--resume", "run"], ["--eval", "run", "--split", "val"]):
        message = said(capsys, *arguments)
        assert message.startswith("the validation part of run had other samples of these data; ")
    assert train.main(["--eval", "run"]) == 0  # the test split is the same
    edit("mine", lambda _: text)
    assert scores(capsys, "--split", "val") == table


@pytest.mark.parametrize("flag", ["--root", "--dataset"])
def test_own_data_may_move(own, monkeypatch, capsys, flag):
    """Evaluated and resumed where they are now; the log is the uninterrupted one."""
    table, log = scores(capsys), Path("run/log.jsonl").read_bytes()
    Path("run/t0004.pt").unlink()
    Path("mine").rename("moved")
    message = said(capsys, "--resume", "run")
    was = os.path.abspath("mine")
    assert message == f"the data of run are not in {was}; give their folder with --root"
    assert train.main(["--resume", "run", flag, "moved"]) == 0
    assert Path("run/log.jsonl").read_bytes() == log
    printed = scores(capsys, flag, "moved")
    command = "figures confusion run --root moved\n"
    assert printed.endswith(command) and table.endswith(command.replace(" --root moved", ""))
    assert printed.splitlines()[:-1] == table.splitlines()[:-1]
    asked = ["--resume", "run", flag, "moved", "--epochs", "2"]
    assert "--dataset moved" in said(capsys, *asked)
    message = said(capsys, "--eval", "run", "--root", "moved", "--dataset", "other")
    assert message.startswith("--dataset other would make run another run, it has mine")
    assert "not in nowhere; give" in said(capsys, "--eval", "run", "--root", "nowhere")


def test_own_data_are_found_from_another_folder(own, monkeypatch, capsys, tmp_path):
    """--dataset was relative: the recorded absolute folder counts, not another one of that name."""
    table = scores(capsys)
    Path("else/mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "else")
    Path("run").symlink_to("../run")
    assert scores(capsys) == table


def test_only_own_data_have_another_name(tiny_data, capsys):
    """--dataset FOLDER on a run of a built-in set is refused as ever."""
    assert train.main(["--dataset", "tiny", *FAST, "--out", "run"]) == 0
    Path("mine").mkdir()
    message = said(capsys, "--eval", "run", "--dataset", "mine")
    assert message.startswith("--dataset mine would make run another run, it has tiny")
