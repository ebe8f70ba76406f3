"""samples.csv and prepare for data of one's own: utils/samples.py, utils/prepare.py, data.load."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import loaded, made, make_jpg, make_video, make_wav, raising

import data
import train
from scripts import prepare
from utils import prepare as preparing
from utils.atomic import atomic
from utils.loader import BatchSampler
from utils.modalities import MODALITIES, Modality
from utils.prepare import in_processes, prepare_command
from utils.samples import Strings, read_own, read_prepared

ROOT = Path(__file__).parents[2]
SMALL = ["--epochs", "1", "--inner-iters", "2", "--workers", "0", "--method", "heuristic"]


def write_table(folder, header, rows, encoding="utf-8", end="\n"):
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(line + end for line in [header, *rows])
    (folder / "samples.csv").write_bytes(text.encode(encoding))


def splits(n):
    """Two thirds of n lines to train."""
    return ["train" if i % 3 else "test" for i in range(n)]


def vectors(folder, n=30):
    """Three columns of vectors of different lengths, three classes."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, split in enumerate(splits(n)):
        for name, d in [("a", 4), ("b", 6), ("c", 8)]:
            np.save(folder / f"{name}{i}.npy", rng.normal(size=d) + i // 3 % 3)
        rows.append(f"{split},class {i // 3 % 3},a{i}.npy,b{i}.npy,c{i}.npy")
    write_table(folder, "split,label,array:a,array:b,array:c", rows)


def pictures_and_sounds(folder, n=24):
    """Image and audio, four classes, as spreadsheets write it: semicolons, empty columns, CRLF."""
    rows = []
    for i, split in enumerate(splits(n)):
        make_jpg(folder / f"pictures/{i}.jpg", colour=(60 * (i % 4), 99, 99))
        make_wav(folder / f"sounds/{i}.wav", 0.2)
        rows.append(f"pictures\\{i}.jpg;{split.title()};{'dbca'[i % 4]};sounds/{i}.wav;;")
    write_table(folder, "image;Split;LABEL;audio;;", [*rows, ";;;;;"], "utf-8-sig", "\r\n")


def pictures_and_sentences(folder, n=20):
    """Image and text, five classes; a sentence has the separator and a line break."""
    rows = []
    for i, split in enumerate(splits(n)):
        make_jpg(folder / f"{i}.jpg")
        rows.append(f'{split},{i % 5},{i}.jpg,"the dog, is\nfine"')
    write_table(folder, "split,label,image,text", rows)


def two_sounds(folder, n=12):
    """Two audio columns and a video; groups."""
    rows = []
    for i, split in enumerate(splits(n)):
        make_wav(folder / f"l{i}.wav", 0.2)
        make_wav(folder / f"r{i}.wav", 0.2)
        rows.append(f"{split},{'no' if i % 2 else 'yes'},g{i // 4},l{i}.wav,r{i}.wav,clip.mp4")
    make_video(folder / "clip.mp4", frames=20)
    write_table(folder, "split,label,group,audio:left,audio:right,video", rows)


OWN = [
    (vectors, ["a", "b", "c"], ["class 0", "class 1", "class 2"], None),
    (pictures_and_sounds, ["image", "audio"], ["a", "b", "c", "d"], "cnn"),
    (pictures_and_sentences, ["image", "text"], ["0", "1", "2", "3", "4"], "cnn,bert:{}"),
    (two_sounds, ["left", "right", "video"], ["no", "yes"], "cnn"),
]


@pytest.mark.slow
@pytest.mark.parametrize("make, modalities, classes, encoders", OWN)
def test_own_data_goes_from_its_table_to_the_scores(
    make, modalities, classes, encoders, tmp_path, monkeypatch, capsys, tiny_bert
):
    """One command, by any method; the second run reads what the first has prepared."""
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "mine")
    flags = ["--encoders", encoders.format(tiny_bert)] if encoders else []
    assert train.main(["--dataset", "mine", *SMALL, *flags]) == 0
    log = Path("runs/mine-heuristic-seed0/log.jsonl").read_text()
    first, epoch, test = map(json.loads, log.splitlines())
    assert first["modalities"] == modalities and set(modalities) < set(test["test"])
    printed = capsys.readouterr().out
    assert f"{len(classes)} classes: {', '.join(classes)}\n" in printed and "usable: " in printed
    learned = ["--method", "learning-based", "--draws", "1", "--terms", "2", "--alpha-batch", "4"]
    assert train.main(["--dataset", "mine", *SMALL, *flags, *learned]) == 0
    assert "every sample is listed" not in capsys.readouterr().out


def test_own_data_is_read_into_its_classes(tmp_path):
    """The class is the label's place in the sorted labels; a vector comes as it was saved."""
    vectors(tmp_path)
    prepare.main([str(tmp_path), "--workers", "1"])
    found = loaded(tmp_path, encoders="mlp")
    a, b, c, y = found.splits["train"][0]
    assert y == 0 and len(found.classes) == 3 and len(found.splits["train"]) == 20
    assert torch.equal(b, torch.tensor(np.load(tmp_path / "b1.npy"), dtype=torch.float32))


def halves(path, seed=None):
    """A kind of data that is not ours: the numbers of a text file, halved."""
    return torch.tensor([float(word) / 2 for word in Path(path).read_text().split()])


def test_a_kind_of_your_own_is_one_entry(tmp_path, monkeypatch, capsys):
    """A column of it is prepared, trained on with its default encoder, and evaluated."""
    monkeypatch.setitem(MODALITIES, "numbers", Modality(halves, ["mlp"], one_shape=True))
    rows = []
    for i, split in enumerate(splits(18)):
        (tmp_path / f"{i}.txt").write_text("2 4 6" if i else "2 4")
        (tmp_path / f"x{i}.txt").write_text("hello" if i == 1 else f"{i % 3} 1")
        rows.append(f"{split},{i % 3},{i}.txt,x{i}.txt")
    write_table(tmp_path, "split,label,numbers,numbers:more", rows)
    flags = ["--dataset", str(tmp_path), *SMALL, "--out", str(tmp_path / "run")]
    assert train.main(flags) == 0 and train.main(["--eval", str(tmp_path / "run")]) == 0
    assert "usable: 16" in capsys.readouterr().out
    record = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[0])
    assert record["settings"]["encoders"] == "mlp,mlp" and record["data"]["channels"] == [3, 2]
    assert loaded(tmp_path, encoders="mlp").splits["train"][1][0].tolist() == [1.0, 2.0, 3.0]


def careless(path, seed=None):
    """A reader that does not expect every word."""
    word = Path(path).read_text()
    return word.shape if word == "slip" else torch.tensor([float(word)])


def test_a_mistake_in_a_reader_of_your_own_keeps_its_line(tmp_path, monkeypatch):
    """A TypeError or its like has its traceback; a sample that cannot be read is listed."""
    monkeypatch.setitem(MODALITIES, "number", Modality(careless, ["mlp"]))
    rows = [f"{split},{i % 2},{i}.txt,{i}.txt" for i, split in enumerate(splits(6))]
    for i in range(6):
        (tmp_path / f"{i}.txt").write_text("one" if i == 1 else "1")
    write_table(tmp_path, "split,label,number:a,number:b", rows)
    assert prepare.main([str(tmp_path), "--workers", "1"]) == 0
    text = (tmp_path / "prepared/samples.csv").read_text()
    line = careless.__code__.co_firstlineno + 3
    assert f"float: 'one', line {line} of test_samples.py)" in text and text.count("usable") > 5
    (tmp_path / "2.txt").write_text("slip")
    with pytest.raises(AttributeError, match="no attribute 'shape'") as error:
        prepare.main([str(tmp_path), "--workers", "1"])
    assert error.traceback[-1].name == "careless"


def test_the_command_that_prepares_can_be_copied():
    """Names with spaces are quoted; the usual folder of a set is left out."""
    assert prepare_command("my data", "my data") == "python -m scripts.prepare 'my data'"
    assert prepare_command("cremad", "data/cremad") == "python -m scripts.prepare cremad"
    assert prepare_command("cremad", "a b") == "python -m scripts.prepare cremad --root 'a b'"


def test_groups_of_own_data_are_held_out_together(tmp_path):
    """--val-fraction divides by the column group."""
    two_sounds(tmp_path)
    args = train.parse(["--dataset", str(tmp_path), "--val-fraction", "0.4"])
    parts = data.load_data(args, lambda m: ["cnn"] * m).splits
    held_out, rest = (
        {int(Path(p).name[1:].split(".")[0]) // 4 for p in parts[split].sources[0]}
        for split in ("val", "train")
    )
    assert rest and held_out and not rest & held_out


def test_defaults_of_own_data_follow_its_kinds(tmp_path):
    """Encoders by kind; Adam with text; few samples get small batches and more epochs."""
    vectors(tmp_path / "v")
    pictures_and_sentences(tmp_path / "s")
    two_sounds(tmp_path / "t")
    settings = [train.parse(["--dataset", str(tmp_path / name)]) for name in "vst"]
    encoders = ["mlp,mlp,mlp", "cnn,bert", "cnn,cnn,cnn"]
    assert [s.encoders for s in settings] == encoders
    assert [s.optimizer for s in settings] == ["sgd", "adam", "sgd"]
    assert all((s.batch_size, s.epochs, s.alpha_limit) == (16, 50, 0.02) for s in settings)


@pytest.mark.parametrize("n", [2, 191, 192, 999, 1000, 3840])
def test_own_data_trains_for_about_600_steps(tmp_path, n):
    """Also where 50 passes over a few samples have fewer."""
    rows = [f"train,{i % 2},{i},{i}" for i in range(n)]
    write_table(tmp_path, "split,label,text:a,text:b", rows)
    s = train.parse(["--dataset", str(tmp_path)])
    sampler = BatchSampler(n, s.batch_size, [0], s.inner_iters)
    assert 550 <= s.epochs * len(sampler) <= 650 and 10 <= s.epochs <= 50
    assert s.eta_alpha * s.epochs == pytest.approx(20)


BAD = [
    ("split,label,image,audio", ["train,a,x.jpg,x.wav"], "no sample of the split test"),
    ("split,label,image,audio", ["train,a,1,2", "test,a,3,4"], "has one class, 'a'"),
    ("split,label,image,audio", ["train,a,1,2", "test,b,1,2"], "line 3 repeats a sample of the"),
    ("split,label,image,audio", ["train,a,1"], "line 2 has 3 columns, expected 4: split,label"),
    ("split,label,image,audio", ["learn,a,1,2"], "line 2 has 'learn' and 'a'; expected the split"),
    ("split,label,image,audio", ['train,a,"1,2'], "is not csv"),
    ("split,label,image", ["train,a,1"], "line 1 names 1 modality, expected two"),
    ("split,label,image,image", ["train,a,1,2"], "column 'image' occurs twice; give each its own"),
    ("split,label,image,smell", ["train,a,1,2"], "unknown column 'smell', expected split, label"),
    ("split,label,image,id", ["train,a,1,2"], "(or kind:name); rename it, or delete the column"),
    ("split,label,image,audio:fused", ["train,a,1,2"], "'audio:fused' is a bad, repeated or"),
    ("split,label,image,audio:alpha", ["train,a,1,2"], "'audio:alpha' is a bad, repeated or res"),
    ("split,label,image,audio", ["train,a,1,2", "test,b,./1,x/../2"], "line 3 repeats a sample of"),
    ("sep=;\nsplit;label;image", ["train;a;1"], "line 2 names 1 modality, expected two"),
    ("split,image,audio", ["train,1,2"], "is a header without label: split,image,audio; expected"),
    ("train,a,1,2", ["test,b,3,4"], "without split and label: train,a,1,2; expected a first line"),
    ("", [], "line 1 is empty; expected a first line like split,label,image,audio"),
    ("split,label,image,audio", ["train,a,1,2", "test,b,3,4"], "no file 1 and 2 in "),
]


@pytest.mark.parametrize("header, rows, said", BAD)
def test_a_bad_table_is_one_sentence(header, rows, said, tmp_path, capsys):
    """Status 2, the file and mostly the line, from training and from prepare."""
    write_table(tmp_path, header, rows)
    assert train.main(["--dataset", str(tmp_path), *SMALL]) == 2
    results = [("train.py", capsys.readouterr().err)]
    if "no file" not in said:  # prepare only counts what is missing
        assert prepare.main([str(tmp_path), "--workers", "1"]) == 2
        results.append(("prepare", capsys.readouterr().err))
    for program, err in results:
        (line,) = [x for x in err.splitlines() if x.startswith(program)]
        assert said in line and "samples.csv" in line


def workbook(path):
    """An .xlsx is a zip archive."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/worksheets/sheet1.xml", "<row>train</row>" * 99)


def test_a_table_in_another_format_is_one_sentence(tmp_path, capsys):
    """As Excel saves a workbook or "Unicode text", or a plain csv of Windows: which, what to do."""
    row = "split,label,image,audio\ntrain,caf\xe9,1,2\n"
    for content, said in [
        (row.encode("utf-16"), "samples.csv is UTF-16 text, expected UTF-8"),
        (b"\xfe\xff" + row.encode("utf-16-be"), "samples.csv is UTF-16 text"),
        (row.encode("cp1252"), "samples.csv is not UTF-8 text (invalid continuation byte at byte"),
        (None, "samples.csv is an Excel workbook, expected UTF-8"),
    ]:
        workbook(tmp_path / "samples.csv")
        if content:
            (tmp_path / "samples.csv").write_bytes(content)
        assert train.main(["--dataset", str(tmp_path), *SMALL]) == 2
        told = capsys.readouterr().err
        assert said in told and "choose Save As and CSV UTF-8" in told


def test_a_table_without_permission_is_one_sentence(tmp_path, monkeypatch, capsys):
    """Neither a traceback nor an error number."""
    vectors(tmp_path)
    refuse = raising(PermissionError(13, "Permission denied"))
    monkeypatch.setattr("utils.annotations.open", refuse, raising=False)
    assert prepare.main([str(tmp_path)]) == 2
    said = "samples.csv cannot be read (Permission denied); change its permissions\n"
    assert capsys.readouterr().err.endswith(said)


def test_a_silent_recording_is_said(tmp_path, capsys):
    """It is usable, its line names it, and prepare counts it; also where nothing is made anew."""
    pictures_and_sounds(tmp_path, 12)
    for name in (4, 5):
        soundfile.write(tmp_path / f"sounds/{name}.wav", np.zeros(3200), 16000)
    for _ in range(2):
        assert prepare.main([str(tmp_path), "--workers", "1"]) == 0
        assert "usable: 12\nusable, but with a remark: 2; the first: " in capsys.readouterr().out
        text = (tmp_path / "prepared/samples.csv").read_text()
        assert text.count(" is silent") == 2 and "4.wav is silent" in text


def test_what_is_wrong_with_a_sample_is_listed(tmp_path, capsys):
    """Blank, missing, damaged, of another shape: a row each with its reason; the rest trains."""
    vectors(tmp_path)
    lines = (tmp_path / "samples.csv").read_text().splitlines()
    lines[2] = lines[2].replace("a1.npy", "")
    lines[3] = lines[3].replace("b2.npy", "nowhere.npy")
    np.save(tmp_path / "c4.npy", np.zeros(3))
    np.save(tmp_path / "a5.npy", np.full(4, np.nan))
    (tmp_path / "b7.npy").write_text("<html>")
    write_table(tmp_path, lines[0], lines[1:])
    assert prepare.main([str(tmp_path), "--workers", "2"]) == 0
    counts = ["another shape", "blank cell", "missing", "not finite", "undecodable"]
    told = "".join(f"{status}: 1\n" for status in counts) + "usable: 25\n"
    assert told in capsys.readouterr().out
    kinds, found = read_prepared(tmp_path)
    assert set(kinds.values()) == {"vector"} and found.counts["train"]["usable"] == 15
    text = (tmp_path / "prepared/samples.csv").read_text()
    named = ("line 3: a is blank", "line 4: no file nowhere.npy in ", "c4.npy", "a5.npy", "b7.npy")
    assert all(problem in text for problem in named)
    assert train.main(["--dataset", str(tmp_path), "--out", str(tmp_path / "run"), *SMALL]) == 0


def test_a_set_that_is_no_set_is_one_sentence(tmp_path, monkeypatch, capsys):
    """A name with a slip, a folder without a table, a --root beside a folder."""
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    vectors(tmp_path / "v")
    for flags, said in [
        (["nix/mine"], "there is no folder nix/mine; check its path"),
        (["./V"], "there is no folder ./V (did you mean v?)"),
        (["V"], "there is no folder V (did you mean v?)"),
        (["v/samples.csv"], "v/samples.csv is a file; give its folder, v"),
        (["cremd"], "unknown data set or folder 'cremd' (did you mean cremad?)"),
        (["empty"], "empty has no samples.csv, a line for each sample"),
        (["v", "--root", "v"], "v is a folder of your own data; leave --root out"),
        (["v", "--encoders", "cnn"], "encoder 'cnn' cannot encode vector; choose from mlp"),
    ]:
        assert train.main(["--dataset", *flags, *SMALL]) == 2
        assert said in capsys.readouterr().err
    for flags, said in [
        (["cremd"], "unknown data set or folder 'cremd' (did you mean cremad?); choose"),
        (["v/samples.csv"], "v/samples.csv is a file; give its folder, v"),
        (["v", "--root", "v"], "v is a folder of your own data; leave --root out"),
    ]:
        assert prepare.main(flags) == 2
        assert said in capsys.readouterr().err


def test_files_are_found_with_accents_in_either_form(tmp_path):
    """A Mac writes \u00e9 as two characters, a spreadsheet as one; header names in any case."""
    rows = []
    for i, split in enumerate(["train", "train", "test"]):
        make_jpg(tmp_path / unicodedata.normalize("NFD", f"\u00e9t\u00e9{i}.jpg"))
        make_wav(tmp_path / unicodedata.normalize("NFC", f"\u00e9t\u00e9{i}.wav"), 0.2)
        rows.append(f"{split},{i % 2},\u00e9t\u00e9{i}.jpg,e\u0301te\u0301{i}.wav")
    write_table(tmp_path, "split,label,Image,AUDIO", rows)
    _, samples = read_own(tmp_path)
    assert not any(sample.status for sample in samples)


def test_a_class_that_is_never_trained_is_said(tmp_path, capsys):
    """Most likely a slip in the label."""
    vectors(tmp_path)
    table = tmp_path / "samples.csv"
    table.write_text(table.read_text().replace("test,class 0,a0", "test,klass 0,a0"))
    data.load(str(tmp_path))
    told = "classes without a training sample, in test: klass 0\n"
    assert told in capsys.readouterr().out


def test_strings_are_a_list_that_processes_share():
    """As they were put in; a spawned process gets them without a copy in its pickle."""
    texts = ["", "a", "\u00e9t\u00e9", "line\nbreak", "bad\udce9name"] * 1000
    strings = Strings(texts)
    assert list(strings) == texts and len(strings) == 5000
    shared = multiprocessing.reduction.ForkingPickler.dumps(strings)
    assert len(shared) < 2000 < len(pickle.dumps(texts))


@pytest.mark.slow
def test_a_process_that_dies_costs_one_sample():
    """A decoder that crashes takes its own sample alone; every other one is done."""
    jobs = ["1 + 1", "1 + 2", "__import__('os')._exit(1)", "1 + 3"]
    assert dict(in_processes(eval, jobs, 2)) == {0: 2, 1: 3, 2: None, 3: 4}


def test_workers_end_with_a_killed_process():
    """After kill -9 of the main process alone nobody holds its output or waits for ever."""
    busy = "print('ready', flush=True); import time; time.sleep(60)"
    code = f"from utils.prepare import in_processes; [*in_processes(exec, [{busy!r}] * 2, 2)]"
    command = [sys.executable, "-c", code]
    options = {"stdout": subprocess.PIPE, "cwd": ROOT, "start_new_session": True}
    with subprocess.Popen(command, **options) as process:
        try:
            assert [process.stdout.readline() for _ in range(2)] == [b"ready\n"] * 2
            process.kill()
            assert process.communicate(timeout=120)[0] == b""
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_a_folder_that_another_process_has_just_made_stays(tmp_path):
    """Of two that prepare the same clip the first wins, and the second is no error."""
    with atomic(tmp_path / "clip") as part:
        part.mkdir()
        (tmp_path / "clip").mkdir()
        (tmp_path / "clip/first.jpg").write_text("")
    assert [p.name for p in tmp_path.rglob("*.jpg")] == ["first.jpg"]


@pytest.mark.slow
def test_one_video_in_many_lines_is_prepared_once(tmp_path, monkeypatch):
    """Lines that share a file do not get in each other's way, also in several processes."""
    monkeypatch.setattr(preparing, "FEW", 0)
    two_sounds(tmp_path)
    assert prepare.main([str(tmp_path), "--workers", "2"]) == 0
    kinds, found = read_prepared(tmp_path)
    assert sum(c["usable"] for c in found.counts.values()) == 12
    clip = made(tmp_path, "video", "clip.mp4")
    assert [*(tmp_path / "prepared/video").iterdir()] == [clip]
    assert {*found.splits["train"][0][2], *found.splits["test"][0][2]} == {str(clip)}
