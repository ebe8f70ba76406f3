"""Finding the files of the six sets, by their names, anywhere below a folder.

index            all files below the folder, by kind and name
find_samples     every sample of the annotation files, with its files and its status
"""

import os
from collections import defaultdict
from pathlib import Path

from utils.annotations import LISTS
from utils.origins import PREPARED, contents, made_files
from utils.samples import Sample

ENDINGS = {
    "audio": ".wav .flac .ogg .mp3 .m4a .aac",
    "video": ".mp4 .flv .avi .mkv .webm .mov .mpg .mpeg .m4v .ts .wmv .3gp",
    "image": ".jpg .jpeg .png",
    "list": ".csv .txt .tsv .lst",
}
KINDS = {ending: kind for kind, endings in ENDINGS.items() for ending in endings.split()}


def index(name, root, modalities):
    """The files below root, by kind: {"audio": {stem: path}, "video": {stem: path}, ...}.

    "frames": folders of images; "list": annotation files, by their names with the ending; "image"
    is empty for a set without images. Of two files with one name the one nearer to the root is
    taken. "made": each modality's prepared files, by name. FileNotFoundError without a folder.
    """
    if not Path(root).is_dir():
        how = f"download the data as docs/DATA.md#{name} says, or give their folder with --root"
        raise FileNotFoundError(f"{root} is not a folder; {how}")
    own = {modality: os.path.join(root, PREPARED, modality) for modality in modalities}
    files = defaultdict(dict, root=root, made={m: made_files(path) for m, path in own.items()})
    for entry in walk(root, own.values()):
        folder, (stem, ending) = os.path.dirname(entry.path), os.path.splitext(entry.name)
        kind = KINDS.get(ending.lower(), ending.lower())
        if kind == "image":
            parent, video = os.path.splitext(os.path.basename(folder))  # extracted from parent.mp4?
            files["frames"].setdefault(parent if video in KINDS else parent + video, folder)
            if "image" not in modalities:
                continue
        if entry.is_file():  # no broken link
            files[kind].setdefault(entry.name if kind == "list" else stem, entry.path)
    return files


def walk(root, without):
    """Yield the files below root as os.DirEntry, breadth first, by name, without hidden ones.

    Each folder is read once, however many links lead to it. The folders of `without` are skipped;
    a line names each that has media in it.
    """
    folders, seen = [os.fspath(root)], {os.path.realpath(root)}
    without = {os.path.realpath(folder) for folder in without}
    for folder in folders:  # the list grows during the loop
        try:
            entries = contents(folder)
        except OSError as error:
            print(f"{folder} is passed over: it cannot be read ({error.strerror})")
            entries = []
        if os.path.realpath(folder) in without:
            if any(os.path.splitext(entry.name)[1].lower() in KINDS for entry in entries):
                print(f"{folder} is passed over: it is for what prepare makes; move your files")
            continue
        for entry in entries:
            if not entry.is_dir():
                yield entry
            elif (real := os.path.realpath(entry.path)) not in seen:
                seen.add(real)
                folders.append(entry.path)


def first_named(kind, names, files):
    """The path of the first file of a kind that has one of the names, or None."""
    return next((files[kind][n] for n in names if n in files[kind]), None)


def source_of(modality, wanted, files):
    """The text or the path that is read as it is, or None; wanted: see utils/annotations.py.

    Frames of a gesture are in a folder STREAM or STREAM_all, its flow in flow_data/SPLIT/ROW.npy.
    """
    if modality == "text":
        return wanted
    if modality in ("rgb", "depth"):
        return next(filter(os.path.isdir, [wanted[2], f"{wanted[2]}_all"]), None)
    if modality == "flow":
        path = os.path.join(files["root"], "Video_data", "flow_data", f"{wanted[1]}.npy")
        return path if os.path.exists(path) else None
    return first_named({"video": "frames", "image": "image"}.get(modality), wanted, files)


def original_file(modality, names, wanted, files):
    """The video or recording that prepare makes a modality's file from, or None."""
    if modality in ("rgb", "depth"):
        path = f"{wanted[2]}.avi"
        return path if os.path.isfile(path) else None
    recording = first_named("audio", names, files) if modality == "audio" else None
    return recording or first_named("video", names, files)


def find_samples(name, files, modalities):
    """Yield a Sample for every row of a set's annotation files; ValueError for a bad row.

    files: from index. If an original is gone, the file prepared from it stays in use.
    """
    for split, label, group, names, wanted in LISTS[name](files):
        sources = [source_of(m, w, files) for m, w in zip(modalities, wanted)]
        originals = [original_file(m, names, w, files) for m, w in zip(modalities, wanted)]
        gone = [m for m, s, o in zip(modalities, sources, originals) if not (s or o)]
        for j, m in enumerate(modalities):
            if m in gone and (m != "flow" or "rgb" in gone):  # flow is made from rgb's frames
                sources[j] = files["made"][m].get(names[0])
        absent = [m for m, s in zip(modalities, sources) if m in gone and not s and m != "flow"]
        status = "missing" if absent else ""
        problem = f"no {' and no '.join(absent)} of {names[0]}" if absent else ""
        windows = [w[3:] if m in ("rgb", "depth") else None for m, w in zip(modalities, wanted)]
        rest = [[names[0]] * len(modalities), sources, originals, windows, status, problem]
        yield Sample(split, str(label), group, *rest)
