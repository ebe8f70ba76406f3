"""Finding the files of the six sets, by their names, anywhere below a folder.

index            all files below the folder, by kind and name
LOCATE           for each modality, where the data of a sample is
find_samples     every sample of the annotation files, with its files and its status
collect          what training uses: the samples that were found; the others are counted
"""

import functools
import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from utils.annotations import LISTS, read_csv
from utils.media import is_pointer

PREPARED = "prepared"  # the folder, below the root, that scripts/prepare.py writes into
ENDINGS = {
    "audio": ".wav",
    "video": ".mp4 .flv .avi .mkv .webm",
    "image": ".jpg .jpeg .png",
    "list": ".csv .txt .tsv .lst",
}
KINDS = {ending: kind for kind, endings in ENDINGS.items() for ending in endings.split()}


def index(name, root, modalities):
    """The files below root, by kind: {"audio": {stem: path}, "video": {stem: path}, ...}.

    "frames": folders of images; "list": annotation files, by their names with the ending;
    "pointer": git-lfs pointers, which are in no other kind; "image" is empty for a set without
    images. Of two files with one name the one nearer to the root is taken. ValueError or
    FileNotFoundError without a folder.
    """
    how = f"expected the folder of {name}; see docs/DATA.md"
    if not root:
        raise ValueError(f"{name} needs --root; {how}")
    if not Path(root).is_dir():
        raise FileNotFoundError(f"{root} is not a folder; {how}")
    files = defaultdict(dict, root=root)
    for entry in walk(root):
        folder, (stem, ending) = os.path.dirname(entry.path), os.path.splitext(entry.name)
        kind = KINDS.get(ending.lower(), ending.lower())
        if kind == "image":
            parent, video = os.path.splitext(os.path.basename(folder))  # extracted from parent.mp4?
            files["frames"].setdefault(parent if video in KINDS else parent + video, folder)
            if "image" not in modalities:
                continue
        if not entry.is_file():
            continue  # a broken link
        small = entry.stat().st_size < 1024  # a pointer has about 130 bytes
        if small and kind in ("audio", "video", "image") and is_pointer(entry.path):
            kind = "pointer"
        files[kind].setdefault(entry.name if kind == "list" else stem, entry.path)
    return files


def walk(root):
    """Yield the files below root as os.DirEntry, breadth first, by name, without hidden ones."""
    folders = [os.fspath(root)]
    for folder in folders:  # the list grows during the loop
        for entry in sorted(os.scandir(folder), key=lambda e: e.name):
            if entry.name.startswith("."):
                continue
            if not entry.is_dir():
                yield entry
            elif not (entry.is_symlink() and folder.startswith(os.path.realpath(entry.path))):
                folders.append(entry.path)


def first_named(kind, names, files):
    """The path of the first file of a kind that has one of the names, or None."""
    return next((files[kind][n] for n in names if n in files[kind]), None)


def prepared_array(modality, names, files):
    """The .npy that prepare wrote, or None: a spectrogram, or with --raw a video's frames."""
    path = os.path.join(files["root"], PREPARED, modality, f"{names[0]}.npy")
    return path if os.path.isfile(path) else None


def video_frames(names, files):
    """A video's frames: the .npy that prepare --raw wrote, or a folder of images; or None."""
    return prepared_array("video", names, files) or first_named("frames", names, files)


def gesture_frames(wanted, files):
    """A gesture's (folder, start, end), or None: prepare's folder, the stream's, or STREAM_all."""
    modality, name, stream, start, end = wanted
    folders = [os.path.join(files["root"], PREPARED, modality, name), stream, f"{stream}_all"]
    return next(((folder, start, end) for folder in folders if os.path.isdir(folder)), None)


def flow_file(wanted, files):
    """A gesture's flow: the .npy that prepare wrote, or flow_data/SPLIT/ROW.npy; or None."""
    name, row = wanted
    paths = [os.path.join(PREPARED, "flow", name), os.path.join("Video_data", "flow_data", row)]
    paths = [os.path.join(files["root"], f"{path}.npy") for path in paths]
    return next(filter(os.path.exists, paths), None)


def sentence(text, files):
    """The text itself: it is in the annotation file."""
    return text


LOCATE = {  # each is called as (wanted, files), see annotations.py
    "audio": functools.partial(prepared_array, "audio"),
    "video": video_frames,
    "image": functools.partial(first_named, "image"),
    "text": sentence,
    "rgb": gesture_frames,
    "flow": flow_file,
    "depth": gesture_frames,
}


def original_file(modality, names, wanted, files):
    """The video or recording that prepare makes a modality's file from, or None."""
    if modality in ("rgb", "depth"):
        path = f"{wanted[2]}.avi"
        return path if os.path.isfile(path) else None
    recording = first_named("audio", names, files) if modality == "audio" else None
    return recording or first_named("video", names, files)


class Sample(NamedTuple):
    """A row of the annotation files; sources, originals: for each modality a path or None.

    status: "found"; "not prepared", if prepare can make what is missing; "git-lfs pointer" or
    "missing".
    """

    split: str
    label: int
    group: str
    name: str
    wanted: list
    sources: list
    originals: list
    status: str


def find_samples(name, root, modalities):
    """Yield a Sample for every row of a set's annotation files; ValueError for a bad row."""
    files = index(name, root, modalities)
    for split, label, group, names, wanted in LISTS[name](files):
        sources = [LOCATE[m](w, files) for m, w in zip(modalities, wanted)]
        originals = [original_file(m, names, w, files) for m, w in zip(modalities, wanted)]
        # Flow is made from the frames of the other two.
        can_be_made = [s or o or m == "flow" for m, s, o in zip(modalities, sources, originals)]
        if all(sources):
            status = "found"
        elif any(n in files["pointer"] for n in names):
            status = "git-lfs pointer"
        else:
            status = "not prepared" if all(can_be_made) else "missing"
        yield Sample(split, label, group, names[0], wanted, sources, originals, status)


def read_unreadable(root):
    """{name: reason} of the samples that prepare could not read."""
    path = Path(root) / PREPARED / "broken.csv"
    rows = read_csv(path, "name", "reason", "what") if path.is_file() else []
    return {name: reason for _, name, reason, _ in rows}


def collect(name, root, modalities, paper):
    """The samples found, {split: (sources of each modality, labels, groups)}; the largest label.

    The largest label is that of all rows, found or not. Prints what was found, beside `paper`, the
    paper's (train, val, test). FileNotFoundError if a split has no sample.
    """
    unreadable = read_unreadable(root) if root else {}
    splits = defaultdict(lambda: ([[] for _ in modalities], [], []))
    counts = defaultdict(Counter)
    largest = 0
    for sample in find_samples(name, root, modalities):
        status = unreadable.get(sample.name, sample.status)
        counts[sample.split][status] += 1
        largest = max(largest, sample.label)
        if status == "found":
            xs, labels, groups = splits[sample.split]
            labels.append(sample.label)
            groups.append(sample.group)
            for x, source in zip(xs, sample.sources):
                x.append(source)
    for split, expected in zip(("train", "val", "test"), paper):
        if split in counts or split != "val":  # some published lists have no validation part
            report(name, split, counts[split], expected)
            if not counts[split]["found"]:
                raise FileNotFoundError(nothing_found(name, root, modalities, split, counts[split]))
    return splits, largest


def reasons(count):
    """The samples of a split that cannot be used, as text: "1 missing, 2 undecodable"."""
    return ", ".join(f"{n} {status}" for status, n in sorted(count.items()) if status != "found")


def report(name, split, count, expected):
    """Print how many samples of a split were found, beside the paper's number."""
    found = f"{name} {split}: {count['found']} of {count.total()} found (paper: {expected})"
    print("; ".join(filter(None, [found, reasons(count)])))


def nothing_found(name, root, modalities, split, count):
    """The error for a split of which no sample was found: what was looked for, and what to do."""
    looked = {
        "audio": f"{PREPARED}/audio/<id>.npy",
        "video": "<id>/*.jpg",
        "image": "<id>.jpg",
        "rgb": "<clip>/sk_color/*.jpg",
        "depth": "<clip>/sk_depth/*.jpg",
        "flow": f"{PREPARED}/flow/<clip>.npy",
    }
    files = " and ".join(looked[m] for m in modalities if m in looked)
    why = reasons(count) or "its list is empty"
    parts = [f"no {split} sample of {name} is below {root} ({why}): looked for {files}"]
    if "not prepared" in count:
        parts.append(f"run python -m scripts.prepare {name} --root {root}")
    if "git-lfs pointer" in count:
        parts.append("run `git lfs pull` in the clone")
    return "; ".join([*parts, "see docs/DATA.md"])
