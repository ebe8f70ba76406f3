"""Files and folders that are written completely or not at all."""

import errno
import os
import shutil
from contextlib import contextmanager

TOO_MANY_OPEN = (errno.EMFILE, errno.ENFILE)  # open files: no fault of a file, see cli.ADVICE


class UnwritableFile(OSError):
    """A file or folder that cannot be written; the message is one sentence."""


def remove(path):
    """Delete a file or a whole folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def writing(path, *way_out):
    """Inside the block an OSError, as of a full disk, becomes an UnwritableFile that names `path`.

    way_out: the end of its sentence. An error of TOO_MANY_OPEN stays as it is.
    """
    try:
        yield
    except UnwritableFile:
        raise
    except OSError as error:
        if error.errno in TOO_MANY_OPEN:
            raise
        text = f"{path} cannot be written ({error.strerror or error})"
        raise UnwritableFile("; ".join([text, *way_out])) from error


@contextmanager
def atomic(target):
    """Yield a temporary path beside `target`, which becomes `target` if the block raises nothing.

    A folder that already exists stays: another process has just made it. A process that is killed
    inside the block leaves `.part-PID-NAME`; delete `.part-*` later. Raises as `writing` does.
    """
    part = target.with_name(f".part-{os.getpid()}-{target.name}")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            if not (part.is_dir() and target.is_dir()):
                os.replace(part, target)
        finally:
            remove(part)
