"""Prepare a data set once: make what is missing, read every file, write samples.csv.

DIR/prepared/
    samples.csv       every sample: usable or the reason why not, and its sources
    audio/NAME.npy    the sound's spectrogram, float16, (257, 299) or (257, 1004)
    video/NAME/       ten frames, evenly spaced, JPEG, short side 256; with raw NAME.npy,
                      (10, H, W, 3) uint8: quicker to read, 13 times the disk space
    rgb/NAME/         the frames of a gesture; also depth/NAME/
    flow/NAME.npy     DIS optical flow between them, (H, W, 2, T) in pixels, short side 128

All files are written atomically. You can stop it and run it again: it continues.
"""

import errno
import functools
import multiprocessing
import os
import signal
import threading
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tqdm import tqdm

from utils import distributed
from utils.annotations import LISTS
from utils.atomic import remove
from utils.decode import compute_flow, extract_frames, pack_frames, write_spectrogram
from utils.files import find_samples
from utils.media import (
    UnreadableFile,
    frame_paths,
    is_silent,
    load_librosa,
    read_array,
    read_flow,
    read_frames,
    read_image,
    read_numbers,
    read_spectrogram,
)
from utils.samples import (
    PREPARED,
    USABLE,
    array_shape,
    own_table,
    prepared_table,
    read_own,
    read_prepared,
    write_prepared,
)

FRAMES = 10  # of a prepared video
FEW = 50  # samples, which are done before processes have started


def read_all(kind, source, window, seconds, shape):
    """Read all of a source as training reads a part of it; UnreadableFile if that fails."""
    if kind == "audio":
        read_spectrogram(source, seconds)
    elif kind == "image":
        read_image(source)
    elif kind == "array":
        read_numbers(source, *shape)
    elif kind == "flow":
        read_flow(source, read_array(source, "H", "W", 2, "T").shape[3])
    elif str(source).endswith(".npy"):
        read_frames(source, 1)
    else:
        n = window[1] - window[0] if window else len(frame_paths(source))
        read_frames((source, *window) if window else source, n)


def make(kind, sample, j, target, sources, seconds):
    """Write the prepared file of a sample's modality number j; returns its path."""
    original = sample.originals[j]
    if original is None and kind != "flow":
        what = "is damaged, and the file that it was made from is missing"
        raise UnreadableFile(f"{target} {what}; download that file again")
    if kind == "audio":
        return write_spectrogram(original, seconds, target)
    if kind == "video":
        return extract_frames(original, target, FRAMES)
    if kind == "flow":
        return compute_flow(sources[0], *sample.windows[0], target)
    return extract_frames(original, target, lambda n: range(*sample.windows[j]))


def prepare_sample(columns, seconds, raw, into, shapes, sample):
    """Make what is missing of a sample, and read all of it; returns (status, problem, sources)."""
    sources, notes = list(sample.sources), []
    for j, (name, kind) in enumerate(columns.items()):
        if kind == "text":
            continue
        target, window = into / name / sample.names[j], sample.windows[j]
        check = functools.partial(
            read_all, kind, window=window, seconds=seconds, shape=shapes.get(name, ())
        )
        try:
            if sources[j] is not None:
                try:
                    check(sources[j])
                except UnreadableFile:
                    if into not in Path(sources[j]).parents:
                        raise
                    remove(Path(sources[j]))  # damaged, but it can be made again
                    sources[j] = None
            if sources[j] is None:
                sources[j] = make(kind, sample, j, target, sources, seconds)
                check(sources[j])
            if raw and kind == "video" and Path(sources[j]) == target:
                sources[j] = pack_frames(target)
                remove(target)
            if kind == "audio" and is_silent(sources[j]):
                notes.append(f"{sample.originals[j] or sources[j]} is silent")
        except UnreadableFile as error:
            return error.reason, str(error), sources
        except Exception as error:  # of any library, for any file: the other samples go on
            if isinstance(error, OSError) and error.errno in FATAL:
                raise
            path = sample.originals[j] or sources[j] or target
            problem = f"{path} cannot be read ({type(error).__name__}: {error})"
            return "undecodable", " ".join(problem.split()), sources
    return USABLE, "; ".join(notes), sources


# The disk is full, read-only, or forbidden: no other sample could be written either.
FATAL = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EMFILE]


def worker_signals():
    """In a worker: Ctrl-C is for the main process alone; SIGTERM ends it, and the main process's
    end, also by kill -9."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent():
    """Without this, workers of a killed process wait for each other for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def in_processes(work, jobs, workers):
    """Yield (i, work(jobs[i])), unordered, or (i, None) for a job of which a process died.

    A process can die of a file (a fault in a decoder, too little memory). The jobs that were
    running then are tried once more, each alone.
    """
    # Not forked: a process that is forked after a decoder has started its threads can wait forever.
    how = {"initializer": worker_signals, "mp_context": multiprocessing.get_context("spawn")}
    new_pool = functools.partial(ProcessPoolExecutor, **how)
    pool, left, running = new_pool(workers), list(range(len(jobs)))[::-1], {}
    try:
        while left or running:
            while left and len(running) < 4 * workers:
                i = left.pop()
                running[pool.submit(work, jobs[i])] = i
            done, _ = wait(running, return_when="FIRST_COMPLETED")
            broken = [f for f in done if isinstance(f.exception(), BrokenProcessPool)]
            for future in done - set(broken):
                yield running.pop(future), future.result()
            if broken:
                pool.shutdown()
                pool = new_pool(workers)
                for i in running.values():
                    with new_pool(1) as alone:
                        try:
                            yield i, alone.submit(work, jobs[i]).result()
                        except BrokenProcessPool:
                            yield i, None
                running.clear()
    finally:
        pool.shutdown(cancel_futures=True)


def array_shapes(columns, samples):
    """{name: shape} for each array modality: the shape of its first file that can be read."""
    shapes = {}
    for j, (name, kind) in enumerate(columns.items()):
        for path in [sample.originals[j] for sample in samples if kind == "array"]:
            shape = path and array_shape(path)
            if shape is None:
                continue
            if len(shape) not in (1, 3):
                expected = "expected a vector (d,) or a picture (C, H, W)"
                raise ValueError(f"{path} is an array {shape}, {expected}")
            shapes[name] = shape
            break
    return shapes


def prepare(name, root, modalities, seconds, workers=None, raw=False, program=None):
    """Prepare the set `name`, or DIR with a samples.csv, and print the count of each status.

    modalities: of a set of SETS, None for data of your own. raw: keep the frames of videos as uint8
    arrays. program: the cli.one_sentence around. ValueError or FileNotFoundError for annotation
    files that are missing or damaged.
    """
    workers, into = max(1, workers or os.cpu_count()), Path(root) / PREPARED
    columns = dict(zip(modalities, modalities)) if modalities else own_table(root)[0]
    if raw and "video" not in columns.values():
        raise ValueError(f"--raw is for data with videos, not for {name}; leave it out")
    samples = list(find_samples(name, root, modalities) if modalities else read_own(root)[1])
    if "audio" in columns.values():
        load_librosa()  # without a folder for its cache it fails here, not for each sample
    for part in [*into.glob(".part-*"), *into.glob("*/.part-*")]:  # of a prepare that was killed
        remove(part)
    if program:
        program.started = True
    shapes = array_shapes(columns, samples)
    work = functools.partial(prepare_sample, columns, seconds, raw, into, shapes)
    results = [(sample.status, sample.problem, sample.sources) for sample in samples]
    left = [i for i, sample in enumerate(samples) if not sample.status]
    jobs = [samples[i] for i in left]
    if workers > 1 and len(jobs) > FEW:
        done = in_processes(work, jobs, workers)
    else:
        done = enumerate(map(work, jobs))
    died = "the process that read it died: of a fault in a decoder, or for lack of memory"
    for k, result in tqdm(done, f"preparing {name}", len(left), unit="sample", disable=None):
        results[left[k]] = result or ("crashed", died, samples[left[k]].sources)
    rows = [(sample, *result) for sample, result in zip(samples, results)]
    path = write_prepared(root, columns, rows)
    for status, n in sorted(Counter(status for _, status, *_ in rows).items()):
        print(f"{status}: {n}")
    if silent := sum(status == USABLE and problem != "" for _, status, problem, _ in rows):
        print(f"usable, but silent: {silent}")
    print(f"every sample is listed in {path}")


def prepare_command(name, root):
    """The command that prepares a data set."""
    elsewhere = root and name in LISTS and os.fspath(root) != f"data/{name}"
    return f"python -m scripts.prepare {name}" + (f" --root {root}" if elsewhere else "")


def is_prepared(name, root):
    """Whether DIR/prepared/samples.csv is there, and not older than a samples.csv of one's own."""
    path, own = prepared_table(root), Path(root) / "samples.csv"
    if name in LISTS or not own.is_file():
        return path.is_file()
    return path.is_file() and own.stat().st_mtime <= path.stat().st_mtime


def collect(name, root, modalities, seconds, paper=None):
    """({name: kind}, Prepared) of a data set; it is prepared first if it is not yet.

    Prints how many samples of each split are usable, beside `paper`, the paper's (train, val, test)
    numbers. FileNotFoundError if the training or the test split has none.
    """
    command = prepare_command(name, root)
    if not is_prepared(name, root):
        if distributed.world_size() > 1:
            raise ValueError(f"{name} is not prepared; run {command} before several processes")
        prepare(name, root, modalities, seconds)
    kinds, found = read_prepared(root)
    for split, expected in zip(("train", "val", "test"), paper or [None] * 3):
        count = found.counts[split]
        if not count and split == "val":
            continue  # most sets have no validation part
        beside = "" if expected is None else f" (paper: {expected})"
        usable = f"{name} {split}: {count[USABLE]} of {count.total()} usable{beside}"
        lost = ", ".join(f"{n} {status}" for status, n in sorted(count.items()) if status != USABLE)
        print("; ".join(filter(None, [usable, lost, lost and f"why: {prepared_table(root)}"])))
        if not count[USABLE]:
            why = found.problems.get(split, "its list is empty")
            what = f"no {split} sample of {name} can be used: {why}"
            raise FileNotFoundError(f"{what}; after a change run {command}; see docs/DATA.md")
    train = set(found.splits["train"][1])
    for split in sorted(found.splits):
        if unknown := sorted(set(found.splits[split][1]) - train):
            print(f"classes without a training sample, in {split}: {', '.join(unknown)}")
    return kinds, found
