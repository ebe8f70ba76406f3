"""Checkpoints: all that continues a run, written whole or not at all, read without trusting it.

    RUN/t0007.pt     after epoch 7: parameters, buffers, optimiser, alpha, random states, settings, the log so far
    RUN/.lock        held by the process that writes into RUN

A checkpoint is torch.save's bytes and their SHA-256, loaded with weights_only=True: no code in it is ever run.
"""

import hashlib
import io
import json
import os
import re
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import torch
from filelock import FileLock, Timeout


class Unfit(ValueError):
    """A run's folder that cannot be gone on with or scored, in one sentence."""


def remove(path):
    """Delete a file or a whole folder, if it is there."""
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@contextmanager
def written(target):
    """A path beside `target` to write to; when the block ends well it becomes `target`, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".part-{os.getpid()}-{target.name}")
    try:
        yield part
        os.replace(part, target)
    finally:
        remove(part)


@contextmanager
def undisturbed():
    """Inside, Ctrl-C and SIGTERM wait; at the end of the block they take effect."""
    waiting = []
    signals = {n: signal.signal(n, lambda n, frame: waiting.append(n)) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for n, handler in signals.items():
            signal.signal(n, handler)
        for n in waiting[:1]:
            signal.raise_signal(n)


def write_bytes(path, content):
    """Replace a file by these bytes, so that a kill at any instant leaves the old file or the new one.

    OSError in one sentence where there is no room, or no leave to write.
    """
    try:
        with written(path) as part, open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error.strerror}); what was there before is whole") from error


def name(folder, t):
    return Path(folder) / f"t{t:04d}.pt"


def epochs(folder):
    """The epochs after which a checkpoint is there, in order."""
    found = (re.fullmatch(r"t(\d{4,})\.pt", path.name) for path in Path(folder).glob("t*.pt"))
    return sorted(int(match[1]) for match in found if match)


def save(folder, state, kept):
    """Write the checkpoint of epoch state["t"], then remove all but those of the epochs `kept` and its own.

    OSError where there is no room: the ones before are as they were.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    with undisturbed():
        write_bytes(name(folder, state["t"]), content + hashlib.sha256(content).digest())
        for t in epochs(folder):
            if t != state["t"] and t not in kept:
                name(folder, t).unlink()


def lines(state):
    """The log up to a checkpoint, as the list of its lines' contents."""
    return [json.loads(line) for line in state["log"].splitlines()]


def load(folder, t=None):
    """The checkpoint after epoch t, or the last one. Unfit or FileNotFoundError in one sentence, nothing run."""
    there = epochs(folder)
    if not there or t not in (None, *there):
        what = f"epochs {there}" if there else "none"
        raise FileNotFoundError(f"{folder} has no checkpoint{'' if t is None else f' of epoch {t}'}, only {what}; "
                                "give a folder that train.py wrote, or more of --keep")  # fmt: skip
    path = name(folder, there[-1] if t is None else t)
    content = path.read_bytes()
    if hashlib.sha256(content[:-32]).digest() != content[-32:]:
        raise Unfit(f"{path} is damaged: its checksum differs; remove it to go on from the one before")
    try:
        state = torch.load(io.BytesIO(content[:-32]), map_location="cpu", weights_only=True)
        state["t"], state["settings"]["seed"], state["model"], lines(state)[0]["settings"]
    except Exception as error:  # weights_only refuses in many ways
        raise Unfit(f"{path} is no checkpoint of train.py; nothing of it was run") from error
    return state


def fill(state, **parts):
    """Put a checkpoint's contents into the parts of those names, model=... ; Unfit where they are of another run."""
    try:
        for part_name, part in parts.items():
            part.load_state_dict(state[part_name])
    except (RuntimeError, KeyError, ValueError) as error:
        raise Unfit("the checkpoint is of another model or data set; nothing was written") from error


@contextmanager
def locked(folder):
    """Hold RUN/.lock, which a killed process lets go of; BlockingIOError in one sentence where another holds it."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    try:
        held = FileLock(Path(folder) / ".lock").acquire(timeout=0)
    except Timeout as error:
        raise BlockingIOError(f"another process writes into {folder}; choose another --out") from error
    with held:
        for part in Path(folder).glob(".part-*"):  # of a process that was killed
            remove(part)
        yield
