"""What a run was trained on: its record, and today's data brought into the run's order by name."""

import copy
import os

import torch

from utils.cli import SettingsError

SHOWN = 20  # names in a message


def describe(data):
    """What the log and the checkpoints say about load_data's dict: names, kinds, folder, counts."""
    counts, n = {}, len(data["classes"])
    for split in ("train", "val", "test"):
        if split in data:
            y = torch.as_tensor(data[split].y)
            counts[split] = torch.bincount(y, minlength=n).tolist()  # in the order of classes
    given = os.fspath(data["folder"])
    return {
        "folder": {"given": given, "absolute": os.path.abspath(given)} if given else None,
        "classes": data["classes"],
        "kinds": data["kinds"],
        "channels": data["channels"],
        "class_counts": counts,
    }


def find_data(run, recorded, place, own):
    """{"dataset" or "root": folder} where a run's data are: at `place`, if given, or as recorded.

    recorded: describe's folder. own: whether they are a folder of one's own data, which may have
    moved; SettingsError if it is not there.
    """
    if not place and recorded and os.path.isdir(recorded["absolute"]):
        if recorded["absolute"] == os.path.abspath(recorded["given"]):
            return {}
        place = recorded["absolute"]  # the program runs in another folder than the run's
    if own and not os.path.isdir(place or recorded["given"]):
        was = place or recorded["absolute"]
        raise SettingsError(f"the data of {run} are not in {was}; give their folder with --root")
    if not place:
        return {}
    return {"dataset": place, "root": ""} if own else {"root": place}


def listed(names):
    """The first names, separated by commas."""
    return ", ".join(map(repr, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")


def other_modalities(kinds, trained):
    """The error for modalities, {name: kind}, that are not those of the run."""
    then, now = (", ".join(f"{n} ({k})" for n, k in x.items()) for x in (trained["kinds"], kinds))
    what = f"the run was trained on the modalities {then}; these data have {now}"
    return SettingsError(f"{what}; give them the names and kinds of the run, or train a new run")


def in_order(kinds, found, trained):
    """(kinds, Prepared) of utils.prepare.collect with the run's modalities, in the run's order."""
    if trained is None:
        return kinds, found
    if not trained["kinds"].items() <= kinds.items():
        raise other_modalities(kinds, trained)
    chosen = [[*kinds].index(name) for name in trained["kinds"]]
    splits = {}
    for split, (sources, *rest) in found.splits.items():
        splits[split] = ([sources[j] for j in chosen], *rest)
    return trained["kinds"], found._replace(splits=splits)


def as_trained(data, trained, root=""):
    """load_data's dict, complete, with the class indices of the run; trained: describe's, or None.

    SettingsError for a class that the run does not know, and for other modalities or channels.
    """
    names = data["modalities"]
    usual = {"folder": root, "kinds": dict(zip(names, names))}
    data = usual | {"classes": [str(k) for k in range(data["n_classes"])]} | data
    if trained is None:
        return data
    if [*data["kinds"].items()] != [*trained["kinds"].items()]:
        raise other_modalities(data["kinds"], trained)
    for name, now, then in zip(trained["kinds"], data["channels"], trained["channels"]):
        if now != then:
            what = f"{name} has {now} channels, the run was trained on {then}"
            raise SettingsError(f"{what}; give data of the same form, or train a new run")
    classes = trained["classes"]
    if unknown := [name for name in data["classes"] if name not in classes]:
        what = f"the run does not know the class {listed(unknown)}; its classes are"
        raise SettingsError(f"{what} {listed(classes)}; rename the class, or train a new run")
    index = torch.tensor([classes.index(name) for name in data["classes"]])
    for split in {"train", "val", "test"} & {*data}:
        data[split] = copy.copy(data[split])
        data[split].y = index[torch.as_tensor(data[split].y)]
    return data | {"classes": classes, "n_classes": len(classes)}
