"""samples.csv: the samples of a data set, a line each.

read_own        DIR/samples.csv, which a person writes for data of their own
write_prepared  DIR/prepared/samples.csv, which utils/prepare.py writes
read_prepared   the same file: training reads it and looks for nothing else
"""

import csv
import hashlib
import itertools
import os
import re
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch

from utils.atomic import atomic
from utils.media import array_shape

PREPARED = "prepared"  # the folder, below the root, of everything that prepare writes
KINDS = ["audio", "video", "image", "text", "array"]
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLITS |= dict.fromkeys(["val", "valid", "validation", "dev"], "val")
NO_MODALITY = ["split", "label", "group", "status", "problem"]
USABLE = "usable"


class Sample(NamedTuple):
    """A sample of an annotation file. sources, originals: for each modality a source or None.

    names: of the prepared file of each modality. windows: for each modality the (start, end) of its
    frames, or None. status: "" if it can be prepared, else the reason why not; problem: more of it.
    """

    split: str
    label: str
    group: str
    names: list
    sources: list
    originals: list
    windows: list
    status: str
    problem: str


class Strings:
    """n strings in two tensors, which worker processes share instead of copying."""

    def __init__(self, strings):
        encoded = [string.encode("utf-8", "surrogateescape") for string in strings]
        self.ends = torch.tensor([0, *itertools.accumulate(map(len, encoded))])
        joined = bytearray(b"".join([*encoded, b" "]))  # torch takes no empty buffer
        self.bytes = torch.frombuffer(joined, dtype=torch.uint8)

    def __len__(self):
        return len(self.ends) - 1

    def __getitem__(self, i):
        if not 0 <= i < len(self):
            raise IndexError(i)
        start, end = self.ends[i : i + 2].tolist()
        return self.bytes[start:end].numpy().tobytes().decode("utf-8", "surrogateescape")


def prepared_table(root):
    """The path of DIR/prepared/samples.csv."""
    return Path(root) / PREPARED / "samples.csv"


def read_table(path, errors="strict"):
    """Yield (place, [fields]) for each line of a csv file that is not blank; first its header.

    Commas, semicolons or tabs separate the fields; a byte order mark is skipped. place is "PATH,
    line N". ValueError for a file that is not UTF-8 or not csv.
    """
    rows = None
    try:
        with open(path, encoding="utf-8-sig", errors=errors, newline="") as file:
            separator = max(",;\t", key=file.readline().count)
            file.seek(0)
            rows = csv.reader(file, delimiter=separator, strict=True)
            for row in rows:
                if any(field.strip() for field in row):
                    yield f"{path}, line {rows.line_num}", row
    except UnicodeDecodeError as error:
        what = f"{error.reason} at byte {error.start}"
        raise ValueError(f"{path} is not UTF-8 text ({what}); save it as CSV UTF-8") from error
    except csv.Error as error:
        number = rows.line_num if rows else 1
        raise ValueError(f"{path}, line {number} is not csv ({error}); check its quotes") from error


def modality_columns(place, header):
    """{name: kind} of the columns `kind` or `kind:name` of a header; ValueError for others."""
    columns = {}
    for column in header:
        kind, _, name = (part.strip() for part in column.partition(":"))
        kind = kind.lower()
        name = name or kind
        if column in NO_MODALITY:
            continue
        if kind not in KINDS:
            expected = f"split, label, group, or a kind: {', '.join(KINDS)} (or kind:name)"
            raise ValueError(f"{place}: unknown column {column!r}, expected {expected}")
        if name in [*columns, "fused", "perf_gap"] or not re.fullmatch(r"[\w-]+", name):
            what = "is a bad or repeated name" if name != kind else "occurs twice"
            hint = f"give each its own name, like {kind}:left and {kind}:right"
            raise ValueError(f"{place}: column {column!r} {what}; {hint}")
        columns[name] = kind
    return columns


def own_table(root):
    """(columns, rows) of DIR/samples.csv: {name: kind}, and an iterator of (place, fields).

    fields: {"split", "label", "group": a text, "cells": one for each modality}. ValueError or
    FileNotFoundError, in one sentence, for a file that cannot be understood.
    """
    path = Path(root) / "samples.csv"
    if not path.is_file():
        expected = "expected a line for each sample, see docs/DATA.md#your-own-data"
        raise FileNotFoundError(f"{root} has no samples.csv; {expected}")
    lines = read_table(path)
    place, header = next(lines, (f"{path}, line 1", []))
    header = ";".join(map(str.strip, header)).rstrip(";").split(";")  # without empty columns behind
    header = [field.lower() if field.lower() in NO_MODALITY else field for field in header]
    if absent := [column for column in ("split", "label") if column not in header]:
        expected = "expected a first line like split,label,image,audio"
        raise ValueError(f"{place} is a header without {absent}: {header[:4]}; {expected}")
    columns = modality_columns(place, header)
    if len(columns) < 2:
        raise ValueError(f"{place} names {len(columns)} modality, expected two or more columns")

    def rows():
        for place, fields in lines:
            if len(fields) < len(header) or any(map(str.strip, fields[len(header) :])):
                expected = f"{len(header)}: {','.join(header)}; quote a field that has a separator"
                raise ValueError(f"{place} has {len(fields)} columns, expected {expected}")
            row = {"group": "", **dict(zip(header, map(str.strip, fields)))}
            yield place, row | {"cells": [row[c] for c in header if c not in NO_MODALITY]}

    return columns, rows()


def prepared_name(cell):
    """The name of a file's prepared version; a file in another folder has a hash of its path."""
    path = PurePosixPath(cell)
    if path.name == cell and ":" not in cell:
        return cell
    return f"{path.stem}-{hashlib.sha1(cell.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}"


def own_source(root, name, kind, cell):
    """(prepared name, source or None, original or None) of a cell of DIR/samples.csv."""
    if kind == "text":
        return "", cell, cell
    # As it is; as Windows writes paths; with accents as one character or, as on a Mac, as two.
    forms = [cell, cell.replace("\\", "/")]
    forms += [unicodedata.normalize(form, forms[1]) for form in ("NFC", "NFD")]
    cell = next((form for form in forms if os.path.exists(os.path.join(root, form))), cell)
    path, own = os.path.join(root, cell), prepared_name(cell)
    if not cell or not os.path.exists(path):
        return own, None, None
    if kind in ("image", "array") or os.path.isdir(path):
        return own, path, path
    made = os.path.join(root, PREPARED, name, own)
    return own, next(filter(os.path.exists, (f"{made}.npy", made)), None), path


def split_of(row):
    """The split of a row of own_table: train, val, test, or None for another word."""
    return SPLITS.get(row["split"].lower())


def read_own(root):
    """(columns, samples) of DIR/samples.csv; ValueError with file and line for a bad line."""
    columns, rows = own_table(root)
    samples, seen = [], {}
    for n, (place, row) in enumerate(rows):
        split, cells = split_of(row), row["cells"]
        if split is None or not row["label"]:
            expected = "expected the split train, val or test, and a label"
            raise ValueError(f"{place} has {row['split']!r} and {row['label']!r}; {expected}")
        first, before = seen.setdefault(tuple(cells), (split, place))
        if first != split:
            what = f"{place} repeats a sample of the split {first} ({before})"
            raise ValueError(f"{what}; a sample can be in one split only")
        found = [own_source(root, name, columns[name], c) for name, c in zip(columns, cells)]
        names, sources, originals = map(list, zip(*found))
        status, problem, group = "", "", row["group"] or f"sample {n}"
        if blank := [name for name, cell in zip(columns, cells) if not cell]:
            status, problem = "blank cell", f"{place}: {' and '.join(blank)} is blank"
        elif absent := [cell for cell, original in zip(cells, originals) if not original]:
            status = "missing"
            problem = f"{place}: no file {' and '.join(absent)} in {os.path.abspath(root)}"
        rest = [names, sources, originals, [None] * len(columns), status, problem]
        samples.append(Sample(split, row["label"], group, *rest))
    check_splits(root, samples)
    return columns, samples


def check_splits(root, samples):
    """Raise ValueError for data of one's own without both splits, or with a single class."""
    splits, classes = {s.split for s in samples}, {s.label for s in samples}
    path = Path(root) / "samples.csv"
    if absent := {"train", "test"} - splits:
        what = f"{path} has no sample of the split {' and '.join(sorted(absent))}"
        raise ValueError(f"{what}; name train or test in the column split of each line")
    if len(classes) < 2:
        raise ValueError(f"{path} has one class, {classes.pop()!r}; expected two or more")


def write_prepared(root, columns, rows):
    """Write DIR/prepared/samples.csv. rows: (Sample, status, problem, sources), a source a path.

    Paths below DIR are written relative to it, so that the folder can be moved.
    """
    root = os.fspath(root)

    def cell(source, kind, window):
        if source is None or kind == "text":
            return source or ""
        path = os.fspath(source)
        path = os.path.relpath(path, root) if path.startswith(os.path.join(root, "")) else path
        return ":".join(map(str, [path, *window])) if window else path

    path = prepared_table(root)
    how = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    with atomic(path) as part, open(part, "w", **how) as file:
        writer = csv.writer(file)
        headers = [kind if name == kind else f"{kind}:{name}" for name, kind in columns.items()]
        writer.writerow([*NO_MODALITY[:4], *headers, "problem"])
        for sample, status, problem, sources in rows:
            cells = map(cell, sources, columns.values(), sample.windows)
            writer.writerow([*sample[:3], status, *cells, problem])
    return path


class Prepared(NamedTuple):
    """What DIR/prepared/samples.csv says.

    splits: {split: (sources of each modality, labels, groups)} of the usable samples; counts:
    {split: Counter of status}; labels: those of all samples; problems: {split: the first problem}.
    """

    splits: dict
    counts: dict
    labels: set
    problems: dict


def read_prepared(root):
    """({name: kind}, Prepared) from DIR/prepared/samples.csv; ValueError if it is no such file."""
    lines = read_table(prepared_table(root), errors="surrogateescape")
    _, header = next(lines, (None, []))
    pairs = [column.partition(":") for column in header[4:-1]]
    kinds = {name or kind: kind for kind, _, name in pairs}
    splits = defaultdict(lambda: ([[] for _ in kinds], [], []))
    counts, labels, problems = defaultdict(Counter), set(), {}
    for place, fields in lines:
        if len(fields) != len(header):
            expected = f"{len(header)}; delete the file to prepare the data again"
            raise ValueError(f"{place} has {len(fields)} columns, expected {expected}")
        (split, label, group, status), cells, problem = fields[:4], fields[4:-1], fields[-1]
        counts[split][status] += 1
        labels.add(label)
        if status != USABLE:
            problems.setdefault(split, problem or f"{place}: {status}")
            continue
        sources, ys, groups = splits[split]
        ys.append(label)
        groups.append(group)
        for source, kind, cell in zip(sources, kinds.values(), cells):
            source.append(cell if kind == "text" else os.path.join(root, cell))
    for (name, kind), source in zip(kinds.items(), splits["train"][0]):
        if kind == "array":
            kinds[name] = array_kind(source)
    return kinds, Prepared(splits, counts, labels, problems)


def array_kind(paths):
    """ "vector" or, if the first of the .npy files that can be read has more dimensions, "grid"."""
    shapes = (shape for path in paths if (shape := array_shape(path)) is not None)
    return "vector" if len(next(shapes, (0,))) == 1 else "grid"


def class_index(labels, n_classes=None):
    """{label: class index}: sorted, and printed; of a published set, whose labels are numbers.

    n_classes: that of a published set; the list that is there can have more.
    """
    if n_classes:
        return {str(k): k for k in range(max(n_classes, 1 + max(map(int, labels))))}
    classes = sorted(labels)
    more = ", ..." if len(classes) > 20 else ""
    print(f"{len(classes)} classes: {', '.join(classes[:20])}{more}")
    return {label: k for k, label in enumerate(classes)}


def own_settings(folder):
    """The settings of train.py for data of one's own, by its kinds and its number of samples."""
    columns, rows = own_table(folder)
    kinds, rows = list(columns.values()), [row for _, row in rows]
    for j, kind in enumerate(kinds):
        if kind == "array":
            kinds[j] = array_kind(os.path.join(folder, row["cells"][j]) for row in rows)
    usual = {"text": "bert", "vector": "mlp"}
    n = sum(split_of(row) == "train" for row in rows)
    batch_size = 64 if n >= 1000 else 16
    epochs = min(50, max(10, 600 * batch_size // max(1, n)))  # about 600 steps, in 10 to 50 epochs
    result = {"encoders": ",".join(usual.get(kind, "cnn") for kind in kinds)}
    result |= {"batch_size": batch_size, "epochs": epochs, "alpha_batch": 32}
    result |= {"eta_alpha": 20 / epochs, "alpha_limit": 1 / epochs}  # as on keypad, where T is 10
    if "text" in kinds:
        return result | {"optimizer": "adam", "lr": 1e-4, "weight_decay": 0.0}
    return result
