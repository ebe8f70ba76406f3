"""MODALITIES has an entry for each kind of data: the one place to add another kind."""

import functools
from typing import NamedTuple

from utils.cli import SettingsError
from utils.pretrained import load_tokenizer


class Modality(NamedTuple):
    """A kind of data: how it is prepared and read, and which encoders fit it.

    read: (source, seed=None) -> the tensor that training reads; with a seed it is augmented.
    encoders: the names that fit; the first is the default of data of your own.
    make: (original, target, window) -> path, writes the prepared file `target`; None: the original
        is read as it is. After a change of make, delete DIR/prepared.
    check: (source, window) -> a tensor, reads all of a source; None: read does.
    is_file: whether a source is a path, not the text itself.
    remark: source -> a remark on a prepared file, like "is silent", or "".
    one_shape: whether all samples must have one shape.
    own: whether it can be a column of a samples.csv.
    """

    read: object
    encoders: list
    make: object = None
    check: object = None
    remark: object = None
    is_file: bool = True
    one_shape: bool = False
    own: bool = True


MODALITIES = {}  # by kind; data.py has ours
ARRAYS = {"vector", "grid"}  # the kinds of a column `array`: its files tell which


def all_files(kinds):
    """Whether a sample is files or texts, not as of keypad; kinds: {modality: kind}."""
    return all(MODALITIES[kind].own for kind in kinds.values())


def make_readers(kinds, encoders):
    """The reader of each modality; a text is cut into the tokens of its encoder, `bert:SOURCE`."""
    built_in = {name for kind in MODALITIES.values() for name in kind.encoders}
    readers = []
    for kind, encoder in zip(kinds, encoders):
        name, _, source = encoder.partition(":")
        read, fitting = MODALITIES[kind].read, MODALITIES[kind].encoders
        # Your own encoder can be for all kinds but text, and any encoder for a tensor in memory.
        if name not in fitting and kind != "tensor" and (name in built_in or kind == "text"):
            choices = ", ".join(fitting)
            raise SettingsError(f"encoder {name!r} cannot encode {kind}; choose from {choices}")
        if kind == "text":
            read = functools.partial(read, tokenizer=load_tokenizer(source))
        readers.append(read)
    return readers
