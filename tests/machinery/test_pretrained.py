"""utils/pretrained.py: a text model whose files do not fit is refused, and batches of texts."""

import json
import shutil

import pytest
import torch

import data
from data import Batches, Samples, identity
from utils.annotations import list_sarcasm
from utils.loader import eval_loader
from utils.pretrained import load_tokenizer

TOKENIZER = ["tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json", "merges.txt"]
HTML = "<!DOCTYPE html>\n<html><head>\n<title>x</title>\n</head><body>\n<p>the</p></body></html>\n"


def set_config(folder, **changes):
    """Change entries of a folder's config.json, of CLIP those of its text model."""
    config = json.loads((folder / "config.json").read_text())
    config.get("text_config", config).update(changes)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.fixture
def changed(tmp_path, tiny_bert, tiny_clip):
    """A copy of a tiny model without its tokenizer, but with the given vocabulary files."""

    def copy(kind, files, **config):
        folder = tmp_path / kind
        shutil.copytree({"bert": tiny_bert, "clip": tiny_clip}[kind], folder)
        read = {name: (folder / name).read_text() for name in files if (folder / name).exists()}
        for name in TOKENIZER:
            (folder / name).unlink(missing_ok=True)
        for name, change in files.items():
            (folder / name).write_text(change(read.get(name, "")), encoding="utf-8")
        set_config(folder, **config)
        return folder

    return copy


def same(text):
    return text


BAD = {
    "bert, none": ("bert", {}, {}, "has no vocabulary"),
    "bert, empty": ("bert", {"vocab.txt": lambda _: ""}, {}, "has no vocabulary"),
    "bert, html": ("bert", {"vocab.txt": lambda _: HTML}, {}, r"a vocabulary without \[UNK\]"),
    "bert, BOM": ("bert", {"vocab.txt": lambda t: "\ufeff" + t}, {}, "of 13 tokens for a model of"),
    "bert, too many": ("bert", {"vocab.txt": same}, {"vocab_size": 11}, "12 tokens for a model of"),
    "clip, none": ("clip", {}, {}, "has no vocabulary"),
    "clip, no merges": ("clip", {"vocab.json": same}, {}, "cannot load"),
    "clip, empty": ("clip", {"vocab.json": lambda _: "{}", "merges.txt": same}, {}, "no vocabula"),
    "clip, end": ("clip", {"tokenizer.json": same}, {"eos_token_id": 7}, "end token 61, its"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_vocabulary_that_does_not_fit_is_one_sentence(changed, case):
    """It names the folder, what is wrong and which files are expected."""
    kind, files, config, expected = BAD[case]
    folder = changed(kind, files, **config)
    with pytest.raises(OSError, match=expected) as raised:
        load_tokenizer(str(folder))
    message = str(raised.value)
    assert str(folder) in message and "\n" not in message
    assert "vocab.json and merges.txt" in message.split("; expected")[1]


@pytest.mark.parametrize("kind, n", [("bert", 64), ("clip", 12)])
def test_a_text_is_cut_to_the_positions_of_the_model(changed, kind, n):
    """Also where only the model's config knows how many there are; CLIP's end token stays."""
    files = {"bert": ["vocab.txt"], "clip": ["vocab.json", "merges.txt"]}[kind]
    folder = changed(kind, dict.fromkeys(files, same), max_position_embeddings=n)
    tokenizer = load_tokenizer(str(folder))
    x = data.text("a dog " * 100, tokenizer=tokenizer)
    assert x.shape == (2, n) and x[0, -1] == (tokenizer.sep_token_id or tokenizer.eos_token_id)


def test_half_an_emoji_is_replaced(tmp_path, tiny_bert):
    """A tweet with half an emoji can be encoded; two halves together are the emoji."""
    for name in ("train.txt", "valid.txt", "test.txt"):
        (tmp_path / name).write_text(r"['1', 'a \ud83d dog \ud83d\ude00', 1]")
    files = {"list": {path.name: str(path) for path in tmp_path.iterdir()}, "read": {}}
    for _, label, _, _, (_, sentence) in list_sarcasm(files):
        assert (sentence, label) == ("a \ufffd dog \U0001f600", 1)
        assert data.text(sentence, tokenizer=load_tokenizer(str(tiny_bert))).shape[0] == 2


def make_texts(lengths):
    """Samples of a number, a text of ones of the given length, and y."""
    texts = [torch.ones(2, n, dtype=torch.int64) for n in lengths]
    numbers = torch.arange(len(lengths)).float()
    return Samples([numbers, texts], torch.arange(len(lengths)), [identity, identity])


@pytest.mark.parametrize("workers", [0, 1])
def test_texts_are_padded_to_the_longest_of_their_batch(workers):
    """With zeros behind; whoever reads batches: an epoch, Eq. 3's draws, the evaluation."""
    samples, options = make_texts([3, 5, 2, 4, 1, 6]), {"device": "cpu", "workers": workers}
    batches = Batches(samples, 2, [0], **options)
    read = [next(batches.epoch(1)), next(batches.draw(1))]
    read += [(x, y) for *x, y in eval_loader(samples, 2, **options)]
    lengths = torch.tensor([3, 5, 2, 4, 1, 6])
    for (numbers, texts), y in read:
        assert torch.equal(numbers, y.float()) and texts.shape == (2, 2, lengths[y].max())
        assert torch.equal(texts.sum(2), lengths[y][:, None].expand(2, 2))
        assert (texts[:, :, 0] == 1).all()
    assert [x[1].shape[2] for x, _ in read[2:]] == [5, 4, 6]
