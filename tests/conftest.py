"""What several test files share: a data set that trains in a blink."""

import dataclasses
import functools
import json
import os
import signal
from pathlib import Path

import av
import librosa
import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

import data
from data import Samples, identity
from model import encoder_names

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell's script
    signal.signal(signal.SIGINT, signal.default_int_handler)
if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(1)  # the tests are small; more threads only wait for each other
# librosa parses its stubs at its first use. Python 3.11 can fail there in a worker forked from
# these tests ("AST constructor recursion depth mismatch", python/cpython#106905): import it here.
assert librosa.resample and librosa.stft


def tiny(root="", n=48):
    """Three classes, two modalities of 1 and 2 channels; groups of two samples."""
    generator = torch.Generator().manual_seed(0)

    def pairs(n):
        y = torch.arange(n) % 3
        x = [torch.randn(n, c, 8, 8, generator=generator) + y.view(-1, 1, 1, 1) for c in (1, 2)]
        return Samples(x, y, [identity, identity])

    kinds = {"image": "tensor", "sound": "tensor"}
    splits = {"train": pairs(n), "test": pairs(15)}
    return data.Data(kinds, ["0", "1", "2"], splits, np.arange(n) // 2)


real_keypad = functools.cache(data.keypad)


def small_keypad(root=""):
    """keypad, made once and with a part of its pairs, to be quick."""
    full = real_keypad()
    steps = {"train": 12, "test": 4}
    splits = {s: full.splits[s].subset(slice(None, None, n)) for s, n in steps.items()}
    return dataclasses.replace(full, splits=splits, groups=full.groups[::12])


@pytest.fixture
def tiny_data(monkeypatch, tmp_path):
    """`--dataset tiny`, run in an empty folder."""
    monkeypatch.setitem(data.DATASETS, "tiny", tiny)
    monkeypatch.chdir(tmp_path)
    return tiny


def sentence(capsys, program="train.py"):
    """What a program says on stderr, besides the progress bar: one line, without its name."""
    lines = [x.split("\r")[-1] for x in capsys.readouterr().err.splitlines()]
    (said,) = [x for x in lines if x.startswith(f"{program}: ")]
    assert "Traceback" not in "".join(lines)
    return said.removeprefix(f"{program}: ")


def raising(error):
    """A function that raises this error, whatever it is given."""

    def fail(*_, **__):
        raise error

    return fail


SHARED = Path(__file__).parents[1] / "../shared/samples"
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the real samples, ../shared/samples, are not here"
)


def loaded(name, root="", encoders="cnn"):
    """The Data of a set or a folder, which can be read."""
    found = data.load(str(name), root)
    names = encoder_names(encoders, len(found.kinds))
    readers = data.make_readers(found.kinds.values(), names)
    for samples in found.splits.values():
        samples.readers = readers
    return found


def made(root, modality, name):
    """The prepared file or folder of a name; its name ends in a digest."""
    (path,) = root.glob(f"prepared/{modality}/{name}-{'[0-9a-f]' * 12}*")
    return path


def make_wav(path, seconds=1.0, rate=16000):
    """A tone of 440 Hz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(
        path, 0.3 * np.sin(2 * np.pi * 440 * np.arange(int(rate * seconds)) / rate), rate
    )


def make_jpg(path, size=(64, 48), colour=(200, 40, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def encode_sound(file, track, wave):
    """Encode (channels, n) float32 into a track, in frames of 1024 samples, and close it."""
    for i in range(0, wave.shape[1], 1024):
        part = np.ascontiguousarray(wave[:, i : i + 1024])
        frame = av.AudioFrame.from_ndarray(part, "fltp", track.layout.name)
        frame.sample_rate, frame.pts = track.rate, i
        file.mux(track.encode(frame))
    file.mux(track.encode())


def make_video(
    path, frames=30, size=(64, 48), sound=True, video="mpeg4", form=None, noise=False, **options
):
    """A clip whose n-th frame has the grey level 8 n, with a tone of the same length."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noises = np.random.default_rng(0).integers(noise * 99 + 1, size=(size[1], size[0], 3))
    with av.open(str(path), "w", format=form, options=options) as file:
        pictures = file.add_stream(video, rate=30, width=size[0], height=size[1], pix_fmt="yuv420p")
        tones = file.add_stream("aac", rate=44100, layout="mono") if sound else None
        for n in range(frames):
            grey = ((8 * n + np.roll(noises, n)) % 256).astype(np.uint8)
            file.mux(pictures.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        file.mux(pictures.encode())
        if sound:
            wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(44100 * frames // 30) / 44100)
            encode_sound(file, tones, wave[None].astype(np.float32))


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"intermediate_size": 64}


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory):
    """A BERT of 2 layers and a few words in a local folder, as save_pretrained leaves it."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += ["the", "a", "dog", "cat", "is", "fine", "."]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(words), max_position_embeddings=128, **SIZES)
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory):
    """A CLIP of 2 layers per tower that reads single letters, in a local folder."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz.#@:"
    tokens = [*letters, *(f"{x}</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: k for k, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    CLIPTokenizer(*files, model_max_length=16).save_pretrained(folder)
    torch.manual_seed(0)
    n = len(tokens)
    sizes = SIZES | {"projection_dim": 24}
    text = {"vocab_size": n, "max_position_embeddings": 16}
    text |= {"bos_token_id": n - 2, "eos_token_id": n - 1, "pad_token_id": n - 1}
    vision = {"image_size": 224, "patch_size": 56}
    config = CLIPConfig(text_config=sizes | text, vision_config=sizes | vision, projection_dim=24)
    CLIPModel(config).save_pretrained(folder)
    return folder
