"""samples.csv: the samples of a data set, a line each.

read_own        DIR/samples.csv, which a person writes for data of their own
write_prepared  DIR/prepared/samples.csv, which utils/prepare.py writes
read_prepared   the same file, which training reads; Outdated if the originals have changed

The first line of DIR/prepared/samples.csv is a comment in JSON: the format, the digest of each list
that the samples come from, and how many samples were usable before. After the column `problem`
follows, for each modality, the stamp of the original and its path.
"""

import csv
import itertools
import json
import os
import re
import unicodedata
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from utils.annotations import read_table
from utils.atomic import atomic
from utils.cli import SettingsError, amount, first_of, quoted
from utils.media import UnreadableFile, map_array, reading
from utils.modalities import ARRAYS, MODALITIES
from utils.origins import FORMAT, IN_THE_WAY, PREPARED, digest, in_the_way, stamp

SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
SPLITS |= dict.fromkeys(["val", "valid", "validation", "dev"], "val")
NO_MODALITY = ["split", "label", "group", "status", "problem"]
# The keys of the records of log.jsonl that are no modalities.
LOGGED = ["t", "alpha", "lr", "l_total", "l_cls", "l_mm", "split", "fused", "perf_gap", "test"]
LOGGED += ["hypergradient", "terms", "step", "damping", "curvature", "note"]  # of bilevel.py
LOGGED += ["stopped", "rates", "weights"]  # of baselines.py
USABLE = "usable"
MADE_CELL = re.compile(f"{PREPARED}/.*-[0-9a-f]{{12}}(\\.npy)?")  # of samples.csv, a made file


class Sample(NamedTuple):
    """A sample of an annotation file.

    For each modality: names, the stem of its prepared file; sources, a text or a path that is read
    as it is, or None; originals, the path from which its file is prepared, or None; windows, the
    (start, end) of its frames, or None. status: "" if it can be prepared, else the reason why not;
    problem: its details.
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


def modality_columns(place, header):
    """{name: kind} of the columns `kind` or `kind:name` of a header; ValueError for others."""
    columns = {}
    for column in header:
        kind, _, name = (part.strip() for part in column.partition(":"))
        kind = next((k for k in [*MODALITIES, "array"] if k.lower() == kind.lower()), kind)
        name = name or kind
        if column in NO_MODALITY:
            continue
        kinds = [*(k for k in MODALITIES if MODALITIES[k].own), "array"]
        if kind not in kinds:
            listed = ", ".join(k for k in kinds if k not in ARRAYS)
            expected = f"split, label, group, or a kind: {listed} (or kind:name)"
            what = f"{place}: unknown column {column!r}, expected {expected}"
            raise SettingsError(f"{what}; rename it, or delete the column")
        if name in [*columns, *LOGGED] or not re.fullmatch(r"[\w-]+", name):
            what = "is a bad, repeated or reserved name" if name != kind else "occurs twice"
            hint = f"give each its own name, like {kind}:left and {kind}:right"
            raise SettingsError(f"{place}: column {column!r} {what}; {hint}")
        columns[name] = kind
    return columns


def own_table(root, needed=("split", "label")):
    """(kinds, rows) of DIR/samples.csv: {name: kind}, and a list of (place, fields).

    fields: {"split", "label", "group": a text, "cells": one for each modality}. An array is of the
    kind vector or grid. SettingsError or FileNotFoundError, in one sentence, for a file that cannot
    be understood.
    """
    path = Path(root) / "samples.csv"
    if not path.is_file():
        what = f"{root} has no samples.csv, a line for each sample (docs/DATA.md#your-own-data)"
        command = f"python -m scripts.prepare --table {quoted(root)}"
        raise FileNotFoundError(f"{what}; from a folder for each class write it with {command}")
    lines = read_table(path)
    place, header = next(lines, (f"{path}, line 1", []))
    if header and header[0].lower() == "sep=":  # by Excel; its separator is that of the file
        place, header = next(lines, (place, []))
    header = [f.strip().lower() if f.strip().lower() in NO_MODALITY else f.strip() for f in header]
    while header and not header[-1]:
        header.pop()  # empty columns behind
    if absent := [column for column in needed if column not in header]:
        expected = "expected a first line like split,label,image,audio"
        found = f"is a header without {' and '.join(absent)}: {','.join(header[:4])}"
        what = f"{place} {found if header else 'is empty'}"
        raise SettingsError(f"{what}; {expected}")
    if twice := [column for column in NO_MODALITY if header.count(column) > 1]:
        raise SettingsError(f"{place} has the column {twice[0]} twice; remove one of them")
    kinds = modality_columns(place, header)
    n = len(kinds)
    if n < (2 if needed else 1):
        raise SettingsError(f"{place} names {n or 'no'} modality, expected two or more columns")
    rows = []
    for place, fields in lines:
        if len(fields) < len(header) or any(map(str.strip, fields[len(header) :])):
            expected = f"{len(header)}: {','.join(header)}; quote a field that has a separator"
            raise SettingsError(f"{place} has {len(fields)} columns, expected {expected}")
        row = {"split": "", "label": "", "group": "", **dict(zip(header, map(str.strip, fields)))}
        rows.append((place, row | {"cells": [row[c] for c in header if c not in NO_MODALITY]}))
    for j, (name, kind) in enumerate(kinds.items()):
        if kind == "array":
            kinds[name] = array_kind(located(root, row["cells"][j]) for _, row in rows)
    return kinds, rows


def located(root, cell):
    """The path of a cell of DIR/samples.csv, below the folder unless it is absolute.

    As it is; as Windows writes paths; with accents as one character or, as on a Mac, as two.
    """
    forms = [cell, cell.replace("\\", "/")]
    forms += [unicodedata.normalize(form, forms[1]) for form in ("NFC", "NFD")]
    paths = [os.path.join(root, form) for form in forms]
    return next(filter(os.path.exists, paths), paths[0])


def own_source(root, kind, cell):
    """(name, source, original) of a cell of DIR/samples.csv, see Sample."""
    if not (MODALITIES[kind].is_file and cell):
        return "", cell or None, None
    path = located(root, cell)
    as_it_is = MODALITIES[kind].make is None or os.path.isdir(path)
    return os.path.basename(path), path if as_it_is else None, path


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
            raise SettingsError(f"{place} has {row['split']!r} and {row['label']!r}; {expected}")
        found = [own_source(root, kind, cell) for kind, cell in zip(columns.values(), cells)]
        names, sources, originals = ([f[k] for f in found] for k in range(3))
        same = tuple(os.path.abspath(p) if p else cell for p, cell in zip(originals, cells))
        first, before = seen.setdefault(same, (split, place))
        if first != split:
            what = f"{place} repeats a sample of the split {first} ({before})"
            raise SettingsError(f"{what}; a sample can be in one split only")
        status, problem, group = "", "", row["group"] or f"sample {n}"
        if blank := [name for name, cell in zip(columns, cells) if not cell]:
            status, problem = "blank cell", f"{place}: {' and '.join(blank)} is blank"
        elif absent := [c for c, p in zip(cells, originals) if p and not os.path.exists(p)]:
            status = "missing"
            problem = f"{place}: no file {' and '.join(absent)} in {os.path.abspath(root)}"
        rest = [names, sources, originals, [None] * len(columns), status, problem]
        samples.append(Sample(split, row["label"], group, *rest))
    path, classes = Path(root) / "samples.csv", {sample.label for sample in samples}
    if absent := {"train", "test"} - {sample.split for sample in samples}:
        what = f"{path} has no sample of the split {' and '.join(sorted(absent))}"
        raise SettingsError(f"{what}; name train or test in the column split of each line")
    if len(classes) < 2:
        raise SettingsError(f"{path} has one class, {classes.pop()!r}; expected two or more")
    return columns, samples


def relative(path, root):
    """A path below the root as seen from there, so that the folder can be moved; else as it is."""
    path, prefix = os.fspath(path), os.path.join(root, "")
    if path.startswith(prefix):
        return path[len(prefix) :]  # the cell of a samples.csv, as it is
    below = os.path.relpath(path, root)
    return path if os.path.isabs(path) and below.startswith(os.pardir) else below


def write_prepared(root, columns, rows, about):
    """Write DIR/prepared/samples.csv.

    rows: (Sample, status, problem, sources, stamps), a source a path; about: its first line.
    """

    def source_cell(source, kind, window):
        if source is None or not MODALITIES[kind].is_file:
            return source or ""
        return ":".join(map(str, [relative(source, root), *(window or ())]))

    path = prepared_table(root)
    how = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    with atomic(path) as part, open(part, "w", **how) as file:
        file.write(f"# {json.dumps(about)}\n")
        writer = csv.writer(file)
        headers = [kind if name == kind else f"{kind}:{name}" for name, kind in columns.items()]
        origins = [f"stamp and original of {name}" for name in columns]
        writer.writerow([*NO_MODALITY[:4], *headers, "problem", *origins])
        for sample, status, problem, sources, stamps in rows:
            cells = map(source_cell, sources, columns.values(), sample.windows)
            writer.writerow([*sample[:3], status, *cells, problem, *stamps])
    return path


class Outdated(Exception):
    """DIR/prepared/samples.csv is missing or out of date; the message says why."""


def read_about(root):
    """The first line of DIR/prepared/samples.csv, see write_prepared.

    Outdated without one; SettingsError for a file that prepare did not write or nobody can read.
    """
    path = prepared_table(root)
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            line = file.readline()
    except FileNotFoundError as error:
        raise Outdated("it was not prepared before") from error
    except IN_THE_WAY as error:
        raise in_the_way(path, error) from error
    try:
        about = json.loads(line.removeprefix("# "))
        if not {"format", "lists", "usable", "usable before"} <= about.keys():
            raise ValueError
        return about
    except (ValueError, AttributeError) as error:
        if re.match('# {"format": |split,label,group,status,.*problem', line):
            raise Outdated("it was prepared by another version") from error
        what = f"{path} is not a list that prepare wrote, and would be overwritten"
        raise SettingsError(f"{what}; move it to another folder") from error


class Prepared(NamedTuple):
    """The content of DIR/prepared/samples.csv.

    splits: {split: (sources of each modality, labels, groups)} of the usable samples; counts:
    {split: Counter of status}; labels: of all samples; problems: {split: the first problem};
    before: {split: number of usable samples} when it was prepared before.
    """

    splits: dict
    counts: dict
    labels: set
    problems: dict
    before: dict


def check_lists(root, about):
    """Raise Outdated if a set was prepared in another way, or its lists have changed."""
    if about.get("format") != FORMAT:
        raise Outdated("it was prepared by another version")
    for name, before in about["lists"].items():
        path = os.path.join(root, name)
        if not os.path.isfile(path) or digest([path]) != before:
            raise Outdated(f"{path} has changed")


def check_stamp(root, cell):
    """Raise Outdated if an original is not as it was; cell: `SIZE TIME PATH`, or "" for none."""
    if cell:
        *before, path = cell.split(" ", 2)
        if stamp(located(root, path)).split() != before:
            raise Outdated(f"{os.path.join(root, path)} has changed")


def readable(root, cell):
    """Whether an original, a file or a folder with its files, may be read; see check_stamp."""
    path = located(root, cell.split(" ", 2)[-1])
    inside = [entry.path for entry in os.scandir(path)] if os.path.isdir(path) else []
    return all(os.access(p, os.R_OK) for p in [path, *inside])


def read_prepared(root, expected=None):
    """({name: kind}, Prepared) from DIR/prepared/samples.csv; Outdated if it is not up to date.

    expected: the kinds of a set of SETS.
    """
    about = read_about(root)
    check_lists(root, about)
    lines = read_table(prepared_table(root), errors="surrogateescape", comments=1)
    _, header = next(lines, (None, []))
    m = (len(header) - 5) // 2
    pairs = [column.partition(":") for column in header[4 : 4 + m]]
    kinds = {name or kind: kind for kind, _, name in pairs}
    if (expected and kinds != expected) or not {*kinds.values()} <= MODALITIES.keys():
        raise Outdated("it was prepared by another version")
    splits = defaultdict(lambda: ([[] for _ in kinds], [], []))
    counts, labels, problems = defaultdict(Counter), set(), {}
    for place, fields in lines:
        if len(fields) != 5 + 2 * m:
            raise Outdated(f"{place} has {len(fields)} columns, expected {5 + 2 * m}")
        (split, label, group, status), cells, problem = fields[:4], fields[4 : 4 + m], fields[4 + m]
        for cell in fields[5 + m :]:
            check_stamp(root, cell)
        counts[split][status] += 1
        labels.add(label)
        if status == "no permission" and all(readable(root, c) for c in fields[5 + m :] if c):
            raise Outdated(f"{place}: its files can be read now")
        if status != USABLE:
            problems.setdefault(split, problem or f"{place}: {status}")
            continue
        sources, ys, groups = splits[split]
        ys.append(label)
        groups.append(group)
        for source, kind, cell in zip(sources, kinds.values(), cells):
            source.append(os.path.join(root, cell) if MODALITIES[kind].is_file else cell)
            made = MADE_CELL.match(cell) if MODALITIES[kind].is_file else None
            if made and not os.path.exists(path := os.path.join(root, made[0])):
                raise Outdated(f"{path} is missing")
    return kinds, Prepared(splits, counts, labels, problems, about["usable before"])


def array_kind(paths):
    """ "vector" or, if most of the first 100 .npy files have more dimensions, "grid"."""
    dimensions = Counter()
    for path in itertools.islice(paths, 100):
        with suppress(UnreadableFile), reading(path):
            dimensions[map_array(path).ndim] += 1
    return "grid" if max(dimensions, key=dimensions.get, default=1) > 1 else "vector"


def alike(labels):
    """The groups of labels that differ only in case, accents, spaces or invisible characters."""
    groups = defaultdict(list)
    for label in sorted(labels):
        plain = unicodedata.normalize("NFKD", label).casefold()
        groups["".join(c for c in plain if unicodedata.category(c)[0] not in "MCZ")].append(label)
    return [group for group in groups.values() if len(group) > 1]


def class_index(labels, n_classes=None):
    """{label: class index}: sorted, and printed; of a published set, whose labels are numbers.

    n_classes: of a published set; the list in your folder can have more.
    """
    if n_classes:
        return {str(k): k for k in range(max(n_classes, 1 + max(map(int, labels))))}
    classes = sorted(labels)
    print(f"{amount(len(classes), 'class')}: {first_of(classes)}")
    for group in alike(classes):
        print(f"these classes look alike: {', '.join(map(ascii, group))}; correct a slip")
    return {label: k for k, label in enumerate(classes)}


def by_size(n):
    """The settings of train.py for n training samples: about 600 steps, in 10 to 50 epochs."""
    batch_size = 64 if n >= 1000 else 16
    epochs = min(50, max(10, 600 * batch_size // max(1, n)))
    few = n // batch_size < 12  # then 50 epochs of one pass have fewer than 600 steps
    return {
        "batch_size": batch_size,
        "epochs": epochs,
        "inner_iters": 12 if few else 0,
        "alpha_batch": 32,
        "eta_alpha": 20 / epochs,  # as on keypad, where T is 10
        "alpha_limit": 1 / epochs,
    }


def own_settings(folder):
    """The settings of train.py for data of your own, by their kinds and their number of samples."""
    kinds, rows = own_table(folder)
    settings = by_size(sum(split_of(row) == "train" for _, row in rows))
    settings["encoders"] = ",".join(MODALITIES[kind].encoders[0] for kind in kinds.values())
    if "text" in kinds.values():
        settings |= {"optimizer": "adam", "lr": 1e-4, "weight_decay": 0.0}
    return settings
