"""The six sets, from their original files to the final table, and the errors for damaged files.

data.py, utils/annotations.py, utils/files.py, scripts/prepare.py.
"""

import csv
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED, loaded, made, make_jpg, make_video, make_wav, needs_shared
from PIL import Image

import data
import model
import train
from scripts import prepare
from utils import annotations, decode, files
from utils.atomic import remove
from utils.cli import SettingsError

ROOT = Path(__file__).parents[2]
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def indexed(name, root):
    return files.index(name, root, [*data.SETS[name]["kinds"]])


def listed(name, root):
    """{split: number of samples} and their labels, from the annotation files below root."""
    found = list(annotations.LISTS[name](indexed(name, root)))
    return Counter(split for split, *_ in found), [label for _, label, *_ in found]


# --- the real annotation files ---


REAL = [
    ("cremad", "cremad", {"train": 6698, "test": 744}, 6),
    ("kinetics-sounds", "kinetics_sounds", {"train": 14799, "test": 2597}, 31),
    ("sarcasm", "sarcasm", {"train": 19816, "val": 2410, "test": 2409}, 2),
    ("twitter2015", "twitter2015", {"train": 3179, "val": 1122, "test": 1037}, 3),
    ("nvgesture", "nvgesture", {"train": 1050, "test": 482}, 25),
]


@needs_shared
@pytest.mark.parametrize("name, folder, counts, n_classes", REAL)
def test_the_real_lists_have_their_counts(name, folder, counts, n_classes):
    """The paper's numbers; for KineticsSounds those of the list that everybody uses."""
    found, labels = listed(name, SHARED / folder)
    assert found == counts and set(labels) == set(range(n_classes))


@needs_shared
def test_the_real_list_of_vggsound_has_its_counts(tmp_path):
    """15,446 test rows in 309 classes, in the order of their names, with stat.csv and without."""
    with open(SHARED / "vggsound/test.csv", newline="") as file:
        rows = [(name[:11], int(name[12:18]), label, "test") for name, label in csv.reader(file)]
    with open(tmp_path / "vggsound.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    found, labels = listed("vggsound", tmp_path)
    assert found == {"test": 15446} and set(labels) == set(range(309))
    shutil.copy(SHARED / "vggsound/stat.csv", tmp_path)
    assert listed("vggsound", tmp_path)[1] == labels


@needs_shared
def test_nvgesture_takes_the_label_of_the_list():
    """15 and 8 rows of version 2 differ from their folder's class; a window has 80 frames."""
    differ = Counter()
    found = indexed("nvgesture", SHARED / "nvgesture")
    for split, label, group, _, wanted in annotations.list_nvgesture(found):
        (_, _, stream, start, end), _, depth = wanted
        folder = Path(stream).parent
        differ[split] += int(folder.parent.name.removeprefix("class_")) != label + 1
        assert end - start == 80 == depth[4] - depth[3] and folder.name.startswith(group + "_")
    assert differ == {"train": 15, "test": 8}


# --- small data sets in the original layouts ---

EMOTIONS = ["1001_DFA_ANG_XX", "1001_IEO_DIS_HI", "1002_IEO_FEA_LO", "1002_DFA_HAP_XX"]
EMOTIONS += ["1003_DFA_NEU_XX", "1003_DFA_SAD_XX"]
VIDEOS = ["--4-0ihtnBU", "--6q_33gNew", "-00nar1nEPc", "-3Mwkq-7TV4"]
CLIP = EMOTIONS[0]
WAV, FLV, LIST = f"AudioWAV/{CLIP}.wav", f"VideoFlash/{CLIP}.flv", "annotations/train.csv"
MP4, TRAIN, VGG = f"k400/train/{VIDEOS[0]}_000058_000068.mp4", "my_train.txt", "vggsound.csv"
AVI, LST = "Video_data/class_01/subject3_r0/sk_depth.avi", "nvgesture_train_correct_cvpr2016_v2.lst"
JPG, TEXT = "dataset_image/8400061606609800.jpg", "text/train.txt"
FLOW = "Video_data/flow_data/train/0.npy"


def cremad(root, *_):
    """wav and flv under real names, OGM-GE's lists: no header, CRLF."""
    for name in EMOTIONS:
        make_wav(root / f"AudioWAV/{name}.wav")
        make_video(root / f"VideoFlash/{name}.flv", sound=False, video="flv")
    rows = [f"{name},{name.split('_')[2]}\r\n" for name in EMOTIONS]
    write(root / "annotations/train.csv", "".join(rows))
    write(root / "annotations/test.csv", "".join(rows[:3]))
    return []


def kinetics_sounds(root, *_):
    """mp4 as Kinetics-400 names them, train and test apart."""
    rows = [f"{video}_000058_000068,10,{k}\n" for k, video in enumerate(VIDEOS)]
    write(root / "my_train.txt", "".join(rows))
    write(root / "my_test.txt", f"{VIDEOS[0]}_58,10,0\n{VIDEOS[3]}_58,10,3\n")
    for video in VIDEOS:
        make_video(root / f"k400/train/{video}_000058_000068.mp4")
    return []


def vggsound(root, *_):
    """The three spellings of a clip's file, and a label with a comma."""
    labels = ["people marching", "bird chirping, tweeting", "playing harp", "people marching"]
    rows = [
        f'{video},{30 + k},"{label}",{split}\n'
        for split in ("train", "test")
        for k, (video, label) in enumerate(zip(VIDEOS, labels))
    ]
    write(root / "vggsound.csv", "".join(rows))
    spellings = ["_000030.mp4", "_31000_41000.mp4", "_32.mp4", ".mp4"]
    for video, spelling in zip(VIDEOS, spellings):
        make_video(root / f"video/{video}{spelling}")
    return []


def sarcasm(root, tiny_bert, tiny_clip):
    """Lines of Python lists, a tweet to leave out, images under their tweets' ids."""
    for k, (split, extra) in enumerate([("train", ""), ("valid2", ", 0"), ("test2", ", 1")]):
        ids = [f"84000616066098{k}{i}" for i in range(4)]
        rows = [
            f"['{name}', 'the dog is fine . to # {name}'{extra}, {i % 2}]\r\n"
            for i, name in enumerate(ids)
        ]
        rows.append(f"['910308516510011393', 'a # humor joke'{extra}, 1]\r\n")
        write(root / f"text/{split}.txt", "".join(rows))
        for name in ids:
            make_jpg(root / f"dataset_image/{name}.jpg")
    return ["--encoders", f"cnn,bert:{tiny_bert}"]


def twitter2015(root, tiny_bert, tiny_clip):
    """Tab separated, test.tsv with its header of four names; some rows share an image."""
    usual = "index\t#1 Label\t#2 ImageID\t#3 String\t#3 String\n"
    odd = "index\t#1 ImageID\t#2 String\t#2 String\n"
    for split, first in [("train", 1860693), ("dev", 975807), ("test", 74960)]:
        sentence = 'RT @ dog : $T$ is "fine\tthe cat\n'
        rows = [f"{i + 1}\t{i % 3}\t{first + i // 2}.jpg\t{sentence}" for i in range(4)]
        write(root / f"{split}.tsv", (odd if split == "test" else usual) + "".join(rows))
        for i in range(2):
            make_jpg(root / f"twitter2015_images/{first + i}.jpg")
    return ["--encoders", f"clip:{tiny_clip}"]


def nvgesture(root, *_):
    """Two streams a clip; subject 3 trains, subject 13 tests."""
    for split, subjects in [("train", (3, 5)), ("test", (13,))]:
        rows = []
        for subject, k in itertools.product(subjects, (1, 2)):
            folder = f"Video_data/class_{k:02d}/subject{subject}_r0"
            rows.append(
                f"path:./{folder} depth:sk_depth:5:85 color:sk_color:5:85 "
                f"duo_left:duo_left:1:9 label:{k} \n"
            )
            for stream in ("sk_color", "sk_depth"):
                make_video(root / folder / f"{stream}.avi", frames=90, sound=False)
        write(root / f"nvgesture_{split}_correct_cvpr2016_v2.lst", "".join(rows))
    return []


MAKERS = [cremad, kinetics_sounds, vggsound, sarcasm, twitter2015, nvgesture]
MAKERS = {make.__name__.replace("_", "-"): make for make in MAKERS}


@pytest.fixture(scope="session")
def originals(tmp_path_factory, tiny_bert, tiny_clip):
    """name -> (folder in the original layout, flags), made once; copy it before you change it."""
    made = {}

    def get(name):
        if name not in made:
            root = tmp_path_factory.mktemp(name)
            made[name] = root, MAKERS[name](root, tiny_bert, tiny_clip)
        return made[name]

    return get


@pytest.fixture
def copied(originals, tmp_path, monkeypatch):
    """name -> (a folder of its own, flags), prepared or not."""
    monkeypatch.chdir(tmp_path)

    def get(name, prepared=False):
        source, flags = originals(name)
        if prepared and not (source / "prepared").is_dir():
            prepared_again(name, source)
        shutil.copytree(source, tmp_path / name)
        if not prepared:
            shutil.rmtree(tmp_path / name / "prepared", ignore_errors=True)
        return tmp_path / name, flags

    return get


def prepared_again(name, root, *flags):
    assert prepare.main([name, "--root", str(root), "--workers", "1", *flags]) == 0


def table(root):
    """The rows of samples.csv, {column: field}."""
    with open(root / "prepared/samples.csv", newline="") as file:
        file.readline()  # a comment
        return list(csv.DictReader(file))


def run(name, root, flags=(), method="heuristic"):
    usual = ["--encoders", "cnn", "--workers", "0", "--batch-size", "2", "--epochs", "1"]
    usual += f"--draws 1 --terms 2 --method {method} --dataset {name}".split()
    return train.main([*usual, "--root", str(root), "--out", f"{root}-{method}", *flags])


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_every_set_goes_from_its_originals_to_the_table(name, copied, capsys):
    """prepare, then both methods for an epoch."""
    root, flags = copied(name)
    prepared_again(name, root)
    assert {row["status"] for row in table(root)} == {"usable"}
    for method in ("heuristic", "learning-based"):
        assert run(name, root, flags, method) == 0
        lines = Path(f"{root}-{method}/log.jsonl").read_text().splitlines()
        first, _, test = map(json.loads, lines)
        assert first["modalities"] == [*data.SETS[name]["kinds"]]
        assert set(test["test"]) == {"fused", "perf_gap", *first["modalities"]}
        assert ("val" in first["samples"]) == (name in ("sarcasm", "twitter2015"))
    printed = capsys.readouterr().out
    assert printed.count(f"{name} train: ") == 2 and "macro-F1" in printed
    assert "missing" not in printed


def copy_writable(source, target):
    """A copy that may be changed, of a folder that may not."""
    shutil.copytree(source, target)
    for path in [target, *target.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o200)


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize("name", ["vggsound", "nvgesture"])
def test_real_media_go_from_the_original_to_the_table(name, tmp_path, monkeypatch):
    """The real clips under their real names; a list of our own divides them if a split has none."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / name
    if name == "vggsound":
        copy_writable(SHARED / "vggsound/video", root)
        rows = []
        for i, clip in enumerate(root.iterdir()):
            start = int(clip.stem[12:].split("_")[0].removesuffix("000"))
            rows.append(f"{clip.name[:11]},{start},{i},{'test' if i > 4 else 'train'}\n")
        write(root / "vggsound.csv", "".join(rows))
    else:
        copy_writable(SHARED / "nvgesture", root)
        lines = (root / LST).read_text().splitlines(keepends=True)
        here = [x for x in lines if (root / x.split()[0].removeprefix("path:")).is_dir()]
        for part, split in [(here[:3], "train"), (here[3:], "test")]:
            write(root / f"nvgesture_{split}_correct_cvpr2016_v2.lst", "".join(part))
        for wrapped in root.rglob("sk_wrapped.avi"):
            wrapped.rename(wrapped.with_name("sk_color.avi"))
    prepared_again(name, root)
    assert run(name, root) == 0


# --- what prepare writes ---


def test_prepare_writes_ten_frames_and_the_spectrogram(copied):
    """Evenly spaced, short side 256, in order, with the clip's grey levels; a tone of 440 Hz."""
    root, _ = copied("kinetics-sounds", prepared=True)
    frames = sorted(made(root, "video", f"{VIDEOS[0]}_000058").iterdir())
    assert [f.name for f in frames] == [f"{i:05d}.jpg" for i in range(1, 11)]
    for n, frame in zip(range(1, 30, 3), frames):
        picture = Image.open(frame)
        assert min(picture.size) == 256 and abs(np.asarray(picture).mean() - 8 * n) < 6
    kept = np.load(made(root, "audio", f"{VIDEOS[0]}_000058"))
    assert kept.shape == (257, 1004) and kept.dtype == np.float16
    assert (kept[:, 5:50].argmax(0) * 16000 / 512 == 437.5).all()
    assert kept[:, 5:50].max() == pytest.approx(np.log(38), abs=0.2)


def test_raw_frames_are_those_of_the_pictures(copied, capsys):
    """--raw: the same frames as bytes, whether the images were there or not, and they train.

    A damaged array is made again; the user's own images are left alone; only for sets with videos.
    """
    root, _ = copied("cremad", prepared=True)
    raw, own = root.parent / "raw", root / f"Image-01-FPS/{EMOTIONS[5]}/00001.jpg"
    shutil.copytree(root, raw, ignore=shutil.ignore_patterns("prepared"))
    shutil.rmtree(made(root, "video", EMOTIONS[5]))
    make_jpg(own)
    x = [data.clip(made(root, "video", CLIP), seed) for seed in (None, 5)]
    for folder in (raw, root):
        command = ["cremad", "--root", str(folder), "--workers", "1", "--raw"]
        assert prepare.main(command) == 0
        path = made(folder, "video", CLIP)
        assert np.load(path).shape == (10, 256, 341, 3) and not path.with_suffix("").exists()
        assert all((data.clip(path, seed) == x_j).all() for seed, x_j in zip((None, 5), x))
        assert run("cremad", folder) == 0
    assert own.exists() and len(list((root / "prepared/video").iterdir())) == 5
    cut(path)
    assert run("cremad", root, ["--overwrite"]) == 2
    assert f"{path} cannot be read" in capsys.readouterr().err
    assert prepare.main(command) == 0 and (data.clip(path) == x[0]).all()
    texts, _ = copied("sarcasm")
    assert prepare.main(["sarcasm", "--root", str(texts), "--raw"]) == 2
    assert "--raw is for data with videos" in capsys.readouterr().err


def test_prepare_keeps_a_gestures_window_and_its_flow(copied):
    """80 of 90 frames from number 5 on; flow between them, none where nothing moves."""
    root, _ = copied("nvgesture", prepared=True)
    for modality in ("rgb", "depth"):
        frames = sorted(made(root, modality, "class_01-subject3_r0").iterdir())
        assert len(frames) == 80 and abs(np.asarray(Image.open(frames[0])).mean() - 40) < 6
    flow = np.load(made(root, "flow", "class_01-subject3_r0"))
    assert flow.shape == (128, 170, 2, 79) and flow.dtype == np.float16


def test_flow_points_where_things_move(tmp_path):
    """A texture that goes 4 pixels right a frame, at half the size: u = 2, v = 0."""
    noise = np.random.default_rng(0).integers(256, size=(32, 100), dtype=np.uint8)
    wide = np.asarray(Image.fromarray(noise).resize((800, 256)))
    (tmp_path / "f").mkdir()
    for i in range(3):
        Image.fromarray(wide[:, 100 - 4 * i : 500 - 4 * i]).save(tmp_path / f"f/{i}.png")
    flow = np.load(decode.compute_flow(tmp_path / "f", tmp_path / "flow", (0, 3))).astype(float)
    assert np.median(flow[32:96, 50:150, 0]) == pytest.approx(2, abs=0.1)
    assert np.median(flow[32:96, 50:150, 1]) == pytest.approx(0, abs=0.1)


def snapshot(folder):
    paths = [p for p in folder.rglob("*") if p.is_file() and p.name not in ("samples.csv", ".lock")]
    return {p: p.stat().st_mtime_ns for p in paths}


SENDER = """import os, sys

def hook(event, arguments):
    writes = event == "open" and "w" in str(arguments[1])
    if writes and "{clip}" in str(arguments[0]) and "00005.jpg" in str(arguments[0]):
        os.killpg(0, {number})

sys.addaudithook(hook)
"""


def stopped(number, clip, folder, command, cwd=ROOT):
    """(status, stderr) of a command that sends itself a signal, as a terminal would, when it has
    written half of a clip."""
    return in_session(SENDER.format(number=int(number), clip=clip), folder, command, cwd)


def in_session(site, folder, command, cwd=ROOT):
    """(status, stderr) of a command, each of whose processes runs the code `site` at its start."""
    write(folder / "sitecustomize.py", site)
    how = {"start_new_session": True, "capture_output": True, "text": True}
    environment = os.environ | {"PYTHONPATH": str(folder)}
    done = subprocess.run([sys.executable, *command], env=environment, cwd=cwd, **how)
    return done.returncode, done.stderr


@pytest.mark.slow
def test_prepare_continues_after_a_kill(copied, tmp_path, capsys):
    """A killed prepare leaves complete clips only; the next one makes the rest and changes none."""
    root, _ = copied("cremad")
    command = ["-m", "scripts.prepare", "cremad", "--root", root, "--workers", "1"]
    status, _ = stopped(signal.SIGKILL, EMOTIONS[1], tmp_path / "site", command)
    assert status == -signal.SIGKILL
    (half,) = (root / "prepared/video").glob(".part-*")
    (clip,) = (root / "prepared/video").glob("[!.]*")
    assert len(list(half.iterdir())) == 4 and len(list(clip.iterdir())) == 10
    before = snapshot(clip)
    prepared_again("cremad", root)
    after, listed = snapshot(root / "prepared"), table(root)
    assert len(after) == 66 and before.items() <= after.items()
    capsys.readouterr()
    prepared_again("cremad", root)
    assert "usable: 9" in capsys.readouterr().out
    assert snapshot(root / "prepared") == after and table(root) == listed


def test_ctrl_c_while_workers_start_is_one_sentence(tmp_path):
    """A worker sends Ctrl-C to all while it imports; none of them leaves a traceback."""
    rows = []
    for i in range(60):
        make_jpg(tmp_path / f"mine/{i}.jpg", (8, 8))
        rows.append(f"{'train' if i % 3 else 'test'},{i % 2},{i}.jpg,{i}.jpg\n")
    write(tmp_path / "mine/samples.csv", "split,label,image:a,image:b\n" + "".join(rows))
    site = "import os, sys\nif 'spawn_main' in ' '.join(sys.orig_argv): os.killpg(0, 2)\n"
    command = ["-m", "scripts.prepare", tmp_path / "mine", "--workers", "2"]
    status, said = in_session(site, tmp_path / "site", command)
    assert (status, said.count("\n")) == (130, 1), said
    assert said.startswith("prepare: stopped; finished samples are kept")


@pytest.mark.slow
def test_the_literal_command_prepares_and_trains(copied, tmp_path):
    """`train.py --dataset cremad --method heuristic` from the original files in data/cremad.

    Stopped while it prepares and run again, it writes the same samples.csv and trains.
    """
    root, _ = copied("cremad")
    whole = tmp_path / "whole"
    shutil.copytree(root, whole)
    prepared_again("cremad", whole)
    (tmp_path / "data").mkdir()
    root.rename(tmp_path / "data/cremad")
    command = ["--dataset", "cremad", "--method", "heuristic"]
    small = ["--encoders", "cnn", "--epochs", "1", "--batch-size", "2", "--workers", "0"]
    train_py = [ROOT / "train.py", *command, *small]
    status, said = stopped(signal.SIGINT, EMOTIONS[1], tmp_path / "site", train_py, tmp_path)
    assert status == 130 and said.endswith("stopped; run the same command again to continue\n")
    assert "Traceback" not in said
    assert not (tmp_path / "data/cremad/prepared/samples.csv").exists()
    assert train.main([*command, *small]) == 0
    assert table(tmp_path / "data/cremad") == table(whole)
    assert (tmp_path / "runs/cremad-heuristic-seed0/log.jsonl").exists()


def test_frames_that_people_have_are_read_as_they_are(copied, capsys):
    """Image-01-FPS/<id>/*.jpg, frame_0000N.jpg, <id>_<start>.mp4/: only sound is prepared."""
    root, _ = copied("cremad")
    shutil.rmtree(root / "VideoFlash")
    for name in EMOTIONS:
        make_jpg(root / f"Image-01-FPS/{name}/frame_00001.jpg")
    root2, _ = copied("vggsound")
    shutil.rmtree(root2 / "video")
    for k, video in enumerate(VIDEOS):
        make_jpg(root2 / f"train-videos/Image-01-FPS/{video}_{30 + k}.mp4/00001.jpg")
        make_wav(root2 / f"train-audios/{video}_{30 + k}.wav")
    for name, folder in [("cremad", root), ("vggsound", root2)]:
        assert run(name, folder) == 0
        assert not (folder / "prepared/video").exists()


def test_a_part_of_the_data_trains_and_is_counted(copied, capsys):
    """Missing, pointers, undecodable, without sound: prepare and training count each reason."""
    root, _ = copied("kinetics-sounds")
    clips = sorted((root / "k400/train").iterdir())
    append(root / TRAIN, "zzzzzzzzzz1_1_11,10,7\nzzzzzzzzzz2_1_11,10,7\n")
    write(clips[1], LFS)
    write(clips[2], clips[2].read_bytes()[:3000])
    make_video(root / "k400/train/zzzzzzzzzz1_000001_000011.mp4", sound=False)
    assert prepare.main(["kinetics-sounds", "--root", str(root), "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    reasons = ["git-lfs pointer: 1", "missing: 1", "no audio track: 1", "undecodable: 1"]
    assert all(line in printed for line in [*reasons, "usable: 4"])
    assert run("kinetics-sounds", root) == 0
    lost = "1 git-lfs pointer, 1 missing, 1 no audio track, 1 undecodable"
    said = f"train: 2 of 6 usable (paper: 15000); {lost}; why: {root}/prepared/samples.csv"
    assert said in capsys.readouterr().out


def test_classes_do_not_hang_on_what_is_there(copied):
    """Rows in another order give each clip the same label."""
    root, _ = copied("cremad")

    def labels():
        found = annotations.list_cremad(indexed("cremad", root))
        return {names[0]: label for _, label, _, names, _ in found}

    lines, before = (root / LIST).read_text().splitlines(keepends=True), labels()
    assert sorted(before.values()) == [0, 1, 2, 3, 4, 5] and before["1003_DFA_NEU_XX"] == 0
    write(root / LIST, "".join(lines[::-1]))
    assert labels() == before


def test_twitter_target_is_inserted(copied):
    """$T$ is put back; quotes are characters like any other."""
    root, _ = copied("twitter2015")
    *_, (_, sentence) = next(annotations.list_twitter2015(indexed("twitter2015", root)))
    assert sentence == 'RT @ dog : the cat is "fine'


def test_files_are_found_wherever_they_lie(tmp_path):
    """Endings in any case; the nearer of two, then the first by name; not hidden, no broken link.

    Circular links end; files are images only in a set that has images.
    """
    for path in ("x.WAV", "deep/x.wav", "b/y.wav", "a/y.wav", ".z.wav", ".w/w.wav", "v/1.JPG"):
        write(tmp_path / path, "")
    (tmp_path / "dead.wav").symlink_to(tmp_path / "nowhere")
    (tmp_path / "deep/up").symlink_to(tmp_path)
    found = indexed("cremad", tmp_path)
    assert found["audio"] == {"x": str(tmp_path / "x.WAV"), "y": str(tmp_path / "a/y.wav")}
    assert found["frames"] == {"v": str(tmp_path / "v")} and not found["image"]
    assert set(indexed("sarcasm", tmp_path)["image"]) == {"1"}


def test_a_folder_that_cannot_be_read_is_passed_over(tmp_path, monkeypatch, capsys):
    """As lost+found on a disk of its own: it is said, and the rest is found."""
    for path in ("a.wav", "lost+found/b.wav", "c/d.wav"):
        write(tmp_path / path, "")
    real = os.scandir

    def scandir(folder):
        if str(folder).endswith("lost+found"):
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert set(indexed("cremad", tmp_path)["audio"]) == {"a", "d"}
    assert "lost+found is passed over: it cannot be read (Permission" in capsys.readouterr().out


FALLBACK = {"train.csv": "--4-0ihtnBU,bowling\n"}
FALLBACK["test.csv"] = "youtube_id,label\n-00nar1nEPc,tickling\n"
HFM = {"train.txt": "['1', 'a', 1]", "valid.txt": "['4', 'b', 1]", "test.txt": "['3', 'c', 0]"}
TSV = "1\t2\t17.jpg\ta\rb $T$\tdog\n2\t0\t17.jpg\t$T$\tcat"
GESTURE = "path:./a/subject{}_r0 depth:d:1:2 color:c:1:2 x label:{}"
GESTURES = {
    f"nvgesture_{split}_correct{v}_v2.lst": GESTURE.format(k, k)
    for split in ("train", "test")
    for k, v in ((2, ""), (1, "_cvpr2016"))
}
LISTINGS = [  # files, and (split, class, group) of each sample in them
    (
        "cremad",
        {"train.csv": "1001_DFA_ANG_XX.flv, ANG\n\n1002_IEO_NEU_LO.wav,NEU\n", "test.csv": ""},
        [("train", 5, "1001"), ("train", 0, "1002")],
    ),
    (
        "cremad",
        {"train.csv": "\ufeffLabel,Name,x\r\nSAD,1002_IEO_SAD_LO,1\r\n", "test.csv": ""},
        [("train", 2, "1002")],
    ),
    ("kinetics-sounds", FALLBACK, [("train", 2, "--4-0ihtnBU"), ("test", 30, "-00nar1nEPc")]),
    (
        "vggsound",
        {"vggsound.csv": "--4-0ihtnBU,1,tickling,train\n--4-0ihtnBU,70,label,test\n"},
        [("train", 1, "--4-0ihtnBU"), ("test", 0, "--4-0ihtnBU")],
    ),
    (
        "sarcasm",
        HFM | {"valid2.txt": "['2', 'b', 1, 0]"},
        [("train", 1, "1"), ("val", 0, "2"), ("test", 0, "3")],
    ),
    (
        "twitter2015",
        {"train.tsv": TSV, "dev.tsv": "", "test.tsv": ""},
        [("train", 2, "17"), ("train", 0, "17")],
    ),
    ("nvgesture", GESTURES, [("train", 0, "subject1"), ("test", 0, "subject1")]),
]


@pytest.mark.parametrize("name, written, samples", LISTINGS)
def test_lists_are_read_in_all_their_forms(name, written, samples, tmp_path):
    """With a header in any case or without one; of two versions the corrected one."""
    for file, content in written.items():
        write(tmp_path / file, content)
    found = list(annotations.LISTS[name](indexed(name, tmp_path)))
    assert [sample[:3] for sample in found] == samples
    if name == "cremad":
        assert all(names == [names[0].split(".")[0]] for *_, names, _ in found)


@pytest.mark.parametrize("name", ["_000030", "_30.0", "_30000_40000", "-30-40"])
def test_clips_are_found_by_any_spelling_of_their_times(name, tmp_path):
    """A sound as flac beside it, and a start in the list that is no whole number."""
    write(tmp_path / f"{VIDEOS[0]}{name}.MOV", "")
    write(tmp_path / f"{VIDEOS[0]}{name}.flac", "")
    write(tmp_path / "vggsound.csv", f"{VIDEOS[0]},30.0,tickling,train\n")
    found = indexed("vggsound", tmp_path)
    (sample,) = files.find_samples("vggsound", found, ["audio", "video"])
    assert [Path(path).suffix for path in sample.originals] == [".flac", ".MOV"]


def test_more_classes_than_the_published_ones(copied):
    """The paper has 310 in VGGSound, its lists 309: the list that is there decides."""
    root, _ = copied("vggsound", prepared=True)
    labels = ["people marching", '"bird chirping, tweeting"', "playing harp"]
    labels += [f"a{i}" for i in range(400)]
    write(root / "stat.csv", "".join(f"{label},1,x\n" for label in labels))
    prepared_again("vggsound", root)
    assert len(data.load("vggsound", root).classes) == 403


def test_a_gesture_is_read_by_eight_frames_never_mirrored(tmp_path):
    """Colour has three channels, depth one; left and right are different gestures."""
    ramp = np.tile(np.arange(0, 240, 3, dtype=np.uint8), (60, 1))
    for i in range(12):
        make_jpg(tmp_path / f"{i}.jpg")
        Image.fromarray(ramp).convert("RGB").save(tmp_path / f"{i}.jpg")
    rgb, flow, depth = data.make_readers(["rgb", "flow", "depth"], ["cnn"] * 3)
    for read, channels in ((rgb, 3), (depth, 1)):
        for seed in (None, *range(12)):
            x = read(f"{tmp_path}:1:11", seed).float()
            assert x.shape == (8, channels, 224, 224)
            assert (x[..., :112].mean((1, 2, 3)) < x[..., 112:].mean((1, 2, 3))).all()
    assert signature(flow).parameters["frames"].default == 8


@pytest.mark.slow
def test_a_gestures_own_frames_are_read(copied):
    """sk_color_all/*.jpg beside the video, as some have extracted them."""
    root, _ = copied("nvgesture")
    for folder in root.glob("Video_data/*/*"):
        for stream in ("sk_color", "sk_depth"):
            (folder / f"{stream}.avi").unlink()
            for i in range(80):
                make_jpg(folder / f"{stream}_all/{i}.jpg", (16, 12))
    assert prepare.main(["nvgesture", "--root", str(root)]) == 0
    assert not (root / "prepared/rgb").exists() and run("nvgesture", root) == 0


# --- damage ---


def cut(path, fraction=0.5):
    write(path, path.read_bytes()[: int(fraction * path.stat().st_size)])


def folder_for(path):
    path.unlink()
    path.mkdir()


def append(path, text):
    write(path, path.read_bytes() + (text if isinstance(text, bytes) else text.encode()))


NOT_HFM, NOT_TSV = "line 6 is not ['tweet id', 'text'", "line 6 is not index, sentiment 0 to 2"
LINES = [  # a line that is added to a list, and the sentence
    ("cremad", LIST, "1001_IOM_JOY_XX,JOY\n", "line 7: unknown label 'JOY', expected one of NEU, "),
    ("cremad", LIST, "1001_IOM_ANG_XX,ANG,1\n", "line 7 has 3 columns, expected 2: name, label"),
    ("cremad", LIST, b"\xff\xfe1\x00,\x00", "is not UTF-8 text (invalid"),
    ("cremad", LIST, '"1001_IOM_ANG_XX,ANG\n', "line 7 is not csv"),
    ("kinetics-sounds", TRAIN, "abc,10,3\n", "line 5 is 'abc' from '', expected a YouTube id"),
    ("vggsound", VGG, "--4-0ihtnBU,x,playing harp,train\n", "from 'x', expected a YouTube id"),
    ("vggsound", VGG, "--4-0ihtnBU,3,playing harp,dev\n", "unknown split 'dev'"),
    ("sarcasm", TEXT, "['1', 'text'\n", NOT_HFM),
    ("sarcasm", TEXT, "__import__('os').mkdir('owned')\n", NOT_HFM),
    ("sarcasm", TEXT, "['1', 'text', 2]\n", NOT_HFM),
    ("sarcasm", TEXT, "[" * 5000 + "\n", NOT_HFM),
    ("sarcasm", TEXT, b"['1', 't\xe9xt', 1]\n", "is not UTF-8 text (invalid"),
    ("twitter2015", "train.tsv", "5\t1\tx.jpg\ta $T$\n", NOT_TSV),
    ("twitter2015", "train.tsv", "5\t-1\tx.jpg\ta $T$\tdog\n", NOT_TSV),
    ("nvgesture", LST, "path:./a/b depth:d:1:2 color:c:1:2 x label:26\n", "line 5 is not path:.."),
    ("nvgesture", LST, "path:./x depth:sk_depth:1:2 label:1\n", "line 5 is not path:.. depth"),
]


@pytest.mark.parametrize("name, file, line, said", LINES)
def test_a_damaged_list_is_one_sentence(name, file, line, said, originals, tmp_path, monkeypatch):
    """It names the file and the line; nothing of a line is ever evaluated."""
    source, _ = originals(name)
    monkeypatch.chdir(tmp_path)
    for path in [p for p in source.rglob("*") if p.suffix in (".csv", ".txt", ".tsv", ".lst")]:
        write(tmp_path / path.relative_to(source), path.read_bytes())
    append(tmp_path / file, line)
    with pytest.raises(SettingsError, match=re.escape(said)) as error:
        listed(name, tmp_path)
    assert str(tmp_path / file) in str(error.value) and not Path("owned").exists()


def test_a_list_that_is_of_no_use_stops_both_programs(copied, capsys):
    """Status 2, from training and from prepare; for prepare an empty list is no error."""
    root, flags = copied("cremad")
    for damage, said in [
        (lambda p: write(p, "name,emotion\nx,ANG\n"), "is a header without label; expected "),
        (lambda p: write(p, ""), "its list is empty"),
        (folder_for, "has no train.csv; see docs/DATA.md"),
    ]:
        damage(root / LIST)
        prepare_flags = ["cremad", "--root", str(root), "--workers", "1"]
        results = [("train.py", run("cremad", root, flags), capsys.readouterr().err)]
        if said != "its list is empty":
            results.append(("prepare", prepare.main(prepare_flags), capsys.readouterr().err))
        for program, status, err in results:
            (line,) = [x for x in err.splitlines() if x.startswith(program)]
            assert status == 2 and said in line


def sound_alone(path):
    make_wav(path.with_suffix(".wav"))
    path.with_suffix(".wav").rename(path)


def flow_of_inf(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.full((4, 4, 2, 9), np.inf))


MEDIA = [  # damage to media: prepare counts it by this reason, training leaves it out
    ("cremad", WAV, cut, "undecodable", "truncated"),
    ("sarcasm", JPG, lambda p: write(p, LFS), "git-lfs pointer", "run `git lfs pull`"),
    ("cremad", WAV, lambda p: p.unlink(), "no audio track", "has no audio track"),
    ("cremad", FLV, lambda p: write(p, ""), "undecodable", "the file is empty"),
    ("cremad", FLV, lambda p: p.unlink(), "missing", "no video of "),
    ("kinetics-sounds", MP4, sound_alone, "no video track", "has no video track"),
    ("nvgesture", AVI, lambda p: make_video(p, 20, sound=False), "too few frames", "at least 85"),
    ("nvgesture", FLOW, flow_of_inf, "not finite", "not finite"),
    ("sarcasm", JPG, cut, "undecodable", "cannot be read"),
    ("sarcasm", JPG, folder_for, "missing", "no image of "),
]


@pytest.mark.parametrize("name, file, damage, reason, what", MEDIA)
def test_damaged_media_are_counted_and_left_out(name, file, damage, reason, what, copied, capsys):
    """prepare lists the details, training counts the reason and reads the rest."""
    root, flags = copied(name, prepared=True)
    for sample in (CLIP, f"{VIDEOS[0]}_000058", "class_01-subject3_r0"):
        for path in root.glob(f"prepared/*/{sample}*"):
            remove(path)
    damage(root / file)
    assert prepare.main([name, "--root", str(root), "--workers", "1"]) == 0
    printed = capsys.readouterr().out
    assert "usable: " in printed and f"{reason}: " in printed
    (status,) = {row["status"] for row in table(root)} - {"usable"}
    assert status == reason
    assert all(what in row["problem"] for row in table(root) if row["status"] == status)
    found = loaded(name, root, flags[1] if flags else "cnn")
    assert f"1 {reason}" in capsys.readouterr().out
    for x in found.splits["train"]:
        assert len(x) == len(data.SETS[name]["kinds"]) + 1


@pytest.mark.parametrize(
    "modality, file, workers", [("audio", "", "0"), ("video", "00005.jpg", "1")]
)
def test_damage_that_training_meets_first_stops_it(modality, file, workers, copied, capsys):
    """In the main process or in a worker: status 1 or 2, one sentence with the path."""
    root, _ = copied("cremad", prepared=True)
    file = made(root, modality, CLIP) / file
    cut(file)
    assert run("cremad", root, ["--workers", workers, "--epochs", "30"]) in (1, 2)
    (said,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("train.py: ")]
    assert str(file) in said and "cannot be read" in said
    assert f"python -m scripts.prepare cremad --root {root} finds" in said


def test_prepare_mends_what_it_made(copied, capsys):
    """A damaged prepared frame is made again from its video; without the video it is an error."""
    root, _ = copied("cremad", prepared=True)
    frame = made(root, "video", CLIP) / "00005.jpg"
    for video_there in (True, False):
        write(frame, "")
        if not video_there:
            (root / FLV).unlink()
        assert prepare.main(["cremad", "--root", str(root), "--workers", "1"]) == 0
        printed = capsys.readouterr().out
        assert ("usable: 9" in printed) == video_there != ("undecodable: 2" in printed)
        assert (frame.stat().st_size > 0) == video_there


def test_prepare_lists_what_is_not_there(copied):
    """By name, with the reason; what is added later is found by the next prepare."""
    root, _ = copied("cremad", prepared=True)
    (root / WAV).unlink()
    (root / FLV).unlink()
    remove(made(root, "video", CLIP))
    remove(made(root, "audio", CLIP))
    prepared_again("cremad", root)
    assert table(root)[0]["status"] == "missing"
    assert table(root)[0]["problem"] == f"no audio and no video of {CLIP}"
    make_wav(root / WAV)
    make_jpg(root / f"Image-01-FPS/{CLIP}/1.jpg")
    prepared_again("cremad", root)
    assert len(data.load("cremad", root).splits["train"]) == 6


def test_one_sample_is_not_enough(copied, capsys):
    """L_MM needs a partner."""
    root, _ = copied("cremad", prepared=True)
    write(root / LIST, f"{CLIP},ANG\n")
    prepared_again("cremad", root)
    assert run("cremad", root) == 2
    assert "has 1 training sample here, expected 2 or more" in capsys.readouterr().err


def test_what_does_not_fit_is_one_sentence(copied, capsys, monkeypatch):
    """Status 2; an encoder of your own fits every modality but text."""
    root, _ = copied("cremad", prepared=True)
    for flags, said in [
        ("--encoders bert", "encoder 'bert' cannot encode audio"),
        ("--encoders cnn,cnn,cnn", "names 3 encoders, expected 1 or 2"),
        ("--encoders cnn:x", "encoder 'cnn' takes no source"),
        ("--root nowhere", "nowhere is not a folder; download the data as docs/DATA.md#cremad"),
        ("--root=", "--root is empty; give it a value, or leave it out"),
    ]:
        assert run("cremad", root, flags.split()) == 2
        assert said in capsys.readouterr().err
    monkeypatch.setitem(model.ENCODERS, "mine", model.cnn)
    assert run("cremad", root, ["--encoders", "mine"]) == 0


def test_a_text_model_that_cannot_be_loaded_is_one_sentence(copied, capsys, tiny_bert, tmp_path):
    """Weights cut in half, another kind of model."""
    root, _ = copied("sarcasm")
    broken = tmp_path / "model"
    shutil.copytree(tiny_bert, broken)
    cut(broken / "model.safetensors")
    for encoders, folder in [(f"cnn,bert:{broken}", broken), (f"clip:{tiny_bert}", tiny_bert)]:
        assert run("sarcasm", root, ["--encoders", encoders]) == 2
        (said,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("train.py: ")]
        assert str(folder) in said
