"""utils/digits.py, keypad and spoken_digits of data.py: their content and their errors."""

from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import torch

import data
from utils import digits

FSDD = Path(__file__).parents[2] / "../shared/samples/fsdd"


def tensors(split):
    return [x.numpy() for x in (*split.sources, split.y)]


@pytest.fixture(scope="module")
def keypad():
    return data.keypad()


def test_keypad_has_the_promised_pairs(keypad):
    """14,376 and 1,198 pairs of ten digits, normalized; a group holds the copies of one image."""
    pairs = keypad
    image, sound, y = (torch.from_numpy(x) for x in tensors(pairs.splits["train"]))
    assert image.shape == (14376, 1, 20, 20) and sound.shape == (14376, 1, 65, 24)
    assert len(pairs.splits["test"]) == 1198 and set(y.tolist()) == set(range(10))
    for x in (image, sound):
        assert abs(x.mean()) < 1e-4 and abs(x.std() - 1) < 1e-3
    groups = pairs.groups
    assert len(groups) == 14376 and all(np.bincount(groups) == 12)
    for group in range(5):
        assert len(set(y[groups == group].tolist())) == 1


def test_images_are_split_by_image():
    """Every handwritten digit is in one split only."""
    splits = digits.handwritten_digits(np.random.default_rng(0))
    seen = [{image.tobytes() for image in splits[split][0]} for split in ("train", "test")]
    assert len(seen[0]) + len(seen[1]) == 1797 and not seen[0] & seen[1]


def test_the_canvas_shows_the_digit_at_its_column(monkeypatch):
    """Without noise the ink is where the returned place says, unchanged."""
    monkeypatch.setattr(digits, "IMAGE_NOISE", 0.0)
    canvas, column = digits.place_on_canvas(np.ones((500, 8, 8)), np.random.default_rng(0))
    for picture, place in zip(canvas[:, 0], column):
        assert picture.sum() == 64
        assert np.flatnonzero(picture.sum(0))[0] == round(place * (digits.CANVAS - 8))
    assert set(np.round(column * (digits.CANVAS - 8))) == set(range(digits.CANVAS - 7))


def test_a_key_sounds_its_two_tones_at_the_onset(monkeypatch):
    """Silence before and after; in between the spectrum's two peaks are those of ITU-T Q.23."""
    monkeypatch.setattr(digits, "TONE_NOISE", 0.0)
    labels, onsets = np.arange(10), np.linspace(0, 1, 10)
    waves = digits.dtmf_tones(labels, onsets, np.random.default_rng(0))
    frequency = np.fft.rfftfreq(waves.shape[1], 1 / digits.RATE)
    for wave, digit, onset in zip(waves, labels, onsets):
        heard = np.flatnonzero(wave) / digits.RATE
        assert heard[0] == pytest.approx(onset * 0.35, abs=0.002)
        assert np.ptp(heard) == pytest.approx(0.15, abs=0.002)
        spectrum = np.abs(np.fft.rfft(wave))
        low = frequency[np.where(frequency < 1050, spectrum, 0).argmax()]
        high = frequency[np.where(frequency > 1050, spectrum, 0).argmax()]
        assert (low, high) == pytest.approx(digits.TONES[digit], abs=4)
    assert digits.TONES[5] == (770, 1336) and digits.TONES[0] == (941, 1336)


def test_the_later_key_is_further_right(keypad, monkeypatch):
    """In keypad the key is the image's digit, and its onset is the digit's column; it is always the
    same, bit for bit, whatever was drawn before."""
    placed, shown, heard = {}, [], []
    real_place, real_tones = digits.place_on_canvas, digits.dtmf_tones

    def place(images, rng):
        placed["test" if shown else "train"] = images
        shown.append(real_place(images, rng))
        return shown[-1]

    def dtmf_tones(labels, onsets, rng):
        heard.append((labels, onsets))
        return real_tones(labels, onsets, rng)

    monkeypatch.setattr(digits, "place_on_canvas", place)
    monkeypatch.setattr(digits, "dtmf_tones", dtmf_tones)
    np.random.seed(1)
    torch.manual_seed(1)
    pairs = data.keypad()
    for split in ("train", "test"):
        first, again = tensors(keypad.splits[split]), tensors(pairs.splits[split])
        assert all(map(np.array_equal, first, again))
    for split, (_, column), (labels, onsets) in zip(("train", "test"), shown, heard):
        assert np.array_equal(column, onsets)
        assert np.array_equal(labels, tensors(pairs.splits[split])[2])
        images, classes = digits.handwritten_digits(np.random.default_rng(0))[split]
        class_of = {image.tobytes(): k for image, k in zip(images, classes)}
        assert [class_of[image.tobytes()] for image in placed[split]] == labels.tolist()


def clone(folder):
    """A small FSDD in the original layout: 10 digits, one speaker, index 0 and 5."""
    (folder / "recordings").mkdir(parents=True)
    for digit in range(10):
        for index in (0, 5):
            wave = 0.3 * np.sin(2 * np.pi * (300 + 50 * digit) * np.arange(3000) / 8000)
            soundfile.write(folder / f"recordings/{digit}_theo_{index}.wav", wave, 8000)
    return folder


def test_spoken_digits_reads_a_clone(tmp_path):
    """Index 0-4 is the test split; the label is the file name's digit; 5 and 4 copies each."""
    pairs = data.spoken_digits(clone(tmp_path))
    for split, copies in [("train", 5), ("test", 4)]:
        _, sounds, y = tensors(pairs.splits[split])
        assert y.tolist() == np.repeat(np.arange(10), copies).tolist()
        assert sounds.shape == (10 * copies, 1, 65, 24)
    one, another, *_ = tensors(pairs.splits["train"])[0]
    assert not np.array_equal(one, another)  # another image, or another place


def test_a_recording_is_resampled_and_repeated(tmp_path):
    """3,000 samples at 8 kHz are 1,500 at 4 kHz; 0.5 s holds them once and a third, with peak 1."""
    path = clone(tmp_path) / "recordings/3_theo_0.wav"
    wave = digits.read_recording(path)
    expected = librosa.resample(soundfile.read(path)[0], orig_sr=8000, target_sr=4000)
    assert wave.shape == (2000,) and np.abs(wave).max() == pytest.approx(1)
    expected = np.concatenate([expected, expected[:500]]) / np.abs(expected).max()
    assert np.allclose(wave, expected, atol=1e-4)


@pytest.mark.skipif(
    not FSDD.is_dir(), reason="the real recordings, ../shared/samples/fsdd, are not here"
)
def test_spoken_digits_pairs_the_real_recordings(monkeypatch):
    """2,700 and 300 recordings, 5 and 4 times; groups share neither images nor recordings."""
    seen = {}

    def place(images, rng):
        return seen.setdefault(len(images), images)[:, None], None

    monkeypatch.setattr(digits, "place_on_canvas", place)
    monkeypatch.setattr(digits, "SPEECH_NOISE", 0.0)
    pairs = data.spoken_digits(FSDD)
    shown = digits.handwritten_digits(np.random.default_rng(0))
    for split, each in [("train", 1350), ("test", 120)]:
        _, sounds, y = tensors(pairs.splits[split])
        assert np.bincount(y).tolist() == [each] * 10
        images, classes = shown[split]
        class_of = {image.tobytes(): k for image, k in zip(images, classes)}
        assert [class_of[image.tobytes()] for image in seen[len(y)]] == y.tolist()
    groups, y = pairs.groups, tensors(pairs.splits["train"])[2]
    assert all(set(y[groups == k]) == set(range(10)) for k in range(10))
    assert len(np.unique(groups)) == 10
    for things in (seen[13500], tensors(pairs.splits["train"])[1]):
        groups_of = {}
        for thing, group in zip(things, groups):
            groups_of.setdefault(thing.tobytes(), set()).add(group)
        assert all(len(g) == 1 for g in groups_of.values())


@pytest.mark.parametrize("content, said", [(b"", "the file is empty"), (0, "is silent")])
def test_a_broken_recording_is_named(tmp_path, content, said):
    """One ValueError with the path, what is wrong and what to do."""
    path = clone(tmp_path) / "recordings/0_theo_0.wav"
    soundfile.write(path, np.zeros(100), 8000)
    if content == b"":
        path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        data.spoken_digits(tmp_path)
    assert str(path) in str(error.value)


def test_a_folder_that_is_no_clone_says_what_is_expected(tmp_path):
    """No folder where it is looked for, a wrong one, and one with a single split."""
    for folder in ("", tmp_path / "absent"):
        with pytest.raises(FileNotFoundError, match="is not a folder; expected .* git clone"):
            data.spoken_digits(folder)
    with pytest.raises(FileNotFoundError, match="has no train recordings of .*docs/DATA.md"):
        data.spoken_digits(tmp_path)
    for path in clone(tmp_path).glob("recordings/*_5.wav"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"has no train recordings of the digits 0, 1, "):
        data.spoken_digits(tmp_path)
