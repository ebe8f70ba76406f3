"""Files and folders that are written completely or not at all."""

import os
import shutil
from contextlib import contextmanager


class UnwritableFile(OSError):
    """A file or folder that cannot be written; the message is one sentence."""


def remove(path):
    """Delete a file or a whole folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def atomic(target):
    """Yield a temporary path beside `target`, which becomes `target` if the block raises nothing.

    A folder that already exists stays: another process has just made it. A process that is killed
    inside the block leaves `.part-PID-NAME`; delete `.part-*` later. An OSError inside the
    block, as of a full disk, becomes UnwritableFile.
    """
    part = target.with_name(f".part-{os.getpid()}-{target.name}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            if not (part.is_dir() and target.is_dir()):
                os.replace(part, target)
        finally:
            remove(part)
    except OSError as error:
        reason = error.strerror or error
        raise UnwritableFile(f"{target} cannot be written ({reason})") from error
