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
import os
import signal
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tqdm import tqdm

from data import SETS, clip, flow, sound
from utils import cli
from utils.atomic import atomic, remove
from utils.decode import compute_flow, extract_frames, pack_frames, write_spectrogram
from utils.files import PREPARED, find_samples
from utils.media import UnreadableFile, frame_paths, read_image, sample_positions


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
