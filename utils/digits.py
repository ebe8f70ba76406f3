"""The parts of the built-in sets: handwritten digits, telephone tones, recordings of digits.

keypad and spoken-digits (data.py) are ours, not the paper's. Their noise was chosen on a validation
part of the training data, by one criterion: trained alone, either modality reaches 80 to 90 % ACC;
trained jointly at alpha = 0, at least one of them falls far behind that.
"""

import re
from pathlib import Path

import numpy as np

from utils.media import UnreadableFile, log_spectrogram, read_audio

RATE = 4000  # Hz, the sound of both sets
DURATION = 0.5  # s
CANVAS = 20  # pixels
KEYPAD_COPIES = {"train": 12, "test": 2}  # of each image, in other places
SPOKEN_COPIES = {"train": 5, "test": 4}  # of each recording, with other images
FOLDS = 10  # of spoken-digits: a recording is paired with images of its own fold only
IMAGE_NOISE = 0.1  # standard deviation; ink is 1
TONE_NOISE = 3.1  # standard deviation; each of the two tones has amplitude 1
SPEECH_NOISE = 0.16  # standard deviation; the recording's peak is 1
TONES = {1: (697, 1209), 2: (697, 1336), 3: (697, 1477)}  # Hz, ITU-T Q.23
TONES |= {4: (770, 1209), 5: (770, 1336), 6: (770, 1477)}
TONES |= {7: (852, 1209), 8: (852, 1336), 9: (852, 1477), 0: (941, 1336)}


def handwritten_digits(rng):
    """scikit-learn's 1,797 digits, 8 x 8 pixels, 2/3 to train: {split: (images, labels)}."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = rng.permutation(len(digits.target))
    images, labels = digits.images[order] / 16, digits.target[order]
    n = 2 * len(order) // 3
    return {"train": (images[:n], labels[:n]), "test": (images[n:], labels[n:])}


def place_on_canvas(images, rng):
    """Each digit at a random place of a noisy canvas: (n, 8, 8) -> (n, 1, CANVAS, CANVAS).

    Also returns each digit's column, (n,), in 0..1.
    """
    canvas = rng.normal(0, IMAGE_NOISE, (len(images), CANVAS, CANVAS))
    corners = rng.integers(0, CANVAS - 8, (len(images), 2), endpoint=True)
    for c, image, (row, column) in zip(canvas, images, corners):
        c[row : row + 8, column : column + 8] += image
    return canvas[:, None], corners[:, 1] / (CANVAS - 8)


def dtmf_tones(labels, onsets, rng):
    """The tone pairs of telephone keys, 0.15 s each, in noise.

    labels: digits (n,); onsets: (n,) in 0..1, when the tone begins. Returns (n, RATE * DURATION).
    """
    t = np.arange(int(RATE * DURATION)) / RATE
    start = onsets[:, None] * (DURATION - 0.15)
    on = (t >= start) & (t < start + 0.15)
    low, high = np.array([TONES[k] for k in labels]).T[..., None]
    phase = rng.uniform(0, 2 * np.pi, (2, len(labels), 1))
    tones = np.sin(2 * np.pi * low * t + phase[0]) + np.sin(2 * np.pi * high * t + phase[1])
    return on * tones + rng.normal(0, TONE_NOISE, (len(labels), len(t)))


def spectrograms(waves):
    """Log-spectrograms with window 128, hop 80: (n, samples) -> (n, 1, 65, frames)."""
    return log_spectrogram(waves, 128, 80)[:, None]


def recordings(root):
    """FSDD's files: {split: [(path, digit)]}. By FSDD's rule, index 0-4 is the test split."""
    source = "https://github.com/Jakobovski/free-spoken-digit-dataset"
    wanted = "recordings/{digit}_{speaker}_{index}.wav"
    how = f"expected {wanted} of a clone: git clone {source} {root}; see docs/DATA.md"
    if not Path(root).is_dir():
        raise FileNotFoundError(f"{root} is not a folder; {how}")
    splits = {"train": [], "test": []}
    for path in sorted(Path(root).glob("recordings/*.wav")):
        if match := re.fullmatch(r"(\d)_\w+_(\d+)", path.stem):
            splits["test" if int(match[2]) < 5 else "train"].append((path, int(match[1])))
    for split, files in splits.items():
        if absent := set(range(10)) - {digit for _, digit in files}:
            what = f"{split} recordings of the digits {', '.join(map(str, sorted(absent)))}"
            raise FileNotFoundError(f"{root} has no {what}; {how}")
    train, test = splits["train"], splits["test"]
    print(f"recordings: {len(train)} of 2700 to train, {len(test)} of 300 to test")
    return splits


def read_recording(path):
    """The first DURATION of a recording, repeated if it is shorter: (RATE * DURATION,).

    Scaled so that the whole recording's peak is 1. UnreadableFile if the recording is silent.
    """
    wave = read_audio(path, RATE)
    if not wave.any():
        raise UnreadableFile(f"{path} is silent, expected a spoken digit; replace it")
    return np.resize(wave, int(RATE * DURATION)) / np.abs(wave).max()


def folds(labels):
    """Deal the samples of each class to FOLDS folds in turn: labels (n,) -> folds (n,)."""
    result = np.zeros_like(labels)
    for k in np.unique(labels):
        members = np.flatnonzero(labels == k)
        result[members] = np.arange(len(members)) % FOLDS
    return result


def choose_partners(labels, label_folds, classes, rng):
    """For each of the labels (n,) a random image of its class and fold, a position in `classes`."""
    image_folds = folds(classes)
    pairs = zip(labels, label_folds)
    return [rng.choice(np.flatnonzero((classes == k) & (image_folds == f))) for k, f in pairs]


def spoken_pairs(root, rng):
    """{split: ([images, spectrograms], labels)} and the folds of the training pairs."""
    images = handwritten_digits(rng)
    splits, groups = {}, {}
    for split, files in recordings(root).items():
        waves = np.stack([read_recording(path) for path, _ in files])
        labels = np.array([digit for _, digit in files])
        copies = np.repeat(np.arange(len(files)), SPOKEN_COPIES[split])
        y, groups[split] = labels[copies], folds(labels)[copies]
        pool, classes = images[split]
        partners = choose_partners(y, groups[split], classes, rng)
        image, _ = place_on_canvas(pool[partners], rng)
        noisy = waves[copies] + rng.normal(0, SPEECH_NOISE, (len(copies), waves.shape[1]))
        splits[split] = [image, spectrograms(noisy)], y
    return splits, groups["train"]
