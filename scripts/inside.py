"""`gap`, `gradcam`, `animate` and `probe` of scripts/figures.py: what a trained model sees."""

import itertools

import numpy as np
import torch
from torch import nn

import train
from scripts.plots import BLACK, GREY, PINK, legend, panels, read_epochs, save, titled
from scripts.predict import own_data
from utils import cli
from utils.cli import SettingsError
from utils.loader import eval_loader
from utils.modules import GridMean, eval_mode
from utils.run import checkpoint_epochs, load_best, load_checkpoint, load_state

POINTS, PAIRS = 300, 40  # samples that `gap` draws; pairs of features that it joins by a line
MARKERS = "o^sDv"
SECONDS = 0.8  # that `animate` shows an epoch
WORD = {"ha": "center", "va": "center", "color": "#ff9955", "fontsize": 9}


def load_run(folder, root=""):
    """(data, model without its weights, title) of a run; SettingsError without a checkpoint.

    root: the folder of its own data, if it has moved.
    """
    first, _ = read_epochs(folder)
    args, data = own_data(folder, root=root)
    return data, train.make_model(args, data), titled(folder, first["settings"])


def needed(folder, command, least):
    """The epochs of a run's checkpoints; SettingsError if there are fewer than `least`."""
    epochs = checkpoint_epochs(folder)
    if len(epochs) < least:
        found = f"{folder} has {cli.amount(len(epochs), 'checkpoint')}"
        raise SettingsError(f"{found}, {command} needs {least} or more; train with --keep 9")
    return epochs


@torch.no_grad()
def features(data, model, split="test"):
    """(z, y) of a split: the features, m arrays (n, d), and the labels (n,)."""
    device, z, labels = next(model.parameters()).device, [], []
    with eval_mode(model):
        for *x, y in eval_loader(data.splits[split], 64, device):
            z.append(model(x)[0])
            labels.append(y)
    return [torch.cat(z_j).cpu().numpy() for z_j in zip(*z)], torch.cat(labels).cpu().numpy()


def directions(z):
    """The features normalized as in s(., .): m arrays (n, d) -> m arrays (n, d)."""
    return [nn.functional.normalize(torch.tensor(z_j), dim=1).numpy() for z_j in z]


def probed(folder, test, root=""):
    """A run's test scores, each modality's ACC by a linear probe.

    The probe is a logistic regression (C = 1), fitted on the features z^(j) of the training split,
    standardized; the encoder stays as it is.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data, model, _ = load_run(folder, root)
    load_best(folder, model)
    (z, y), (z_test, y_test) = (features(data, model, split) for split in ("train", "test"))
    scores = {}
    for name, z_j, z_j_test in zip(data.modalities, z, z_test):
        linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        linear.fit(z_j.astype(np.float64), y)
        scores[name] = {"acc": 100 * linear.score(z_j_test.astype(np.float64), y_test)}
    return test | scores


def modality_gap(z):
    """|mean of z^(j) - mean of z^(l)|, averaged over all pairs of modalities: 0 to 2.

    z: m arrays (n, d) of unit rows. Fig. 2, by the definition of the paper's [25].
    """
    return np.mean([np.linalg.norm(a.mean(0) - b.mean(0)) for a, b in itertools.combinations(z, 2)])


def gap_plane(z, before=None):
    """The m arrays (n, d) in the plane that shows their gap: m arrays (n, 2).

    x: along the difference of the means, on which two modalities have their whole gap; with more,
    along the means' first principal component. y: the features' first one at right angles to it,
    in the direction in which it was in the points `before`.
    """
    means = np.stack([z_j.mean(0) for z_j in z])
    centre = means.mean(0)
    x = np.linalg.svd(means - centre, full_matrices=False)[2][0]
    if (means[-1] - means[0]) @ x < 0:  # the first modality lies left
        x = -x
    flat = np.concatenate(z) - centre
    y = np.linalg.svd(flat - np.outer(flat @ x, x), full_matrices=False)[2][0]
    points = [(z_j - centre) @ np.stack([x, y], axis=1) for z_j in z]
    if before is not None and np.sum(np.multiply(points, before)[..., 1]) < 0:
        points = [p * [1, -1] for p in points]
    return points


def draw_gap(axis, points, y, modalities, classes):
    """Draw the points of gap_plane to scale: a class has a colour, a modality a mark; lines join
    the points of some samples, a thick one the means. y: (n,)."""
    style = {"cmap": "tab10" if classes <= 10 else "turbo", "vmin": 0, "vmax": max(9, classes)}
    some = slice(0, len(y), max(1, len(y) // POINTS))
    for i in range(0, len(y), max(1, len(y) // PAIRS)):
        axis.plot(*np.stack([p[i] for p in points]).T, color=GREY, lw=0.5, zorder=1)
    means = np.stack([p.mean(0) for p in points])
    axis.plot(*means.T, color=BLACK, lw=3, zorder=3)
    for p, mean, name, mark in zip(points, means, modalities, itertools.cycle(MARKERS)):
        axis.scatter(*p[some].T, s=14, c=y[some], marker=mark, alpha=0.6, lw=0, **style)
        axis.scatter(*mean, s=150, c="white", ec=BLACK, lw=2, marker=mark, label=name, zorder=4)
    axis.set(aspect="equal", xlabel="along the difference of the means")


def gap(runs, root="", out="gap.png"):
    """The modalities' features and the modality gap (Fig. 2) on the test split, a panel per run."""
    drawn = []  # only after all runs are read: a run that cannot be read leaves no picture
    for folder in runs:
        data, model, name = load_run(folder, root)
        title = f"{name}, epoch {load_best(folder, model)}"
        z, y = features(data, model)
        drawn.append((title, data, directions(z), y))
    figure, axes = panels(1, len(runs), 3.6 * len(runs) + 0.6, 5, sharex=True, sharey=True)
    for axis, (title, data, z, y) in zip(axes[0], drawn):
        draw_gap(axis, gap_plane(z), y, data.modalities, len(data.classes))
        axis.set_title(f"{title}\nmodality gap {modality_gap(z):.2f}", fontsize=10)
    axes[0, 0].set_ylabel("first principal component across it")
    title = "large: a modality's mean; a colour: a class; a thin line: one sample"
    legend(figure, axes[0, 0], ncols=5, title=title)
    save(figure, out)


def grad_cam(model, x, j, k):
    """Grad-CAM (Fig. 4): relu(sum_c w_c A_c), with w_c the mean of d logit_k / d A_c.

    A: the maps that the encoder averages at its end; x: list of m inputs (1, ...). Returns (H, W)
    in 0..1, of a clip for its middle frame. SettingsError for an encoder without such maps.
    """
    kinds = (nn.AdaptiveAvgPool2d, GridMean)
    pools = [module for module in model.phi[j].modules() if isinstance(module, kinds)]
    if not pools:
        raise SettingsError("gradcam needs cnn or a ResNet; this modality's encoder has no maps")
    seen = []
    hook = pools[-1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with eval_mode(model):
        logit = model.logits(model(x)[0])[0, k]
    hook.remove()
    A = seen[0]  # (F, C, h, w), a frame a row
    w = torch.autograd.grad(logit, A)[0].mean((2, 3), keepdim=True)
    cam = (w * A).sum(1, keepdim=True).relu()  # (F, 1, h, w)
    cam = nn.functional.interpolate(cam, x[j].shape[-2:], mode="bilinear")
    cam = cam[len(cam) // 2, 0].detach()  # (H, W)
    return cam / cam.max().clamp(min=1e-12)


def shown(x_j):
    """An input as a picture in 0..1: (C, H, W), or a clip's middle frame -> (H, W) or (H, W, 3)."""
    x_j = x_j[len(x_j) // 2] if x_j.dim() == 4 else x_j
    x_j = x_j if len(x_j) == 3 else x_j.float().mean(0, keepdim=True)
    x_j = (x_j - x_j.min()) / (x_j.max() - x_j.min()).clamp(min=1e-12)
    return x_j.permute(1, 2, 0).squeeze(2).cpu().numpy()


def chosen(samples, n):
    """The numbers of "3,14", of the n samples of a test split, else four from all of it;
    SettingsError for any other text."""
    numbers = [] if samples else sorted({n * k // 4 for k in range(4)})
    for text in samples.split(",") if samples else []:
        if not text.strip().isdecimal() or not int(text) < n:
            limits = f"numbers from 0 to {n - 1}, those of the test split, with commas"
            raise SettingsError(f"--sample has {text!r}, expected {limits}")
        numbers.append(int(text))
    return numbers


def grad_cams(folder, modality, samples, root):
    """A run's part of gradcam: (title, modality, [(number, input, class, [(t, Grad-CAM), ..]), ..])

    of each sample, with the Grad-CAM of three checkpoints.
    """
    data, model, name = load_run(folder, root)
    modality = cli.check_choice("modality", modality or data.modalities[0], data.modalities)
    j, test = data.modalities.index(modality), data.splits["test"]
    epochs = needed(folder, "gradcam", 3)
    device, rows = next(model.parameters()).device, []
    for i in chosen(samples, len(test)):
        *x, k = test[i]
        rows.append((i, x, int(k), []))
    for t in [epochs[0], epochs[len(epochs) // 2], epochs[-1]]:
        load_state(load_checkpoint(folder, t), model=model)
        for _, x, k, maps in rows:
            heat = grad_cam(model, [x_j[None].to(device) for x_j in x], j, k)
            maps.append((t, heat.cpu().numpy()))
    return name, modality, [(i, shown(x[j]), data.classes[k], maps) for i, x, k, maps in rows]


def gradcam(runs, root="", out="gradcam.png", modality="", sample=""):
    """Where an encoder looks after the first, a middle and the last epoch (Fig. 4).

    A row per sample; four panels for each run, the sample first. A run has three checkpoints or
    more. modality: the first one without a name.
    """
    parts = [grad_cams(folder, modality, sample, root) for folder in runs]
    _, modality, rows = parts[0]
    height, width = rows[0][1].shape[:2]
    flip = modality in ("audio", "sound")
    style = {"origin": "lower" if flip else "upper", "aspect": "auto" if flip else "equal"}
    size = 1.7 * min(max(width / height, 0.7), 1.5)
    figure, axes = panels(len(rows), 4 * len(runs), 4 * len(runs) * size, 1.8 * len(rows) + 0.5)
    for k, (name, _, rows) in enumerate(parts):
        for axis, words in zip(axes[0, 4 * k :], [name, *(f"epoch {t}" for t, _ in rows[0][3])]):
            axis.set_title(words, fontsize=9)
        for line, (i, picture, label, maps) in zip(axes[:, 4 * k : 4 * k + 4], rows):
            for axis in line:
                axis.imshow(picture, "gray", **style)
                axis.set(xticks=[], yticks=[])
                axis.grid(False)
            line[0].set_ylabel(f"sample {i}, class {label}", fontsize=9)
            for axis, (_, heat) in zip(line[1:], maps):
                axis.imshow(heat, "autumn", vmin=0, vmax=1, alpha=0.75 * heat, **style)
                if not heat.any():
                    axis.text(0.5, 0.1, "nothing lights", transform=axis.transAxes, **WORD)
    figure.suptitle(f"where the encoder of {modality} looks; each map is of its own maximum")
    save(figure, out)


def animate(run, root="", out="animation.gif"):
    """The features (gap), alpha and the scores, epoch by epoch, as a GIF: a frame per checkpoint.

    Each frame has its own gap_plane; its second axis points as in the frame before.
    """
    from matplotlib.animation import FuncAnimation

    kept, (_, epochs) = needed(run, "animate", 2), read_epochs(run)
    data, model, name = load_run(run, root)
    shots, points = [], None
    for t in kept:
        load_state(load_checkpoint(run, t), model=model)
        z, y = features(data, model)
        z = directions(z)
        points = gap_plane(z, points)
        shots.append((t, points, y, modality_gap(z)))
    figure, (axes,) = panels(1, 2, 9, 4.6)

    def frame(shot):
        t, points, y, size = shot
        for axis in axes:
            axis.clear()
        draw_gap(axes[0], points, y, data.modalities, len(data.classes))
        axes[0].set(xlim=(-1, 1), ylim=(-1, 1), title=f"epoch {t}: modality gap {size:.2f}")
        lines = {
            "fused ACC, %": ([r["fused"]["acc"] for r in epochs[:t]], ".-", BLACK),
            "perf_gap, points": ([r["perf_gap"] for r in epochs[:t]], ".--", GREY),
            "100 α": ([100 * r["alpha"] for r in epochs[:t]], ".-", PINK),
        }
        for label, (values, style, colour) in lines.items():
            axes[1].plot(range(1, t + 1), values, style, color=colour, lw=2, label=label)
        axes[1].set(xlim=(0.5, len(epochs) + 0.5), ylim=(-2, 102), xlabel="epoch t", title=name)
        axes[0].legend(loc="upper right", fontsize=8)
        axes[1].legend(loc="center right", fontsize=8)

    save(figure, out, FuncAnimation(figure, frame, shots, interval=1000 * SECONDS))
