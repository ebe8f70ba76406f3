"""The pictures `confusion` and `mistakes` of scripts/figures.py: what one run gets wrong."""

import textwrap
from pathlib import Path

import numpy as np

import train
from scripts import predict
from scripts.inside import shown
from scripts.plots import BLUE, panels, plain, save
from scripts.predict import Predictor
from utils import cli

SHOWN = 8  # samples that `mistakes` draws


def answers(records, modalities):
    """{"fused" or modality: (label, predicted) of each sample}, from the records of predict."""
    pairs = {"fused": [(r["label"], r["prediction"].label) for r in records]}
    for name in modalities:
        pairs[name] = [(r["label"], r["prediction"].alone[name]) for r in records]
    return pairs


def confusion(run, split="test", root="", out="confusion.png"):
    """Which class is taken for which, by the fused model and by each modality alone.

    A row is a label, a column a predicted class. Returns the three largest confusions, in words.
    """
    from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

    cli.check_choice("split", split, train.SPLITS)
    predictor = Predictor(run)
    _, records = predict.own_records(predictor, run, split, root)
    classes = predictor.classes
    pairs, names = answers(records, predictor.kinds), [*map(plain, classes)]
    few, size = len(classes) <= 15, min(8, 2.5 + 0.3 * len(classes))
    figure, axes = panels(1, len(pairs), size * len(pairs), size)
    lines = []
    for axis, (name, found) in zip(axes[0], pairs.items()):
        labels, predicted = [pair[0] for pair in found], [pair[1] for pair in found]
        matrix = confusion_matrix(labels, predicted, labels=classes)
        display = ConfusionMatrixDisplay(matrix, display_labels=names)
        options = {"cmap": "Blues", "colorbar": False, "values_format": "d"}
        display.plot(ax=axis, include_values=few, xticks_rotation="vertical", **options)
        axis.grid(False)
        if not few:
            axis.set(xticks=[], yticks=[])
        right = f"{np.trace(matrix)} of {matrix.sum()} right"
        axis.set_title(f"{name if name == 'fused' else f'{name} alone'}: {right}", fontsize=10)
        lines += [f"{name}: {right}", *(f"  {line}" for line in predict.confusions(found))]
    figure.suptitle(f"{Path(run).resolve().name}, epoch {predictor.t}, {split} split", fontsize=10)
    save(figure, out)
    return "\n".join(lines)


def show_input(axis, name, kind, x_j, source):
    """Draw a sample's input as its modality is seen: a picture, a spectrogram, a text, numbers."""
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    if kind == "text":
        axis.text(0.5, 0.5, plain(textwrap.fill(source, 30)), ha="center", va="center", wrap=True)
    elif x_j.dim() == 1:
        axis.bar(range(len(x_j)), x_j.tolist(), width=1.0, color=BLUE)
    else:
        low_pitch_below = kind.startswith("audio") or name == "sound"
        axis.imshow(shown(x_j), "gray", origin="lower" if low_pitch_below else "upper")
        axis.set_aspect("auto" if low_pitch_below else "equal")


def mistakes(run, split="test", root="", out="mistakes.png"):
    """The samples that are wrong with the highest probability, a row each.

    A row has the sample's inputs and the class by each modality alone. Returns the rows as text.
    """
    cli.check_choice("split", split, train.SPLITS)
    predictor = Predictor(run)
    samples, records = predict.own_records(predictor, run, split, root)
    wrong = [i for i, r in enumerate(records) if r["label"] != r["prediction"].label]
    said = f"wrong: {len(wrong)} of {cli.amount(len(records), 'sample')} of the {split} split"
    if not wrong:
        return said
    wrong = sorted(wrong, key=lambda i: -records[i]["prediction"].probability)[:SHOWN]
    figure, axes = panels(len(wrong), len(predictor.kinds), 2 + 2.5 * len(predictor.kinds), 1)
    figure.set_figheight(2.2 * len(wrong) + 0.5)
    for row, i in zip(axes, wrong):
        record, prediction, (*x, _) = records[i], records[i]["prediction"], samples[i]
        for j, (axis, (name, kind)) in enumerate(zip(row, predictor.kinds.items())):
            show_input(axis, name, kind, x[j].cpu(), samples.sources[j][i])
            axis.set_title(plain(f"{name} alone: {prediction.alone[name]}"), fontsize=9)
        probability = f"{prediction.label} ({prediction.probability:.3f})"
        text = f"{record['label']}, taken for\n{probability}\n{Path(record['sample']).name}"
        row[0].set_ylabel(plain(text), rotation=0, ha="right", va="center", fontsize=9)
    save(figure, out)
    rows = predict.table([records[i] for i in wrong], predictor.kinds)
    return "\n".join([f"{said}; with the highest probability:", *predict.aligned(rows)])
