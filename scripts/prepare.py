"""Decode videos and recordings once, and read every file of a data set (Sec. 4.1).

    python -m scripts.prepare NAME --root DIR

DIR/prepared/
    audio/NAME.npy    the sound's spectrogram, float16, (257, 299) or (257, 1004)
    video/NAME/       ten frames, evenly spaced, JPEG, short side 256; with --raw NAME.npy,
                      (10, H, W, 3) uint8: quicker to read, 13 times the disk space
    rgb/NAME/         the frames of a gesture; also depth/NAME/
    flow/NAME.npy     DIS optical flow between them, (H, W, 2, T) in pixels, short side 128
    broken.csv        samples that cannot be read, with reasons; training leaves them out
    absent.csv        samples whose files were not found

All files are written atomically. You can stop prepare and run it again: it continues.
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

from data import SETS, clip, flow, sound, spectrogram
from utils import cli
from utils.atomic import atomic, remove
from utils.files import PREPARED, find_samples
from utils.media import (
    UnreadableFile,
    frame_paths,
    frames_in_window,
    read_audio,
    read_image,
    sample_positions,
    unreadable,
)


def path_of(source):
    """The file or folder of a source; a gesture's source is (folder, start, end)."""
    return source[0] if isinstance(source, tuple) else source


def verify(modality, source, seconds):
    """Read all of a file, or of a folder of files; UnreadableFile if one cannot be read."""
    if modality == "audio":
        sound(source, seconds=seconds)
    elif modality == "image":
        read_image(source)
    elif modality == "flow":
        flow(source)
    elif str(source).endswith(".npy"):
        clip(source)
    else:
        for path in frame_paths(path_of(source)):
            read_image(path)


@contextmanager
def open_video(path):
    """A video opened by PyAV; inside the block its errors become UnreadableFile."""
    import av

    try:
        with av.open(str(path)) as video:
            yield video
    except (av.FFmpegError, IndexError) as error:
        raise unreadable(path, error) from error


def count_frames(path):
    """The number of frames of a video, by its packets; UnreadableFile if it is truncated."""
    with open_video(path) as video:
        if not video.streams.video:
            message = f"{path} has no video track; download it again"
            raise UnreadableFile(message, "no video track")
        stream, n, end = video.streams.video[0], 0, 0.0
        for packet in video.demux():
            if packet.size:
                n += packet.stream is stream
                if packet.pts is not None:
                    after = packet.pts + (packet.duration or 0)
                    end = max(end, float(after * packet.time_base))
        start, length = (video.start_time or 0) / 1e6, (video.duration or 0) / 1e6  # s
        if n < 0.95 * stream.frames or end - start < 0.9 * length:
            raise unreadable(path, "truncated: shorter than its header says")
        return n


def extract_frames(path, target, choose):
    """Write a video's frames choose(n) of n into the folder `target`, JPEG, short side 256.

    Returns the folder.
    """
    n = count_frames(path)
    positions = [int(i) for i in choose(n)]
    if not n or positions[-1] >= n:
        expected = f"expected at least {max(positions, default=0) + 1}"
        message = f"{path} has {n} frames, {expected}; download it again"
        raise UnreadableFile(message, "too few frames")
    images = {}
    with open_video(path) as video:
        video.streams.video[0].codec_context.thread_count = 1  # the clips are decoded in parallel
        for i, frame in enumerate(video.decode(video=0)):
            if i in positions:
                scale = 256 / min(frame.width, frame.height)
                width, height = round(scale * frame.width), round(scale * frame.height)
                images[i] = frame.to_image(width=width, height=height)
            if i == positions[-1]:
                break
    if absent := set(positions) - set(images):
        raise unreadable(path, f"{len(absent)} of its frames cannot be decoded")
    with atomic(target) as part:
        part.mkdir()
        for number, i in enumerate(positions, 1):
            images[i].save(part / f"{number:05d}.jpg", "JPEG", quality=90)
    return target


def save_array(target, values):
    """Write an array into the file `target`.npy; returns its path."""
    target = target.with_name(f"{target.name}.npy")
    with atomic(target) as part, open(part, "wb") as file:
        np.save(file, values)
    return target


def pack_frames(folder):
    """Write a clip's frames as (F, H, W, 3) uint8 into `folder`.npy; returns its path."""
    frames = [read_image(path).permute(1, 2, 0).numpy() for path in frame_paths(folder)]
    return save_array(folder, np.stack(frames))


def audio_of_video(path):
    """A video's sound: (samples,) int16 at 16 kHz, mono."""
    import av

    with open_video(path) as video:
        if not video.streams.audio:
            what = "has no audio track, and there is no wav of its name"
            message = f"{path} {what}; add the wav, or download the video again"
            raise UnreadableFile(message, "no audio track")
        resampler = av.AudioResampler("s16", "mono", 16000)
        frames = itertools.chain(video.decode(audio=0), [None])  # None flushes the resampler
        parts = [part.to_ndarray()[0] for frame in frames for part in resampler.resample(frame)]
    if not parts:
        message = f"{path} has an empty audio track; download it again"
        raise UnreadableFile(message, "no audio track")
    return np.concatenate(parts)


def write_spectrogram(path, seconds, target):
    """Write the spectrogram of a wav, or of a video's sound, into `target`.npy: (257, T) float16.

    Returns its path.
    """
    if str(path).lower().endswith(".wav"):
        wave = read_audio(path, 16000)
    else:
        wave = audio_of_video(path).astype(np.float32) / 2**15
    return save_array(target, spectrogram(wave, seconds).astype(np.float16))


def compute_flow(folder, start, end, target):
    """Write DIS optical flow of a gesture, short side 128, into `target`.npy: (H, W, 2, T) float16.

    Returns its path.
    """
    import cv2

    method = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    images = [read_image(path, "L")[0].numpy() for path in frames_in_window(folder, start, end)]
    scale = 128 / min(images[0].shape)
    images = [
        cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        for image in images
    ]
    fields = [method.calc(a, b, None) for a, b in itertools.pairwise(images)]
    return save_array(target, np.stack(fields, -1).astype(np.float16))


def make(modality, sample, j, sources, target, seconds):
    """Write the file of a sample's modality number j; returns it as a source."""
    original = sample.originals[j]
    if original is None and modality != "flow":
        what = "is damaged, and the file that it was made from is missing"
        raise UnreadableFile(f"{target} {what}; download that file again")
    if modality == "audio":
        return write_spectrogram(original, seconds, target)
    if modality == "video":
        return extract_frames(original, target, lambda n: sample_positions(n, 10))
    if modality == "flow":
        return compute_flow(*sources[0], target)
    start, end = sample.wanted[j][3:]
    return extract_frames(original, target, lambda n: range(start, end)), start, end


def verified(modality, source, into, seconds):
    """The source, if it can be read. A damaged file that prepare wrote is deleted: returns None."""
    try:
        verify(modality, source, seconds)
    except UnreadableFile:
        path = Path(path_of(source))
        if into not in path.parents:
            raise
        remove(path)
        return None
    return source


def prepare_sample(modalities, seconds, raw, into, sample):
    """Verify the files of a sample and make those that are missing.

    Returns (name, "done" or "already there" or the reason why not, details).
    """
    status = "already there"
    sources = list(sample.sources)
    try:
        for j, modality in enumerate(modalities):
            if sources[j] is not None and modality != "text":
                sources[j] = verified(modality, sources[j], into, seconds)
            target = into / modality / sample.name
            if sources[j] is None:
                sources[j] = make(modality, sample, j, sources, target, seconds)
                status = "done"
            if raw and modality == "video" and Path(sources[j]) == target:
                sources[j] = pack_frames(target)
                status = "done"
                remove(target)
    except UnreadableFile as error:
        return sample.name, error.reason, str(error)
    return sample.name, status, ""


def write_lists(results, into):
    """Write broken.csv and absent.csv from {name: (status, details)}; returns {path: rows}."""
    usable = ("done", "already there")
    lost = [[name, *why] for name, why in results.items() if why[0] not in usable]
    lists = {
        into / "broken.csv": [row for row in lost if row[2]],
        into / "absent.csv": [row for row in lost if not row[2]],
    }
    for path, rows in lists.items():
        with atomic(path) as part, open(part, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([["name", "reason", "what"], *rows])
    return lists


def worker_signals():
    """In a worker: Ctrl-C is for the main process alone, SIGTERM ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def prepare(name, root, workers, raw=False, program=None):
    """Decode the videos and recordings below root into root/prepared, verify all files, count.

    Finished samples are kept if prepare is stopped and run again. raw: write the frames of videos
    as uint8 arrays; ValueError for a set without videos. program: the cli.one_sentence around.
    """
    modalities, into = SETS[name]["modalities"], Path(root) / PREPARED
    if raw and "video" not in modalities:
        raise ValueError(f"--raw is for the sets of audio and video, not for {name}; leave it out")
    for part in into.glob("*/.part-*"):  # left by a prepare that was killed
        remove(part)
    jobs, results = {}, {}
    for sample in find_samples(name, root, modalities):
        if sample.status in ("found", "not prepared"):
            jobs[sample.name] = sample
        else:
            results[sample.name] = sample.status, ""
    seconds = SETS[name].get("seconds", 10)
    work = functools.partial(prepare_sample, modalities, seconds, raw, into)
    if program:
        program.started = True
    pool = ProcessPoolExecutor(workers, initializer=worker_signals)
    try:
        done = pool.map(work, jobs.values(), chunksize=4)
        for name_done, status, details in tqdm(done, name, len(jobs), unit="sample"):
            results[name_done] = status, details
    finally:
        pool.shutdown(cancel_futures=True)
        lists = write_lists(results, into)
    for status, n in sorted(Counter(status for status, _ in results.values()).items()):
        print(f"{status}: {n}")
    print("; ".join(f"{len(rows)} {path.stem}, listed in {path}" for path, rows in lists.items()))


def main(arguments=None):
    """Exit status 0; with one sentence 2 for wrong arguments, 1 for a failure, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser("prepare", description=__doc__.splitlines()[0])
    parser.add_argument(
        "name", choices=list(SETS), metavar="NAME", help=f"one of {', '.join(SETS)}"
    )
    parser.add_argument("--root", required=True, metavar="DIR", help="folder of the data set")
    cores = os.cpu_count()
    parser.add_argument(
        "--workers", type=int, default=cores, metavar="N", help="processes (all cores)"
    )
    raw = "keep the frames of videos as uint8 arrays: 2.6 MB a clip"
    parser.add_argument("--raw", action="store_true", help=raw)
    args = parser.parse_args(arguments)
    with cli.one_sentence("prepare", BrokenProcessPool) as program:
        program.stopped = lambda: (
            "stopped; finished samples are kept, run the same command again to continue"
        )
        prepare(args.name, args.root, max(1, args.workers), args.raw, program)
    return program.status


if __name__ == "__main__":
    sys.exit(main())
