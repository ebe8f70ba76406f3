"""Change a folder of data at random, prepare it, train on it.

By hand: python tests/machinery/fuzz.py 200

A sequence is a dozen random steps: edits of samples.csv, files replaced, renamed, moved, touched,
added or damaged, a prepare, a training. After each step no original has changed, and training reads
what a prepare from nothing gives.
"""

import contextlib
import io
import os
import random
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

sys.path.insert(0, os.fspath(Path(__file__).parents[2]))
import data  # noqa: E402
import train  # noqa: E402
from scripts import prepare  # noqa: E402
from utils.origins import MADE  # noqa: E402

LABELS = ["cat", "dog", "bird"]
STEPS = "edit replace retouch rename damage add move prepare train"


class Folder:
    """A folder of images, sounds and vectors with a samples.csv, and random changes of it."""

    def __init__(self, place, seed):
        self.rng, self.place, self.n = random.Random(seed), place, 0
        self.root = place / "mine"
        self.root.mkdir()
        self.rows = []
        for k in range(8):
            self.add(["train", "train", "train", "test"][k % 4])
        self.write()

    # --- the files ---

    def fill(self, path):
        """Write a file of random content, with a random time."""
        path.parent.mkdir(parents=True, exist_ok=True)
        numbers = np.random.default_rng(self.rng.randrange(2**32))
        if path.suffix == ".jpg":
            Image.fromarray(numbers.integers(256, size=(9, 9, 3), dtype=np.uint8)).save(path)
        elif path.suffix == ".wav":
            soundfile.write(path, numbers.uniform(-0.5, 0.5, self.rng.randrange(600, 900)), 8000)
        else:
            np.save(path, numbers.normal(size=4))
        self.touch(path)

    def touch(self, path):
        """Give a file a time: now, years ago, or hours ahead."""
        moment = time.time() + self.rng.choice([0, -1e8, 7200]) + self.rng.random()
        os.utime(path, (moment, moment))

    def add(self, split=None):
        """A new sample; its vector sometimes lies in the folder of what prepare makes."""
        self.n += 1
        below = self.rng.choice(["", "a/", "prepared/", "prepared/feats/", "prepared/audio/"])
        cells = [f"{self.n}.jpg", f"s/{self.n}.wav", f"{below}{self.n}.npy"]
        for cell in cells:
            self.fill(self.root / cell)
        split = split or self.rng.choice(["train", "test", "val"])
        self.rows.append([split, self.rng.choice(LABELS), *cells])

    def write(self):
        lines = ["split,label,image,audio,array", *map(",".join, self.rows)]
        path = self.root / "samples.csv"
        path.write_text("\n".join(lines))
        self.touch(path)

    def originals(self):
        """{path below the folder: content} of all files that the program did not make."""
        found = {}
        for path in filter(Path.is_file, self.root.rglob("*")):
            first, *parts = path.relative_to(self.root).parts
            made = {"samples.csv", ".lock"} & {*parts[-1:]} or any(
                MADE.fullmatch(part) or part.startswith(".part-") for part in parts
            )
            if first != "prepared" or not made:
                found[str(path.relative_to(self.root))] = path.read_bytes()
        return found

    def any_file(self):
        cells = [cell for row in self.rows for cell in row[2:] if (self.root / cell).is_file()]
        return self.root / self.rng.choice(cells)

    # --- the steps ---

    def edit(self):
        """Another label, one line less, or a line twice; new lines for a new sample."""
        row = self.rng.choice(self.rows)
        change = self.rng.choice(["label", "less", "more"])
        if change == "label":
            row[1] = self.rng.choice(LABELS)
        elif change == "less" and len(self.rows) > 4:
            self.rows.remove(row)
        else:
            self.add()
        self.write()

    def replace(self):
        self.fill(self.any_file())

    def retouch(self):
        self.touch(self.any_file())

    def rename(self):
        """A file gets another name; samples.csv learns of it, or the sample is missing."""
        path = self.any_file()
        new = path.with_name(f"x{path.name}")
        path.rename(new)
        if self.rng.random() < 0.6:
            old, name = (str(p.relative_to(self.root)) for p in (path, new))
            self.rows = [[name if cell == old else cell for cell in row] for row in self.rows]
            self.write()

    def damage(self):
        path = self.any_file()
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        self.touch(path)

    def move(self):
        """The whole folder gets another name."""
        new = self.root.with_name(f"mine{self.rng.randrange(10**6)}")
        self.root.rename(new)
        self.root = new

    def prepare(self):
        prepare.main([str(self.root), "--workers", "1"])

    def train(self):
        out = str(self.place / "run")
        flags = ["--method", "heuristic", "--epochs", "1", "--encoders", "cnn,cnn,mlp"]
        train.main(["--dataset", str(self.root), *flags, "--out", out, "--overwrite"])


def contents(root):
    """What training reads of a folder, sample by sample; or its error."""
    try:
        found = data.load(str(root))
    except (ValueError, OSError) as error:
        # A list that was prepared before the folder moved names the old place.
        return re.sub(r"/\S*/(mine\d*|fresh)\b", "ROOT", str(error))
    read = data.make_readers(found.kinds.values(), ["cnn", "cnn", "mlp"])
    result = [found.classes, found.groups.tolist()]
    for split, samples in sorted(found.splits.items()):
        samples.readers = read
        for *x, y in samples:
            result.append((split, int(y), [x_j.numpy().tobytes() for x_j in x]))
    return result


def sequence(seed, steps=12):
    """One random sequence; returns the names of its steps. AssertionError at the first fault."""
    names = STEPS.split()
    with tempfile.TemporaryDirectory() as place:
        folder, done = Folder(Path(place), seed), []
        for _ in range(steps):
            name = folder.rng.choice(names)
            done.append(name)
            getattr(folder, name)()
            if name == "add":
                folder.write()
            before = folder.originals()
            fresh = Path(place) / "fresh"
            shutil.copytree(folder.root, fresh)
            for path in [fresh / "prepared/samples.csv", *(fresh / "prepared").rglob("*")]:
                if MADE.fullmatch(path.name) or path.name in ("samples.csv", ".lock"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            read, expected = contents(folder.root), contents(fresh)
            shutil.rmtree(fresh)
            assert folder.originals() == before, f"seed {seed}: {done} changed an original"
            assert read == expected, f"seed {seed}: {done} reads something else"
    return done


def main(n, first=0):
    for seed in range(first, first + n):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            done = sequence(seed)
        print(seed, *done, flush=True)
    print(f"{n} sequences: no original changed, training read the same as after a new prepare")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
