"""The data that a run was trained on, and today's data brought into the run's order by name."""

import copy
import dataclasses
import hashlib
import os

import torch

from utils.cli import SettingsError, first_of


def describe(data):
    """The record of a data.Data in log and checkpoints: names, kinds, channels, counts, folder."""
    counts, n = {}, len(data.classes)
    for split, samples in data.splits.items():
        counts[split] = torch.bincount(torch.as_tensor(samples.y), minlength=n).tolist()
    given = os.fspath(data.folder)
    return {
        "folder": {"given": given, "absolute": os.path.abspath(given)} if given else None,
        "classes": data.classes,
        "kinds": data.kinds,
        "channels": data.channels,
        "class_counts": counts,
        "samples": fingerprint(data, data.splits),
        "validation": fingerprint(data, {"val"} & data.splits.keys()),
    }


FACTS = {"folder", "classes", "kinds", "channels", "class_counts", "samples"}  # of describe


def fingerprint(data, splits):
    """A digest of the labels, texts and files of some splits, in any order of the samples."""
    prefix, rows = os.path.join(os.fspath(data.folder), ""), []
    for split in splits:
        samples = data.splits[split]
        part = "test" if split == "test" else "train"  # the held-out samples depend on the seed
        sources = [source for source in samples.sources if not torch.is_tensor(source)]
        for i, k in enumerate(torch.as_tensor(samples.y).tolist()):
            cells = [str(source[i]).removeprefix(prefix) for source in sources]
            rows.append(repr((part, data.classes[k], cells)))
    return hashlib.sha256("\n".join(sorted(rows)).encode()).hexdigest()


def find_data(run, recorded, place, own):
    """{"dataset" or "root": folder} where a run's data are: at `place`, if given, or as recorded.

    recorded: describe's folder. own: whether they are a folder of your own data, which may have
    moved; SettingsError if it does not exist.
    """
    if not place and recorded and os.path.isdir(recorded["absolute"]):
        if recorded["absolute"] == os.path.abspath(recorded["given"]):
            return {}
        place = recorded["absolute"]  # the program runs in another folder than the run's
    if own and not os.path.isdir(place or recorded["given"]):
        was = place or recorded["absolute"]
        raise SettingsError(f"the data of {run} are not in {was}; give their folder with --root")
    return at(place, own)


def at(place, own):
    """The settings that say where the data are, {} without a place; own: a folder of your own."""
    if not place:
        return {}
    return {"dataset": place, "root": ""} if own else {"root": place}


def listed(names):
    """The first names, separated by commas."""
    return first_of([repr(name) for name in names])


def as_trained(data, trained):
    """A data.Data with the modalities and classes of a run, in the run's order, by their names.

    trained: describe's dict of the run, or None. SettingsError for a modality that is missing or
    is of another kind, and for a class that the run does not know.
    """
    if trained is None:
        return data
    kinds, classes = trained["kinds"], trained["classes"]
    if not kinds.items() <= data.kinds.items():
        then, now = (", ".join(f"{n} ({k})" for n, k in x.items()) for x in (kinds, data.kinds))
        problem = f"the run was trained on the modalities {then}; these data have {now}"
        advice = "give them the names and kinds of the run, or train a new run"
        raise SettingsError(f"{problem}; {advice}")
    if unknown := [name for name in data.classes if name not in classes]:
        problem = f"the run does not know the class {listed(unknown)}; its classes are"
        raise SettingsError(f"{problem} {listed(classes)}; rename the class, or train a new run")
    index = torch.tensor([classes.index(name) for name in data.classes])
    chosen = [data.modalities.index(name) for name in kinds]
    splits = {}
    for split, samples in data.splits.items():
        splits[split] = copy.copy(samples)
        splits[split].sources = [samples.sources[j] for j in chosen]
        splits[split].readers = samples.readers and [samples.readers[j] for j in chosen]
        splits[split].y = index[torch.as_tensor(samples.y)]
    return dataclasses.replace(data, kinds=kinds, classes=classes, splits=splits)


def check_splits(args, splits):
    """SettingsError without the split to evaluate, or with too few training samples."""
    if args.eval and args.split not in splits:
        raise SettingsError(f"{args.eval} has no validation part; choose --split train or test")
    if (n := len(splits["train"])) < 2:
        raise SettingsError(f"{args.dataset} has {n} training sample here, expected 2 or more")


def check_channels(modalities, channels, trained):
    """SettingsError for inputs of another form than the run's."""
    for name, now, then in zip(modalities, channels, trained["channels"]):
        if now != then:
            problem = f"{name} has {now} channels, the run was trained on {then}"
            raise SettingsError(f"{problem}; give data of the same form, or train a new run")
