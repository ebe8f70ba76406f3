"""Prepare a data set once: make missing files, read every file, write samples.csv.

DIR/prepared/
    samples.csv         every sample: usable or the reason why not, its sources, its originals
    audio/NAME.npy      the sound's spectrogram, float16, (257, 299) or (257, 1004)
    video/NAME/         ten frames, evenly spaced, JPEG, short side 256; with raw NAME.npy,
                        (10, H, W, 3) uint8: quicker to read, 13 times the disk space
    rgb/NAME/           the frames of a gesture; also depth/NAME/
    flow/NAME.npy       DIS optical flow between them, (H, W, 2, T) in pixels, short side 128

A NAME ends in a digest of original and settings, see utils/origins.py. All files are written
atomically. You can stop it and run it again: it continues.
"""

import contextlib
import functools
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tqdm import tqdm

from utils import distributed
from utils.annotations import LISTS
from utils.atomic import TOO_MANY_OPEN, UnwritableFile, remove, writing
from utils.cli import SettingsError, quoted
from utils.decode import pack_frames
from utils.files import find_samples, index
from utils.media import UnreadableFile, reading
from utils.modalities import MODALITIES
from utils.origins import FORMAT, PREPARED, below_prepared, digest, holds, locked, made_name, stamp
from utils.samples import (
    USABLE,
    Outdated,
    prepared_table,
    read_about,
    read_own,
    read_prepared,
    relative,
    write_prepared,
)

FEW = 50  # samples, which are done before processes have started
PROGRAMMING = (TypeError, NameError, AttributeError, ImportError)  # of a kind of your own
WAY_OUT = "move away what is in its place, or change its permissions"


def checked(modality, window, source):
    """The shape of a source, all of which is read; UnreadableFile if that fails."""
    x = modality.check(source, window) if modality.check else modality.read(source)
    return tuple(x.shape)


def made(modality, target, original, window, keep):
    """(path, shape) of the prepared file of an original, made unless it is there and readable."""
    with writing(target.parent, WAY_OUT):
        target.parent.mkdir(parents=True, exist_ok=True)
        there = [p for p in (target.with_name(f"{target.name}.npy"), target) if p.exists()]
    for path in there:
        try:
            return path, checked(modality, window, path)
        except UnreadableFile as error:
            if holds(path, keep):
                what = "has the name of a prepared file, and samples.csv names it"
                message = f"{path} {what}; give your file another name"
                raise UnreadableFile(message) from error
            with writing(path, WAY_OUT):
                remove(path)  # damaged, but it can be made again
    path = modality.make(original, target, window)
    return path, checked(modality, window, path)


def line_of(error):
    """`line N of FILE` where the reader or the `make` of a kind raised an error."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    return f"line {frames[0].lineno} of {Path(frames[0].filename).name}" if frames else "at a call"


def prepare_sample(modalities, raw, into, keep, sample):
    """Make what is missing of a sample, and read all of it.

    modalities: {name: (kind, Modality)}; into: DIR/prepared; keep: of below_prepared. Returns
    (status, problem, sources, shapes), the shape of each modality, None where nothing was read.
    An error of PROGRAMMING is raised: a mistake in a reader or a `make` is no fault of the sample.
    """
    sources, shapes, notes = list(sample.sources), [None] * len(modalities), []
    for j, (name, (kind, modality)) in enumerate(modalities.items()):
        if not modality.is_file:
            continue
        flow = kind == "flow"  # it is made from the frames of modality 0, rgb
        original = sources[0] if flow else sample.originals[j]
        window = sample.windows[0 if flow else j]
        try:
            if sources[j] is not None:
                shapes[j] = checked(modality, window, sources[j])
                continue
            with reading(original):
                target = into / name / made_name(sample.names[j], original, kind, window)
            sources[j], shapes[j] = made(modality, target, original, window, keep)
            if raw and kind == "video" and sources[j].is_dir():
                frames = sources[j]
                sources[j] = pack_frames(frames)
                if not holds(frames, keep):
                    remove(frames)
            if modality.remark and (remark := modality.remark(sources[j])):
                notes.append(f"{original} {remark}")
        except UnreadableFile as error:
            return error.reason, str(error), sources, shapes
        except (UnwritableFile, *PROGRAMMING):
            raise
        except Exception as error:  # of any library, for any file: the other samples go on
            if getattr(error, "errno", None) in TOO_MANY_OPEN:
                raise
            why = f"{type(error).__name__}: {error}, {line_of(error)}"
            problem = f"{original or sources[j]} cannot be read ({why})"
            return "undecodable", " ".join(problem.split()), sources, shapes
    return USABLE, "; ".join(notes), sources, shapes


def end_with_parent():
    """Without this, workers of a killed process wait for each other for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def worker_signals():
    """In a worker: Ctrl-C is for the main process alone; SIGTERM, or the end of that, ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=end_with_parent, daemon=True).start()


@contextlib.contextmanager
def held_back():
    """In the block Ctrl-C waits, and a process that starts in it does not see it."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def in_processes(work, jobs, workers):
    """Yield (i, work(jobs[i])), unordered, or (i, None) for a job of which a process died.

    A process can die of a file (a fault in a decoder, too little memory). The jobs that were
    running then are tried once more, each alone. Where no process starts, this one does the work.
    """
    # Not forked: a process that is forked after a decoder has started its threads can wait forever.
    how = {"initializer": worker_signals, "mp_context": multiprocessing.get_context("spawn")}
    new_pool = functools.partial(ProcessPoolExecutor, **how)
    pool, left, running = new_pool(workers), list(range(len(jobs)))[::-1], {}
    try:
        try:
            with held_back():
                first = pool.submit(repr, work)
            first.result()
        except (BrokenProcessPool, pickle.PicklingError, AttributeError, TypeError):
            what = "no worker starts: they cannot import the program that calls train.main"
            print(f'{what} (has it `if __name__ == "__main__":`?); this process prepares alone')
            yield from enumerate(map(work, jobs))
            return
        while left or running:
            while left and len(running) < 4 * workers:
                i = left.pop()
                with held_back():
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
                            with held_back():
                                again = alone.submit(work, jobs[i])
                            yield i, again.result()
                        except BrokenProcessPool:
                            yield i, None
                running.clear()
    finally:
        pool.shutdown(cancel_futures=True)


def discover(name, root, kinds):
    """({modality: kind}, [Sample], the paths of the lists that name them) of a data set."""
    if not kinds:
        return *read_own(root), [Path(root) / "samples.csv"]
    files = index(name, root, [*kinds])
    return kinds, list(find_samples(name, files, [*kinds])), files["read"].values()


def files_of(sample, kinds):
    """For each modality the path that is read or prepared; "" for a text, and without one."""
    triples = zip(kinds.values(), sample.sources, sample.originals)
    return [(s or path or "") if MODALITIES[kind].is_file else "" for kind, s, path in triples]


def prepare(name, root, kinds=None, workers=None, raw=False, program=None):
    """Prepare the set `name`, or DIR with a samples.csv, and print the count of each status.

    kinds: {modality: kind} of a set of SETS, None for data of your own. raw: keep the frames of
    videos as uint8 arrays. program: the cli.one_sentence around. SettingsError or
    FileNotFoundError for annotation files that are missing or damaged; UnwritableFile, as for a
    full disk.
    """
    about = {"format": FORMAT, "usable before": {}}
    with contextlib.suppress(Outdated):
        about["usable before"] = read_about(root)["usable"]
    kinds_there, samples, lists = discover(name, root, kinds)
    if raw and "video" not in kinds_there.values():
        raise SettingsError(f"--raw is for data with videos, not for {name}; leave it out")
    about["lists"] = {relative(path, root): digest([path]) for path in lists}
    if any(kind.startswith("audio") for kind in kinds_there.values()):
        import librosa

        assert librosa.stft  # without a folder for its cache it fails here, not for each sample
    modalities = {name: (kind, MODALITIES[kind]) for name, kind in kinds_there.items()}
    paths = [files_of(sample, kinds_there) for sample in samples]
    named = [p for sample, files in zip(samples, paths) if not sample.status for p in files if p]
    keep = below_prepared(root, [*named, *lists])
    work = functools.partial(prepare_sample, modalities, raw, Path(root) / PREPARED, keep)
    if program:
        program.started = True
    with locked(root, keep) as waited:
        if waited:
            with contextlib.suppress(Outdated):
                read_prepared(root, kinds)
                return
        stamps = [[p and f"{stamp(p)} {relative(p, root)}" for p in files] for files in paths]
        results = prepare_all(name, samples, work, max(1, workers or os.cpu_count()))
        results = of_one_shape(kinds_there.values(), results)
        counts = Counter(s.split for s, (status, *_) in zip(samples, results) if status == USABLE)
        rows = [(s, *result, of) for s, result, of in zip(samples, results, stamps)]
        path = write_prepared(root, kinds_there, rows, about | {"usable": counts})
    for status, n in sorted(Counter(status for status, *_ in results).items()):
        print(f"{status}: {n}")
    if remarks := [problem for status, problem, _ in results if status == USABLE and problem]:
        print(f"usable, but with a remark: {len(remarks)}; the first: {remarks[0]}")
    print(f"every sample is listed in {path}")


def of_one_shape(kinds, results):
    """[(status, problem, sources)] from what prepare_sample returned.

    Where a modality must have one shape, a sample of another than the most frequent is not usable.
    """
    for j in [j for j, kind in enumerate(kinds) if MODALITIES[kind].one_shape]:
        shapes = Counter(result[3][j] for result in results if result[0] == USABLE)
        usual = max(shapes, key=shapes.get, default=None)
        for i, (status, _, sources, found) in enumerate(results):
            if status == USABLE and found[j] != usual:
                problem = f"{sources[j]} holds {found[j]}, expected {usual} as in most other files"
                results[i] = "another shape", problem, sources, found
    return [result[:3] for result in results]


def prepare_all(name, samples, work, workers):
    """What prepare_sample returns for all samples; work: it, of a sample alone."""
    nothing = [None] * len(samples[0].sources) if samples else []
    results = [(sample.status, sample.problem, sample.sources, nothing) for sample in samples]
    left = [i for i, sample in enumerate(samples) if not sample.status]
    jobs = [samples[i] for i in left]
    if workers > 1 and len(jobs) > FEW:
        done = in_processes(work, jobs, workers)
    else:
        done = enumerate(map(work, jobs))
    died = "the process that read it died: of a fault in a decoder, or for lack of memory"
    for k, result in tqdm(done, f"preparing {name}", len(left), unit="sample", disable=None):
        results[left[k]] = result or ("crashed", died, samples[left[k]].sources, nothing)
    return results


def prepare_command(name, root):
    """The command that prepares a data set."""
    elsewhere = root and name in LISTS and os.fspath(root) != f"data/{name}"
    return f"python -m scripts.prepare {quoted(name)}" + (
        f" --root {quoted(root)}" if elsewhere else ""
    )


def read_or_prepare(name, root, kinds):
    """read_prepared, after the set was prepared if it is not up to date, or nothing was usable."""
    try:
        kinds_there, found = read_prepared(root, kinds)
        if found.splits.keys() >= {"train", "test"}:
            return kinds_there, found
        why = "no sample was usable"
    except Outdated as reason:
        why = str(reason)
    if distributed.world_size() > 1:
        command = f"run {prepare_command(name, root)} before several processes"
        raise SettingsError(f"{name} is not prepared: {why}; {command}")
    print(f"preparing {name}: {why}", flush=True)
    prepare(name, root, kinds)
    try:
        return read_prepared(root, kinds)
    except Outdated as reason:
        what = f"{reason} while {name} was prepared"
        raise SettingsError(f"{what}; run the same command again") from None


def collect(name, root, kinds=None, paper=None):
    """({modality: kind}, Prepared) of a data set; it is prepared first if it is not up to date.

    kinds: of a set of SETS. Prints how many samples of each split are usable, beside `paper`, the
    paper's (train, val, test) numbers. FileNotFoundError if train or test has none.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(1)  # a worker imports a script that calls train.main without a main guard
    command = prepare_command(name, root)
    kinds, found = read_or_prepare(name, root, kinds)
    for split, expected in zip(("train", "val", "test"), paper or [None] * 3):
        count = found.counts[split]
        if not count and split == "val":
            continue  # most sets have no validation part
        beside = "" if expected is None else f" (paper: {expected})"
        usable = f"{name} {split}: {count[USABLE]} of {count.total()} usable{beside}"
        lost = ", ".join(f"{n} {status}" for status, n in sorted(count.items()) if status != USABLE)
        print("; ".join(filter(None, [usable, lost, lost and f"why: {prepared_table(root)}"])))
        if count[USABLE] < found.before.get(split, 0):
            print(f"{name} {split}: {found.before[split]} were usable when it was prepared before")
        if not count[USABLE]:
            why = found.problems.get(split, "its list is empty")
            what = f"no {split} sample of {name} can be used: {why}"
            raise FileNotFoundError(f"{what}; after a change run {command}; see docs/DATA.md")
    train = set(found.splits["train"][1])
    for split in sorted(found.splits):
        if unknown := sorted(set(found.splits[split][1]) - train):
            print(f"classes without a training sample, in {split}: {', '.join(unknown)}")
    return kinds, found
