"""The data sets, what a sample becomes, and the batches of training (Sec. 4.1).

SETS               the paper's six sets; defaults(name) has their settings
MODALITIES         the kinds of data: how each is prepared and read, which encoders fit
load               one of the six sets, or a folder of your own with a samples.csv
keypad             ours, built in: see a handwritten digit, hear its telephone key
spoken_digits      ours: recordings of spoken digits (FSDD) with handwritten digits
isl, phone_watch   not ours, not the paper's: real recordings of two sensors at once

An entry of DATASETS is a function of the data set's folder that returns a Data.
"""

import copy
import dataclasses
import functools
import os

import numpy as np
import torch
from torch.utils.data import Dataset

from utils import decode, digits, distributed, media, sensors
from utils.cli import SettingsError, check_choice
from utils.loader import BatchSampler, identity, make_loader, normalized, take, with_validation
from utils.modalities import MODALITIES, Modality, make_readers
from utils.prepare import collect
from utils.pretrained import is_text
from utils.samples import Strings, by_size, class_index, own_settings
from utils.trained import as_trained, check_channels, check_splits

CREMAD = {"audio": "audio-3s", "video": "video"}
AUDIO_VIDEO = {"audio": "audio", "video": "video"}
IMAGE_TEXT = {"image": "image", "text": "text"}
GESTURE = {"rgb": "rgb", "flow": "flow", "depth": "depth"}
SETS = {  # kinds: of each modality; paper: the paper's train, val and test sample counts
    "cremad": {"kinds": CREMAD, "n_classes": 6, "paper": [6698, 0, 744]},
    "kinetics-sounds": {"kinds": AUDIO_VIDEO, "n_classes": 31, "paper": [15000, 1900, 1900]},
    "vggsound": {"kinds": AUDIO_VIDEO, "n_classes": 309, "paper": [168618, 0, 13954]},
    "sarcasm": {"kinds": IMAGE_TEXT, "n_classes": 2, "paper": [19816, 2410, 2409]},
    "twitter2015": {"kinds": IMAGE_TEXT, "n_classes": 3, "paper": [3179, 1122, 1037]},
    "nvgesture": {"kinds": GESTURE, "n_classes": 25, "paper": [1050, 0, 482]},
}


def defaults(name, device="auto"):
    """The settings of train.py that a data set replaces on a device (Sec. 4.1); a flag wins."""
    if name not in SETS:
        if name == "isl":
            return by_size(n=520)  # its training samples
        if name in (None, *DATASETS):
            return {}
        if not os.path.isdir(name):
            check_choice("data set or folder", name, DATASETS)
        return own_settings(name)
    # Paper silent: T, the plateau's patience, Eq. 3's batches, alpha's steps, Adam's weight decay,
    # the precision, all of NVGesture. Here: batches of 32 in Eq. 3 (NVGesture's 24 frames: 8) and,
    # on a GPU, bfloat16 in theta's steps, so that all fits into 24 GB; alpha moves by at most 1 / T
    # in an epoch, as on keypad.
    common = {
        "workers": min(8, os.cpu_count()),
        "epochs": 100,
        "plateau": 10,
        "bf16": distributed.has_bf16(device),
        # Departs from paper: batches of 128, not 256, where sound lasts ten seconds, to fit 24 GB.
        "batch_size": {"cremad": 256, "nvgesture": 32}.get(name, 128),
        "alpha_batch": 8 if name == "nvgesture" else 32,
        "eta_alpha": 0.2,
        "alpha_limit": 0.01,
    }
    if "text" in SETS[name]["kinds"]:
        adam = {"optimizer": "adam", "lr": 1e-4, "weight_decay": 0.0}
        return {**common, **adam, "encoders": "resnet50,bert"}
    # Departs from paper: weight decay 1e-4, not 1e-1, with which ResNet18 scored near chance.
    return {**common, "lr": 1e-2, "weight_decay": 1e-4, "encoders": "resnet18"}


@dataclasses.dataclass
class Data:
    """A data set, as an entry of DATASETS returns it.

    kinds: {modality: its kind, a name of MODALITIES}; classes: the classes' names, in the order of
    y; splits: Samples by name, `train`, `test` and in some sets `val`; groups: (n,), the training
    samples of one group are held out together, None: each sample is a group; folder: of its files;
    channels: load_data's, of each modality's input, 0 for text, of a vector its length.
    """

    kinds: dict
    classes: list
    splits: dict
    groups: np.ndarray = None
    folder: str = ""
    channels: list = None

    @property
    def modalities(self):
        return [*self.kinds]


class Samples(Dataset):
    """Samples (x^(1), ..., x^(m), y) of one split.

    sources: for each modality n inputs of its reader (texts or tensors); y: n class indices;
    readers: of each modality, None: load_data adds those of the data set's kinds.
    samples[i] is sample i without augmentation, samples[i, seed] is augmented with that seed.
    """

    def __init__(self, sources, y, readers=None):
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


# A reader is called as (source, seed); with a seed it augments, as a function of that seed. Images
# stay uint8, sounds float16: see normalize.


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
    # Departs from paper: 128 characters. Here: 128 tokens, as BERT counts.
    length = min(length, tokenizer.model_max_length)
    codes = tokenizer(sentence, truncation=True, max_length=length)
    return torch.tensor([codes["input_ids"], codes["attention_mask"]])


def gesture(source, seed=None, mode="RGB"):
    """Eight frames of FOLDER:START:END, never mirrored: (8, C, 224, 224) uint8."""
    # Paper silent: how the 80 frames of a gesture are read. Here: 8 of them, never mirrored.
    folder, start, end = source.rsplit(":", 2)
    return clip((folder, int(start), int(end)), seed, 8, mode, flip=False)


CONVOLUTIONAL = ["cnn", "resnet18", "resnet50"]


def of_sound(seconds):
    """The modality of a recording, or of a video's sound, of which `seconds` are used."""
    read = functools.partial(sound, seconds=seconds)
    make = functools.partial(decode.write_spectrogram, seconds=seconds)
    return Modality(read, CONVOLUTIONAL, make, remark=media.remark_on_sound)


# --- exercise: change below ---
# Another kind of data is one entry: MODALITIES["mine"] = Modality(read, encoders, ...). A column
# `mine` or `mine:name` of a samples.csv is then of this kind.
MODALITIES |= {
    "audio": of_sound(10),
    "audio-3s": of_sound(3),
    "video": Modality(clip, CONVOLUTIONAL, decode.ten_frames, media.check_frames),
    "image": Modality(picture, [*CONVOLUTIONAL, "clip"]),
    "text": Modality(text, ["bert", "clip"], is_file=False),
    "vector": Modality(media.vector, ["mlp"], one_shape=True),
    "grid": Modality(media.grid, CONVOLUTIONAL, one_shape=True),
}
# --- end ---
depth = functools.partial(gesture, mode="L")
frames = (decode.window_frames, media.check_frames)
MODALITIES |= {
    "rgb": Modality(gesture, CONVOLUTIONAL, *frames, own=False),
    "depth": Modality(depth, CONVOLUTIONAL, *frames, own=False),
    "flow": Modality(flow, CONVOLUTIONAL, decode.compute_flow, media.check_flow, own=False),
    "tensor": Modality(identity, [], own=False),
}


def load(name, root=""):
    """A set of SETS, or your own folder `name`; prepared first if it is not up to date.

    FileNotFoundError if the training or the test split has no usable sample.
    """
    known = SETS.get(name, {})
    if root and not known:
        raise SettingsError(f"{name} is a folder of your own data; leave --root out")
    root = root or (f"data/{name}" if known else name)
    kinds, found = collect(name, root, known.get("kinds"), known.get("paper"))
    index = class_index(found.labels, known.get("n_classes"))
    splits = {}
    for split, (sources, labels, _) in found.splits.items():
        y = torch.tensor([index[label] for label in labels])
        splits[split] = Samples([Strings(source) for source in sources], y)
    return Data(kinds, [*index], splits, np.array(found.splits["train"][2]), root)


def paired(modalities, classes, splits, groups, folder=""):
    """A set in memory, from {split: (x, y)} as normalized returns it."""
    samples = {split: Samples(x, y, [identity] * len(x)) for split, (x, y) in splits.items()}
    return Data(dict.fromkeys(modalities, "tensor"), [*classes], samples, groups, folder)


def keypad(root=""):
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
    return paired(modalities, "0123456789", normalized(splits), groups["train"])


def spoken_digits(root=""):
    """Recordings with handwritten digits of their class: 13,500 pairs to train, 1,200 to test.

    Both are divided into ten folds, and a pair is of one fold: a validation split of whole folds
    has no image and no recording in common with the rest.
    """
    root = root or "data/spoken-digits"
    splits, groups = digits.spoken_pairs(root, np.random.default_rng(0))
    return paired(["image", "sound"], "0123456789", normalized(splits), groups, root)


def isl(root=""):
    """A forearm's EMG and IMU while it signs one of 26 letters: 520, 104 and 156 recordings."""
    root = root or "data/isl"
    return paired(["emg", "imu"], sensors.LETTERS, sensors.signs(root), None, root)


def phone_watch(root=""):
    """A phone and a watch on one person: 2,161, 404 and 834 windows of 14, 3 and 6 people."""
    root = root or "data/phone-watch"
    splits, people = sensors.activities(root)
    return paired(["phone", "watch"], sensors.ACTIVITIES, splits, people, root)


DATASETS = {"keypad": keypad, "spoken-digits": spoken_digits}
DATASETS |= {"isl": isl, "phone-watch": phone_watch}
DATASETS |= {name: functools.partial(load, name) for name in SETS}


def load_data(args, encoders, needs_val=False, trained=None):
    """The Data of a run, which can be read. Tensors are moved to its device, unless workers read.

    args: train.Settings; encoders: m -> the names of m encoders; needs_val: whether a tenth of the
    training split is held out where there is no validation part; trained: what a run to resume or
    evaluate was trained on (utils.trained.describe): it sets the order of modalities and classes.
    """
    make = DATASETS.get(args.dataset, functools.partial(load, args.dataset))
    data = as_trained(make(args.root), trained)
    splits = with_validation(args, data, needs_val)
    check_splits(args, splits)
    readers = make_readers(data.kinds.values(), encoders(len(data.kinds)))
    device = "cpu" if args.workers else distributed.pick_device(args.device)
    for name, samples in splits.items():
        splits[name] = samples = copy.copy(samples)
        samples.readers = samples.readers or readers
        samples.sources = [x.to(device) if torch.is_tensor(x) else x for x in samples.sources]
    *x, _ = splits["train"][0]
    channels = [0 if is_text(x_j) else x_j.shape[-3:][0] for x_j in x]  # C of (F, C, H, W) or (C,)
    if trained:
        check_channels(data.kinds, channels, trained)
    return dataclasses.replace(data, splits=splits, channels=channels)


class Batches:
    """Training batches (x, y): x a list over modalities, y (B,), on the device.

    Every draw is a function of (key, t), see BatchSampler. An epoch has inner_iters batches, or 0:
    one pass.
    """

    def __init__(self, dataset, batch_size, key, device, workers=0, inner_iters=0, shard=None):
        self.dataset, self.batch_size, self.key = dataset, batch_size, key
        self.device, self.workers = device, workers
        self.sampler = BatchSampler(len(dataset), batch_size, key, inner_iters, shard)
        self.loader = make_loader(dataset, self.sampler, device, workers)

    def __len__(self):
        return len(self.sampler)

    def epoch(self, t):
        """Epoch t's batches, t from 1: the epochs in any order, but one at a time."""
        self.sampler.set_epoch(t)
        return self.read(self.loader)

    def draw(self, t):
        """An endless iterator of batches, for update t of alpha."""
        endless = BatchSampler(len(self.dataset), self.batch_size, [*self.key, t], None)
        return self.read(make_loader(self.dataset, endless, self.device, min(self.workers, 1)))

    def read(self, loader):
        for *x, y in loader:
            yield x, y.to(self.device, non_blocking=True)
