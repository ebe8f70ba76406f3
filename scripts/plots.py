"""What every picture of scripts/figures.py needs: panels, colours, a run's title."""

import dataclasses
import os
from pathlib import Path

import train
from data import DATASETS, defaults
from utils import cli
from utils.atomic import atomic
from utils.cli import SettingsError
from utils.run import read_log

# Okabe and Ito's colours, which the colour-blind can tell apart.
COLOURS = ["#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
BLACK, BLUE, RED, GREEN, PINK, ORANGE, SKY = COLOURS
GREY = "#777777"
WORDS = {"fusion": "{} fusion", "tau": "τ = {}", "epochs": "{} epochs", "outer": "{} outer batch"}


def pyplot():
    """matplotlib's pyplot, imported only to draw, and without a screen."""
    os.environ["MPLBACKEND"] = "Agg"  # a notebook's own value may name a missing module
    import matplotlib.pyplot as plt

    return plt


def panels(rows, columns, width, height, **options):
    """(figure, axes): rows x columns panels, `width` x `height` inches in total."""
    options |= {"squeeze": False, "layout": "constrained"}
    figure, axes = pyplot().subplots(rows, columns, figsize=(width, height), **options)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.3)
    return figure, axes


def legend(figure, axis, place="lower", **options):
    """One legend for the figure, outside its panels, with the names of one axis."""
    handles = axis.get_legend_handles_labels()
    figure.legend(*handles, loc=f"outside {place} center", frameon=False, **options)


def save(figure, out, film=None):
    """Write the picture, or its film, in the format of its ending (.png), say so, and close it."""
    out = Path(out) if Path(out).suffix else Path(f"{out}.png")
    try:
        with atomic(out) as part:
            if film:
                film.save(part, "pillow", dpi=80)
            else:
                figure.savefig(part, dpi=150)
    except ValueError as error:  # a format that matplotlib does not know
        raise SettingsError(f"{out} cannot be drawn: {error}") from error
    pyplot().close(figure)
    print(f"wrote {out}")


def plain(text):
    """A user's text as matplotlib shows it: a dollar sign begins no formula."""
    return text.replace("$", r"\$")


def read_epochs(folder):
    """(first record, epochs) of a run's log; SettingsError if it has no finished epoch."""
    first, epochs, _ = read_log(folder)
    if not epochs:
        raise SettingsError(f"{folder} has no finished epoch to draw")
    return first, epochs


def unusual(settings):
    """{name: value} of a run's settings that differ from the data set's defaults.

    The defaults are the ones without a GPU; train.py's if your own data are no longer there.
    """
    usual, name = dataclasses.asdict(train.Settings()), settings["dataset"]
    usual |= defaults(name, "cpu") if name in DATASETS or Path(name).is_dir() else {}
    silent = cli.changeable(train.Settings) | {"dataset", "method", "seed"}
    return {k: v for k, v in settings.items() if k not in silent and v != usual.get(k)}


def label(settings):
    """A run's method and its unusual settings, as flags: a row of a table, to copy."""
    return " ".join([settings["method"], *cli.as_flags(unusual(settings))])


def in_words(settings):
    """The same for a picture: `α = 0.5, sum fusion, batch size 16, no bf16`."""
    words = [settings["method"].replace("constant:", "α = ").replace(":", " ")]
    for name, value in unusual(settings).items():
        text = WORDS.get(name, name.replace("_", " ") + " {}")
        if isinstance(value, bool):
            text = f"{'' if value else 'no '}{text.removesuffix(' {}')}"
        words.append(text.format(value))
    return ", ".join(words)


def titled(folder, settings):
    """in_words; if --out gave the folder a name, with it, because only the code may differ."""
    name, words = Path(folder).resolve().name, in_words(settings)
    return words if name.startswith(settings["dataset"]) else f"{name}: {words}"
