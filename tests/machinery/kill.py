"""Kill runs at random moments, resume them, compare their logs.

By hand: python tests/machinery/kill.py 30

Too slow for a test: each kill costs two to three starts of train.py.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
TINY = ["--epochs", "6", "--inner-iters", "2", "--batch-size", "8"]
TINY += ["--alpha-batch", "8", "--draws", "1"]


def start(folder, *flags):
    command = [sys.executable, ROOT / "train.py", *flags]
    files = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, **files)


def finish(folder, *flags):
    process = start(folder, *flags)
    said = process.communicate()[1]
    if process.returncode:
        sys.exit(f"{flags}: status {process.returncode}: {said}")


def wait_for(process, sign):
    while process.poll() is None and not sign.exists():
        time.sleep(0.005)


def main(kills):
    for method in ("heuristic", "learning-based"):
        with tempfile.TemporaryDirectory() as folder:
            flags = [*TINY, "--method", method]
            process = start(folder, *flags, "--out", "whole")
            wait_for(process, Path(folder, "whole/log.jsonl"))
            began = time.perf_counter()
            assert process.wait() == 0
            duration = time.perf_counter() - began
            whole = Path(folder, "whole/log.jsonl").read_bytes()
            resumed = 0
            for i in range(kills):
                out = Path(folder, f"cut{i}")
                process = start(folder, *flags, "--out", out.name)
                wait_for(process, out / "log.jsonl")
                time.sleep(random.uniform(0, duration))
                process.send_signal(signal.SIGKILL)
                process.communicate()
                has = sorted(path.name for path in out.glob("t*.pt"))
                resumed += bool(has)
                finish(folder, *(["--resume", out.name] if has else [*flags, "--out", out.name]))
                same = (out / "log.jsonl").read_bytes() == whole
                left = [path.name for path in out.glob(".part*")]
                print(method, i, has, "same log" if same else "OTHER LOG", left or "", flush=True)
                assert same and not left
            print(f"{method}: {kills} kills, {resumed} resumed, the others started again; all same")


if __name__ == "__main__":
    main(int(sys.argv[1]))
