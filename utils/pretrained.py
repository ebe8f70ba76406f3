"""Models and tokenizers of transformers, from its hub or a local folder."""

import torch

from utils.cli import SettingsError

VOCABULARY = "vocab.txt (BERT), vocab.json and merges.txt (CLIP), or tokenizer.json"


def load_pretrained(kind, source, what, **options):
    """kind.from_pretrained(source) of transformers; source: a name on its hub, or a local folder.

    what: the contents expected in the folder. OSError, in one sentence, if it cannot be loaded.
    """
    from transformers import logging

    logging.set_verbosity_error()  # its reports of missing weights; the callers check those
    try:
        return kind.from_pretrained(source, **options)
    except Exception as error:  # the library raises a dozen types, with messages of several lines
        why = " ".join(str(error).split()).split(". ")[0][:200]
        expected = f"a model's name, which needs the network, or a folder of {what}"
        raise OSError(f"cannot load {source!r} ({why}); expected {expected}") from error


def load_tokenizer(source):
    """The tokenizer of a text model; its model_max_length is at most the model's positions.

    OSError, in one sentence, if its vocabulary is missing, is damaged, or does not fit the model.
    """
    from transformers import AutoConfig, AutoTokenizer

    what = f"a text model with {VOCABULARY}"
    tokenizer = load_pretrained(AutoTokenizer, source, what)
    config = load_pretrained(AutoConfig, source, what).get_text_config()
    if wrong := vocabulary_fault(tokenizer, config):
        raise OSError(f"{source!r} {wrong}; expected the model's own {VOCABULARY}")
    positions = getattr(config, "max_position_embeddings", tokenizer.model_max_length)
    tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
    return tokenizer


def vocabulary_fault(tokenizer, config):
    """The fault of a tokenizer's vocabulary, in words; "" if it fits the model's config."""
    size, embeddings = len(tokenizer), getattr(config, "vocab_size", 0)
    if size <= len(tokenizer.all_special_ids):  # without its files, transformers builds this one
        return "has no vocabulary"
    if (tokenizer.unk_token_id or 0) >= tokenizer.vocab_size:  # transformers has added it
        return f"has a vocabulary without {tokenizer.unk_token}"
    if size > embeddings:
        return f"has a vocabulary of {size} tokens for a model of {embeddings}"
    # CLIP takes a text's feature at its end token. In a config, 2 means the largest id.
    if config.model_type == "clip_text_model":
        own, expected = tokenizer.eos_token_id, config.eos_token_id
        if expected not in (2, own):
            return f"has a vocabulary with end token {own}, its config.json expects {expected}"
    return ""


def load_model(kind, source, fits=True):
    """A pretrained model of transformers with all its weights; it can be differentiated twice.

    fits: whether it can encode the data; ValueError if not.
    """
    if not fits:
        raise SettingsError(f"{kind.__name__} cannot encode this data set; choose other --encoders")
    # The fused attention kernels have no second derivative, which Eq. 3 needs.
    options = {"attn_implementation": "eager", "output_loading_info": True}
    net, found = load_pretrained(kind, source, f"a {kind.__name__}", **options)
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])[0]
        raise OSError(f"{source!r} has no weights for {missing}, expected a {kind.__name__}")
    return net


def is_text(x_j):
    """Whether a sample's input is a text: token ids and mask, (2, L) int64."""
    return torch.is_tensor(x_j) and x_j.dtype == torch.int64 and x_j.dim() == 2
