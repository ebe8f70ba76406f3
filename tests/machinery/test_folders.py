"""prepare --table: a folder for each class becomes a samples.csv."""

import csv
import os
import sys
from pathlib import Path

import pytest
from conftest import make_jpg, make_wav

from scripts import prepare
from utils.folders import rows_of
from utils.samples import read_own


def touch(*paths):
    for path in map(Path, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def table(folder="pets"):
    with open(Path(folder) / "samples.csv", newline="", encoding="utf-8") as file:
        return [*csv.reader(file)]


def test_pairs_of_any_ending_make_a_table(tmp_path, monkeypatch, capsys):
    """One row a name, whatever the case of its ending; every fifth complete one of a class is for
    the test; a lone file is a blank cell; the table trains."""
    monkeypatch.chdir(tmp_path)
    for label in ("cat", "Vögel"):
        for i, (picture, sound) in enumerate([(".jpg", ".wav"), (".JPG", ".WAV")] * 3):
            make_jpg(Path(f"pets/{label}/n {i}{picture}"))
            make_wav(Path(f"pets/{label}/n {i}{sound}"))
    touch("pets/cat/lone.png", "pets/cat/.hidden.png", "pets/notes.doc", "pets/top.jpg")
    touch("pets/cat/7.HEIC", "pets/cat/8.HEIC", "pets/cat/.hidden/9.HEIC", "pets/prepared/x.HEIC")
    assert prepare.main(["--table", "pets"]) == 0
    said = capsys.readouterr().out
    assert (
        "split,label,image,audio" in said
        and "1 sample without a file of each kind, like cat/lone.png:" in said
        and "left out, as no kind of data has their ending: .HEIC (2), .doc (1)\n" in said
    )
    assert said.endswith("to train: python train.py --dataset pets --method heuristic\n")
    header, *rows = table()
    assert header == ["split", "label", "image", "audio"]
    assert [r for r in rows if r[0] == "test"] == [
        ["test", "Vögel", "Vögel/n 1.JPG", "Vögel/n 1.WAV"],
        ["test", "cat", "cat/n 1.JPG", "cat/n 1.WAV"],
    ]
    assert len(rows) == 13 and ["train", "cat", "cat/lone.png", ""] in rows
    statuses = [sample.status for sample in read_own("pets")[1]]
    assert statuses.count("") == 12 and statuses.count("blank cell") == 1


def test_folders_name_splits_and_kinds(tmp_path, monkeypatch):
    """train, val, test at any depth; images and audio are passed through; texts are read."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "Validation", "test"):
        for label in ("a", "b"):
            touch(f"pets/images/{split}/{label}/1.png", f"pets/texts/{split}/{label}/1.txt")
            Path(f"pets/texts/{split}/{label}/1.txt").write_text("two\n words")
    assert prepare.main(["--table", "pets"]) == 0
    header, *rows = table()
    assert header == ["split", "label", "image", "text"]
    assert sorted({row[0] for row in rows}) == ["test", "train", "val"] and len(rows) == 6
    assert {row[3] for row in rows} == {"two words"}


def test_a_group_is_on_one_side(tmp_path):
    """--group _: the samples of a person, of all classes, are in one split."""
    for label in ("a", "b"):
        for person in range(6):
            for k in range(2):
                touch(
                    tmp_path / f"{label}/p{person}_{k}.jpg", tmp_path / f"{label}/p{person}_{k}.wav"
                )
    kinds, rows = rows_of(tmp_path, "_")
    sides = {(group, split) for split, _, group, _ in rows}
    assert len(sides) == 6 and [split for _, split in sorted(sides)].count("test") == 1


def test_what_cannot_be_a_table_is_one_sentence(tmp_path, monkeypatch, capsys):
    """One kind, one class, a table that exists: nothing is written over."""
    monkeypatch.chdir(tmp_path)
    touch("pets/cat/1.jpg", "pets/dog/1.jpg")
    assert prepare.main(["--table", "pets"]) == 2
    said = "pets has 2 classes with files of 1 kinds; expected two of both, as in pets/CLASS/NAME"
    assert said in capsys.readouterr().err and not Path("pets/samples.csv").exists()
    assert prepare.main(["--table", "nix"]) == 2
    assert "there is no folder nix; check its path" in capsys.readouterr().err
    touch("flat/1.jpg", "flat/1.wav")
    assert prepare.main(["--table", "flat"]) == 2
    assert "flat has no files in folders of classes" in capsys.readouterr().err
    Path("pets/samples.csv").write_text("mine")
    assert prepare.main(["--table", "pets"]) == 2 and "exists" in capsys.readouterr().err
    assert Path("pets/samples.csv").read_text() == "mine"
    assert prepare.main([]) == 2 and "nothing to prepare" in capsys.readouterr().err
    for words in (["pets", "--group", "_"], ["pets", "--table", "pets"]):
        assert prepare.main(words) == 2 and "give either NAME, or" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse or change such a name")
def test_a_name_that_is_not_utf_8_is_said(tmp_path, monkeypatch, capsys):
    """As from an old zip: a samples.csv cannot hold it."""
    monkeypatch.chdir(tmp_path)
    pairs("pets/cat", "pets/dog")
    Path(os.fsdecode(b"pets/cat/caf\xe9.jpg")).touch()
    assert prepare.main(["--table", "pets"]) == 2
    said = r"the name of 'cat/caf\udce9.jpg' is not UTF-8; rename it"
    assert said in capsys.readouterr().err and not Path("pets/samples.csv").exists()


def pairs(*folders, n=6):
    """n pictures and sounds in each folder."""
    for folder in folders:
        touch(*(f"{folder}/{i}.{ending}" for i in range(n) for ending in ("jpg", "wav")))


def test_a_class_can_be_named_like_a_split(tmp_path, monkeypatch, capsys):
    """`valid` beside `invalid`, and in folders of splits; files in no class are said."""
    monkeypatch.chdir(tmp_path)
    pairs("pets/valid", "pets/invalid", "pets/prepared", "pets/text")
    touch("pets/top.jpg")
    assert prepare.main(["--table", "pets"]) == 0
    said = capsys.readouterr().out
    assert "train: 10 samples (invalid 5, valid 5)" in said
    assert "13 files passed over, in no folder of a class, like text/0.jpg; no class, but" in said
    assert "but a split or a kind of data: text\n" in said
    assert "12 files in pets/prepared passed over: it is for files that training makes" in said
    pairs("deep/train/valid", "deep/train/invalid", "deep/images/test/valid", "deep/invalid/test")
    touch("deep/train/stray.jpg")
    assert prepare.main(["--table", "deep"]) == 0
    assert {tuple(row[:2]) for row in table("deep")[1:]} == {
        (split, label) for split in ("train", "test") for label in ("valid", "invalid")
    }
    said = capsys.readouterr().out
    assert "1 file passed over, in no folder of a class, like train/stray.jpg; no class" in said


def test_a_kind_that_few_samples_have_is_passed_over(tmp_path, monkeypatch, capsys):
    """A line says so; its samples are split as without it, and a sample of it alone is none."""
    monkeypatch.chdir(tmp_path)
    pairs("pets/cat", "pets/dog", n=12)
    touch("pets/cat/1.txt", "pets/notes/readme.txt")
    assert prepare.main(["--table", "pets"]) == 0
    assert "2 files of the kind text passed over: fewer than a tenth" in capsys.readouterr().out
    rows = table()
    assert rows[0] == ["split", "label", "image", "audio"] and len(rows) == 25
    assert ["test", "cat", "cat/1.jpg", "cat/1.wav"] in rows


def test_a_table_that_cannot_be_tested_is_not_written(tmp_path, monkeypatch, capsys):
    """Only train and val, one sample a class, one group, splits without classes."""
    monkeypatch.chdir(tmp_path)
    pairs("tv/train/cat", "tv/train/dog", "tv/val/cat", "tv/val/dog")
    pairs("one/cat", "one/dog", n=1)
    pairs("flat/train", "flat/test")
    for words, said in [
        (["tv"], "tv has no sample with files of all kinds for the split test; put some into"),
        (["one"], "for the split test; have two samples of a class or more"),
        (["tv", "--group", "_"], "put some into tv/test/CLASS, or rename another split's"),
        (["flat"], "flat has no files in folders of classes"),
    ]:
        assert prepare.main(["--table", *words]) == 2
        assert said in capsys.readouterr().err and not Path(words[0], "samples.csv").exists()


def test_links_to_folders_are_followed(tmp_path, monkeypatch):
    """A class folder that lies elsewhere; a link upwards is no loop."""
    monkeypatch.chdir(tmp_path)
    pairs("pets/cat", "elsewhere")
    Path("pets/dog").symlink_to(tmp_path / "elsewhere")
    Path("pets/cat/up").symlink_to(tmp_path / "pets")
    assert prepare.main(["--table", "pets"]) == 0
    assert len(table()) == 13 and ["test", "dog", "dog/1.jpg", "dog/1.wav"] in table()


def test_a_text_is_read_as_utf_8(tmp_path, monkeypatch, capsys):
    """A byte order mark goes; another encoding is one sentence, and no table is written."""
    monkeypatch.chdir(tmp_path)
    pairs("pets/cat", "pets/dog")
    for label in ("cat", "dog"):
        for i in range(6):
            Path(f"pets/{label}/{i}.txt").write_text("caf\xe9", encoding="utf-8-sig")
    for encoding, said in [("utf-16", "is UTF-16 text"), ("cp1252", "is not UTF-8 text")]:
        Path("pets/cat/3.txt").write_text("caf\xe9 noir", encoding=encoding)
        assert prepare.main(["--table", "pets"]) == 2
        told = capsys.readouterr().err
        assert f"pets/cat/3.txt {said}" in told and "save it as UTF-8" in told
    Path("pets/cat/3.txt").unlink()
    assert prepare.main(["--table", "pets"]) == 0
    assert {row[4] for row in table()[1:]} == {"caf\xe9", ""}
