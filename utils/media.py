"""From files to arrays: sound, images, frames of a clip, .npy files.

A file that exists but cannot be read raises UnreadableFile, with the path, the fault and the way
out. data.py turns these arrays into the inputs of Sec. 4.1.
"""

import functools
import itertools
import math
import operator
import os
import random
import re
import struct
from contextlib import contextmanager, suppress

import numpy as np
import torch
from torch.nn.functional import interpolate

from utils.atomic import TOO_MANY_OPEN
from utils.cli import SettingsError

# Mean and std of an image's channels, where white is 1.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
RIFF = {b"RIFF": "<4sI", b"RIFX": ">4sI", b"FORM": ">4sI"}  # wav, avi; aiff
EDGE = 5  # s; a resampled sound does not depend on samples that come so much later
SILENCE = -5.4  # in a log-spectrogram; half a step of 16 bits gives at most -5.5


class UnreadableFile(SettingsError):
    """A file that is missing or cannot be read. `reason`: in a few words, for counts."""

    def __init__(self, message, reason="undecodable"):
        # A name that is not UTF-8 becomes one that every terminal and every list can hold.
        super().__init__(message.encode("utf-8", "backslashreplace").decode())
        self.reason = reason


def first_bytes(path, n=64):
    """The first n bytes of a file."""
    with open(path, "rb") as file:
        return file.read(n)


def unreadable(path, error):
    """The UnreadableFile that says why `path` could not be read; error: an exception or a text."""
    text = getattr(error, "strerror", None) or getattr(error, "error_string", None) or str(error)
    text = " ".join(text.split()) or type(error).__name__
    text = text.removesuffix(f" {os.fspath(path)!r}")  # Pillow repeats the path
    try:
        if os.path.isdir(path):
            return UnreadableFile(f"{path} is a folder, expected a file; give a file instead")
        head = first_bytes(path)
        if head.startswith(b"version https://git-lfs"):
            message = f"{path} is a git-lfs pointer, not media; run `git lfs pull` in its folder"
            return UnreadableFile(message, "git-lfs pointer")
        if not head:
            text = "the file is empty"
        elif head[4:8] == b"ftyp" and (b"hei" in head[8:] or head[8:12] == b"mif1"):
            text = "it is a HEIC picture, expected JPEG or PNG; convert it to JPEG"
    except FileNotFoundError:
        return UnreadableFile(f"{path} is missing; put it back, or run prepare again", "missing")
    except PermissionError as denied:
        text = f"{denied.strerror}; change the permissions of the file or of its folder"
        return UnreadableFile(f"{path} cannot be read: {text}", "no permission")
    except OSError as other:
        text = other.strerror
    return UnreadableFile(f"{path} cannot be read ({text}); replace it, or leave it out")


@contextmanager
def reading(path):
    """Inside the block every error of a library becomes an UnreadableFile that names `path`.

    On a damaged file the libraries raise errors of any class.
    """
    try:
        yield
    except UnreadableFile:
        raise
    except Exception as error:
        if getattr(error, "errno", None) in TOO_MANY_OPEN:
            raise
        raise unreadable(path, error) from error


def missing_part(path):
    """The part of its samples or frames that a wav, aiff or avi lacks, 0 to 1; 0 for other files.

    Headers often state a wrong size of the whole file. Samples are missing only if their own chunk
    ends after the file does; 64 bytes do not count, because a careless header counts itself.
    """
    size, position, missing = os.path.getsize(path), 12, 0
    with open(path, "rb") as file:
        form = RIFF.get(file.read(4))
        while form and position + 8 <= size:
            file.seek(position)
            head = file.read(12).ljust(12, b"\0")
            name, length = struct.unpack(form, head[:8])
            if name == bytes(4):
                break  # zeros after the end
            if name in RIFF:  # a large avi has several
                position += 12
                continue
            if name in (b"data", b"SSND") or head[8:] == b"movi":
                if length == 0 or length >= 0x7FFFF000:  # written before the end was known
                    break
                excess = position + 8 + length - size
                missing = max(missing, excess / length if excess > 64 else 0)
            position += 8 + length + length % 2
    return missing


def ends_with_whole_tag(path):
    """Whether the last 4 bytes of an flv count its last tag, as they do unless it is cut off."""
    content = np.memmap(path, np.uint8, "r")
    length = int.from_bytes(content[-4:], "big")  # of the tag: 11 bytes and its data
    start = len(content) - 4 - length
    return start >= 0 and int.from_bytes(content[start + 1 : start + 4], "big") + 11 == length


@contextmanager
def open_media(path):
    """A video or a recording opened by PyAV; inside the block its errors become UnreadableFile."""
    import av

    # Tags in any encoding; from PyAV 19 on they are read without being asked.
    options = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
    name = os.path.abspath(path)  # a relative one can look like `protocol:address`
    with reading(path), av.open(name, **options) as media:
        yield media


def find_track(path, media, kind):
    """The track of a kind, "video" or "audio", that a player chooses; UnreadableFile without one.

    It is the first one marked as default; a cover picture is not a track.
    """
    from av.stream import Disposition

    cover, default = Disposition.attached_pic, Disposition.default
    tracks = [t for t in getattr(media.streams, kind) if not t.disposition & cover]
    if not tracks:
        message = f"{path} has no {kind} track; give a file that has one, or leave it out"
        raise UnreadableFile(message, f"no {kind} track")
    track = max(tracks, key=lambda track: bool(track.disposition & default))
    if track.codec_context is None:
        raise unreadable(path, f"its {kind} is in a format that is not known")
    return track


def read_packets(path, kind):
    """The (time, duration) of every packet of a track that is shown, in units of its time base.

    A packet that an edit list hides is not shown. The time is None where it is not known, as after
    a packet that is older than the one before it. UnreadableFile if the file is truncated.
    """
    shown, n, end, newest, in_order = [], 0, 0.0, -math.inf, True
    with open_media(path) as media:
        track = find_track(path, media, kind)
        for packet in media.demux():
            if not packet.size:
                continue
            if packet.stream is track:
                n += 1
                if packet.dts is not None:
                    in_order = in_order and packet.dts >= newest
                    newest = packet.dts
                if not packet.is_discard:
                    shown.append((packet.pts if in_order else None, packet.duration or 0))
            if packet.pts is not None:
                after = packet.pts + (packet.duration or 0)
                end = max(end, float(after * packet.time_base))
        form, duration = media.format.name, (media.duration or 0) / 1e6
        too_early = 1 - (end - (media.start_time or 0) / 1e6) / duration if duration else 0
        missing = missing_part(path)
        if form.startswith("mov") and track.frames:
            # An mp4 also counts its packets; an edit list can drop some, and shortens the duration.
            missing = min(too_early, 1 - n / track.frames)
        elif form == "flv" and not ends_with_whole_tag(path):
            missing = too_early
    if missing > 0.05:
        raise unreadable(path, "truncated: shorter than its header says")
    return shown


def decoded(media, track):
    """Yield the frames of a track. Packets before its first decodable frame are skipped.

    A recording of a broadcast begins between two key frames.
    """
    import av

    started = False
    track.codec_context.thread_count = 1  # the clips are decoded in parallel
    for packet in media.demux(track):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            if started:
                raise
            continue
        started = started or bool(frames)
        yield from frames


def resampled(frames, rate):
    """Yield the sound of decoded frames, mono at `rate` Hz, in parts (n,) int16."""
    import av

    settings = operator.attrgetter("format.name", "layout.name", "sample_rate")
    for _, alike in itertools.groupby(frames, settings):  # they can change within the file
        resampler = av.AudioResampler("s16", "mono", rate)
        for frame in itertools.chain(alike, [None]):  # None flushes the resampler
            for part in resampler.resample(frame):
                yield part.to_ndarray()[0]


def decode_audio(path, rate, seconds=math.inf):
    """The sound of a video, or of a recording in any format: (samples,) float32, mono, `rate` Hz.

    Decoding stops after `seconds`. UnreadableFile without an audio track, or if it is truncated.
    """
    read_packets(path, "audio")
    parts, n = [], 0
    with open_media(path) as media:
        for part in resampled(decoded(media, find_track(path, media, "audio")), rate):
            parts.append(part)
            n += len(part)
            if n >= rate * seconds:
                break
    if not parts:
        raise unreadable(path, "no sound can be decoded from it")
    return np.concatenate(parts).astype(np.float32) / 2**15


def read_audio(path, rate, seconds=math.inf):
    """The sound of any file as mono at `rate` Hz: (samples,) float32, at most `seconds` of it.

    UnreadableFile if it has none or is truncated.
    """
    import librosa
    import soundfile

    with reading(path):
        try:
            with (
                open(path, "rb") as file,
                soundfile.SoundFile(file.fileno(), closefd=False) as sound,
            ):
                file_rate = sound.samplerate
                n = min(sound.frames, (seconds + EDGE) * file_rate)
                wave = sound.read(n, dtype="float32", always_2d=True)  # (n, channels)
        except soundfile.LibsndfileError as error:
            # PyAV knows more formats, but reads damaged files without a word.
            head = first_bytes(path, 4)
            if head == b"fLaC" or (error.code == 3 and head != b"OggS"):  # 3: malformed
                raise
            return decode_audio(path, rate, seconds)
        if not wave.size:
            with suppress(UnreadableFile):  # a wav whose sizes were left at 0
                return decode_audio(path, rate, seconds)
        if not (wave.size and np.isfinite(wave).all()):
            raise unreadable(path, "it holds no samples, or samples that are not finite")
        if missing_part(path) or len(wave) < 0.95 * n:  # an mp3 states n roughly
            raise unreadable(path, "truncated: shorter than its header says")
        if not 100 <= file_rate <= 10**6:
            raise unreadable(path, f"its header says {file_rate} Hz")
        if (peak := np.abs(wave).max()) > 8:  # decimals on the scale of integers
            text = f"its samples reach {peak:.0f}, expected -1 to 1; divide 16-bit values by 32768"
            raise unreadable(path, text)
    wave = librosa.resample(wave.mean(1), orig_sr=file_rate, target_sr=rate)
    return wave[: min(len(wave), rate * seconds)]


def log_spectrogram(wave, window, hop):
    """log(|STFT| + 1e-7), periodic Hann window, not centred: (..., n) -> (..., bins, frames)."""
    import librosa

    stft = librosa.stft(wave, n_fft=window, hop_length=hop, center=False)
    return np.log(np.abs(stft) + 1e-7)


def spectrogram(wave, seconds):
    """Log-spectrogram of a sound at 16 kHz, repeated or cut to `seconds`: window 512, hop 159."""
    # Paper silent: how to get 257 x 299 (3 s), 257 x 1004 (10 s). Here: 16 kHz, no centring.
    return log_spectrogram(np.resize(wave, 16000 * seconds).clip(-1, 1), 512, 159)


def map_array(path):
    """np.load(path, mmap_mode="r"), of an array of numbers."""
    head = first_bytes(path, 128)
    if head[:6] != b"\x93NUMPY":
        kind = "an .npz archive" if head[:2] == b"PK" else "no .npy file"
        raise ValueError(f"it is {kind}; save one array of numbers with numpy.save")
    if b"|O" in head:
        raise ValueError("it holds Python objects; save one array of numbers with numpy.save")
    return np.load(path, mmap_mode="r")


def read_array(path, *shape):
    """A .npy file of numbers, memory-mapped. shape: for each dimension an int, or a letter for any.

    UnreadableFile if the file has another shape, no values, or values that are not numbers.
    """
    with reading(path):
        values = map_array(path)
        fits = len(values.shape) == len(shape) and all(
            isinstance(expected, str) or size == expected
            for size, expected in zip(values.shape, shape)
        )
        if not (fits and values.size and values.dtype.kind in "fiu"):
            expected = ", ".join(map(str, shape))
            got = f"{values.dtype} {values.shape}"
            matrix = values.ndim == 2 and shape == ("C", "H", "W")
            hint = f"; reshape it to {(1, *values.shape)}" if matrix else ""
            raise ValueError(f"it holds {got}, expected numbers ({expected}){hint}")
    return values


def spectrogram_shape(seconds):
    """(257, frames), see spectrogram."""
    return 257, 1 + (16000 * seconds - 512) // 159


def read_spectrogram(path, seconds):
    """A prepared spectrogram of `seconds`, memory-mapped: spectrogram_shape."""
    return read_array(path, *spectrogram_shape(seconds))


def remark_on_sound(path):
    """ "is silent" if a prepared spectrogram has no sound, also if two channels cancel out."""
    return "is silent" if read_array(path, "bins", "frames").max() < SILENCE else ""


def to_float32(path, values):
    """The values of the file `path` as a float32 tensor; UnreadableFile if one is not finite."""
    with np.errstate(over="ignore"):
        values = np.array(values, np.float32)
    if not np.isfinite(values).all():
        message = f"{path} has values that are not finite in float32; save finite numbers"
        raise UnreadableFile(message, "not finite")
    return torch.from_numpy(values)


def vector(path, seed=None):
    """A .npy of numbers: (d,) float32."""
    return to_float32(path, read_array(path, "d"))


def grid(path, seed=None):
    """A .npy: (C, H, W), pixels if they are uint8, else float32."""
    values = read_array(path, "C", "H", "W")
    return torch.tensor(values) if values.dtype == np.uint8 else to_float32(path, values)


def eight_bits(values, depth=False):
    """Grey levels of more than 8 bits as uint8: the highest 8 of 16, as picture viewers show them.

    depth: the frames of one clip, all in one range: the fewest bits that hold them.
    """
    if values.dtype == np.uint8:
        return values
    values = np.nan_to_num(values).clip(0)
    if values.dtype.kind == "f":  # white is 1, 255 or 65535
        top = next((top for top in (1, 255, 65535) if values.max() <= top), values.max())
        values = values * (65535 / top)
    values = values.astype(np.int64)
    bits = 16 if values.max() < 2**16 else 32
    if depth:
        # Paper silent: depth in millimetres, 16 bits. Here: 4,095 mm or 8,191 mm is white, by the
        # clip; 65,535 means "not measured".
        bits = max(8, int(values[values != 65535].max(initial=0)).bit_length())
    return (values >> (bits - 8)).clip(0, 255).astype(np.uint8)


def upright(image):
    """A picture as it is shown: turned and mirrored by its EXIF, on white where it is transparent.

    Damaged EXIF is ignored.
    """
    from PIL import Image, ImageOps

    image.load()  # a TIFF is turned here
    if image.format != "TIFF":
        with suppress(Exception):  # all pixels are here: only the EXIF can fail
            ImageOps.exif_transpose(image, in_place=True)
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image


def decode_jpeg(image):
    """The pixels of an open JPEG by torchvision, which takes half of Pillow's time: the same.

    None where Pillow has to read it: it may have to be turned, it is no JPEG in grey or RGB, it is
    damaged, or this torchvision cannot decode. (Its decoders are deprecated since 0.29.)
    """
    plain = image.format == "JPEG" and image.mode in ("L", "RGB")
    if not plain or {"exif", "xmp"} & image.info.keys():
        return None
    with suppress(Exception):
        from torchvision.io import ImageReadMode

        mode = ImageReadMode.GRAY if image.mode == "L" else ImageReadMode.RGB
        image.fp.seek(0)
        content = torch.frombuffer(bytearray(image.fp.read()), dtype=torch.uint8)
        values = torch.ops.image.decode_jpeg(content, mode.value, False).permute(1, 2, 0).numpy()
        return values if image.mode == "RGB" else values[..., 0]
    return None


def read_pixels(path, mode):
    """An image file as it is shown: (H, W, 3) or, in mode L or of more than 8 bits, (H, W)."""
    from PIL import Image, PngImagePlugin

    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # large notes are no danger
    with reading(path), Image.open(path) as image:
        size = image.size
        image.draft(image.mode, (448, 448))  # twice the size that `crop` returns
        values = decode_jpeg(image) if image.size == size else None
        if values is not None:
            same = image.mode == mode
            return values if same else np.array(Image.fromarray(values).convert(mode))
        image = upright(image)
        deep = image.mode[0] in "IF"  # grey of 16 or 32 bits
        return np.array(image if deep or image.mode == mode else image.convert(mode))


def read_image(path, mode="RGB"):
    """An image file as it is shown: (C, H, W) uint8; mode RGB has 3 channels, L has 1.

    A large JPEG is decoded at 1/2, 1/4 or 1/8 of its size, with both sides at least 448.
    """
    values = torch.from_numpy(eight_bits(read_pixels(path, mode)))
    if values.ndim == 3:
        return values.permute(2, 0, 1)
    return values.expand(3, -1, -1) if mode == "RGB" else values[None]


def crop_box(height, width, seed):
    """The rows and columns that training sees, two slices; without a seed all of them.

    As torchvision's RandomResizedCrop: 8 to 100 % of the area, width / height from 3/4 to 4/3.
    """
    # Paper silent: the augmentation. Here: the usual one for ResNets.
    if seed is None:
        return slice(None), slice(None)
    rng = random.Random(seed)
    for _ in range(10):
        area = height * width * rng.uniform(0.08, 1)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top, left = rng.randint(0, height - h), rng.randint(0, width - w)
            break
    else:  # no part of this shape fits: the largest one that does, in the middle
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        top, left = (height - h) // 2, (width - w) // 2
    return slice(top, top + h), slice(left, left + w)


def resize(images, mirrored=False):
    """(..., C, H, W) uint8 or float32 -> (..., C, 224, 224), bilinear and antialiased."""
    flat = images.reshape(-1, *images.shape[-3:])
    flat = interpolate(flat, (224, 224), mode="bilinear", antialias=True)
    flat = flat.flip(-1) if mirrored else flat
    return flat.reshape(*images.shape[:-2], 224, 224)


def is_mirrored(seed):
    """Whether training sees an image mirrored: with every other seed."""
    return seed is not None and seed % 2 == 1


def crop(images, seed, flip):
    """(..., C, H, W) -> (..., C, 224, 224), all images alike.

    With a seed: a random crop, mirrored half of the time if flip. Without a seed: resized.
    """
    rows, columns = crop_box(*images.shape[-2:], seed)
    return resize(images[..., rows, columns], flip and is_mirrored(seed))


def sample_positions(n, k, seed=None):
    """One of the positions 0..n-1 in each of k equal parts: the middle, or with a seed any."""
    within = [0.5] * k
    if seed is not None:
        rng = random.Random(seed + 1)  # its draws differ from crop_box's
        within = [rng.random() for _ in range(k)]
    return [int((part + x) * n / k) for part, x in enumerate(within)]


def frame_paths(folder):
    """The images in a folder, sorted by the number at the end of their names.

    Names that begin with a dot are skipped: macOS writes `._1.jpg` beside each 1.jpg.
    """
    pattern = re.compile(r"(\d+)\.(?:jpe?g|png)$", re.I)
    try:
        shown = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise unreadable(folder, error) from error
    matches = [(pattern.search(entry.name), entry.path) for entry in shown]
    paths = sorted((int(match[1]), path) for match, path in matches if match)
    if not paths:
        expected = "expected names like 1.jpg, 1.jpeg or 1.png"
        message = f"{folder} holds no numbered pictures, {expected}; convert or extract them again"
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


def check_sizes(folder, frames):
    """The arrays `frames` of a clip; UnreadableFile if their sizes differ."""
    if len({frame.shape for frame in frames}) > 1:
        message = f"{folder} has frames of several sizes, expected one size; extract them again"
        raise UnreadableFile(message, "mixed frames")
    return frames


def read_frames(source, n, seed=None, mode="RGB", cropped=False):
    """n frames of a clip, one from each of n equal parts of it: (n, C, H, W) uint8.

    source: a folder of numbered images; (folder, start, end), see frames_in_window; or a .npy of
    (F, H, W, 3). cropped: only the rows and columns of crop_box.
    """
    if str(source).endswith(".npy"):
        values = np.asarray(read_array(source, "F", "H", "W", 3))
        frames = [values[i] for i in sample_positions(len(values), n, seed)]
    else:
        folder = source[0] if isinstance(source, tuple) else source
        paths = frames_in_window(*source) if isinstance(source, tuple) else frame_paths(source)
        frames = [read_pixels(paths[i], mode) for i in sample_positions(len(paths), n, seed)]
        if any(frame.dtype != np.uint8 for frame in check_sizes(folder, frames)):
            frames = eight_bits(np.stack(frames), depth=mode == "L")
    rows, columns = crop_box(*frames[0].shape[:2], seed if cropped else None)
    frames = np.stack([frame[rows, columns] for frame in frames]).astype(np.uint8, copy=False)
    if frames.ndim == 3:
        return torch.from_numpy(frames)[:, None].expand(-1, 3 if mode == "RGB" else 1, -1, -1)
    # As they were decoded, channels are the last dimension in memory: quicker to resize.
    return torch.from_numpy(frames).movedim(-1, -3)


def check_frames(source, window=None):
    """Read all frames of a clip, or the window (start, end) of them; of a .npy one."""
    if str(source).endswith(".npy"):
        return read_frames(source, 1)
    n = window[1] - window[0] if window else len(frame_paths(source))
    return read_frames((source, *window) if window else source, n)


def read_flow(path, n, seed=None):
    """n fields of optical flow, in pixels, from a .npy of (H, W, 2, T): (n, 2, H, W) float32."""
    values = read_array(path, "H", "W", 2, "T")
    fields = to_float32(path, values[..., sample_positions(values.shape[3], n, seed)])
    return fields.permute(3, 2, 0, 1)


def check_flow(source, window=None):
    """Read all fields of a flow."""
    return read_flow(source, read_array(source, "H", "W", 2, "T").shape[3])


@functools.lru_cache(maxsize=16)
def per_channel(values, device):
    """A number for each channel, (C, 1, 1) float32; copied to the device once, not in each step."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)


def normalize(x, statistics):
    """Pixels (..., C, H, W) uint8 -> float, by each channel's mean and std; 0..1 if C is not 3.

    Numbers other than pixels stay as they are; float16 becomes float32.
    """
    if x.dtype != torch.uint8:
        return x.float() if x.dtype == torch.float16 else x
    if x.shape[-3] != len(statistics[0]):
        return x / 255
    mean, std = (per_channel(values, x.device) for values in statistics)
    return (x / 255 - mean) / std
