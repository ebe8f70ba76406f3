"""The recordings of isl and phone-watch (data.py): two sensors of one movement, from a clone.

Neither set is in the paper. docs/DATA.md describes both. A sensor's C channels and T values become
a grid (1, C, T), as in a spectrogram; each channel is normalized by itself: their units differ.
"""

import json
from datetime import datetime
from pathlib import Path

import numpy as np

from utils.loader import normalized
from utils.media import UnreadableFile

ISL = "airtlab/An-EMG-and-IMU-Dataset-for-the-Italian-Sign-Language-Alphabet"
PHONE_WATCH = "GeoTecINIT/sp-sw-har-dataset"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
ACTIVITIES = ["SEATED", "SITTING_DOWN", "STANDING_UP", "TURNING", "WALKING"]
SIDES = dict.fromkeys([1, 9, 17], "val") | dict.fromkeys([3, 7, 11, 15, 19, 23], "test")  # people
STEP, WINDOW = 10, 50  # of phone-watch: ms between two values, values in a window
# Of a letter's 30 recordings in isl, in the order of time: 27 are of one sitting, 3 of a later day.
PLACES = ["train"] * 20 + ["val"] * 3 + ["test"] * 4 + ["val"] + ["test"] * 2


def read_all(read, root, pattern, n, repository):
    """{path: read(path)} of the n files of a pattern, sorted by path.

    FileNotFoundError if there are not n files, UnreadableFile if `read` fails.
    """
    clone = f"git clone https://github.com/{repository} {root}; see docs/DATA.md"
    if not Path(root).is_dir():
        raise FileNotFoundError(f"{root} is not a folder; expected a clone: {clone}")
    again = f"move {root} away and clone it again: {clone}"
    paths, found = sorted(Path(root).glob(pattern)), {}
    if len(paths) != n:
        raise FileNotFoundError(f"{root}/{pattern}: {len(paths)} files, expected {n}; {again}")
    for path in paths:
        try:
            found[path] = read(path)
        except (ValueError, LookupError, TypeError) as error:
            raise UnreadableFile(f"{path} is damaged ({error}); {again}") from error
    return found


def divide(x, y, sides):
    """{split: (x, y)}, normalized; x: arrays (n, 1, C, T), y and sides: (n,), a sample's split."""
    rows = {split: np.flatnonzero(sides == split) for split in ("train", "val", "test")}
    splits = {split: ([x_j[i] for x_j in x], y[i]) for split, i in rows.items()}
    return normalized(splits, axes=(0, 1, 3))


def read_sign(path):
    """A recording of 2 s at 200 Hz: its time, EMG (1, 8, 400), IMU (1, 10, 400)."""
    content = json.loads(path.read_text())
    rows = content["imu"]["data"]
    imu = [row["gyroscope"] + row["acceleration"] + row["orientation"] for row in rows]
    emg, imu = np.array(content["emg"]["data"], float), np.array(imu, float)
    if emg.shape != (400, 8) or imu.shape != (400, 10):
        raise ValueError(f"sizes {emg.shape} and {imu.shape}, expected (400, 8) and (400, 10)")
    return datetime.strptime(content["timestamp"], "%d/%m/%y/%H:%M:%S"), emg.T[None], imu.T[None]


def signs(root):
    """{split: ([EMG (n, 1, 8, 400), IMU (n, 1, 10, 400)], letters (n,))}, divided by PLACES.

    A third of the test recordings and a quarter of the validation recordings are of the later day.
    """
    found = []
    for letter in LETTERS:
        recordings = read_all(read_sign, root, f"Dataset/{letter}/*.json", 30, ISL)
        found += sorted(recordings.values(), key=lambda recording: recording[0])
    x = [np.stack([recording[j] for recording in found]) for j in (1, 2)]
    sides = np.tile(PLACES, len(LETTERS))
    return divide(x, np.repeat(np.arange(len(LETTERS)), 30), sides)


def read_device(path):
    """A device's rows (n, 8): acceleration (m/s^2), angular velocity (rad/s), ms, activity."""
    activity = {7: ACTIVITIES.index}
    rows = np.loadtxt(path, delimiter=",", skiprows=1, converters=activity, encoding="utf-8")
    if rows.shape[1:] != (8,) or (np.diff(rows[:, 6]) < 0).any():
        raise ValueError("expected rows of 8 values, in the order of time")
    return rows


def windows(phone, watch):
    """Both devices' windows of 0.5 s, one after another: (2, n, 7, 50), channels and activity.

    Values are interpolated linearly at 100 Hz over the time that both devices measured.
    """
    start, end = max(phone[0, 6], watch[0, 6]), min(phone[-1, 6], watch[-1, 6])
    n = max(0, int((end - start) // (STEP * WINDOW)))
    times = start + STEP * np.arange(n * WINDOW)
    columns = [0, 1, 2, 3, 4, 5, 7]
    x = [[np.interp(times, rows[:, 6], rows[:, c]) for c in columns] for rows in (phone, watch)]
    return np.reshape(x, (2, 7, n, WINDOW)).swapaxes(1, 2)


def activities(root):
    """{split: ([phone (n, 1, 6, 50), watch], activities (n,))} and the training people (n,).

    A window in which the devices name more than one activity is left out, and counted.
    """
    found = read_all(read_device, root, "DATA/s*/s*_s[pw].csv", 446, PHONE_WATCH)
    rows = [*found.values()]  # a phone's, its watch's, the next phone's
    pairs = [windows(phone, watch) for phone, watch in zip(rows[::2], rows[1::2])]
    people = [int(path.name[1:3]) for path in [*found][::2]]
    people = np.repeat(people, [pair.shape[1] for pair in pairs])
    both = np.concatenate(pairs, axis=1)
    labels = np.concatenate(both[:, :, 6], axis=1)  # (n, 100)
    one = (labels == labels[:, :1]).all(axis=1)
    print(f"windows: {one.sum()} of {len(one)}; in the others the activity changes")
    both, y, people = both[:, one, None, :6], labels[one, 0].astype(int), people[one]
    sides = np.array([SIDES.get(person, "train") for person in people])
    return divide(both, y, sides), people[sides == "train"]
