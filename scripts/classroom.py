"""The plumbing of docs/omega.ipynb; a run is a folder of RUNS, found again after a restart."""

import functools
import inspect
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from IPython.display import Audio, Image, display
from matplotlib.figure import Figure

import train
from utils import cli, digits
from utils.run import Run, read_log

RUNS, EXTENT = Path("runs/omega"), [0, digits.DURATION, 0, digits.RATE / 2]  # seconds, Hz
train.DATASETS["keypad"] = functools.cache(train.DATASETS["keypad"])  # made once for all runs


def hear(key):
    """A sample of a key: its image, and its sound, clean and as the model hears it."""
    with cli.one_sentence("hear"):
        key = int(cli.check_choice("key", str(key), [str(k) for k in digits.TONES]))
        figure = Figure(figsize=(11, 3), layout="constrained")
        seen, *heard = figure.subplots(1, 3)
        samples = map(train.DATASETS["keypad"]().splits["test"].__getitem__, range(200))
        seen.imshow(next(image[0].numpy() for image, _, y in samples if y == key), "gray")
        noisy, same = np.random.default_rng(0), np.random.default_rng(0)
        clean = SimpleNamespace(uniform=same.uniform, normal=lambda *_: 0)
        for axis, rng in zip(heard, (clean, noisy)):
            wave = digits.dtmf_tones(np.array([key]), np.array([0.5]), rng)
            picture = digits.spectrograms(wave)[0, 0]
            axis.imshow(picture, origin="lower", aspect="auto", extent=EXTENT)
            axis.set(title=f"key {key}" + " in noise" * (rng is noisy), xlabel="time, s")
            axis.set_yticks(digits.TONES[key], [f"{tone} Hz" for tone in digits.TONES[key]])
            display(Audio(wave[0], rate=digits.RATE))
        RUNS.mkdir(parents=True, exist_ok=True)
        figure.savefig(RUNS / "key.png", dpi=80)
        display(Image(str(RUNS / "key.png")))


def check(mine, epochs):
    """Make the function the method `mine` and print its alphas, or say in a sentence why not."""
    train.SCHEDULES.pop("mine", None)
    with cli.one_sentence("mine"):
        if len(inspect.signature(mine).parameters) != 2:
            raise cli.SettingsError("it needs exactly two parameters: def mine(t, T):")
        values = [cli.number_of(f"t = {t}", mine, t, epochs) for t in range(1, epochs + 1)]
        train.SCHEDULES["mine"] = mine
        print("alpha:", *(f"{min(1, max(0, value)):.2f}" for value in values))
        if min(values) < 0 or max(values) > 1:
            print("it leaves [0, 1] and is clipped; change its return line")


def forget(result):
    """After a cell that Python cannot read: no older version of `mine` is trained."""
    if isinstance(result.error_before_exec, SyntaxError):
        train.SCHEDULES.pop("mine", None)


def finished(epochs):
    """The folders of the runs of so many epochs that have come to their end."""
    logs = {str(path.parent): read_log(path.parent) for path in sorted(RUNS.glob("*/log.jsonl"))}
    ended = [name for name in logs if logs[name].test]
    return [name for name in ended if logs[name].first["settings"]["epochs"] == epochs]


class LiveRun(Run):
    """The folder of a run, which also draws scores, alpha and Eq. 3 after every epoch."""

    def save(self, record, *rest):
        super().save(record, *rest)
        first, epochs, _ = read_log(self.folder)
        figure = Figure(figsize=(11, 3), layout="constrained")
        for axis, title in zip(figure.subplots(1, 3), ("ACC, %", "alpha", "Eq. 3")):
            axis.set(title=title, xlabel="epoch t", xlim=(0.5, self.args.epochs + 0.5))
        scores, alpha, slope = figure.axes
        for name in ["fused", *first["modalities"]]:
            scores.plot([r["t"] for r in epochs], [r[name]["acc"] for r in epochs], label=name)
        scores.legend()
        alpha.set_ylim(-0.05, 1.05)
        alpha.plot([r["t"] for r in epochs], [r["alpha"] for r in epochs], ".-")
        slope.bar([r["t"] for r in epochs], [r.get("hypergradient") or 0 for r in epochs])
        figure.savefig(self.folder / "live.png", dpi=80)
        picture = Image(str(self.folder / "live.png"))
        display(picture, display_id=str(self.folder), update=len(epochs) > 1)

    def stopped(self):
        return "stopped; run this cell again to start over"
