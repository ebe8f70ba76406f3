"""The origins of prepared files.

The name of a prepared file ends in a digest of its original's content and of the settings that
shape it: prepared/audio/a.wav-0f3a9c51d2e4.npy. A file of another content has another name, so a
replaced original is prepared again, and prepare never overwrites a file that it did not make.

To read all originals at every start would be slow. prepared/samples.csv keeps the stamp of each,
its size and time; if a stamp differs, prepare reads the content again.
"""

import hashlib
import os
import re
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from utils.atomic import remove, writing
from utils.cli import SettingsError

PREPARED = "prepared"  # the folder, below the root, of everything that prepare writes
FORMAT = 2  # increase it where prepare writes other values: everything is then prepared again
IN_THE_WAY = (NotADirectoryError, IsADirectoryError, PermissionError)
MADE = re.compile(r"(.*)-[0-9a-f]{12}(\.npy)?")  # the names of prepared files and folders
PART = re.compile(rf"\.part-\d+-({MADE.pattern}|samples\.csv)")  # and while they are written


def digest(paths, *settings):
    """A digest of the content of files and of some settings, 64 hexadecimal digits."""
    result = hashlib.sha256(repr((FORMAT, *settings)).encode())
    for path in paths:
        with open(path, "rb") as file:
            while part := file.read(2**20):
                result.update(part)
    return result.hexdigest()


def contents(folder):
    """The entries of a folder that are not hidden, sorted by name."""
    return sorted((e for e in os.scandir(folder) if e.name[0] != "."), key=lambda e: e.name)


def made_name(stem, original, *settings):
    """The name of the prepared file of an original, a file or a folder, without .npy.

    A file system allows 255 bytes; a long stem gets 100 of them.
    """
    paths = [original]
    if os.path.isdir(original):
        paths = [entry.path for entry in contents(original)]
        settings = *settings, [os.path.basename(path) for path in paths]
    stem = stem.encode("utf-8", "surrogateescape")[:100].decode("utf-8", "ignore")
    return f"{stem}-{digest(paths, *settings)[:12]}"


def in_the_way(path, error):
    """The SettingsError for a file or folder below DIR/prepared that cannot be read."""
    text = f"{path} cannot be read ({error.strerror}); move it away, or change its permissions"
    return SettingsError(f"{text}, and run the same command again")


def made_files(folder):
    """{stem: path} of the prepared files and folders in a folder; of several the newest."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.stat().st_mtime_ns)
    except FileNotFoundError:
        return {}
    except IN_THE_WAY as error:
        raise in_the_way(folder, error) from error
    matches = [(MADE.fullmatch(entry.name), entry.path) for entry in entries]
    return {match[1]: path for match, path in matches if match}


def stamp(path):
    """`SIZE TIME` of a file, or the sums over the files of a folder; `- -` if it does not exist."""
    try:
        stats = [e.stat() for e in contents(path)] if os.path.isdir(path) else [os.stat(path)]
    except (OSError, ValueError):  # no file can have a NUL in its name
        return "- -"
    return f"{sum(s.st_size for s in stats)} {sum(s.st_mtime_ns for s in stats)}"


def below_prepared(root, paths):
    """The real paths of those of the user's files that are below DIR/prepared."""
    folder = os.path.join(os.path.realpath(Path(root) / PREPARED), "")
    return {real for path in paths if (real := os.path.realpath(path)).startswith(folder)}


def holds(path, keep):
    """Whether a file or folder is, or has in it, one of the real paths `keep`."""
    real = os.path.realpath(path)
    return real in keep or any(other.startswith(os.path.join(real, "")) for other in keep)


@contextmanager
def locked(root, keep):
    """Hold DIR/prepared/.lock; yields whether another process held it before.

    Half-written files of a killed prepare are removed, but no path of `keep`.
    """
    folder, waited = Path(root) / PREPARED, False
    way_out = (
        "use a folder of your own: for your own data one with a samples.csv of absolute paths, for "
        "a published set one with a link (ln -s) to its files, given by --root"
    )
    with writing(folder, way_out):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"another process prepares {root}; waiting until it has finished", flush=True)
            waited = bool(lock.acquire())
    try:
        for part in [*folder.glob(".part-*"), *folder.glob("*/.part-*")]:
            if PART.fullmatch(part.name) and not holds(part, keep):
                remove(part)
        yield waited
    finally:
        lock.release()
