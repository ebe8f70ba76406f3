"""scripts/predict.py: what a run says of samples is what its evaluation computes."""

import csv
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_jpg, sentence
from PIL import Image

import train
from baselines import BASELINES
from scripts import figures, predict, why
from scripts.predict import Predictor
from utils.cli import SettingsError
from utils.run import load_checkpoint, save_checkpoint

LABELS = ["cat", "dög", "bird"]


def write_table(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "samples.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture
def pets(tmp_path, monkeypatch):
    """A folder of pictures and vectors, 18 to train and 9 to test, and a run of one epoch."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    rows = [["split", "label", "image", "vector"]]
    for i in range(27):
        make_jpg(Path(f"pets/a b/{i}.jpg"), colour=(80 * (i % 3), 9 * i, 40))
        np.save(f"pets/{i}.npy", rng.normal(size=5).astype(np.float32) + i % 3)
        cells = [f"a b/{i}.jpg", f"{i}.npy"]
        rows.append(["train" if i < 18 else "test", LABELS[i % 3], *cells])
    write_table(Path("pets"), rows)
    flags = ["--epochs", "1", "--method", "constant:0.5", "--batch-size", "4"]
    assert train.main(["--dataset", "pets", *flags, "--out", "run"]) == 0
    return rows


@pytest.fixture
def grids(tmp_path, monkeypatch):
    """A folder of pictures and arrays (3, 6, 8), and a run of one epoch."""
    monkeypatch.chdir(tmp_path)
    rows = [["split", "label", "image", "array"]]
    for i in range(12):
        make_jpg(Path(f"pets/{i}.jpg"), colour=(80 * (i % 3), 9 * i, 40))
        np.save(f"pets/{i}.npy", np.full((3, 6, 8), i, np.float32))
        rows.append(["train" if i < 6 else "test", LABELS[i % 3], f"{i}.jpg", f"{i}.npy"])
    write_table(Path("pets"), rows)
    flags = ["--epochs", "1", "--method", "constant:0.5", "--batch-size", "4"]
    assert train.main(["--dataset", "pets", *flags, "--out", "run"]) == 0


def evaluated(monkeypatch, run):
    """The logits (1 + m, n, c) with which --eval scores the test split."""
    seen, scores = [], train.scores
    with monkeypatch.context() as patch:
        patch.setattr(train, "scores", lambda o, y: seen.append(o) or scores(o, y))
        assert train.main(["--eval", run]) == 0
    return torch.stack(seen)


def predicted(monkeypatch, run, *files, predictor=None):
    """The logits with which predict answers, and its records."""
    seen, logits = [], Predictor.logits
    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "logits", lambda *a: seen.append(logits(*a)) or seen[-1])
        predictor = predictor or Predictor(run)
        if files:
            records = predict.predict(predictor, predict.rows_of(predictor, files))
        else:
            _, records = predict.own_records(predictor, run, "test")
    return torch.cat(seen, dim=1), records


@pytest.mark.parametrize("method", [*BASELINES, "constant:0.5 --heads", "heuristic"])
def test_predictions_are_those_of_the_evaluation(tiny_data, monkeypatch, method):
    """To the bit, for every method; in the last batch is one sample alone."""
    flags = ["--dataset", "tiny", "--method", *method.split(), "--val-fraction", "0.2"]
    flags += ["--batch-size", "7", "--epochs", "3", "--inner-iters", "1", "--out", "run"]
    if method == "greedy":
        flags += ["--fusion", "channel"]
    assert train.main(flags) == 0
    found, records = predicted(monkeypatch, "run")
    assert torch.equal(found, evaluated(monkeypatch, "run"))
    right = np.mean([r["label"] == r["prediction"].label for r in records])
    last = json.loads(Path("run/log.jsonl").read_text().splitlines()[-1])
    assert 100 * right == pytest.approx(last["test"]["fused"]["acc"])


def test_a_folder_is_predicted_as_evaluated(pets, monkeypatch, capsys):
    """The test split of files, to the bit; a split has batches of its own, and the records have
    the order of samples.csv."""
    found, records = predicted(monkeypatch, "run", "pets")
    assert [r["sample"] for r in records] == [row[2] for row in pets[1:]]
    assert [r["split"] for r in records] == ["train"] * 18 + ["test"] * 9
    assert torch.equal(found[:, :9], evaluated(monkeypatch, "run"))


def test_an_unusable_file_leaves_the_batches_full(pets, monkeypatch):
    """As in the evaluation, which knows only the usable samples; the last batch is one sample."""
    for i in (19, 20, 22, 25):
        Path(f"pets/{i}.npy").write_bytes(b"no array")
    sizes, predictions = [], Predictor.predictions

    def counted(self, samples):
        sizes.append(len(samples))
        return predictions(self, samples)

    monkeypatch.setattr(Predictor, "predictions", counted)
    found, _ = predicted(monkeypatch, "run", "pets")
    assert sizes == [4, 1, 4, 4, 4, 4, 2]
    assert torch.equal(found[:, :5], evaluated(monkeypatch, "run"))


def test_three_modalities_are_predicted_as_evaluated(tmp_path, monkeypatch, tiny_bert):
    """resnet18, BERT and mlp, from files and from the run's data; the last batch is one sample."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "FEW_STEPS", 0)  # batch norm keeps the statistics of the one step
    rng, words = np.random.default_rng(0), ["the cat is fine .", "a dog", "fine"]
    rows = [["split", "label", "image", "text", "array:vector"]]
    for i in range(9):
        noise = rng.integers(256, size=(40, 30, 3), dtype=np.uint8)
        Path("mine").mkdir(exist_ok=True)
        Image.fromarray(noise).save(f"mine/{i}.png")
        np.save(f"mine/{i}.npy", rng.normal(size=5))
        cells = [f"{i}.png", words[i % 3], f"{i}.npy"]
        rows.append(["train" if i < 4 else "test", LABELS[i % 2], *cells])
    write_table(Path("mine"), rows)
    flags = ["--epochs", "1", "--inner-iters", "1", "--batch-size", "4", "--lr", "0.001"]
    flags += ["--method", "constant:0.5", "--encoders", f"resnet18,bert:{tiny_bert},mlp"]
    assert train.main(["--dataset", "mine", *flags, "--out", "run"]) == 0
    expected, predictor = evaluated(monkeypatch, "run"), Predictor("run")
    assert torch.equal(predicted(monkeypatch, "run", predictor=predictor)[0], expected)
    found, records = predicted(monkeypatch, "run", "mine", predictor=predictor)
    assert torch.equal(found[:, :5], expected)
    last = predictor(image="mine/8.png", text=words[2], vector="mine/8.npy")
    assert last == records[8]["prediction"]
    assert last.probability == expected[0, 4].softmax(0).max().item()


def test_new_samples_need_neither_labels_nor_the_training_data(pets, capsys):
    """No column of labels, other folders, a file that is missing and one that is damaged."""
    Path("pets").rename("gone")
    Path("gone/bad.jpg").write_bytes(b"no picture")
    cells = [["a b/0.jpg", "0.npy"], ["", "1.npy"], ["x.jpg", "1.npy"], ["bad.jpg", "1.npy"]]
    rows = [[name and f"../gone/{name}" for name in row] for row in cells]
    write_table(Path("new"), [["image", "vector"], *rows])
    assert predict.main(["run", "new", "--csv", "out.csv"]) == 0
    said = capsys.readouterr().out
    assert "x.jpg" in said and "right:" not in said
    assert "bad.jpg cannot be read (cannot identify image file); replace it, or leave it" in said
    with open("out.csv", newline="", encoding="utf-8-sig") as file:
        lines = [*csv.DictReader(file)]
    assert [line["status"] for line in lines] == ["usable", "usable", "missing", "undecodable"]
    assert [bool(line["predicted"]) for line in lines] == [True, True, False, False]
    assert lines[1]["by image alone"] == "" != lines[1]["by vector alone"]
    assert {p.name for p in Path("gone").iterdir()} >= {"samples.csv", "bad.jpg"}
    assert not Path("new/prepared").exists()


def test_data_that_moved_are_named(pets, capsys):
    """--root, in predict and in the pictures; the sentence without it says so."""
    flags = ["--epochs", "3", "--method", "constant:0.5", "--batch-size", "4", "--keep", "9"]
    assert train.main(["--dataset", "pets", *flags, "--out", "run", "--overwrite"]) == 0
    Path("pets").rename("gone")
    assert predict.main(["run"]) == 2 and "give their folder with --root" in capsys.readouterr().err
    assert predict.main(["run", "--root", "gone"]) == 0 and "right:" in capsys.readouterr().out
    for command in ("confusion", "mistakes", "gap", "gradcam", "animate", "probe"):
        assert figures.main([command, "run", "--root", "gone"]) == 0
    assert Path("run/confusion.png").exists()
    assert why.main(["run", "--root", "gone"]) == 0
    assert predict.main(["run", "gone", "--root", "gone"]) == 2
    assert "with FILES leave it out" in capsys.readouterr().err


def test_one_sample_by_hand(pets, capsys):
    """As words, and in Python; a modality that is left out counts as a feature of zeros."""
    given = {"image": "pets/a b/4.jpg", "vector": "pets/4.npy"}
    found = Predictor("run")(**given)
    assert predict.main(["run", *(f"{k}={v}" for k, v in given.items())]) == 0
    assert f"{found.label}  " in capsys.readouterr().out and 0 < found.probability <= 1
    predictor = Predictor("run")
    (alone,) = predictor.predictions([[None, torch.from_numpy(np.load("pets/4.npy"))]])
    assert alone == predictor(vector="pets/4.npy") and alone.label == alone.alone["vector"]
    assert [*alone.alone] == ["vector"]


@pytest.mark.parametrize(
    "files, said",
    [
        (["bark=x"], "bark=x names no modality of the run; expected a folder, or image=FILE vec"),
        (["nothing"], "nothing does not exist; expected a folder, or image=FILE vector=FILE"),
        (["pets/0.npy"], "pets/0.npy is a file; expected a folder, or image=FILE vector=FILE"),
        (["."], "one name; write its first line, image,vector, and a line for each sample"),
        (["other"], "other/samples.csv has image as text; the run was trained on image"),
        (["slip"], "image, array; the run was trained on image, vector; rename or remove array"),
        (["--export", "m.pt2"], "--export needs one sample"),
        (["image=a", "image=b"], "give each modality once, not image=a image=b; for several"),
        (["pets", "--split", "val"], "pets has no sample of the split val"),
        (["two"], "samples.csv, line 1 has the column label twice; remove one of them"),
    ],
)
def test_what_does_not_fit_is_one_sentence(pets, capsys, files, said):
    """Status 2."""
    write_table(Path("other"), [["text:image", "vector"], ["a", "b.npy"]])
    write_table(Path("two"), [["label", "image", "label"], ["a", "b.png", "c"]])
    write_table(Path("slip"), [["image", "array"], ["../pets/a b/4.jpg", "../pets/4.npy"]])
    assert predict.main(["run", *files]) == 2
    assert said in capsys.readouterr().err
    assert predict.main([]) == 2 and "missing: RUN; see --help\n" in capsys.readouterr().err
    with pytest.raises(SettingsError, match="the run has no modality bark; it has image, vector"):
        Predictor("run")(bark="x")


def test_a_run_of_another_version_is_one_sentence(pets, monkeypatch, capsys):
    """As --eval says it: with a setting more or less, or without the record of the data."""
    state = load_checkpoint("run")
    fewer = {name: value for name, value in state["settings"].items() if name != "draws"}
    for name, change in {
        "dropout": {"settings": state["settings"] | {"dropout": 0.5}},
        "draws": {"settings": fewer},
        "data": {"data": None},
    }.items():
        old = {key: value for key, value in (state | change).items() if value is not None}
        monkeypatch.setattr(predict, "load_checkpoint", lambda run, old=old: old)
        assert predict.main(["run", "pets"]) == 2
        differs = f"run comes from another version of train.py, which differs in {name}; use that"
        assert sentence(capsys, "predict").startswith(differs)


def test_confusions_are_named(capsys):
    """The three most frequent, with their classes' sizes."""
    wrong = [("a", "b")] * 3 + [("a", "a")] * 2 + [("b", "a")] * 2 + [("c", "a"), ("b", "c")]
    records = [
        {"sample": "s", "label": label, "prediction": predict.Prediction(found, 0.5, {"m": found})}
        for label, found in wrong
    ]
    predict.report(records, ["m"])
    lines = capsys.readouterr().out.splitlines()[-4:]
    assert lines[:3] == [
        "right: 2 of 9 with a label, 22.2 %",
        "a was taken for b: 3 of 5",
        "b was taken for a: 2 of 3",
    ]


def test_files_with_one_name_need_no_samples_csv(capsys, pets):
    """A folder of new pairs; one file alone is predicted from its modality. Training ends with this
    command."""
    assert "to use it: python -m scripts.predict run FOLDER\n" in capsys.readouterr().out
    Path("new/photos").mkdir(parents=True)
    for i in (18, 19, 20):
        shutil.copy(f"pets/a b/{i}.jpg", f"new/photos/{i}.jpg")
        shutil.copy(f"pets/{i}.npy", f"new/{i}.npy")
    Path("new/photos/20.jpg").unlink()
    make_jpg(Path("new/photos/18.png"))
    assert predict.main(["run", "new", "--csv", "new.csv"]) == 0
    said = capsys.readouterr().out
    assert "new has no samples.csv: files with one name are one sample" in said
    assert (
        "1 file passed over, because a sample has another of its kind: of 18.jpg and 18.png" in said
    )
    (_, *found) = csv.reader(Path("new.csv").read_text("utf-8-sig").splitlines())
    assert predict.main(["run", "pets", "--csv", "pets.csv"]) == 0
    lines = Path("pets.csv").read_text("utf-8-sig").splitlines()
    known = {row[0]: row for row in csv.reader(lines)}
    for row in found:
        name = Path(row[0]).name
        whole = known[f"a b/{name}" if name.endswith("jpg") else "a b/20.jpg"]
        assert (row[2:6] == whole[2:6]) == name.endswith("jpg") and row[1] == ""
    assert [Path(row[0]).name for row in found] == ["18.jpg", "19.jpg", "20.npy"]


def test_a_table_can_have_one_of_the_modalities(pets, capsys):
    """Predicted as with blank cells of the other; without any, one sentence."""
    write_table(Path("new"), [["image"], ["../pets/a b/4.jpg"]])
    assert predict.main(["run", "new"]) == 0
    write_table(Path("new"), [["label"], ["cat"]])
    assert predict.main(["run", "new"]) == 2
    assert "line 1 names no modality, expected" in sentence(capsys, "predict")


def test_a_csv_of_yours_is_not_written_over(pets, capsys):
    """samples.csv, notes; its own csv is written anew."""
    Path("notes.csv").write_text("mine")
    for name in ("pets/samples.csv", "notes.csv"):
        before = Path(name).read_bytes()
        assert predict.main(["run", "pets", "--csv", name]) == 2
        assert f"{name} is a file of yours, which would be lost" in capsys.readouterr().err
        assert Path(name).read_bytes() == before
    for _ in range(2):
        assert predict.main(["run", "pets", "--split", "test", "--csv", "new.csv"]) == 0


def test_a_run_whose_data_are_made_in_memory_reads_no_files(tiny_data, capsys):
    """As of keypad: one sentence, also from Python; without files its test split is shown."""
    flags = ["--dataset", "tiny", "--epochs", "1", "--method", "heuristic", "--out", "made"]
    assert train.main(flags) == 0
    said = "the samples of tiny are not single files: this run reads none"
    assert predict.main(["made", "image=a.jpg"]) == 2 and said in capsys.readouterr().err
    with pytest.raises(ValueError, match=said):
        Predictor("made")(image="a.jpg")
    assert predict.main(["made"]) == 0


def test_gestures_are_no_single_files(pets, capsys):
    """A clip of NVGesture is 80 frames of a list's line: predict says so, also from Python."""
    predictor = Predictor("run")
    predictor.kinds = {"rgb": "rgb", "depth": "depth"}
    with pytest.raises(SettingsError, match="are not single files: this run reads none"):
        predictor(rgb="clip.avi")
    with pytest.raises(SettingsError, match="are not single files: this run reads none"):
        predict.rows_of(predictor, ["pets"])


def test_a_run_of_another_device_is_shown_here(pets, capsys):
    """Trained on a GPU, which this computer may lack: the data are read for the device of today."""
    state = load_checkpoint("run")
    state["settings"]["device"] = "cuda"
    state["log"] = state["log"].replace('"device": "auto"', '"device": "cuda"')
    save_checkpoint("run", state, kept=1)
    Path("run/log.jsonl").write_text(state["log"], encoding="utf-8")
    for command in (["confusion", "run"], ["gap", "run"]):
        assert figures.main(command) == 0
    assert predict.main(["run", "--device", "cpu"]) == why.main(["run"]) == 0


def test_an_array_that_is_missing_is_listed(grids, capsys):
    """Also where no array of the folder can be read, or all are vectors: no other kind is meant."""
    write_table(
        Path("new"), [["image", "array"], ["../pets/0.jpg", ""], ["../pets/1.jpg", "x.npy"]]
    )
    assert predict.main(["run", "new"]) == 0
    said = capsys.readouterr().out
    assert "there is no file new/x.npy" in said
    np.save("new/x.npy", np.zeros(3, np.float32))
    assert predict.main(["run", "new"]) == 0
    assert "not predicted: " in capsys.readouterr().out


def test_a_folder_with_an_equals_sign_is_a_folder(pets, capsys):
    Path("pets").rename("lr=0.1")
    assert predict.main(["run", "lr=0.1", "--split", "test"]) == 0


def test_a_text_file_that_is_not_there_is_no_sentence(pets, capsys):
    """A file's name that was mistyped; a sentence may end in .txt."""
    predictor = Predictor("run")
    predictor.kinds = {"image": "image", "note": "text"}
    with pytest.raises(SettingsError, match="there is no file reveiw.txt; give a text file, or"):
        predictor.cells({"note": "reveiw.txt"})
    assert predictor.cells({"note": "see notes.txt"}) == ["", "see notes.txt"]


def test_a_folder_for_a_file_is_said(pets, capsys):
    """The sample is listed with the sentence; status 1, because nothing was predicted."""
    for name in ("image", "vector"):
        assert predict.main(["run", f"{name}=pets"]) == 1
        line = "not predicted: pets is a folder, expected a file; give a file instead\n"
        assert line in capsys.readouterr().out


def test_an_array_of_another_shape_leaves_the_others_predicted(tmp_path, monkeypatch, capsys):
    """Of other channels: it is listed. Of another size, for which the encoder has no rule: it is
    predicted, as alone."""
    monkeypatch.chdir(tmp_path)
    rng, rows = np.random.default_rng(0), [["split", "label", "array:v", "array:g"]]
    for name, shape in {"7": (7,), "1": (1, 8, 8), "big": (3, 12, 12)}.items():
        np.save(f"{name}.npy", rng.normal(size=shape))
    Path("mine").mkdir()
    for i in range(8):
        np.save(f"mine/{i}v.npy", rng.normal(size=6))
        np.save(f"mine/{i}g.npy", rng.normal(size=(3, 8, 8)))
        rows.append(["train" if i < 6 else "test", LABELS[i % 2], f"{i}v.npy", f"{i}g.npy"])
    write_table(Path("mine"), rows)
    flags = ["--epochs", "1", "--inner-iters", "1", "--method", "constant:0", "--out", "run"]
    assert train.main(["--dataset", "mine", *flags]) == 0
    cells = [["0v", "0g"], ["../7", "1g"], ["2v", "../1"], ["3v", "../big"], ["4v", "4g"]]
    rows = [[f"../mine/{cell}.npy" for cell in row] for row in cells]
    write_table(Path("new"), [["array:v", "array:g"], *rows])
    predictor = Predictor("run")
    records = predict.predict(predictor, predict.rows_of(predictor, ["new"]))
    shape, usable = "another shape", "usable"
    assert [r["status"] for r in records] == [usable, shape, shape, usable, usable]
    assert "7.npy holds (7,), the run was trained on (6,); give a file" in records[1]["problem"]
    assert "1.npy holds (1, 8, 8), the run was trained on (3, H, W)" in records[2]["problem"]
    for i, name in (3, "big.npy"), (4, "mine/4g.npy"):
        found = predictor(v=f"mine/{i}v.npy", g=name)
        assert found.probability == pytest.approx(records[i]["prediction"].probability, abs=1e-5)
    assert predict.main(["run", "v=7.npy"]) == 1 and "holds (7,)" in capsys.readouterr().out


@pytest.mark.slow
def test_an_exported_model_needs_nothing_of_the_project(pets, tmp_path, capsys):
    """It computes the probabilities of batches of any size in a Python that knows torch alone; it
    is made on the CPU, whatever the device."""
    given = ["image=pets/a b/4.jpg", "vector=pets/4.npy"]
    assert predict.main(["run", *given, "--export", "model.pt2", "--device", "cuda"]) == 0
    assert predict.main(["run", *given, "--export", "model.pt2"]) == 2
    assert sentence(capsys, "predict") == "model.pt2 exists; give another name, or remove it"
    predictor = Predictor("run", "cpu")
    x = [
        predictor.read(predictor.prepared(tmp_path, "", [f"pets/a b/{i}.jpg", f"pets/{i}.npy"])[2])
        for i in (3, 4, 5)
    ]
    inputs = [torch.stack(column) for column in zip(*x)]
    torch.save(inputs, "inputs.pt")
    program = """
import json, torch
files = {"classes.json": ""}
model = torch.export.load("model.pt2", extra_files=files).module()
print(json.dumps([json.loads(files["classes.json"]), model(*torch.load("inputs.pt")).tolist()]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    with zipfile.ZipFile("model.pt2") as archive:
        assert {name.split("/")[0] for name in archive.namelist()} == {"model"}
    facts, found = json.loads(done.stdout)
    assert facts == {"classes": sorted(LABELS), "modalities": ["image", "vector"]}
    expected = predictor.logits(x)[0].softmax(1)
    assert torch.allclose(torch.tensor(found), expected, atol=1e-6)


SHORT, LONG = "fine .", "the cat is fine . a dog is fine"


@pytest.fixture
def two_texts(tmp_path, monkeypatch, tiny_bert):
    """A run of one epoch whose modalities are two texts."""
    monkeypatch.chdir(tmp_path)
    rows = [["split", "label", "text:one", "text:two"]]
    rows += [["train" if i < 4 else "test", LABELS[i % 2], f"{SHORT} {i}", LONG] for i in range(6)]
    Path("mine").mkdir()
    write_table(Path("mine"), rows)
    flags = ["--epochs", "1", "--inner-iters", "1", "--batch-size", "4", "--method", "constant:0"]
    flags += ["--encoders", f"bert:{tiny_bert}", "--out", "run"]
    assert train.main(["--dataset", "mine", *flags]) == 0


def test_two_texts_of_an_exported_model_have_their_own_lengths(two_texts, tmp_path):
    """A question and its answer are seldom equally long."""
    assert predict.main(["run", f"one={SHORT}", f"two={LONG}", "--export", "model.pt2"]) == 0
    predictor = Predictor("run", "cpu")
    x = predictor.read(predictor.prepared(tmp_path, "", [LONG, SHORT])[2])  # the other way round
    found = torch.export.load("model.pt2").module()(*(x_j[None] for x_j in x))
    assert torch.allclose(found, predictor.logits([x])[0].softmax(1), atol=1e-6)


def test_a_text_can_be_a_txt_file(two_texts, capsys):
    """As in a folder without a samples.csv; other words are the sentence itself."""
    predictor = Predictor("run", "cpu")
    Path("one.txt").write_text(f"{SHORT}\n")
    assert predict.rows_of(predictor, ["one=one.txt"]) == [("", "", "", [SHORT, ""])]
    assert predictor(one="one.txt") == predictor(one=SHORT) != predictor(one="one.text")
    assert predict.main(["run", "one.txt"]) == 2
    assert sentence(capsys, "predict").endswith('or one="A SENTENCE" two="A SENTENCE"')
