"""From files to tensors: what a sample is, and how sound, pictures, clips, flow and text are read (Sec. 4.1).

reader    x^(j)
as_is     a tensor that is there already
sound     log-spectrogram, (1, 257, 299) for 3 s, (1, 257, 1004) for 10 s
picture   an image, (3, 224, 224) uint8
clip      F frames of a video, (F, C, 224, 224) uint8
flow      F frames of optical flow, (F, 2, 224, 224)
text      token ids and attention mask, (2, L) int

Pictures stay bytes and sounds half as wide, quick to copy; the encoders widen them (model.py:standardised).
A reader is called as read(source, seed). Without a seed it gives the sample as it is tested; with one, its
augmentation is drawn from the seed alone, so that neither the number of loader workers nor a restart changes it.
"""

import os
import re
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset


class Samples(Dataset):
    """Samples (x^(1), ..., x^(m), y) of one split.

    sources: for each modality a sequence of n things that its reader reads; y: n class indices; readers: one per
    modality. samples[i] is the i-th as it is tested, samples[i, seed] as it is trained, augmented by that seed.
    """

    def __init__(self, sources, y, readers):
        self.sources, self.y, self.readers = sources, y, readers

    def __len__(self):
        return len(self.y)

    def __getitem__(self, key):
        i, seed = key if isinstance(key, tuple) else (key, None)
        return *(read(source[i], seed) for read, source in zip(self.readers, self.sources)), self.y[i]

    def subset(self, chosen):
        """The samples at the positions `chosen`."""
        take = lambda things: things[chosen] if torch.is_tensor(things) else [things[i] for i in chosen]  # noqa: E731
        return Samples([take(source) for source in self.sources], take(self.y), self.readers)


class Broken(ValueError):
    """A file that is there and of no use. Its message is one sentence; `reason` says in few words what is counted."""

    def __init__(self, message, reason="undecodable"):
        super().__init__(message)
        self.reason = reason


def is_pointer(path):
    """Whether the file is not the media but a git-lfs pointer to it."""
    with open(path, "rb") as file:
        return file.read(30).startswith(b"version https://git-lfs")


def broken(path, error):
    """The Broken that says why `path` could not be read."""
    path = Path(path)
    if not path.exists():
        return Broken(f"{path} is missing; get it anew", "missing")
    if path.is_dir():
        return Broken(f"{path} is a folder, expected a file; get it anew")
    if is_pointer(path):
        return Broken(f"{path} is a git-lfs pointer, not media; run `git lfs pull` in its folder", "git-lfs pointer")
    what = getattr(error, "strerror", None) or " ".join(str(error).split())
    what = what if path.stat().st_size else "the file is empty"
    return Broken(f"{path} cannot be read ({what}); get it anew, or remove it to do without it")


def as_is(x, seed=None):
    return x


def listen(path, rate):
    """A recording as mono at `rate` Hz: (samples,) float32. Broken where it is cut off or not sound."""
    import librosa
    import soundfile

    try:
        wave, own_rate = soundfile.read(path, dtype="float32", always_2d=True)  # (samples, channels)
        with open(path, "rb") as file:
            riff, size = file.read(4), int.from_bytes(file.read(4), "little")
    except (RuntimeError, OSError, ValueError) as error:
        raise broken(path, error) from error
    if riff == b"RIFF" and os.path.getsize(path) < size + 8 < 2**32 - 256:  # a stream's size is left 0 or all ones
        raise broken(path, "it is cut off: shorter than its header says")
    if not (wave.size and np.isfinite(wave).all()):
        raise broken(path, "it holds no samples, or some that are not finite")
    return librosa.resample(wave.mean(1), orig_sr=own_rate, target_sr=rate)


def log_spectrogram(wave, window, hop):
    """log(|STFT| + 1e-7), uncentred: (..., samples) -> (..., 1 + window / 2, frames)."""
    import librosa

    return np.log(np.abs(librosa.stft(wave, n_fft=window, hop_length=hop, center=False)) + 1e-7)


def spectrogram(wave, seconds):
    """Log-spectrogram of a sound at 16 kHz: repeated or cut to `seconds`, window 512, hop 159 (Sec. 4.1)."""
    # Paper silent: how the spectrogram gets its printed sizes. 257 x 299 and 257 x 1004 are these numbers, uncentred.
    return log_spectrogram(np.resize(wave, 16000 * seconds).clip(-1, 1), 512, 159)


def numbers(path, *shape):
    """A .npy file of numbers, not yet read; Broken where it has another shape, in which a letter stands for any n."""
    try:
        values = np.load(path, mmap_mode="r")
        fits = len(values.shape) == len(shape) and all(b in (a, str(b)) for a, b in zip(values.shape, shape))
        if not (fits and values.size and values.dtype.kind in "fiu"):
            raise ValueError(f"it holds {values.dtype} {values.shape}, expected numbers ({', '.join(map(str, shape))})")
    except (OSError, ValueError, EOFError) as error:
        raise broken(path, error) from error
    return values


def sound(path, seed=None, seconds=10):
    """The spectrogram that `prepare` kept of a recording, float16: (1, 257, 299) for 3 s, (1, 257, 1004) for 10 s."""
    values = numbers(path, 257, 1 + (16000 * seconds - 512) // 159)
    return torch.from_numpy(np.array(values, np.float16))[None]


def pixels(path, mode="RGB"):
    """A picture file as (C, H, W) uint8: mode RGB has 3 channels, L one. A large JPEG comes at 1/2, 1/4 or 1/8."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.draft(image.mode, (448, 448))  # decoded no larger than twice what `fit` makes of it needs
            values = torch.from_numpy(np.array(image if image.mode == mode else image.convert(mode)))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise broken(path, error) from error
    return values.permute(2, 0, 1) if mode == "RGB" else values[None]


def fit(pictures, seed, flip):
    """(..., H, W) -> (..., 224, 224), all alike: with a seed a random crop, mirrored half of the time; else resized."""
    from torchvision.transforms import v2

    # Paper silent: the augmentation. Here: the usual one for ResNets.
    if seed is None:
        return v2.functional.resize(pictures, [224, 224])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        pictures = v2.RandomResizedCrop(224)(pictures)
        return v2.RandomHorizontalFlip()(pictures) if flip else pictures


def picture(path, seed=None):
    """An image file: (3, 224, 224) uint8."""
    return fit(pixels(path), seed, flip=True)


def spread(n, k, seed=None):
    """k of the positions 0..n-1, one in each of k equal parts: its middle, or with a seed a random one."""
    within = np.full(k, 0.5) if seed is None else np.random.default_rng(seed).uniform(size=k)
    return ((np.arange(k) + within) * n / k).astype(int)


def numbered(folder):
    """A folder's pictures in the order of the number that ends their names."""
    pattern = re.compile(r"(\d+)\.(?:jpe?g|png)$", re.I)
    try:
        names = [(int(match[1]), entry.path) for entry in os.scandir(folder) if (match := pattern.search(entry.name))]
    except OSError as error:
        raise broken(folder, error) from error
    if not names:
        raise Broken(f"{folder} holds no numbered pictures, expected a clip's frames; get it anew", "no frames")
    return [path for _, path in sorted(names)]


def in_window(folder, start, end):
    """The pictures of a clip's frames start..end-1. A folder that has just so many holds these alone already."""
    paths = numbered(folder)
    if len(paths) == end - start:
        return paths
    if len(paths) < end:
        raise Broken(f"{folder} has {len(paths)} frames, expected {end - start} or at least {end}; get it anew",
                     "too few frames")  # fmt: skip
    return paths[start:end]


def clip(source, seed=None, frames=3, mode="RGB", flip=True):
    """Frames of a clip, one from each of `frames` equal parts, cropped alike: (frames, C, 224, 224) uint8.

    source: a folder of numbered pictures, or (folder, start, end), see `in_window`; or a .npy of (F, H, W, 3) bytes.
    """
    if str(source).endswith(".npy"):
        values = numbers(source, "F", "H", "W", 3)
        chosen = np.array(values[spread(len(values), frames, seed)], np.uint8)
        return fit(torch.from_numpy(chosen).movedim(-1, -3), seed, flip)
    folder, start, end = source if isinstance(source, tuple) else (source, 0, None)
    paths = numbered(folder) if end is None else in_window(folder, start, end)
    pictures = [pixels(paths[i], mode) for i in spread(len(paths), frames, seed)]
    if len({p.shape for p in pictures}) > 1:
        raise Broken(f"{folder} has frames of several sizes, expected one clip's; get it anew", "mixed frames")
    pictures = torch.stack([p.movedim(0, -1) for p in pictures]).movedim(-1, -3)  # in memory as they were decoded
    return fit(pictures, seed, flip)


def flow(path, seed=None, frames=8):
    """Optical flow in pixels from a .npy of (H, W, 2, T) numbers: (frames, 2, 224, 224)."""
    values = numbers(path, "H", "W", 2, "T")
    chosen = np.asarray(values[..., spread(values.shape[3], frames, seed)], np.float32)
    if not np.isfinite(chosen).all():
        raise broken(path, "it has values that are not finite")
    return fit(torch.from_numpy(chosen).permute(3, 2, 0, 1), seed, flip=False)


def text(sentence, seed=None, tokenizer=None, length=128):
    """A sentence's token ids and attention mask, filled up to `length`: (2, length) int."""
    length = min(length, tokenizer.model_max_length)
    codes = tokenizer(sentence, truncation=True, max_length=length, padding="max_length")
    return torch.tensor([codes["input_ids"], codes["attention_mask"]])


def load_pretrained(kind, source, **options):
    """kind.from_pretrained(source) of transformers: a name of its hub, or a local folder. OSError in one sentence."""
    from transformers import logging

    logging.set_verbosity_error()  # what matters of its reports, weights that are missing, is checked by the callers
    try:
        return kind.from_pretrained(source, **options)
    except Exception as error:  # the library raises a dozen kinds, of several lines each
        why = " ".join(str(error).split()).split(". ")[0][:200]
        raise OSError(f"cannot load {source!r} ({why}); expected a model's name, which needs the network, or a local "
                      f"folder that holds the files of a {kind.__name__}") from error  # fmt: skip
