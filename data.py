"""The data sets, what a sample becomes, and the batches of training (Sec. 4.1).

SETS               the paper's six sets; defaults(name) has their settings
load               one of them, or a folder of your own with a samples.csv
keypad             ours, built in: see a handwritten digit, hear its telephone key
spoken_digits      ours: recordings of spoken digits (FSDD) with handwritten digits

An entry of DATASETS is called as (root, encoders): the data set's folder, and a function that gives
the names of m encoders. It returns a dict: `modalities` (names), `n_classes`, `train`, `test` and
in some sets `val` (Samples), and `groups` (n,): a group of training samples is held out together.
docs/DATA.md says how to get each set.
"""

import functools
import itertools
import os

import numpy as np
import torch
from torch.utils.data import Dataset

from utils import digits, distributed, media
from utils.cli import SettingsError, check_choice
from utils.loader import identity, make_loader
from utils.prepare import collect
from utils.pretrained import is_text, load_tokenizer
from utils.samples import Strings, class_index, own_settings
from utils.trained import as_trained, in_order

AUDIO_VIDEO, IMAGE_TEXT = ["audio", "video"], ["image", "text"]
SETS = {  # paper: the paper's train, val and test sample counts; seconds: of sound, default 10
    "cremad": {"modalities": AUDIO_VIDEO, "n_classes": 6, "seconds": 3, "paper": [6698, 0, 744]},
    "kinetics-sounds": {"modalities": AUDIO_VIDEO, "n_classes": 31, "paper": [15000, 1900, 1900]},
    "vggsound": {"modalities": AUDIO_VIDEO, "n_classes": 309, "paper": [168618, 0, 13954]},
    "sarcasm": {"modalities": IMAGE_TEXT, "n_classes": 2, "paper": [19816, 2410, 2409]},
    "twitter2015": {"modalities": IMAGE_TEXT, "n_classes": 3, "paper": [3179, 1122, 1037]},
    "nvgesture": {"modalities": ["rgb", "flow", "depth"], "n_classes": 25, "paper": [1050, 0, 482]},
}


def defaults(name, device="auto"):
    """The settings of train.py that a data set replaces on a device (Sec. 4.1); a flag wins."""
    if name not in SETS:
        if name in (None, *DATASETS):
            return {}
        if not os.path.isdir(name):
            check_choice("data set or folder", name, DATASETS)
        return own_settings(name)
    # Paper silent: T, the plateau's patience, Eq. 3's batches, alpha's steps, Adam's weight decay,
    # the precision, all of NVGesture. Here: batches of 32 in Eq. 3 (NVGesture's 24 frames: 8) and,
    # on a GPU, bfloat16 in theta's steps, so that all fits into 24 GB; alpha moves by at most 1 / T
    # in an epoch, as on keypad.
    common = {"workers": min(8, os.cpu_count()), "epochs": 100, "plateau": 10}
    common |= {"bf16": distributed.has_bf16(device)}
    common |= {"alpha_batch": 32, "eta_alpha": 0.2, "alpha_limit": 0.01}
    if "text" in SETS[name]["modalities"]:
        adam = {"optimizer": "adam", "lr": 1e-4, "weight_decay": 0.0, "batch_size": 128}
        return common | adam | {"encoders": "resnet50,bert"}
    # Departs from paper: weight decay 1e-4, not 1e-1, with which ResNet18 scored near chance.
    sgd = {"lr": 1e-2, "weight_decay": 1e-4, "encoders": "resnet18"}
    # Departs from paper: batches of 128, not 256, where sound lasts ten seconds, to fit 24 GB.
    sgd |= {"batch_size": 256 if name == "cremad" else 128}
    sgd |= {"batch_size": 32, "alpha_batch": 8} if name == "nvgesture" else {}
    return common | sgd


class Samples(Dataset):
    """Samples (x^(1), ..., x^(m), y) of one split.

    sources: for each modality n inputs of its reader (texts or tensors); y: n class indices.
    samples[i] is sample i without augmentation, samples[i, seed] is augmented with that seed.
    """

    def __init__(self, sources, y, readers):
        self.sources, self.y, self.readers = sources, y, readers

    def __len__(self):
        return len(self.y)

    def __getitem__(self, key):
        i, seed = key if isinstance(key, tuple) else (key, None)
        x = [read(source[i], seed) for read, source in zip(self.readers, self.sources)]
        return *x, self.y[i]

    def subset(self, chosen):
        """The samples at the positions `chosen`."""
        sources = [take(source, chosen) for source in self.sources]
        return Samples(sources, take(self.y, chosen), self.readers)


def take(values, chosen):
    return values[chosen] if torch.is_tensor(values) else type(values)([values[i] for i in chosen])


# A reader is called as (source, seed). Without a seed nothing is augmented; with one, the
# augmentation is a function of the seed. Images stay uint8, sounds float16: see normalize.


def sound(path, seed=None, seconds=10):
    """A prepared spectrogram: (1, 257, 299) for 3 s, (1, 257, 1004) for 10 s, float16."""
    return torch.from_numpy(np.array(media.read_spectrogram(path, seconds), np.float16))[None]


def picture(path, seed=None):
    """An image file: (3, 224, 224) uint8."""
    return media.crop(media.read_image(path), seed, flip=True)


def clip(source, seed=None, frames=3, mode="RGB", flip=True):
    """Frames of a clip, one from each of `frames` equal parts: (frames, C, 224, 224) uint8."""
    images = media.read_frames(source, frames, seed, mode, cropped=True)
    return media.resize(images, flip and media.is_mirrored(seed))


def flow(path, seed=None, frames=8):
    """Optical flow in pixels, likewise: (frames, 2, 224, 224) float32."""
    return media.crop(media.read_flow(path, frames, seed), seed, flip=False)


def text(sentence, seed=None, tokenizer=None, length=128):
    """A sentence's L <= length token ids and its attention mask of ones: (2, L) int64."""
    length = min(length, tokenizer.model_max_length)
    codes = tokenizer(sentence, truncation=True, max_length=length)
    return torch.tensor([codes["input_ids"], codes["attention_mask"]])


def gesture(source, seed=None, mode="RGB"):
    """Eight frames of FOLDER:START:END, never mirrored: (8, C, 224, 224) uint8."""
    # Paper silent: how the 80 frames of a gesture are read. Here: 8 of them, never mirrored.
    folder, start, end = source.rsplit(":", 2)
    return clip((folder, int(start), int(end)), seed, 8, mode, flip=False)


READERS = {"audio": sound, "video": clip, "image": picture, "text": text, "rgb": gesture}
READERS |= {"flow": flow, "depth": functools.partial(gesture, mode="L")}
READERS |= {"vector": media.vector, "grid": media.grid}  # an array of one or of three dimensions
CONVOLUTIONAL = ["cnn", "resnet18", "resnet50"]
FITTING = {"text": ["bert", "clip"], "image": [*CONVOLUTIONAL, "clip"], "vector": ["mlp"]}
BUILT_IN = [*CONVOLUTIONAL, "bert", "clip", "mlp"]  # your own encoder can be for all but text


def make_readers(kinds, encoders, seconds):
    """The reader of each modality; a text is cut into the tokens of its encoder, `bert:SOURCE`."""
    readers = []
    for kind, encoder in zip(kinds, encoders):
        name, _, source = encoder.partition(":")
        fitting = FITTING.get(kind, CONVOLUTIONAL)
        if name not in fitting and (name in BUILT_IN or kind == "text"):
            raise SettingsError(f"encoder {name!r} cannot encode {kind}; choose from {fitting}")
        options = {"seconds": seconds} if kind == "audio" else {}
        if kind == "text":
            options["tokenizer"] = load_tokenizer(source)
        readers.append(functools.partial(READERS[kind], **options))
    return readers


def load(name, root="", encoders=None, trained=None):
    """A set of SETS, or your own folder `name`; prepared first if it is not yet.

    FileNotFoundError if the training or the test split has no usable sample.
    """
    known = SETS.get(name, {})
    if root and not known:
        raise SettingsError(f"{name} is a folder of your own data; leave --root out")
    root, seconds = root or (f"data/{name}" if known else name), known.get("seconds", 10)
    kinds, found = collect(name, root, known.get("modalities"), seconds, known.get("paper"))
    kinds, found = in_order(kinds, found, trained)
    readers = make_readers(kinds.values(), encoders(len(kinds)), seconds)
    index, splits = class_index(found.labels, known.get("n_classes")), {}
    for split, (sources, labels, _) in found.splits.items():
        y = torch.tensor([index[label] for label in labels])
        splits[split] = Samples([Strings(source) for source in sources], y, readers)
    names = {"modalities": [*kinds], "kinds": kinds, "n_classes": len(index), "classes": [*index]}
    return {**names, "folder": root, "groups": np.array(found.splits["train"][2]), **splits}


def paired(modalities, splits, groups):
    """A built-in set from {split: (x, y)}, x normalized by the training split's mean and std."""
    scales = [(x_j.mean(), x_j.std()) for x_j in splits["train"][0]]
    samples = {}
    for split, (x, y) in splits.items():
        x = [torch.tensor((x_j - mean) / std).float() for x_j, (mean, std) in zip(x, scales)]
        samples[split] = Samples(x, torch.tensor(y), [identity] * len(x))
    return {"modalities": modalities, "n_classes": 10, "groups": groups, **samples}


def keypad(root="", encoders=None):
    """See a handwritten digit, hear its telephone key: 14,376 pairs to train, 1,198 to test.

    A pair shares more than its class, as the streams of one clip do: the further right the digit
    is, the later the key is heard.
    """
    if root:
        raise SettingsError("keypad is built in and takes no --root; spoken-digits has recordings")
    rng = np.random.default_rng(0)
    splits, groups = {}, {}
    for split, (images, labels) in digits.handwritten_digits(rng).items():
        groups[split] = np.repeat(np.arange(len(labels)), digits.KEYPAD_COPIES[split])
        image, column = digits.place_on_canvas(images[groups[split]], rng)
        y = labels[groups[split]]
        # --- exercise: change below ---
        modalities = ["image", "sound"]
        x = [image, digits.spectrograms(digits.dtmf_tones(y, column, rng))]
        # --- end ---
        splits[split] = x, y
    return paired(modalities, splits, groups["train"])


def spoken_digits(root="", encoders=None):
    """Recordings with handwritten digits of their class: 13,500 pairs to train, 1,200 to test.

    Both are divided into ten folds, and a pair is of one fold: a validation split of whole folds
    has no image and no recording in common with the rest.
    """
    root = root or "data/spoken-digits"
    splits, groups = digits.spoken_pairs(root, np.random.default_rng(0))
    return paired(["image", "sound"], splits, groups) | {"folder": root}


DATASETS = {"keypad": keypad, "spoken-digits": spoken_digits}
DATASETS |= {name: functools.partial(load, name) for name in SETS}


def hold_out(dataset, groups, fraction, seed):
    """(rest, held out): about that fraction of a data set, no group (n,) of ints on both sides."""
    members = np.random.default_rng(seed).permutation(np.unique(groups))
    held_out = np.isin(groups, members[: max(1, round(fraction * len(members)))])
    if held_out.all():
        raise SettingsError(f"--val-fraction {fraction} leaves nothing to train on; choose less")
    return dataset.subset(np.flatnonzero(~held_out)), dataset.subset(np.flatnonzero(held_out))


def load_data(args, encoders, needs_val=False, trained=None):
    """The data set of a run: its entry of DATASETS, and `channels` of each modality (0: text;
    of a vector its length), `kinds` {modality: kind}, `classes` (names), `folder`.

    args: train.Settings; where a validation part is needed and there is none, val_fraction is 0.1.
    trained: of a run to resume or evaluate, utils.trained.describe's dict; sets the order by name.
    """
    own = functools.partial(load, args.dataset, trained=trained)
    data = DATASETS.get(args.dataset, own)(args.root, encoders)
    fraction = args.val_fraction
    if "val" in data and fraction:
        raise SettingsError(f"{args.dataset} has a validation part; leave --val-fraction out")
    if (needs_val or args.outer == "held-out") and "val" not in data and not fraction:
        args.val_fraction = fraction = 0.1
        print("a tenth of the training split is held out, as by --val-fraction 0.1")
    if fraction:
        data["train"], data["val"] = hold_out(data["train"], data["groups"], fraction, args.seed)
    if args.eval and args.split not in data:
        raise SettingsError(f"{args.eval} has no validation part; choose --split train or test")
    if (n := len(data["train"])) < 2:
        raise SettingsError(f"{args.dataset} has {n} training sample here, expected 2 or more")
    channels = [0 if is_text(x_j) else x_j.shape[-3:][0] for x_j in data["train"][0][:-1]]
    return as_trained(data | {"channels": channels}, trained, args.root)


class Batches:
    """Training batches (x, y): x a list over modalities, y (B,), on the device.

    Every draw is a function of (key, t), a list of ints and an int. A pass is a permutation of the
    n samples without its last n % B, with a seed for each sample's augmentation. An epoch has
    inner_iters batches, or 0: one pass. shard: this process's part of a batch's keys.
    """

    def __init__(self, dataset, batch_size, key, device, workers=0, inner_iters=0, shard=None):
        self.dataset, self.key, self.device, self.workers = dataset, key, device, workers
        self.batch_size = min(batch_size, len(dataset))
        self.per_pass = len(dataset) // self.batch_size
        self.inner_iters = inner_iters or self.per_pass
        self.shard = shard or list
        self.keys = []  # the loader's batches; `epoch` replaces them
        self.loader = make_loader(dataset, self.keys, device, workers)

    def __len__(self):
        return self.inner_iters

    def epoch(self, t):
        """Epoch t's batches, t from 1: the epochs in any order, but one at a time."""
        number, skip = divmod((t - 1) * len(self), self.per_pass)
        passes = self.passes(self.key, number)
        self.keys[:] = itertools.islice(passes, skip, skip + len(self))
        yield from self.read(self.loader)

    def draw(self, t):
        """An endless iterator of batches, for update t of alpha."""
        passes = self.passes([*self.key, t])
        yield from self.read(make_loader(self.dataset, passes, self.device, min(self.workers, 1)))

    def passes(self, key, first=0):
        """Batches of (position, seed), pass after pass, from pass number `first` on."""
        n, size = len(self.dataset), self.batch_size
        for number in itertools.count(first):
            rng = np.random.default_rng([*key, number])
            keys = list(zip(rng.permutation(n).tolist(), rng.integers(2**62, size=n).tolist()))
            for i in range(self.per_pass):
                yield self.shard(keys[i * size : (i + 1) * size])

    def read(self, loader):
        for *x, y in loader:
            yield x, y.to(self.device, non_blocking=True)
