"""Write a samples.csv for a folder that has a folder for each class.

FOLDER/cat/01.jpg and FOLDER/cat/01.wav, the same with other endings, are one sample of the class
cat. Folders named train, val or test, above or below the folders of classes, give the split;
folders named after a kind of data, like images or audio, are passed through.
"""

import csv
import os
from collections import Counter
from pathlib import Path

from utils.annotations import reading_text
from utils.atomic import atomic
from utils.cli import SettingsError, amount, first_of, no_folder, quoted
from utils.files import KINDS, walk
from utils.modalities import ARRAYS
from utils.origins import PREPARED
from utils.samples import SPLITS

ENDINGS = KINDS | dict.fromkeys([".webp", ".bmp", ".tif", ".tiff"], "image")
ENDINGS |= dict.fromkeys([".opus", ".aiff", ".au"], "audio") | {".npy": "array", ".txt": "text"}
PASSED = {*ENDINGS.values(), "images", "pictures", "photos", "sounds", "videos", "texts", "arrays"}
TEST_EVERY = 5  # of the samples of a class, or of the groups, where no folder names a split


def check_name(path):
    """SettingsError for a name that is not UTF-8: a samples.csv cannot hold it."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise SettingsError(f"the name of {str(path)!r} is not UTF-8; rename it") from error


def found_files(root):
    """Yield (key, split, kind, path) of each file of data; key: (folders, stem), a label first.

    A folder named like a split is a class if no folder of a class is above or below it.
    Prints how many files of `prepared` and of unknown endings are left out.
    """
    found, split_folders, unknown, prepared = [], set(), Counter(), 0
    for path in sorted(Path(entry.path).relative_to(root) for entry in walk(root, [])):
        kind, folders = ENDINGS.get(path.suffix.lower()), path.parts[:-1]
        if folders[:1] == (PREPARED,):
            prepared += 1
        elif not kind:
            unknown[path.suffix or "no ending"] += 1
        elif Path(root, path).is_file():
            check_name(path)
            found.append((path, kind))
            named = [f for f in path.parents if f.name.lower() in SPLITS]
            of_class = any(name.lower() not in {*SPLITS, *PASSED} for name in folders)
            split_folders.update(named if of_class else named[1:])  # else the inner one is a class
    if prepared:
        what = f"{amount(prepared, 'file')} in {root}/{PREPARED} passed over: it is for files"
        print(f"{what} that training makes; if it is a class, give it another name")
    if unknown:
        listed = ", ".join(f"{ending} ({n})" for ending, n in unknown.most_common(5))
        print(f"left out, as no kind of data has their ending: {listed}")
    for path, kind in found:
        folders = [*path.parents][-2::-1]  # the outer one first, without the root
        splits = [SPLITS[f.name.lower()] for f in folders if f in split_folders]
        rest = [f.name for f in folders if f not in split_folders and f.name.lower() not in PASSED]
        yield (*rest, path.stem), splits[0] if splits else "", kind, Path(root, path)


def in_classes(root, files):
    """Yield each of found_files that is in the folder of a class; a line names the others."""
    outside = []
    for file in files:
        if len(file[0]) > 1:
            yield file
        else:
            outside.append(file[3].relative_to(root))
    if outside:
        what = f"{amount(len(outside), 'file')} passed over, in no folder of a class"
        taken = sorted({name for path in outside for name in path.parts[:-1]})
        names = f"; no class, but a split or a kind of data: {', '.join(taken)}" if taken else ""
        print(f"{what}, like {outside[0]}{names}")


def collected(files):
    """{(key, split): {kind: path}} of found_files; prints how many files are passed over."""
    samples, twice = {}, []
    for key, split, kind, path in files:
        own = samples.setdefault((key, split), {})
        if own.setdefault(kind, path) != path:
            twice.append(f"{own[kind].name} and {path.name}")
    if twice:
        what = f"{amount(len(twice), 'file')} passed over, because a sample has another of its kind"
        print(f"{what}: of {twice[0]} the first is used")
    return samples


def by_name(root, kinds):
    """The cells of the samples of a folder without a samples.csv, a list for each sample.

    Files with one name are a sample, as in rows_of. kinds: of a run's modalities; the cell of a
    kind without a file is "". No samples where two modalities are of one kind, or no sample is
    whole.
    """
    kinds = ["array" if kind in ARRAYS else kind.split("-")[0] for kind in kinds]
    samples = collected(file for file in found_files(root) if file[2] in kinds)
    if max(map(len, samples.values()), default=0) < len(kinds):
        return []
    return [[cell(root, kind, files.get(kind)) for kind in kinds] for files in samples.values()]


def rows_of(root, separator=None):
    """(kinds, rows) for samples.csv: a row is (split, label, group, {kind: path}).

    separator: samples whose names begin alike, up to it, are one group, "" for no groups.
    SettingsError for a folder without two kinds of data, two classes, or samples to test.
    """
    if not Path(root).is_dir():
        raise no_folder(root)
    samples = collected(in_classes(root, found_files(root)))
    counts = Counter(kind for files in samples.values() for kind in files)
    kinds = [kind for kind, n in counts.most_common() if n >= 0.1 * len(samples)]
    for kind in sorted(counts.keys() - set(kinds)):
        what = f"{amount(counts[kind], 'file')} of the kind {kind} passed over"
        print(f"{what}: fewer than a tenth of the samples have one")
        for files in samples.values():
            files.pop(kind, None)
    samples = {key: files for key, files in samples.items() if files}
    labels = {key[0] for key, _ in samples}
    layout = f"{root}/CLASS/NAME.jpg and {root}/CLASS/NAME.wav"
    if {label.lower() for label in labels} <= SPLITS.keys():  # or no label
        raise SettingsError(f"{root} has no files in folders of classes; expected {layout}")
    if len(kinds) < 2 or len(labels) < 2:
        what = f"{root} has {len(labels)} classes with files of {len(kinds)} kinds"
        raise SettingsError(f"{what}; expected two of both, as in {layout}")
    rows, named, seen = [], any(split for _, split in samples), {}
    for (key, split), files in samples.items():
        group = key[-1].split(separator)[0] if separator else ""
        if not split and not named and len(files) == len(kinds):
            units = seen.setdefault("" if separator else key[0], {})  # the groups, or a class
            n = units.setdefault(group or key, len(units))
            split = "test" if n % TEST_EVERY == 1 else "train"
        rows.append((split or "train", key[0], group, files))
    whole = {row[0] for row in rows if len(row[3]) == len(kinds)}
    if absent := sorted({"train", "test"} - whole):
        what = f"{root} has no sample with files of all kinds for the split {' and '.join(absent)}"
        named_hint = f"put some into {root}/{absent[0]}/CLASS, or rename another split's folder"
        few_hint = f"have two {'groups' if separator else 'samples of a class'} or more"
        raise SettingsError(f"{what}; {named_hint if named else few_hint}")
    return kinds, rows


def cell(root, kind, path):
    """A cell of samples.csv: a text (SettingsError if not UTF-8), a path below the root, or ""."""
    if path is None:
        return ""
    if kind == "text":
        with reading_text(path):
            return " ".join(path.read_text(encoding="utf-8-sig").split())
    return path.relative_to(root).as_posix()


def write_samples(root, separator=None):
    """Write FOLDER/samples.csv, print its first lines and its counts."""
    path = Path(root) / "samples.csv"
    if os.path.lexists(path):
        raise SettingsError(f"{path} exists; rename or remove it to have it written anew")
    kinds, rows = rows_of(root, separator)
    head = ["split", "label", *["group"] * bool(separator), *kinds]
    lines = [head]
    for split, label, group, files in rows:
        cells = [cell(root, kind, files.get(kind)) for kind in kinds]
        lines.append([split, label, *[group] * bool(separator), *cells])
    with atomic(path) as part, open(part, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(lines)
    print(f"wrote {path}; its first lines:")
    for line in lines[:6]:
        print("   ", ",".join(line))
    for split, n in sorted(Counter(row[0] for row in rows).items()):
        classes = Counter(row[1] for row in rows if row[0] == split)
        listed = first_of([f"{label} {count}" for label, count in sorted(classes.items())])
        print(f"{split}: {n} samples ({listed})")
    incomplete = [row for row in rows if len(row[3]) < len(kinds)]
    if incomplete:
        lack = f"{amount(len(incomplete), 'sample')} without a file of each kind"
        _, label, _, files = incomplete[0]
        first = f"{label}/{next(iter(files.values())).name}"
        print(f"{lack}, like {first}: the cells are blank, and training leaves them out")
    print(f"to train: python train.py --dataset {quoted(root)} --method heuristic")
