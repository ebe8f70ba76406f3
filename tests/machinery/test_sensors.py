"""utils/sensors.py, isl and phone_watch of data.py: their values, their splits, their errors."""

import json
import tarfile
from datetime import datetime, timedelta

import numpy as np
import pytest
from conftest import SHARED

import data
import train
from utils import sensors
from utils.loader import normalized

TRAINING_PEOPLE = {2, 4, 5, 6, 8, 10, 12, 13, 14, 16, 18, 20, 21, 22}


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """The folder with both real sets: isl and spsw."""
    folder = tmp_path_factory.mktemp("real")
    for name in ("isl.tar.xz", "phone-watch.tar.xz"):
        if not (SHARED / name).is_file():
            pytest.skip(f"the real recordings, ../shared/samples/{name}, are not here")
        with tarfile.open(SHARED / name) as files:
            files.extractall(folder, filter="data")
    return folder


def counts(found):
    return {name: np.bincount(split.y).tolist() for name, split in found.splits.items()}


def check_channels(found):
    """Each channel has mean 0 and standard deviation 1 in the training split."""
    for x_j in found.splits["train"].sources:
        x_j = x_j.double().numpy()
        assert np.abs(x_j.mean((0, 1, 3))).max() < 1e-6
        assert np.abs(x_j.std((0, 1, 3)) - 1).max() < 1e-6


def test_the_real_signs(real):
    """20, 4 and 6 recordings of each letter, and the first numbers of a file, as it has them."""
    found = data.isl(real / "isl")
    assert counts(found) == {"train": [20] * 26, "val": [4] * 26, "test": [6] * 26}
    assert found.classes == [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ"] and found.groups is None
    emg, imu = found.splits["test"].sources
    assert emg.shape == (156, 1, 8, 400) and imu.shape == (156, 1, 10, 400)
    check_channels(found)
    path = real / "isl/Dataset/A/015c05a7-3838-431a-82d8-9a55a8e0d1b4.json"
    time, emg, imu = sensors.read_sign(path)
    assert time == datetime(2020, 6, 26, 22, 28, 12)
    assert emg[0, :, 0].tolist() == [-2, -6, -22, -4, 0, -1, -2, -1]
    assert emg[0, 2, :4].tolist() == [-22, -22, 9, -4]
    assert imu[0, :5, 0].tolist() == [-1.375, 0.3125, -0.1875, 0.40234375, -0.4990234375]
    assert imu[0, 5:7, 0].tolist() == [0.712890625, 0.00604248046875]


def test_the_real_phone_and_watch(real, capsys):
    """Windows of each activity, 14, 3 and 6 people, and a window's first numbers, by hand."""
    found = data.phone_watch(real / "spsw")
    assert "windows: 3399 of 4919;" in capsys.readouterr().out
    assert found.classes == ["SEATED", "SITTING_DOWN", "STANDING_UP", "TURNING", "WALKING"]
    assert counts(found) == {
        "train": [197, 242, 200, 372, 1150],
        "val": [42, 52, 42, 66, 202],
        "test": [93, 101, 78, 136, 426],
    }
    assert {*found.groups.tolist()} == TRAINING_PEOPLE and len(found.groups) == 2161
    assert [x.shape for x in found.splits["val"].sources] == [(404, 1, 6, 50)] * 2
    check_channels(found)
    rows = [sensors.read_device(real / f"spsw/DATA/s01/s01_01_{end}.csv") for end in ("sp", "sw")]
    phone, watch = sensors.windows(*rows)[:, 0]
    # Both begin at ms 813: the phone's rows are at 813 and 864, the watch's at 810, 819 and 828.
    first, second = -4.160221099853516, -4.184149265289307
    assert phone[0, :2] == pytest.approx([first, first + 10 / 51 * (second - first)], rel=1e-12)
    first, second, third = 0.3832031488418579, 0.38559815287590027, 0.35685792565345764
    expected = [first + 3 / 9 * (second - first), second + 4 / 9 * (third - second)]
    assert watch[0, :2] == pytest.approx(expected, rel=1e-12)
    assert set(phone[6]) == {0}  # SEATED


@pytest.fixture
def three_letters(monkeypatch):
    """An isl of the letters A, B, C, to be quick."""
    monkeypatch.setattr(sensors, "LETTERS", "ABC")


def make_signs(folder):
    """An isl whose EMG is the recording's place in time, 0 to 29, and whose IMU is its letter.

    The files' names and the text of their times are in other orders.
    """
    for k, letter in enumerate(sensors.LETTERS):
        (folder / f"Dataset/{letter}").mkdir(parents=True)
        imu = {"gyroscope": [k] * 3, "acceleration": [k] * 3, "orientation": [k] * 4}
        for place in range(30):
            time = datetime(2020, 6, 26) + timedelta(days=place)  # 26/06 to 25/07
            sign = {
                "timestamp": time.strftime("%d/%m/%y/%H:%M:%S"),
                "emg": {"data": [[place] * 8] * 400},
                "imu": {"data": [imu] * 400},
            }
            path = folder / f"Dataset/{letter}/{7 * place % 30:02}.json"
            path.write_text(json.dumps(sign))
    return folder


def test_a_letter_is_split_by_time(three_letters, tmp_path):
    """Of places 20 to 26, one sitting, and 27 to 29, a later day, both go to val and to test.

    Each modality keeps its own label.
    """
    found = data.isl(make_signs(tmp_path))
    mean, std = 9.5, np.sqrt(33.25)  # of 0 .. 19
    val, test = [20, 21, 22, 27], [23, 24, 25, 26, 28, 29]
    for split, places in [("train", range(20)), ("val", val), ("test", test)]:
        emg, imu = found.splits[split].sources
        expected = (np.tile(places, 3) - mean) / std
        assert emg[:, 0, 3, 399].numpy() == pytest.approx(expected, abs=1e-5)
        letters = np.repeat(np.arange(3), len(places))
        assert found.splits[split].y.tolist() == letters.tolist()
        assert imu[:, 0, 9, 0].numpy() == pytest.approx((letters - 1) / np.sqrt(2 / 3), abs=1e-5)


def test_signs_train(three_letters, tmp_path, monkeypatch, capsys):
    """The default encoder takes them; the settings are those of your own data of 520 samples."""
    monkeypatch.chdir(tmp_path)
    make_signs(tmp_path / "data/isl")
    settings = train.parse(["--dataset", "isl"])
    assert (settings.batch_size, settings.epochs, settings.encoders) == (16, 18, "cnn")
    flags = ["--epochs", "1", "--inner-iters", "3", "--method", "heuristic"]
    assert train.main(["--dataset", "isl", *flags]) == 0
    assert "emg" in capsys.readouterr().out


def rows_of(times, values, labels):
    """A device's rows: each time in ms, its six channels `values`, its activity."""
    table = np.zeros((len(times), 8))
    table[:, :6], table[:, 6], table[:, 7] = np.array(values)[:, None], times, labels
    return table


def test_windows_are_what_both_devices_measured():
    """From the later start; interpolated every 10 ms; a rest of less than 0.5 s is no window."""
    phone = rows_of([1000, 1020, 2600], [0, 20, 1600], [1, 1, 1])  # ms - 1000
    watch = rows_of([1100, 1100, 2100, 2590], [7, 0, 1000, 1000], [1, 1, 1, 3])
    x = sensors.windows(phone, watch)
    assert x.shape == (2, 2, 7, 50)
    assert x[0, 0, 0] == pytest.approx(np.arange(100, 600, 10))
    assert x[0, 1, 5] == pytest.approx(np.arange(600, 1100, 10))
    assert x[1, :, 2].ravel() == pytest.approx(np.arange(0, 1000, 10))
    assert set(x[:, :, 6].ravel()) == {1}
    later = rows_of([9000, 9900], [0, 0], [1, 1])
    assert sensors.windows(phone, later).shape == (2, 0, 7, 50)


def write_device(path, person, labels, start):
    """A device's file of 1.01 s, a row each 10 ms: all channels are the person, then her label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["x_acc,y_acc,z_acc,x_gyro,y_gyro,z_gyro,timestamp,label"]
    for n, label in enumerate(labels):
        values = ",".join([str(person)] * 5 + [str(sensors.ACTIVITIES.index(label))])
        lines.append(f"{values},{start + 10 * n},{label}")
    path.write_text("\n".join(lines) + "\n")


def make_devices(folder):
    """A phone-watch of 23 people and 223 pairs: 0.5 s of walking, 0.5 s of one more activity, which
    the watch of s04_02 names too late."""
    for n in range(223):
        person, execution = n % 23 + 1, n // 23 + 1
        other = sensors.ACTIVITIES[n % 5]
        for end in ("sp", "sw"):
            late = 10 * (person == 4 and execution == 2 and end == "sw")
            labels = ["WALKING"] * (50 + late) + [other] * (51 - late)
            path = folder / f"DATA/s{person:02}/s{person:02}_{execution:02}_{end}.csv"
            write_device(path, person, labels, start=1657533977813)
    return folder


def test_no_person_is_on_two_sides(tmp_path, monkeypatch, capsys):
    """The split is the person's; both devices and the label are of one window; a mixed one goes."""
    monkeypatch.setattr(sensors, "normalized", lambda splits, axes: splits)
    splits, people = sensors.activities(make_devices(tmp_path))
    assert "windows: 445 of 446;" in capsys.readouterr().out
    persons = {split: x[0][:, 0, 0, 0] for split, (x, _) in splits.items()}
    assert {*persons["train"]} == TRAINING_PEOPLE and persons["train"].tolist() == people.tolist()
    assert {*persons["val"]} == {1, 9, 17} and {*persons["test"]} == {3, 7, 11, 15, 19, 23}
    for (phone, watch), y in splits.values():
        assert np.array_equal(phone, watch) and phone.shape == (len(y), 1, 6, 50)
        assert np.array_equal(phone[:, 0, 5].T, np.tile(y, (50, 1)))


def test_a_channel_has_its_own_mean_and_std():
    """Axes (0, 1, 3): those of the training split, by hand; no axes: one mean of all."""
    x = np.array([[[[0.0, 2.0], [10.0, 50.0]]]])  # (1, 1, 2, 2): means 1 and 30, stds 1 and 20
    splits = {"train": ([x], np.array([0])), "test": ([x + 2], np.array([1]))}
    found = normalized(splits, axes=(0, 1, 3))
    (x_train,), _ = found["train"]
    (x_test,), y = found["test"]
    assert x_train.tolist() == [[[[-1, 1], [-1, 1]]]] and y.tolist() == [1]
    assert x_test.flatten().tolist() == pytest.approx([1, 3, -0.9, 1.1])
    (x_train,), _ = normalized(splits)["train"]
    assert x_train.mean().item() == pytest.approx(0) and x_train[0, 0, 0, 1] < 0


def refused(capsys, name, folder):
    """The one sentence with which train.py ends."""
    flags = ["--dataset", name, "--root", str(folder), "--method", "heuristic"]
    assert train.main(flags) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.parametrize("name, repository", [("isl", "airtlab"), ("phone-watch", "GeoTecINIT")])
def test_no_clone_is_one_sentence(name, repository, tmp_path, monkeypatch, capsys):
    """It names the folder and the command that makes the clone."""
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, name, "nowhere")
    assert "nowhere is not a folder; expected a clone: git clone https://github.com/" in line
    assert repository in line and line.endswith("nowhere; see docs/DATA.md")
    assert train.main(["--dataset", name, "--method", "heuristic"]) == 2
    assert f"data/{name} is not a folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert "0 files, expected" in refused(capsys, name, "empty")


def test_a_damaged_sign_is_one_sentence(three_letters, tmp_path, monkeypatch, capsys):
    """Cut off, of another size, without a sensor, absent: the file or its folder is named."""
    monkeypatch.chdir(tmp_path)
    path = make_signs(tmp_path / "isl") / "Dataset/C/03.json"
    whole = path.read_text()
    short = json.loads(whole)
    short["emg"]["data"].pop()
    for text in (whole[:2000], "", "[]", '{"timestamp": 3}', json.dumps(short)):
        path.write_text(text)
        line = refused(capsys, "isl", "isl")
        assert "isl/Dataset/C/03.json is damaged (" in line, text[:20]
        assert "move isl away and clone it again: git clone" in line
    path.unlink()
    assert "isl/Dataset/C/*.json: 29 files, expected 30" in refused(capsys, "isl", "isl")


def test_a_damaged_device_is_one_sentence(tmp_path, monkeypatch, capsys):
    """Cut off in a number and in a label, an unknown label, time that goes back, absent."""
    monkeypatch.chdir(tmp_path)
    path = make_devices(tmp_path / "pw") / "DATA/s04/s04_03_sw.csv"
    whole = path.read_text()
    first = whole.index("\n", whole.index("\n") + 1)
    for text in (
        whole[: first + 9],
        whole[: first - 2],
        whole.replace("WALKING", "FLYING"),
        whole.replace("1657533977823", "1657533977003"),
    ):
        assert text != whole
        path.write_text(text)
        assert "pw/DATA/s04/s04_03_sw.csv is damaged (" in refused(capsys, "phone-watch", "pw")
    path.unlink()
    assert "445 files, expected 446" in refused(capsys, "phone-watch", "pw")
