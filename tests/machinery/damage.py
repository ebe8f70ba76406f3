"""Files of every format, whole and damaged at random: KINDS, DAMAGES, and how each is read."""

import io
import tempfile
from pathlib import Path

import numpy as np
import soundfile
from conftest import make_video
from PIL import Image

from utils import decode, media


def picture(form, mode="RGB", **options):
    """The bytes of a small picture."""
    pixels = np.random.default_rng(0).integers(256, size=(9, 12, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((120, 90), Image.Resampling.BILINEAR)
    image = image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode)
    if form in ("JPEG", "PNG", "WEBP"):
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def recording(**options):
    """The bytes of a second of a tone, as soundfile writes it."""
    out = io.BytesIO()
    soundfile.write(out, 0.3 * np.sin(np.arange(16000) / 9), 16000, **options)
    return out.getvalue()


def clip(muxer, video="mpeg4", **options):
    """The bytes of a second of video and sound, as PyAV writes them."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        make_video(path, video=video, form=muxer, noise=True, **options)
        return path.read_bytes()


def array():
    out = io.BytesIO()
    np.save(out, np.random.default_rng(0).normal(size=(8, 8, 2, 4)).astype(np.float16))
    return out.getvalue()


PICTURES = {
    "jpg": picture("JPEG"),
    "cmyk.jpg": picture("JPEG", "CMYK", progressive=True),
    "grey.png": picture("PNG", "I;16"),
    "palette.png": picture("PNG", "P"),
    "gif": picture("GIF"),
    "webp": picture("WEBP"),
    "deflate.tif": picture("TIFF", compression="tiff_deflate"),
    "jp2": picture("JPEG2000"),
}
RECORDINGS = {n: recording(format=n.upper()) for n in ("wav", "w64", "aiff", "flac", "ogg", "mp3")}
RECORDINGS |= {"float.wav": recording(format="WAV", subtype="FLOAT")}
VIDEOS = {
    "mp4": clip("mp4"),
    "front.mp4": clip("mp4", movflags="faststart"),
    "fragments.mp4": clip("mp4", movflags="frag_keyframe+empty_moov"),
    "mkv": clip("matroska"),
    "avi": clip("avi"),
    "flv": clip("flv", "flv"),
    "ts": clip("mpegts", "mpeg1video"),
    "wmv": clip("asf", "wmv2"),
}
KINDS = PICTURES | RECORDINGS | VIDEOS | {"npy": array()}


def read(path, kind, folder):
    """Read all that a file of a kind has, as prepare and training do."""
    if kind == "npy":
        np.asarray(media.read_array(path, "H", "W", 2, "T"))
    elif kind in PICTURES:
        media.crop(media.read_image(path), 0, True)
    else:
        if kind in VIDEOS:
            decode.extract_frames(path, folder / "frames", 10)
        decode.write_spectrogram(path, folder / "sound", seconds=3)


def some_bytes(content, rng, first):
    """One to twenty of the first so many bytes become others."""
    damaged = bytearray(content)
    for at in rng.integers(first, size=rng.integers(1, 21)):
        damaged[at % len(content)] = rng.integers(256)
    return bytes(damaged)


def some_part(content, rng, between):
    """A part, at most a third, becomes `between` a number of times."""
    start, length = rng.integers(len(content)), rng.integers(1, 1 + len(content) // 3)
    part = content[start : start + length]
    return content[:start] + between * len(part) + content[start + len(part) :]


DAMAGES = {
    "whole": lambda content, rng: content,
    "cut": lambda content, rng: content[: rng.integers(1, len(content))],
    "flip": lambda content, rng: some_bytes(content, rng, len(content)),
    "flip_header": lambda content, rng: some_bytes(content, rng, 200),
    "blank": lambda content, rng: some_part(content, rng, b"\0"),
    "drop": lambda content, rng: some_part(content, rng, b""),
    "repeat": lambda content, rng: content + content[rng.integers(len(content)) :],
    "noise": lambda content, rng: content[: rng.integers(1, 64)] + rng.bytes(rng.integers(1, 5000)),
}
