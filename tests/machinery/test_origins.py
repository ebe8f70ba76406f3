"""What prepare makes, and from what: utils/origins.py, utils/samples.py, utils/prepare.py.

Nothing of the user's is removed, and training reads what a prepare from nothing gives.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import fuzz
import numpy as np
import pytest
import soundfile
from conftest import loaded, made, make_jpg, make_video, make_wav, raising
from test_samples import splits, vectors, write_table

import data
import train
from scripts import prepare
from utils import distributed, files, origins
from utils.modalities import MODALITIES
from utils.origins import locked
from utils.samples import alike, array_kind, prepared_table, read_prepared

ROOT = Path(__file__).parents[2]


def hashes(root):
    """{path: digest} of every file below a folder."""
    paths = [path for path in root.rglob("*") if path.is_file()]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def prepared_again(root):
    assert prepare.main([str(root), "--workers", "1"]) == 0


def load(root):
    """The splits of own data: three vectors, or an image and a sound."""
    kinds = data.load(str(root)).kinds
    return loaded(root, encoders="mlp" if "vector" in kinds.values() else "cnn").splits


def tones(root, n=6, hertz=400):
    """Image and audio; two classes."""
    rows = []
    for i, split in enumerate(splits(n)):
        make_jpg(root / f"{i}.jpg")
        tone(root / f"{i}.wav", hertz)
        rows.append(f"{split},{i % 2},{i}.jpg,{i}.wav")
    write_table(root, "split,label,image,audio", rows)


def tone(path, hertz, seconds=0.2):
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.3 * np.sin(2 * np.pi * hertz * np.arange(16000 * seconds) / 16000)
    soundfile.write(path, wave, 16000)


def peak(x):
    """The loudest frequency of a spectrogram, in Hz."""
    return x[0].float().mean(1).argmax().item() * 16000 / 512


def later(path, seconds):
    """Give a file a time that is so many seconds away."""
    moment = path.stat().st_mtime + seconds
    os.utime(path, (moment, moment))


# --- who owns a file ---


def own_files(root):
    """Originals of all kinds below DIR/prepared, one of each kind damaged."""
    rows, there = [], root / "prepared"
    (there / "feats").mkdir(parents=True)
    for i, split in enumerate(splits(9)):
        make_wav(there / f"audio/{i}.wav", 0.2)
        make_jpg(there / f"pictures/{i}.jpg")
        for frame in range(3):
            make_jpg(there / f"clips/{i}/{frame}.jpg")
        np.save(there / f"feats/{i}.npy", np.full(12, np.nan if i == 1 else 0)[i == 0 :])
        cells = [f"audio/{i}.wav", f"pictures/{i}.jpg", f"clips/{i}", f"feats/{i}.npy"]
        rows.append(",".join([split, str(i % 2), *(f"prepared/{cell}" for cell in cells)]))
    for name in ("pictures/2.jpg", "clips/3/1.jpg", "audio/4.wav"):
        content = (there / name).read_bytes()
        (there / name).write_bytes(content[: len(content) // 2])
    (there / ".part-1-mine").write_text("an own file")
    shutil.copy(there / "feats/5.npy", there / "feats/.part-7-5.npy")
    rows[5] = rows[5].replace("feats/5.npy", "feats/.part-7-5.npy")
    write_table(root, "split,label,audio,image,video,array", rows)


def test_no_file_of_the_users_is_removed(tmp_path, capsys):
    """Their arrays, pictures, frames and sounds below DIR/prepared: listed, also when damaged."""
    own_files(tmp_path)
    before = {p: h for p, h in hashes(tmp_path).items() if p.name != ".part-1-mine"}
    for _ in range(2):
        prepared_again(tmp_path)
        told = "another shape: 1\nnot finite: 1\nundecodable: 3\nusable: 4\n"
        assert told in capsys.readouterr().out
        assert before.items() <= hashes(tmp_path).items()


def test_a_file_below_the_folders_of_prepare_is_said(tmp_path, capsys):
    """A published set: DIR/prepared/audio is not searched; other folders below prepared are."""
    make_wav(tmp_path / "prepared/audio/x.wav")
    make_wav(tmp_path / "prepared/mine/y.wav")
    found = files.index("cremad", tmp_path, [*data.SETS["cremad"]["kinds"]])
    assert set(found["audio"]) == {"y"}
    told = "prepared/audio is passed over: it is for what prepare makes"
    assert told in capsys.readouterr().out


# --- what a prepared file was made from ---


def test_a_replaced_sound_is_read_again(tmp_path):
    """By training itself, whatever the times say; a sound that was only touched stays."""
    tones(tmp_path)
    assert peak(load(tmp_path)["train"][0][1]) == 406.25
    old = made(tmp_path, "audio", "1.wav")
    for hertz, seconds in [(3000, 0), (1000, -1e8), (2000, 7200)]:
        tone(tmp_path / "1.wav", hertz)
        later(tmp_path / "1.wav", seconds)
        heard = peak(load(tmp_path)["train"][0][1])
        assert abs(heard - hertz) < 32
    kept = hashes(tmp_path / "prepared/audio")
    later(tmp_path / "1.wav", 5)
    load(tmp_path)
    assert hashes(tmp_path / "prepared/audio") == kept and old in kept


def test_a_replaced_recording_of_a_set_is_read_again(tmp_path):
    """CREMA-D: the sound, the video and the list, each under its name."""
    for name in ("1001_DFA_ANG_XX", "1002_DFA_HAP_XX"):
        tone(tmp_path / f"{name}.wav", 500)
        make_video(tmp_path / f"{name}.flv", 20, sound=False, video="flv")
    for split in ("train", "test"):
        rows = "1001_DFA_ANG_XX,ANG\n1002_DFA_HAP_XX,HAP\n"
        (tmp_path / f"{split}.csv").write_text(rows)

    def first():
        return loaded("cremad", tmp_path).splits["train"][0]

    sound, frames, y = first()
    assert peak(sound) == 500 and y == 5
    tone(tmp_path / "1001_DFA_ANG_XX.wav", 2000)
    make_video(tmp_path / "1001_DFA_ANG_XX.flv", 30, sound=False, video="flv")
    rows = (tmp_path / "train.csv").read_text()
    (tmp_path / "train.csv").write_text(rows.replace(",ANG", ",SAD"))
    sound, new, y = first()
    assert peak(sound) == 2000 and y == 2 and new.float().mean() > frames.float().mean() + 5


@pytest.mark.parametrize("seconds", [-1e8, 0, 7200])
def test_an_edited_table_is_seen_whatever_its_time_says(seconds, tmp_path, monkeypatch):
    """Also under torchrun, which says that it has to be prepared, and is content after it was."""
    vectors(tmp_path)
    load(tmp_path)
    table = tmp_path / "samples.csv"
    table.write_text(table.read_text().replace("class 0", "other"))
    later(table, seconds)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(ValueError, match="samples.csv has changed; run python -m scripts.prepare"):
        load(tmp_path)
    prepared_again(tmp_path)
    assert len(data.load(str(tmp_path)).classes) == 3
    assert "other" in prepared_table(tmp_path).read_text()


def test_another_version_prepares_again(tmp_path, monkeypatch, capsys):
    """Lists without a first comment, another format, a line that is cut off."""
    tones(tmp_path)
    load(tmp_path)
    table, name = prepared_table(tmp_path), made(tmp_path, "audio", "0.wav")
    text = table.read_text()
    for old in (
        text[text.index("split,") :],
        text.replace('"format": ', '"format": 1'),
        text.replace("audio,problem", "smell,problem"),
        text[:-9],
    ):
        table.write_text(old)
        capsys.readouterr()
        load(tmp_path)
        assert f"preparing {tmp_path}: " in capsys.readouterr().out
        assert table.read_text().splitlines()[1:] == text.splitlines()[1:]
    monkeypatch.setattr(origins, "FORMAT", 3)
    assert origins.made_name("0.wav", tmp_path / "0.wav", "audio", 10, None) != name.stem


def test_fewer_usable_samples_are_said(tmp_path, capsys):
    """At every start until the next prepare, with the number of before."""
    vectors(tmp_path)
    load(tmp_path)
    (tmp_path / "a1.npy").unlink()
    told = "train: 20 were usable when it was prepared before"
    for expected in (True, True, False):
        if not expected:
            prepared_again(tmp_path)
        capsys.readouterr()
        load(tmp_path)
        assert (told in capsys.readouterr().out) == expected


def test_a_set_without_a_usable_sample_is_looked_for_anew(tmp_path):
    """Files that come later are found by the same command."""
    tones(tmp_path / "mine")
    sounds = list((tmp_path / "mine").glob("*.wav"))
    for path in sounds:
        path.rename(tmp_path / path.name)
    with pytest.raises(FileNotFoundError, match="no train sample"):
        load(tmp_path / "mine")
    for path in sounds:
        (tmp_path / path.name).rename(path)
    assert len(load(tmp_path / "mine")["train"]) == 4


def test_a_set_goes_on_without_its_originals(tmp_path):
    """A published set may lose its videos and sounds once they are prepared."""
    for name in ("1001_DFA_ANG_XX", "1002_DFA_HAP_XX"):
        make_video(tmp_path / f"{name}.flv", 20, video="flv")
    for split in ("train", "test"):
        (tmp_path / f"{split}.csv").write_text("1001_DFA_ANG_XX,ANG\n1002_DFA_HAP_XX,HAP\n")
    whole = loaded("cremad", tmp_path).splits["train"][0]
    for path in tmp_path.glob("*.flv"):
        path.unlink()
    left = loaded("cremad", tmp_path).splits["train"][0]
    assert all((a == b).all() for a, b in zip(whole[:2], left[:2]))


# --- a full disk, two at once, a folder that is read only ---


def run_limited(root, size, *command):
    """A program in a process in which no file may become larger than `size` bytes."""
    limit = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))"
    limit = f"import resource, sys, runpy; {limit}"
    code = f"{limit}; sys.argv = {list(command)}; runpy.run_path(sys.argv[0], run_name='__main__')"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
def test_a_full_disk_stops_prepare_and_lists_nothing(tmp_path):
    """One sentence; no sample is blamed, and the next start continues."""
    tones(tmp_path)
    command = [str(ROOT / "train.py"), "--dataset", str(tmp_path), "--method", "heuristic"]
    done = run_limited(tmp_path, 100_000, *command)
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("train.py: ")]
    assert "cannot be written (File too large)" in said and ".npy" in said
    assert not prepared_table(tmp_path).exists() and not list(tmp_path.rglob(".part-*"))
    assert len(load(tmp_path)["train"]) == 4


def test_the_second_of_two_waits_and_removes_nothing(tmp_path, capsys):
    """It says so, leaves what the first writes, and finds the first one's work done."""
    vectors(tmp_path)
    second = threading.Thread(target=prepared_again, args=[tmp_path])
    with locked(tmp_path, ()) as waited:
        part = tmp_path / "prepared/audio/.part-1-x.wav-0f3a9c51d2e4.npy"
        part.parent.mkdir()
        part.write_text("half")
        second.start()
        second.join(1.0)
        assert not waited and second.is_alive() and part.exists()
    second.join(60)
    assert "another process prepares" in capsys.readouterr().out
    assert not part.exists() and len(load(tmp_path)["train"]) == 20


def test_a_read_only_folder_is_told_the_way_out(tmp_path, monkeypatch, capsys):
    """A table elsewhere with absolute paths, or a link."""
    vectors(tmp_path)
    refused = raising(OSError(30, "Read-only file system"))
    monkeypatch.setattr(origins, "FileLock", refused)
    assert prepare.main([str(tmp_path), "--workers", "1"]) == 1
    said = capsys.readouterr().err
    assert "cannot be written (Read-only file system); use a folder of your own" in said
    monkeypatch.undo()
    rows = (tmp_path / "samples.csv").read_text().splitlines()
    for letter in "abc":
        rows = [row.replace(f",{letter}", f",{tmp_path}/{letter}") for row in rows[1:]]
        rows = ["split,label,array:a,array:b,array:c", *rows]
    write_table(tmp_path / "own", rows[0], rows[1:])
    assert len(load(tmp_path / "own")["train"]) == 20


@pytest.mark.parametrize("name", ["prepared", "prepared/samples.csv", "prepared/audio"])
def test_what_is_in_the_way_is_named(name, tmp_path, capsys):
    """A file for a folder, a folder for a file: a sentence with the path and the way out."""
    tones(tmp_path)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.mkdir() if name.endswith("csv") else path.touch()
    train_flags = ["--dataset", str(tmp_path), "--method", "heuristic"]
    for main, flags in [(train.main, train_flags), (prepare.main, [str(tmp_path)])]:
        assert main(flags) in (1, 2)
        said = capsys.readouterr().err.splitlines()[-1]
        assert str(path) in said and "Errno" not in said
        assert "move it away, or change" in said or "move away what is in its place" in said


def test_a_list_of_a_set_whose_folder_is_a_file_is_one_sentence(tmp_path):
    """DIR/prepared/audio, as a file, of a published set."""
    make_wav(tmp_path / "x.wav")
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared/audio").touch()
    with pytest.raises(ValueError, match="prepared/audio cannot be read .Not a directory.; move"):
        files.index("cremad", tmp_path, ["audio"])


def test_a_prepared_file_that_was_deleted_is_made_again(tmp_path, capsys):
    """By the next start; also where a folder has its name. Without its original it is missing."""
    tones(tmp_path)
    before = load(tmp_path)["train"][0][1]
    path = made(tmp_path, "audio", "1.wav")
    for folder in (False, True):
        path.unlink()
        capsys.readouterr()
        if folder:
            path.mkdir()
            prepared_again(tmp_path)
        assert (load(tmp_path)["train"][0][1] == before).all() and path.is_file()
        assert f"{path} is missing" in capsys.readouterr().out or folder
    path.unlink()
    (tmp_path / "1.wav").unlink()
    assert len(load(tmp_path)["train"]) == 3


def test_too_many_open_files_keep_their_advice(tmp_path, monkeypatch, capsys):
    """Also where a file is written: no file is to blame, and none is listed."""
    tones(tmp_path)
    monkeypatch.setattr(os, "replace", raising(OSError(24, "Too many open files")))
    assert prepare.main([str(tmp_path), "--workers", "1"]) == 1
    assert "raise the limit: ulimit -n" in capsys.readouterr().err
    assert not prepared_table(tmp_path).exists()


# --- names and places ---


@pytest.mark.parametrize("form", ["./mine", "mine/", "x/../mine", "{}/mine"])
def test_any_way_to_write_a_folder_is_read(form, tmp_path, monkeypatch):
    """At once, and again; the list of what was prepared is the same."""
    monkeypatch.chdir(tmp_path)
    Path("x").mkdir()
    tones(tmp_path / "mine")
    for _ in range(2):
        assert load(form.format(tmp_path))["train"][0][1].shape == (1, 257, 1004)
    row = prepared_table("mine").read_text().splitlines()[2]
    assert row.split(",")[5].startswith("prepared/audio/0.wav-")


def test_a_moved_folder_is_not_prepared_again(tmp_path, capsys):
    """All paths below it are written as seen from it; a file outside keeps its absolute path."""
    tones(tmp_path / "a")
    make_wav(tmp_path / "far.wav")
    table = tmp_path / "a/samples.csv"
    table.write_text(table.read_text().replace(",1.wav", f",{tmp_path}/far.wav"))
    load(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    capsys.readouterr()
    load(tmp_path / "b")
    assert "preparing" not in capsys.readouterr().out


def test_long_names_are_prepared(tmp_path):
    """Names of up to 255 bytes, also of characters that take three."""
    tones(tmp_path, 3)
    table = (tmp_path / "samples.csv").read_text()
    for i, name in enumerate([f"{'x' * 251}.wav", f"{'あ' * 83}.wav", f"{'y' * 240}.wav"]):
        (tmp_path / f"{i}.wav").rename(tmp_path / name)
        table = table.replace(f"{i}.wav", name)
    (tmp_path / "samples.csv").write_text(table)
    assert len(load(tmp_path)["train"]) == 2
    assert all(len(os.fsencode(p.name)) < 130 for p in (tmp_path / "prepared/audio").iterdir())


def test_links_are_followed_once(tmp_path, monkeypatch):
    """A root whose name begins like its link's target; links that lead back."""
    make_wav(tmp_path / "cremad/x.wav")
    (tmp_path / "cremad2").mkdir()
    (tmp_path / "cremad2/orig").symlink_to("../cremad")
    for name in ("a", "b"):
        (tmp_path / f"cremad2/{name}").mkdir()
        (tmp_path / f"cremad2/{name}/all").symlink_to("..")
    monkeypatch.chdir(tmp_path)
    for root in (tmp_path / "cremad2", "cremad2", "./cremad2"):
        assert len(list(files.walk(root, []))) == 1
        assert set(files.index("cremad", root, ["audio"])["audio"]) == {"x"}


def test_one_odd_array_in_the_first_line_is_the_odd_one(tmp_path):
    """The usual shape counts, for what is usable and for the default encoder."""
    vectors(tmp_path)
    np.save(tmp_path / "a0.npy", np.zeros((3, 8, 8)))
    prepared_again(tmp_path)
    _, found = read_prepared(tmp_path)
    assert sum(count["usable"] for count in found.counts.values()) == 29
    assert train.parse(["--dataset", str(tmp_path)]).encoders == "mlp,mlp,mlp"
    assert array_kind([tmp_path / "a0.npy"]) == "grid"


def test_labels_that_look_alike_are_named(tmp_path, capsys):
    """By case, by accents as one or two characters, by a space that cannot be seen."""
    labels = ["Dog", "dog", "caf\xe9", "cafe\u0301", "cat", "c\u200bat", "bird"]
    assert alike(labels) == [["Dog", "dog"], ["cafe\u0301", "caf\xe9"], ["cat", "c\u200bat"]]
    vectors(tmp_path)
    table = tmp_path / "samples.csv"
    table.write_text(table.read_text().replace("class 1", "Class 0"))
    load(tmp_path)
    assert "these classes look alike: 'Class 0', 'class 0'" in capsys.readouterr().out


@pytest.mark.slow
def test_a_script_without_a_main_guard_prepares_alone(tmp_path):
    """Its workers cannot start; no sample is called damaged."""
    tones(tmp_path / "mine", n=60)
    script = tmp_path / "script.py"
    flags = ["--dataset", str(tmp_path / "mine"), "--method", "heuristic", "--epochs", "1"]
    flags += ["--inner-iters", "1", "--batch-size", "4"]
    script.write_text(f"import train\ntrain.main({[*flags, '--out', str(tmp_path / 'run')]})\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert "no worker starts" in done.stdout and "usable: 60\n" in done.stdout, done.stderr
    assert json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1])["test"]


@pytest.mark.slow
def test_a_random_sequence_of_changes_is_read_as_from_nothing():
    """A few of the sequences of fuzz.py."""
    assert [len(fuzz.sequence(seed, 6)) for seed in range(4)] == [6] * 4


# --- files of the user's with names of ours ---


def videos(root):
    """Two columns of arrays and a video; returns the frames that prepare made of the video."""
    vectors(root, 6)
    make_video(root / "v.mp4", 20, sound=False)
    rows = (root / "samples.csv").read_text().splitlines()
    write_table(root, f"{rows[0]},video", [f"{row},v.mp4" for row in rows[1:]])
    prepared_again(root)
    return made(root, "video", "v.mp4")


def test_raw_keeps_frames_that_another_column_names(tmp_path):
    """The user's own, from then on."""
    frames = videos(tmp_path)
    name = frames.relative_to(tmp_path)
    rows = (tmp_path / "samples.csv").read_text().splitlines()
    write_table(tmp_path, f"{rows[0]},video:frames", [f"{row},{name}" for row in rows[1:]])
    before = hashes(frames)
    assert prepare.main([str(tmp_path), "--workers", "1", "--raw"]) == 0
    assert hashes(frames) == before
    assert len(data.load(str(tmp_path)).splits["train"]) == 4


def test_a_named_file_with_a_prepared_files_name_stays(tmp_path, capsys):
    """Of an audio column it is no longer the program's: the sample says so."""
    tones(tmp_path)
    load(tmp_path)
    taken = made(tmp_path, "audio", "1.wav")
    np.save(taken, np.zeros(4))
    rows = (tmp_path / "samples.csv").read_text().splitlines()
    name = taken.relative_to(tmp_path)
    write_table(tmp_path, f"{rows[0]},array", [f"{row},{name}" for row in rows[1:]])
    before = taken.read_bytes()
    prepared_again(tmp_path)
    assert taken.read_bytes() == before and "undecodable: 1\nusable: 5" in capsys.readouterr().out
    assert "has the name of a prepared file" in prepared_table(tmp_path).read_text()


def test_hidden_parts_of_the_users_stay(tmp_path, monkeypatch):
    """Whatever their name, however the folder is written, and if they hold what is named."""
    vectors(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    there = Path("mine/prepared")
    for name in (".part-mine/x.npy", ".part-1-notes.txt", "audio/.part-7-a.wav-0f3a9c51d2e4.npy"):
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("mine/a1.npy", there / name)
    (there / "audio/.part-8-a.wav-0f3a9c51d2e4.npy").write_text("half of ours")
    table = Path("mine/samples.csv")
    named = "prepared/audio/.part-7-a.wav-0f3a9c51d2e4.npy"
    table.write_text(table.read_text().replace(",a1.npy", f",{named}"))
    prepared_again(Path("./mine"))
    left = {path.name for path in there.rglob(".part-*")}
    assert left == {".part-mine", ".part-1-notes.txt", ".part-7-a.wav-0f3a9c51d2e4.npy"}


@pytest.mark.parametrize("line", ["# my notes", "split,label,array:a,array:b", "[1]"])
def test_a_list_that_is_not_ours_is_refused(line, tmp_path, capsys):
    """It is not overwritten; a line of ours without its parts is of another version."""
    vectors(tmp_path)
    prepared_table(tmp_path).parent.mkdir()
    prepared_table(tmp_path).write_text(f"{line}\n")
    assert prepare.main([str(tmp_path), "--workers", "1"]) == 2
    assert "is not a list that prepare wrote" in capsys.readouterr().err
    assert prepared_table(tmp_path).read_text() == f"{line}\n"
    prepared_table(tmp_path).write_text('# {"format": 2}\n')
    assert len(load(tmp_path)["train"]) == 20


def test_a_file_whose_permission_was_mended_is_used(tmp_path, monkeypatch):
    """Neither its size nor its time changes."""
    vectors(tmp_path)
    load(tmp_path)
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("a0.npy"))
    text = prepared_table(tmp_path).read_text().replace("0,usable", "0,no permission", 1)
    prepared_table(tmp_path).write_text(text)
    assert len(load(tmp_path)["test"]) == 9
    monkeypatch.setattr(os, "access", real)
    assert len(load(tmp_path)["test"]) == 10


def test_dots_behind_a_link_are_followed(tmp_path):
    """`link/../x.npy` is beside the link's target."""
    vectors(tmp_path / "far/mine")
    (tmp_path / "far/here").mkdir()
    np.save(tmp_path / "far/x.npy", np.zeros(4))
    (tmp_path / "far/mine/link").symlink_to(tmp_path / "far/here")
    table = tmp_path / "far/mine/samples.csv"
    table.write_text(table.read_text().replace(",a1.npy", ",link/../x.npy"))
    assert len(load(tmp_path / "far/mine")["train"]) == 20


def test_a_kind_that_cannot_be_sent_is_prepared_alone(tmp_path, monkeypatch, capsys):
    """As one with a lambda, of a notebook."""
    vectors(tmp_path, 60)
    monkeypatch.setattr("utils.prepare.FEW", 0)
    vector = MODALITIES["vector"]
    monkeypatch.setitem(MODALITIES, "vector", vector._replace(read=lambda *a: vector.read(*a)))
    assert prepare.main([str(tmp_path), "--workers", "2"]) == 0
    printed = capsys.readouterr().out
    assert "no worker starts" in printed and "usable: 60\n" in printed


def test_a_nul_in_a_cell_is_a_sample(tmp_path):
    """In a path it is missing, in a text it is a character."""
    for i in range(6):
        make_jpg(tmp_path / f"{i}.jpg")
    rows = [f"{split},{i % 2},{i}.jpg,a word" for i, split in enumerate(splits(6))]
    rows[1] = rows[1].replace("a word", "a\0word")
    rows[2] = rows[2].replace("2.jpg", "2\0.jpg")
    write_table(tmp_path, "split,label,image,text", rows)
    prepared_again(tmp_path)
    _, found = read_prepared(tmp_path)
    assert found.counts["train"] == {"usable": 3, "missing": 1}
    assert "a\0word" in found.splits["train"][0][1]
