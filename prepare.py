"""`python data.py prepare NAME --root DIR`: decode videos and recordings once, look into every file (Sec. 4.1).

    root/prepared/audio/NAME.npy    the sound's spectrogram in half precision, (257, 299) or (257, 1004)
    root/prepared/video/NAME/       ten frames evenly spaced, JPEG, short side 256; with --raw video/NAME.npy,
                                    (10, H, W, 3) bytes: quicker to read, on 13 times the disk
    root/prepared/rgb/NAME/         a gesture's frames; likewise depth/
    root/prepared/flow/NAME.npy     DIS optical flow between them, (H, W, 2, T) in pixels, short side 128
    root/prepared/broken.csv        the samples that cannot be used, with reasons: training leaves them out
    root/prepared/absent.csv        those whose files are not there

Whatever stands there is whole: each file is written under another name first.
"""

import argparse
import csv
import functools
import itertools
import os
import signal
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tqdm import tqdm

from checkpoint import remove, written
from data import LOCATE, PREPARED, SETS, absence, index, original
from media import Broken, broken, clip, flow, in_window, listen, numbered, pixels, sound, spectrogram, spread


def look(modality, source, seconds):
    """Read all of a file or folder of files; Broken if one cannot be read."""
    if modality == "audio":
        sound(source, seconds=seconds)
    elif modality == "image":
        pixels(source)
    elif modality == "flow":
        flow(source)
    elif str(source).endswith(".npy"):
        clip(source)
    else:
        for path in numbered(path_of(source)):
            pixels(path)


def path_of(source):
    """The file or folder of a source: a gesture's comes with its window, (folder, start, end)."""
    return source[0] if isinstance(source, tuple) else source


@contextmanager
def opened(path):
    """A video opened by PyAV; inside, its errors become Broken."""
    import av

    try:
        with av.open(str(path)) as video:
            yield video
    except (av.FFmpegError, IndexError) as error:
        raise broken(path, error) from error


def count_frames(path):
    """The frames of a video, by its packets; Broken where it ends before its header says, or has none."""
    with opened(path) as video:
        if not video.streams.video:
            raise Broken(f"{path} has no video track; get it anew", "no video track")
        stream, n, end = video.streams.video[0], 0, 0.0
        for packet in video.demux():
            if packet.size:
                n += packet.stream is stream
                if packet.pts is not None:
                    end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        start, length = (video.start_time or 0) / 1e6, (video.duration or 0) / 1e6  # s
        if n < 0.95 * stream.frames or end - start < 0.9 * length:
            raise broken(path, "it is cut off: shorter than its header says")
        return n


def extract_frames(path, target, choose):
    """Decode a video's frames choose(n) of n into the folder `target`, as JPEG with the short side 256. Returns it."""
    n = count_frames(path)
    positions = [int(i) for i in choose(n)]
    if not n or positions[-1] >= n:
        raise Broken(f"{path} has {n} frames, expected at least {max(positions, default=0) + 1}; get it anew",
                     "too few frames")  # fmt: skip
    pictures = {}
    with opened(path) as video:
        video.streams.video[0].codec_context.thread_count = 1  # the clips are decoded side by side already
        for i, frame in enumerate(video.decode(video=0)):
            if i in positions:
                scale = 256 / min(frame.width, frame.height)
                pictures[i] = frame.to_image(width=round(scale * frame.width), height=round(scale * frame.height))
            if i == positions[-1]:
                break
    if absent := set(positions) - set(pictures):
        raise broken(path, f"{len(absent)} of its frames cannot be decoded")
    with written(target) as part:
        part.mkdir()
        for number, i in enumerate(positions, 1):
            pictures[i].save(part / f"{number:05d}.jpg", "JPEG", quality=90)
    return target


def save(target, values):
    """Write numbers into the file `target`.npy. Returns that."""
    target = target.with_name(f"{target.name}.npy")
    with written(target) as part, open(part, "wb") as file:
        np.save(file, values)
    return target


def pack(folder):
    """The frames in a clip's folder as bytes, (F, H, W, 3), in `folder`.npy beside it. Returns that."""
    return save(folder, np.stack([pixels(path).permute(1, 2, 0).numpy() for path in numbered(folder)]))


def sound_of(path):
    """A video's sound: (samples,) int16 at 16 kHz, mono."""
    import av

    with opened(path) as video:
        if not video.streams.audio:
            raise Broken(f"{path} has no audio track, and no wav goes by its name; add that, or get the video anew",
                         "no audio track")  # fmt: skip
        resampler = av.AudioResampler("s16", "mono", 16000)
        frames = itertools.chain(video.decode(audio=0), [None])  # None: what the resampler still holds
        parts = [part.to_ndarray()[0] for frame in frames for part in resampler.resample(frame)]
    if not parts:
        raise Broken(f"{path} has an empty audio track; get it anew", "no audio track")
    return np.concatenate(parts)


def keep_sound(path, seconds, target):
    """The spectrogram of a recording or of a video's sound into `target`.npy, (257, T) float16. Returns that."""
    recorded = str(path).lower().endswith(".wav")
    wave = listen(path, 16000) if recorded else sound_of(path).astype(np.float32) / 2**15
    return save(target, spectrogram(wave, seconds).astype(np.float16))


def compute_flow(folder, start, end, target):
    """DIS optical flow of a gesture, short side 128, into `target`.npy: (H, W, 2, T) float16. Returns that."""
    import cv2

    method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    pictures = [pixels(path, "L")[0].numpy() for path in in_window(folder, start, end)]
    scale = 128 / min(pictures[0].shape)
    pictures = [cv2.resize(p, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for p in pictures]
    fields = [method.calc(a, b, None) for a, b in itertools.pairwise(pictures)]
    return save(target, np.stack(fields, -1).astype(np.float16))


def make(modality, original, wanted, sources, target, seconds):
    """Write a modality's file of one sample, and return it as a source."""
    if original is None and modality != "flow":
        raise Broken(f"{target} was damaged, and what it was made from is gone; get that anew")
    if modality == "audio":
        return keep_sound(original, seconds, target)
    if modality == "video":
        return extract_frames(original, target, lambda n: spread(n, 10))
    if modality == "flow":
        return compute_flow(*sources[0], target)
    start, end = wanted[3:]
    return extract_frames(original, target, lambda n: range(start, end)), start, end


def looked_into(modality, source, into, seconds):
    """The source, if it can be read; None for one of our own making that was damaged since: it is removed."""
    try:
        look(modality, source, seconds)
    except Broken:
        path = Path(path_of(source))
        if into not in path.parents:
            raise
        remove(path)
        return None
    return source


def prepare_sample(modalities, seconds, raw, into, job):
    """Make what one sample lacks, look into what it has: (its name, "done", "already there" or a reason, details)."""
    name, wanted, sources, originals = job
    state = "already there"
    try:
        for j, modality in enumerate(modalities):
            if sources[j] is not None and modality != "text":
                sources[j] = looked_into(modality, sources[j], into, seconds)
            target = into / modality / name
            if sources[j] is None:
                sources[j], state = make(modality, originals[j], wanted[j], sources, target, seconds), "done"
            if raw and modality == "video" and Path(sources[j]) == target:
                sources[j], state = pack(target), "done"
                remove(target)
    except Broken as error:
        return name, error.reason, str(error)
    return name, state, ""


def prepare(name, root, workers, raw=False):
    """Decode videos and recordings below root once, into root/prepared; look into every file; count what came of it.

    What is done stays done when it is stopped and started again. The samples that are broken are listed with their
    reasons in root/prepared/broken.csv, and training leaves them out. raw: the frames made here are kept as bytes.
    ValueError for that where a set has no videos.
    """
    files, modalities, into = index(name, root), SETS[name]["modalities"], Path(root) / PREPARED
    if raw and "video" not in modalities:
        raise ValueError(f"--raw is for the sets of audio and video, which {name} is not; leave it out")
    for part in into.glob("*/.part-*"):  # of a run that was killed
        remove(part)
    jobs, results = {}, {}
    for _, _, _, names, wanted in SETS[name]["list"](files):
        sources = [LOCATE[m](w, files) for m, w in zip(modalities, wanted)]
        originals = [original(m, names, w, files) for m, w in zip(modalities, wanted)]
        reason = absence(modalities, names, sources, originals, files) if None in sources else "not prepared"
        if reason == "not prepared":
            jobs[names[0]] = names[0], wanted, sources, originals
        else:
            results[names[0]] = reason, ""
    work = functools.partial(prepare_sample, modalities, SETS[name].get("seconds"), raw, into)
    ignore = functools.partial(signal.signal, signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the first process alone
    pool = ProcessPoolExecutor(workers, initializer=ignore)
    try:
        for done, reason, what in tqdm(pool.map(work, jobs.values(), chunksize=4), name, len(jobs), unit="sample"):
            results[done] = reason, what
    finally:
        pool.shutdown(cancel_futures=True)
        lost = [[key, *why] for key, why in results.items() if why[0] not in ("done", "already there")]
        lists = {"broken": [row for row in lost if row[2]], "absent": [row for row in lost if not row[2]]}
        for kind, rows in lists.items():
            with written(into / f"{kind}.csv") as part, open(part, "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([["name", "reason", "what"], *rows])
    for reason, n in sorted(Counter(reason for reason, _ in results.values()).items()):
        print(f"{reason}: {n}")
    print("; ".join(f"{len(rows)} {kind}, listed in {into / kind}.csv" for kind, rows in lists.items()))


def main(arguments=None):
    """Exit status 0; 2 for a command or a folder that is wrong, 1 for what failed, 130 for Ctrl-C: one sentence."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    command = parser.add_subparsers(dest="command", required=True).add_parser("prepare", help=prepare.__doc__)
    command.add_argument("name", choices=list(SETS), metavar="NAME", help=f"one of {', '.join(SETS)}")
    command.add_argument("--root", required=True, metavar="DIR", help="folder of the data set")
    command.add_argument("--workers", type=int, default=os.cpu_count(), metavar="N", help="processes (all cores)")
    command.add_argument("--raw", action="store_true", help="keep the frames of videos as bytes: 2.6 MB a clip")
    options = parser.parse_args(arguments)
    try:
        prepare(options.name, options.root, max(1, options.workers), options.raw)
    except KeyboardInterrupt:
        error, status = "stopped; what is done stays, the same command goes on from there", 130
    except (ValueError, FileNotFoundError) as e:
        error, status = e, 2
    except (OSError, BrokenProcessPool) as e:
        error, status = e, 1
    else:
        return 0
    print(f"data.py: {error}", file=sys.stderr)
    return status
