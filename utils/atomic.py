"""Files and folders that are written completely or not at all."""

import os
import shutil
from contextlib import contextmanager


def remove(path):
    """Delete a file or a whole folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def atomic(target):
    """Yield a temporary path beside `target`, which becomes `target` if the block raises nothing.

    A folder that is there already stays: another process has just made the same. A process that is
    killed inside the block leaves `.part-PID-NAME`; delete `.part-*` later.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".part-{os.getpid()}-{target.name}")
    try:
        yield part
        try:
            os.replace(part, target)
        except OSError:
            if not (part.is_dir() and target.is_dir()):
                raise
    finally:
        remove(part)
