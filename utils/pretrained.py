"""Models and tokenizers of transformers, from its hub or a local folder."""


def load_pretrained(kind, source, **options):
    """kind.from_pretrained(source) of transformers; source: a name on its hub, or a local folder.

    OSError, in one sentence, if the model cannot be loaded.
    """
    from transformers import logging

    logging.set_verbosity_error()  # its reports of missing weights; the callers check those
    try:
        return kind.from_pretrained(source, **options)
    except Exception as error:  # the library raises a dozen types, with messages of several lines
        why = " ".join(str(error).split()).split(". ")[0][:200]
        expected = f"a model's name, which needs the network, or a folder of a {kind.__name__}"
        raise OSError(f"cannot load {source!r} ({why}); expected {expected}") from error


def load_tokenizer(source):
    """The tokenizer of a text model, see load_pretrained."""
    from transformers import AutoTokenizer

    return load_pretrained(AutoTokenizer, source)


def load_model(kind, source, fits=True):
    """A pretrained model of transformers with all its weights; it can be differentiated twice.

    fits: whether it can encode the data; ValueError if not.
    """
    if not fits:
        raise ValueError(f"{kind.__name__} cannot encode this data set; choose other --encoders")
    # The fused attention kernels have no second derivative, which Eq. 3 needs.
    options = {"attn_implementation": "eager", "output_loading_info": True}
    net, found = load_pretrained(kind, source, **options)
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])[0]
        raise OSError(f"{source!r} has no weights for {missing}, expected a {kind.__name__}")
    return net
