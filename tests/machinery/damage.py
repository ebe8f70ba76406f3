"""Damage files of every format at random, and read each: only UnreadableFile may be raised.

    python -m tests.machinery.damage 3000 0          how many files, the seed

The tests do so with a few. Whole files must be read, also under the endings of other formats.
"""

import io
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

import av
import numpy as np
import soundfile
from av.video.reformatter import VideoReformatter
from PIL import Image

from utils import decode, media

SECONDS = 20  # to read one file, or it hangs


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


def clip(muxer, video="mpeg4", audio="aac", frames=30, **options):
    """The bytes of a second of video, of sound, or of both, as PyAV writes them."""
    noise = np.random.default_rng(0).integers(256, size=(frames, 48, 64, 3), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        with av.open(str(path), "w", format=muxer, options=options) as file:
            pictures = file.add_stream(video, rate=30, width=64, height=48) if video else None
            tones = file.add_stream(audio, rate=44100, layout="mono") if audio else None
            for n, pixels in enumerate(noise):
                if video:
                    frame = av.VideoFrame.from_ndarray(pixels // 2 + 4 * n, format="rgb24")
                    file.mux(pictures.encode(VideoReformatter().reformat(frame, format="yuv420p")))
                if audio:
                    wave = 0.3 * np.sin(np.arange(1470 * n, 1470 * n + 1470) / 16)
                    part = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), "fltp", "mono")
                    part.sample_rate, part.pts = 44100, 1470 * n
                    file.mux(tones.encode(part))
            for track in filter(None, (pictures, tones)):
                file.mux(track.encode())
        return path.read_bytes()


def array():
    out = io.BytesIO()
    np.save(out, np.random.default_rng(0).normal(size=(8, 8, 2, 4)).astype(np.float16))
    return out.getvalue()


PICTURES = {
    "jpg": picture("JPEG"),
    "progressive.jpg": picture("JPEG", progressive=True),
    "cmyk.jpg": picture("JPEG", "CMYK"),
    "png": picture("PNG"),
    "grey.png": picture("PNG", "I;16"),
    "palette.png": picture("PNG", "P"),
    "gif": picture("GIF"),
    "webp": picture("WEBP"),
    "deflate.tif": picture("TIFF", compression="tiff_deflate"),
    "bmp": picture("BMP"),
    "jp2": picture("JPEG2000"),
}
RECORDINGS = {name: recording(format=name.upper()) for name in ("wav", "w64", "aiff", "flac")}
RECORDINGS |= {name: recording(format=name.upper()) for name in ("ogg", "mp3")}
RECORDINGS |= {"float.wav": recording(format="WAV", subtype="FLOAT")}
RECORDINGS |= {"rf64.wav": recording(format="RF64"), "m4a": clip("ipod", None)}
VIDEOS = {
    "mp4": clip("mp4"),
    "front.mp4": clip("mp4", movflags="faststart"),
    "fragments.mp4": clip("mp4", movflags="frag_keyframe+empty_moov"),
    "mov": clip("mov"),
    "mkv": clip("matroska"),
    "avi": clip("avi"),
    "flv": clip("flv", "flv"),
    "ts": clip("mpegts", "mpeg1video"),
    "mpg": clip("mpeg", "mpeg1video", "mp2"),
    "wmv": clip("asf", "wmv2", "aac"),
}
KINDS = PICTURES | RECORDINGS | VIDEOS | {"npy": array()}


def read(path, kind, folder):
    """Read all that a file of a kind has, as prepare and training do."""
    if kind == "npy":
        np.asarray(media.read_array(path, "H", "W", 2, "T"))
    elif kind in PICTURES:
        media.crop(media.read_image(path), 0, True)
    elif kind in RECORDINGS:
        decode.write_spectrogram(path, folder / "sound", seconds=3)
    else:
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
    "cut": lambda content, rng: content[: rng.integers(1, len(content))],
    "flip": lambda content, rng: some_bytes(content, rng, len(content)),
    "flip_header": lambda content, rng: some_bytes(content, rng, 200),
    "blank": lambda content, rng: some_part(content, rng, b"\0"),
    "drop": lambda content, rng: some_part(content, rng, b""),
    "repeat": lambda content, rng: content + content[rng.integers(len(content)) :],
    "noise": lambda content, rng: content[: rng.integers(1, 64)] + rng.bytes(rng.integers(1, 5000)),
}


class HangError(BaseException):
    """Reading a file takes too long."""


def ring(*_):
    raise HangError


def attempt(path, kind, folder):
    """ "read", "refused", or the error that should not have been raised."""
    signal.alarm(SECONDS)
    try:
        read(path, kind, folder)
        return "read"
    except media.UnreadableFile as error:
        named = str(path) in str(error) and len(str(error)) < 600 and "\n" not in str(error)
        return "refused" if named else f"unclear: {error}"
    except (Exception, HangError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        shutil.rmtree(folder / "frames", ignore_errors=True)


def run(n, seed, folder):
    """Damage and read n files: {(kind, damage): Counter of the outcomes}, and the faults."""
    before = signal.signal(signal.SIGALRM, ring)
    rng, counts, faults = np.random.default_rng(seed), {}, []
    kinds = list(KINDS)
    for i in range(n):
        kind = kinds[i % len(kinds)]
        name = ["whole", *DAMAGES][rng.integers(len(DAMAGES) + 1)]
        content = KINDS[kind] if name == "whole" else DAMAGES[name](KINDS[kind], rng)
        alike = list(PICTURES if kind in PICTURES else RECORDINGS | VIDEOS)  # other endings for it
        ending = kind if rng.integers(2) or kind == "npy" else alike[rng.integers(len(alike))]
        path = folder / f"file{i}.{ending}"
        path.write_bytes(content)
        outcome = attempt(path, kind, folder)
        counts.setdefault((kind, name), Counter())[outcome] += 1
        if outcome not in ("read", "refused") or (outcome, name) == ("refused", "whole"):
            faults.append((path, name, outcome))
        else:
            os.remove(path)
    signal.signal(signal.SIGALRM, before)
    return counts, faults


def main():
    n, seed = map(int, sys.argv[1:])
    folder = Path(tempfile.mkdtemp())
    counts, faults = run(n, seed, folder)
    total = sum(counts.values(), Counter())
    print(f"{n} files, seed {seed}: {dict(total)}")
    for name in ["whole", *DAMAGES]:
        print(name, dict(sum((c for (_, d), c in counts.items() if d == name), Counter())))
    for kind in KINDS:
        print(kind, dict(counts.get((kind, "cut"), {})), "when cut")
    for fault in faults:
        print(*fault)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
