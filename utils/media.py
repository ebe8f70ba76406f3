"""From files to arrays: sound, images, frames of a clip, .npy files.

A file that exists but cannot be read raises UnreadableFile, with the path, what is wrong and what
to do. What Sec. 4.1 makes of these arrays is in data.py.
"""

import functools
import os
import re
from pathlib import Path

import numpy as np
import torch

# Mean and std of an image's channels, where white is 1.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


class UnreadableFile(ValueError):
    """A file that is missing or cannot be read. `reason`: in a few words, for counts."""

    def __init__(self, message, reason="undecodable"):
        super().__init__(message)
        self.reason = reason


def is_pointer(path):
    """Whether the file is a git-lfs pointer instead of the media."""
    with open(path, "rb") as file:
        return file.read(30).startswith(b"version https://git-lfs")


def unreadable(path, error):
    """The UnreadableFile that says why `path` could not be read; error: an exception or a text."""
    path = Path(path)
    if not path.exists():
        return UnreadableFile(f"{path} is missing; download it again", "missing")
    if path.is_dir():
        return UnreadableFile(f"{path} is a folder, expected a file; download the file again")
    if is_pointer(path):
        message = f"{path} is a git-lfs pointer, not media; run `git lfs pull` in its folder"
        return UnreadableFile(message, "git-lfs pointer")
    what = getattr(error, "strerror", None) or " ".join(str(error).split())
    if path.stat().st_size == 0:
        what = "the file is empty"
    message = f"{path} cannot be read ({what}); download it again, or delete it to train without it"
    return UnreadableFile(message)


def read_audio(path, rate):
    """A recording as mono at `rate` Hz: (samples,) float32. UnreadableFile if it is truncated."""
    import librosa
    import soundfile

    try:
        wave, file_rate = soundfile.read(path, dtype="float32", always_2d=True)  # (n, channels)
        with open(path, "rb") as file:
            riff, size = file.read(4), int.from_bytes(file.read(4), "little")
    except (RuntimeError, OSError, ValueError) as error:
        raise unreadable(path, error) from error
    known_size = size + 8 < 2**32 - 256  # a stream's header has 0 or all ones instead of a size
    if riff == b"RIFF" and known_size and os.path.getsize(path) < size + 8:
        raise unreadable(path, "truncated: shorter than its header says")
    if not (wave.size and np.isfinite(wave).all()):
        raise unreadable(path, "it holds no samples, or samples that are not finite")
    return librosa.resample(wave.mean(1), orig_sr=file_rate, target_sr=rate)


def log_spectrogram(wave, window, hop):
    """log(|STFT| + 1e-7), not centred: (..., samples) -> (..., 1 + window / 2, frames)."""
    import librosa

    return np.log(np.abs(librosa.stft(wave, n_fft=window, hop_length=hop, center=False)) + 1e-7)


def spectrogram(wave, seconds):
    """Log-spectrogram of a sound at 16 kHz, repeated or cut to `seconds`: window 512, hop 159."""
    # Paper silent: what gives 257 x 299 (3 s) and 257 x 1004 (10 s). Here: 16 kHz, no centring.
    return log_spectrogram(np.resize(wave, 16000 * seconds).clip(-1, 1), 512, 159)


def read_array(path, *shape):
    """A .npy file of numbers, memory-mapped. shape: for each dimension an int, or a letter for any.

    UnreadableFile if the file has another shape, no values, or values that are not numbers.
    """
    try:
        values = np.load(path, mmap_mode="r")
        fits = len(values.shape) == len(shape) and all(
            expected in (size, str(expected)) for size, expected in zip(values.shape, shape)
        )
        if not (fits and values.size and values.dtype.kind in "fiu"):
            expected = ", ".join(map(str, shape))
            got = f"{values.dtype} {values.shape}"
            raise ValueError(f"it holds {got}, expected numbers ({expected})")
    except (OSError, ValueError, EOFError) as error:
        raise unreadable(path, error) from error
    return values


def vector(path, seed=None):
    """A .npy of numbers: (d,) float32."""
    return torch.from_numpy(np.array(read_array(path, "d"), np.float32))


def grid(path, seed=None):
    """A .npy: (C, H, W), pixels if they are uint8, else float32."""
    values = torch.from_numpy(np.array(read_array(path, "C", "H", "W")))
    return values if values.dtype == torch.uint8 else values.float()


def read_image(path, mode="RGB"):
    """An image file as (C, H, W) uint8; mode RGB has 3 channels, L has 1.

    A large JPEG is decoded at 1/2, 1/4 or 1/8 of its size, with both sides at least 448.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.draft(image.mode, (448, 448))  # twice the size that `crop` returns
            image = image if image.mode == mode else image.convert(mode)
            values = torch.from_numpy(np.array(image))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise unreadable(path, error) from error
    return values.permute(2, 0, 1) if mode == "RGB" else values[None]


def crop(images, seed, flip):
    """(..., H, W) -> (..., 224, 224), all images alike.

    With a seed: a random crop, mirrored half of the time if flip. Without a seed: resized.
    """
    from torchvision.transforms import v2

    # Paper silent: the augmentation. Here: the usual one for ResNets.
    if seed is None:
        return v2.functional.resize(images, [224, 224])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        images = v2.RandomResizedCrop(224)(images)
        return v2.RandomHorizontalFlip()(images) if flip else images


def sample_positions(n, k, seed=None):
    """One of the positions 0..n-1 in each of k equal parts: the middle, or with a seed any."""
    within = np.full(k, 0.5) if seed is None else np.random.default_rng(seed).uniform(size=k)
    return ((np.arange(k) + within) * n / k).astype(int)


def frame_paths(folder):
    """The images in a folder, sorted by the number at the end of their names."""
    pattern = re.compile(r"(\d+)\.(?:jpe?g|png)$", re.I)
    try:
        matches = [(pattern.search(entry.name), entry.path) for entry in os.scandir(folder)]
    except OSError as error:
        raise unreadable(folder, error) from error
    paths = sorted((int(match[1]), path) for match, path in matches if match)
    if not paths:
        message = f"{folder} holds no numbered pictures; extract the frames of the clip again"
        raise UnreadableFile(message, "no frames")
    return [path for _, path in paths]


def frames_in_window(folder, start, end):
    """The frames start..end-1 of a folder; all of them if there are exactly end - start."""
    paths = frame_paths(folder)
    if len(paths) == end - start:
        return paths
    if len(paths) < end:
        expected = f"expected {end - start} or at least {end}"
        message = f"{folder} has {len(paths)} frames, {expected}; extract them again"
        raise UnreadableFile(message, "too few frames")
    return paths[start:end]


def read_frames(source, n, seed=None, mode="RGB"):
    """n frames of a clip, one from each of n equal parts of it: (n, C, H, W) uint8.

    source: a folder of numbered images; (folder, start, end), see frames_in_window; or a .npy of
    (F, H, W, 3).
    """
    if str(source).endswith(".npy"):
        values = read_array(source, "F", "H", "W", 3)
        frames = np.array(values[sample_positions(len(values), n, seed)], np.uint8)
        return torch.from_numpy(frames).movedim(-1, -3)
    folder = source[0] if isinstance(source, tuple) else source
    paths = frames_in_window(*source) if isinstance(source, tuple) else frame_paths(source)
    frames = [read_image(paths[i], mode) for i in sample_positions(len(paths), n, seed)]
    if len({frame.shape for frame in frames}) > 1:
        message = f"{folder} has frames of several sizes, expected one size; extract them again"
        raise UnreadableFile(message, "mixed frames")
    # As they were decoded, channels are the last dimension in memory: quicker to crop.
    return torch.stack([frame.movedim(0, -1) for frame in frames]).movedim(-1, -3)


def read_flow(path, n, seed=None):
    """n fields of optical flow, in pixels, from a .npy of (H, W, 2, T): (n, 2, H, W) float32."""
    values = read_array(path, "H", "W", 2, "T")
    fields = np.asarray(values[..., sample_positions(values.shape[3], n, seed)], np.float32)
    if not np.isfinite(fields).all():
        raise unreadable(path, "it has values that are not finite")
    return torch.from_numpy(fields).permute(3, 2, 0, 1)


@functools.lru_cache(maxsize=16)
def per_channel(values, device):
    """A number for each channel, (C, 1, 1) float32; copied to the device once, not in each step."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


def normalize(x, statistics):
    """Pixels (..., C, H, W) uint8 -> float, by each channel's mean and std; a single one to 0..1.

    Numbers that are no pixels stay as they are; float16 becomes float32.
    """
    if x.dtype != torch.uint8:
        return x.float() if x.dtype == torch.float16 else x
    if x.shape[-3] == 1:
        return x / 255
    mean, std = (per_channel(values, x.device) for values in statistics)
    return (x / 255 - mean) / std
