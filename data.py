"""The data sets: listing what is there, and preparing it (Sec. 4.1).

    python data.py prepare NAME --root DIR     decode videos and recordings once, look into every file

here               the paper's set
keypad             none: built in (digits.py)
spoken-digits      none: FSDD's recordings with handwritten digits (digits.py)
cremad             CREMA-D, audio and video
kinetics-sounds    KineticsSounds, audio and video
vggsound           VGGSound, audio and video
sarcasm            Sarcasm (HFM), image and text
twitter2015        Twitter2015, image and text
nvgesture          NVGesture, RGB, optical flow and depth

An entry of DATASETS is called with the data set's folder and a function that names m encoders. It returns a dict:
`modalities` (names, in order), `n_classes`, `train`, `test` and perhaps `val`: Samples; and `groups` (n,): training
samples of one group belong on the same side of a validation split.

Files are found by their names, anywhere below the folder. Classes come from fixed lists, never from the order in
which something was met.
"""

import ast
import csv
import functools
import itertools
import os
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from torch.utils.data import Sampler

import media
from digits import keypad, spoken_digits
from media import Samples, is_pointer, load_pretrained

CREMAD = ["NEU", "HAP", "SAD", "FEA", "DIS", "ANG"]
KINETICS_SOUNDS = [
    "blowing nose", "blowing out candles", "bowling", "chopping wood", "dribbling basketball", "laughing",
    "mowing lawn", "playing accordion", "playing bagpipes", "playing bass guitar", "playing clarinet",
    "playing drums", "playing guitar", "playing harmonica", "playing keyboard", "playing organ", "playing piano",
    "playing saxophone", "playing trombone", "playing trumpet", "playing violin", "playing xylophone",
    "ripping paper", "shoveling snow", "shuffling cards", "singing", "stomping grapes", "tap dancing",
    "tapping guitar", "tapping pen", "tickling",
]  # fmt: skip
NOT_SARCASM = {"exgag", "sarcasm", "sarcastic", "reposting", "<url>", "joke", "humour", "humor", "jokes", "irony",
               "ironic"}  # fmt: skip
ENDINGS = {"audio": ".wav", "video": ".mp4 .flv .avi .mkv .webm", "image": ".jpg .jpeg .png",
           "list": ".csv .txt .tsv .lst"}  # fmt: skip
KINDS = {ending: kind for kind, endings in ENDINGS.items() for ending in endings.split()}


class Batches(Sampler):
    """Batches of (position, seed) without end, pass after pass, for a DataLoader's batch_sampler.

    Each pass over the n samples has an order and augmentation seeds of its own that `key`, a list of ints, and its
    number fix; what is left over at its end is dropped. `first`: the batches to leave out, that were trained on before.
    """

    def __init__(self, n, batch_size, key, first=0):
        self.n, self.batch_size, self.key, self.first = n, min(n, batch_size), key, first

    def __len__(self):
        """Batches in one pass."""
        return self.n // self.batch_size

    def __iter__(self):
        done, within = divmod(self.first, len(self))
        for number in itertools.count(done):
            rng = np.random.default_rng([*self.key, number])
            keys = list(zip(rng.permutation(self.n).tolist(), rng.integers(2**62, size=self.n).tolist()))
            for i in range(within, len(self)):
                yield keys[i * self.batch_size : (i + 1) * self.batch_size]
            within = 0


def index(name, root):
    """What is below root, by kind: {"audio": {stem: path}, "video", "image", "frames", "list", "pointer": ...}.

    "frames" are folders of pictures; "list" has annotation files by their whole names; "pointer" has the git-lfs
    pointers, which are in no other kind. Where two files have one name, the one nearer to the root counts. ValueError
    or FileNotFoundError without a folder.
    """
    how = f"expected the folder of {name} (README, Data, {name}, says how to get it)"
    if not root:
        raise ValueError(f"{name} needs --root; {how}")
    if not Path(root).is_dir():
        raise FileNotFoundError(f"{root} is no folder; {how}")
    files = defaultdict(dict, root=root, name=name)
    folders = [os.fspath(root)]
    for folder in folders:  # which grows meanwhile: breadth first
        for entry in sorted(os.scandir(folder), key=lambda e: e.name):
            stem, ending = os.path.splitext(entry.name)
            ending = ending.lower()
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                if not (entry.is_symlink() and folder.startswith(os.path.realpath(entry.path))):
                    folders.append(entry.path)
                continue
            kind = KINDS.get(ending, ending)
            if kind == "image":
                parent, video = os.path.splitext(os.path.basename(folder))
                files["frames"].setdefault(parent if video in KINDS else parent + video, folder)
                if "image" not in SETS[name]["modalities"]:
                    continue
            if not entry.is_file():
                continue  # a link to nowhere
            small = entry.stat().st_size < 1024  # a pointer has about 130 bytes
            pointer = small and kind in ("audio", "video", "image") and is_pointer(entry.path)
            files["pointer" if pointer else kind].setdefault(entry.name if kind == "list" else stem, entry.path)
    return files


def annotation(files, *names):
    """The path of the first of these annotation files that is there; FileNotFoundError without one."""
    for name in names:
        if name in files["list"]:
            return files["list"][name]
    what = " or ".join(names)
    raise FileNotFoundError(f"{files['root']} has no {what}; README, Data, {files['name']}, says how to get it")


def lines(path):
    """(place, line) of every line that is not blank; place is "PATH, line N". ValueError where it is not UTF-8."""
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            for n, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}, line {n}", line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); get it anew") from error


def table(path, *columns):
    """(place, field, ...) of every line of a csv file, the fields of the named columns.

    They are found by a first line that names them, or where there is none by their order. ValueError for a line that
    has too few or too many.
    """
    at, width = range(len(columns)), len(columns)
    for n, (place, line) in enumerate(lines(path)):
        try:
            fields = [field.strip() for field in next(csv.reader([line], strict=True))]
        except csv.Error as error:
            raise ValueError(f"{place} is no line of a csv file ({error}); get the file anew") from error
        names = [field.lower() for field in fields]
        if n == 0 and set(names) & set(columns):
            if absent := [c for c in columns if c not in names]:
                raise ValueError(f"{place} is a header without {absent}, expected {list(columns)}")
            at, width = [names.index(c) for c in columns], len(names)
        elif len(fields) != width:
            raise ValueError(f"{place} has {len(fields)} columns, expected {width}: {', '.join(columns)}")
        else:
            yield place, *(fields[i] for i in at)


def class_index(place, label, classes):
    """The number of a label, classes: {label: number}; ValueError for one that is not there."""
    if label not in classes:
        known = list(classes) if len(classes) < 40 else f"{len(classes)} classes from {min(classes)!r} on"
        raise ValueError(f"{place}: unknown label {label!r}, expected one of {known}")
    return classes[label]


def numbers(labels):
    return {label: k for k, label in enumerate(labels)}


def clip_names(place, video, start):
    """How the files of a 10 s clip of YouTube's may be called; ValueError for what is no clip."""
    if not (len(video) == 11 and start.isdecimal()):
        raise ValueError(f"{place} is {video!r} from {start!r}, expected a YouTube id and a start in seconds")
    t = int(start)
    return [f"{video}_{t:06d}", f"{video}_{t:06d}_{t + 10:06d}", f"{video}_{t}", f"{video}_{t}000_{t + 10}000", video]


# A listing function takes what `index` found. It yields (split, class, group, names, wanted) for each sample of the
# annotation files: the names by which its files may go, and what LOCATE is to look for, one per modality.


def list_cremad(files):
    """train.csv and test.csv of OGM-GE, `1088_IOM_NEU_XX,NEU`. A group is an actor."""
    classes = numbers(CREMAD)
    for split in ("train", "test"):
        for place, name, label in table(annotation(files, f"{split}.csv"), "name", "label"):
            names = [name.removesuffix(".wav").removesuffix(".flv")]
            yield split, class_index(place, label, classes), name[:4], names, [names, names]


def list_kinetics_sounds(files):
    """my_train.txt and my_test.txt of OGM-GE, `--4-0ihtnBU_000058_000068,10,4`; else train, test.csv by id alone."""
    ours = "my_train.txt" in files["list"]
    classes = numbers(map(str, range(len(KINETICS_SOUNDS)))) if ours else numbers(KINETICS_SOUNDS)
    for split in ("train", "test"):
        if ours:
            found = table(annotation(files, f"my_{split}.txt"), "name", "length", "class")
        else:
            found = table(annotation(files, f"{split}.csv"), "youtube_id", "label")
        for place, name, *_, label in found:
            names = clip_names(place, name[:11], name[12:].split("_")[0]) if ours else [name]
            yield split, class_index(place, label, classes), name[:11], names, [names, names]


def list_vggsound(files):
    """vggsound.csv, `---g-f_I2yQ,1,people marching,test`; else train.csv, test.csv, `glLQrEijrKg_000300.mp4,label`.

    The classes are the sorted names of stat.csv, or where it is not there of the whole list.
    """
    if "vggsound.csv" in files["list"]:
        found = list(table(files["list"]["vggsound.csv"], "id", "start", "label", "split"))
    else:
        found = [(place, name[:11], name[12:].split(".")[0], label, split) for split in ("train", "test")
                 for place, name, label in table(annotation(files, f"{split}.csv"), "name", "label")]  # fmt: skip
    stat = files["list"].get("stat.csv")
    labels = [row[1] for row in table(stat, "label", "count", "group")] if stat else [row[3] for row in found]
    classes = numbers(sorted(set(labels)))
    print(f"vggsound: {len(classes)} classes (309 in the published lists, 310 in the paper)")
    for place, video, start, label, split in found:
        if split not in ("train", "test"):
            raise ValueError(f"{place}: unknown split {split!r}, expected train or test")
        names = clip_names(place, video, start)
        yield split, class_index(place, label, classes), video, names, [names, names]


def list_sarcasm(files):
    """train, valid2 and test2.txt of HFM, a Python list a line: [id, text, ..., label]. Parsed, never evaluated.

    Left out are the tweets whose words give the answer away: their images were never published.
    """
    texts = {"train": ["train.txt"], "val": ["valid2.txt", "valid.txt"], "test": ["test2.txt", "test.txt"]}
    for split, names in texts.items():
        for place, line in lines(annotation(files, *names)):
            try:
                image, sentence, *_, label = ast.literal_eval(line)
                if not (image.isdecimal() and sentence.strip() and label in (0, 1)):
                    raise ValueError
            except (ValueError, TypeError, AttributeError, SyntaxError, MemoryError, RecursionError):
                raise ValueError(f"{place} is not ['tweet id', 'text', label 0 or 1]; get the file anew") from None
            if not NOT_SARCASM & set(sentence.split()):
                yield split, int(label), image, [image], [[image], sentence]


def list_twitter2015(files):
    """train, dev and test.tsv of TomBERT: index, sentiment 0 to 2, image, sentence with $T$ for its target, target."""
    for split, name in [("train", "train.tsv"), ("val", "dev.tsv"), ("test", "test.tsv")]:
        for n, (place, line) in enumerate(lines(annotation(files, name))):
            fields = line.split("\t")
            if n == 0 and not fields[0].isdecimal():
                continue  # a header, whose names are not to be trusted: test.tsv's are four for five columns
            if len(fields) != 5 or not fields[0].isdecimal() or fields[1] not in ("0", "1", "2"):
                raise ValueError(f"{place} is not index, sentiment 0 to 2, image, sentence, target; get the file anew")
            image = os.path.splitext(fields[2])[0]
            # Paper silent: what becomes of the target, which alone tells apart the rows of one image. Here: put back.
            yield split, int(fields[1]), image, [image], [[image], fields[3].replace("$T$", fields[4])]


def list_nvgesture(files):
    """NVIDIA's lists, version 2: `path:./Video_data/class_01/subject3_r0 depth:sk_depth:146:226 color:...`.

    The label is the list's, not the folder's. A group is a subject.
    """
    form = re.compile(r"path:(\S+) depth:(\w+):(\d+):(\d+) color:(\w+):(\d+):(\d+) .*label:(\d+)\s*")
    for split in ("train", "test"):
        path = annotation(files, *(f"nvgesture_{split}_correct{v}_v2.lst" for v in ("_cvpr2016", "")))
        for n, (place, line) in enumerate(lines(path)):
            match = form.fullmatch(line)
            if not match or not 1 <= int(match[8]) <= 25:
                raise ValueError(f"{place} is not path:.. depth:..:.. color:..:.. label:1 to 25; get the file anew")
            folder = os.path.join(os.path.dirname(path), match[1])
            name = "-".join(Path(match[1]).parts[-2:])
            depth, rgb = ((os.path.join(folder, match[i]), int(match[i + 1]), int(match[i + 2])) for i in (2, 5))
            wanted = [("rgb", name, *rgb), (name, f"{split}/{n}"), ("depth", name, *depth)]
            yield split, int(match[8]) - 1, match[1].rsplit("/", 1)[1].split("_")[0], [name], wanted


def named(kind):
    """A function that finds the first file of a kind that goes by one of the names."""
    return lambda names, files: next((files[kind][n] for n in names if n in files[kind]), None)


def kept(modality, names, files):
    """The numbers that `prepare` kept of a recording or, with --raw, of a video, if there are any."""
    path = os.path.join(files["root"], PREPARED, modality, f"{names[0]}.npy")
    return path if os.path.isfile(path) else None


def frames(names, files):
    """A video's ten frames as bytes, or else a folder of its pictures."""
    return kept("video", names, files) or named("frames")(names, files)


def window(wanted, files):
    """A gesture's frames: those that `prepare` wrote, or the stream's own folder, STREAM or STREAM_all."""
    modality, name, stream, start, end = wanted
    folders = [os.path.join(files["root"], PREPARED, modality, name), stream, f"{stream}_all"]
    return next(((folder, start, end) for folder in folders if os.path.isdir(folder)), None)


def flow_file(wanted, files):
    """A gesture's flow: the one that `prepare` wrote, or flow_data/SPLIT/ROW.npy."""
    name, row = wanted
    paths = [os.path.join(PREPARED, "flow", name), os.path.join("Video_data", "flow_data", row)]
    paths = [os.path.join(files["root"], f"{path}.npy") for path in paths]
    return next(filter(os.path.exists, paths), None)


LOCATE = {"audio": functools.partial(kept, "audio"), "video": frames, "image": named("image"),
          "text": lambda text, files: text, "rgb": window, "flow": flow_file, "depth": window}  # fmt: skip
READERS = {"audio": media.sound, "video": media.clip, "image": media.picture, "text": media.text, "rgb": media.clip,
           "flow": media.flow, "depth": media.clip}  # fmt: skip
PREPARED = "prepared"  # the folder below the root that `prepare` writes into

AUDIO_VIDEO, IMAGE_TEXT = ["audio", "video"], ["image", "text"]
SETS = {  # paper: the numbers of samples that it prints
    "cremad": {"list": list_cremad, "modalities": AUDIO_VIDEO, "n_classes": 6, "seconds": 3,
               "paper": {"train": 6698, "test": 744}},
    "kinetics-sounds": {"list": list_kinetics_sounds, "modalities": AUDIO_VIDEO, "n_classes": 31, "seconds": 10,
                        "paper": {"train": 15000, "val": 1900, "test": 1900}},
    "vggsound": {"list": list_vggsound, "modalities": AUDIO_VIDEO, "n_classes": 309, "seconds": 10,
                 "paper": {"train": 168618, "test": 13954}},
    "sarcasm": {"list": list_sarcasm, "modalities": IMAGE_TEXT, "n_classes": 2,
                "paper": {"train": 19816, "val": 2410, "test": 2409}},
    "twitter2015": {"list": list_twitter2015, "modalities": IMAGE_TEXT, "n_classes": 3,
                    "paper": {"train": 3179, "val": 1122, "test": 1037}},
    "nvgesture": {"list": list_nvgesture, "modalities": ["rgb", "flow", "depth"], "n_classes": 25,
                  "paper": {"train": 1050, "test": 482}},
}  # fmt: skip


def defaults(name):
    """The settings of train.py that a set brings with it (Sec. 4.1); a flag given by hand wins."""
    if name not in SETS:
        return {}
    # Paper silent: T, the plateau's patience; Eq. 3's batches, of 32 so that two ResNet18 leave room on 24 GB; how fast
    # alpha moves, here at most by 1 / T in an epoch as on keypad; Adam's weight decay; all of them for NVGesture.
    common = {"workers": min(8, os.cpu_count()), "epochs": 100, "plateau": 10}
    common |= {"alpha_batch": 32, "eta_alpha": 0.2, "alpha_limit": 0.01}
    if "text" in SETS[name]["modalities"]:
        adam = {"optimizer": "adam", "lr": 1e-4, "weight_decay": 0.0, "batch_size": 128}
        return common | adam | {"encoders": "resnet50,bert"}
    # Departs from paper: weight decay 1e-1, with which ResNet18 scored near chance (README, Results).
    sgd = {"lr": 1e-2, "weight_decay": 1e-4, "batch_size": 32 if name == "nvgesture" else 256}
    return common | sgd | {"encoders": "resnet18"}


def readers(modalities, encoders, seconds):
    """The reader of each modality, as its encoder needs it: a text is cut into the tokens of `bert:SOURCE`."""
    read = []
    for modality, encoder in zip(modalities, encoders):
        name, _, source = encoder.partition(":")
        if name not in {"text": ["bert", "clip"], "image": ["cnn", "resnet18", "resnet50", "clip"]}.get(
            modality, ["cnn", "resnet18", "resnet50"]
        ):
            raise ValueError(f"encoder {name!r} cannot encode {modality}; give --encoders one per modality")
        if modality == "text":
            from transformers import AutoTokenizer

            options = {"tokenizer": load_pretrained(AutoTokenizer, source)}
        else:
            # Paper silent: how the 80 frames of a gesture are read. Here: 8 of them, never mirrored.
            options = {"audio": {"seconds": seconds}, "image": {}, "video": {}, "flow": {"frames": 8},
                       "rgb": {"frames": 8, "flip": False},
                       "depth": {"frames": 8, "flip": False, "mode": "L"}}[modality]  # fmt: skip
        read.append(functools.partial(READERS[modality], **options))
    return read


def reported(root):
    """{name: reason} of the samples that `prepare` found broken."""
    path = Path(root) / PREPARED / "broken.csv"
    return {name: reason for _, name, reason, _ in table(path, "name", "reason", "what")} if path.is_file() else {}


def original(modality, names, wanted, files):
    """The video or recording that `prepare` would make a modality's files from, or None."""
    if modality in ("rgb", "depth"):
        path = f"{wanted[2]}.avi"
        return path if os.path.isfile(path) else None
    return (modality == "audio" and named("audio")(names, files)) or named("video")(names, files)


def absence(modalities, names, sources, originals, files):
    """Why a sample's files are not to be had: "git-lfs pointer", "missing", or "not prepared", which can be mended."""
    if any(name in files["pointer"] for name in names):
        return "git-lfs pointer"
    made = (s or o or m == "flow" for m, s, o in zip(modalities, sources, originals))  # flow is made of the frames
    return "not prepared" if all(made) else "missing"


def gather(name, root, encoders):
    """An entry of DATASETS for one of SETS: every sample that is there; what is not is counted and printed.

    FileNotFoundError where a split has none.
    """
    own, files, bad = SETS[name], index(name, root), reported(root)
    splits = defaultdict(lambda: ([[] for _ in own["modalities"]], [], []))
    counts, n_classes = defaultdict(Counter), own["n_classes"]
    for split, label, group, names, wanted in own["list"](files):
        sources = [LOCATE[m](w, files) for m, w in zip(own["modalities"], wanted)]
        reason = bad.get(names[0]) or "found"
        if reason == "found" and not all(sources):
            originals = [original(m, names, w, files) for m, w in zip(own["modalities"], wanted)]
            reason = absence(own["modalities"], names, sources, originals, files)
        counts[split][reason] += 1
        n_classes = max(n_classes, label + 1)
        if reason == "found":
            xs, y, groups = splits[split]
            y.append(label)
            groups.append(group)
            for x, source in zip(xs, sources):
                x.append(source)
    for split in own["paper"]:
        if split in counts or split != "val":  # a list need not have the paper's validation part
            check_found(name, root, split, counts[split])
    read = readers(own["modalities"], encoders(len(own["modalities"])), own.get("seconds"))
    parts = {split: Samples(xs, y, read) for split, (xs, y, _) in splits.items()}
    return {"modalities": own["modalities"], "n_classes": n_classes, "groups": np.array(splits["train"][2]), **parts}


def check_found(name, root, split, count):
    """Print how many samples of a split were found, beside the paper's number; FileNotFoundError if none was."""
    lost = ", ".join(f"{n} {reason}" for reason, n in sorted(count.items()) if reason != "found")
    print(f"{name} {split}: {count['found']} of {count.total()} found (paper: {SETS[name]['paper'][split]})"
          + f"; {lost}" * bool(lost))  # fmt: skip
    if not count["found"]:
        looked = {"audio": f"{PREPARED}/audio/<id>.npy", "video": "<id>/*.jpg", "image": "<id>.jpg",
                  "rgb": "<clip>/sk_color/*.jpg", "depth": "<clip>/sk_depth/*.jpg",
                  "flow": f"{PREPARED}/flow/<clip>.npy"}  # fmt: skip
        files = " and ".join(looked[m] for m in SETS[name]["modalities"] if m in looked)
        help = f"; run python data.py prepare {name} --root {root}" * ("not prepared" in count)
        help += "; run `git lfs pull` in the clone" * ("git-lfs pointer" in count)
        raise FileNotFoundError(f"no {split} sample of {name} is below {root} ({lost or 'its list is empty'}): "
                                f"looked for {files}{help}; README, Data, {name}, says how to get them")  # fmt: skip


DATASETS = {"keypad": keypad, "spoken-digits": spoken_digits}
DATASETS |= {name: functools.partial(gather, name) for name in SETS}


if __name__ == "__main__":
    import prepare

    sys.exit(prepare.main())
