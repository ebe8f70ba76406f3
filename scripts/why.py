"""What L_MM does in a run, epoch by epoch, as a table in Markdown (docs/RESULTS.md, Why).

    python train.py --method constant:0.5 --keep 9 --out runs/why
    python -m scripts.why runs/why

L_MM treats every other sample of a batch as a negative. `same class` is the part of the negatives
that have the sample's own class; their `weight` is the part of the softmax over all negatives that
they have: so much of what L_MM pushes apart belongs together. L_MM is of training and of test
batches, `masked`: of test batches without the negatives of the same class. |g| is the length of the
gradient of an encoder's parameters under CE of the fused logits, L_MM and, with --heads, CE of its
own head. A line for each epoch that has a checkpoint (--keep).
"""

import itertools
import sys

import numpy as np
import torch
from torch.nn import functional as F

from bilevel import grad
from data import Batches
from losses import classification_loss, modality_matching_loss, similarity
from scripts.figures import one_table
from scripts.predict import own_data
from train import make_model
from utils import cli
from utils.modules import eval_mode
from utils.run import checkpoint_epochs, load_checkpoint, load_state

N = 8  # batches of each measurement


def negatives(z, y, tau):
    """(part of the negatives that have i's class, their weight, L_MM without them) of one batch.

    z: features of the modalities, (B, d) each; y: (B,). Means over samples and pairs of modalities.
    """
    itself = torch.eye(len(y), dtype=bool, device=y.device)
    same, match = (y[:, None] == y) & ~itself, torch.arange(len(y), device=y.device)
    found = []
    for z_j, z_l in itertools.permutations(z, 2):
        logits = similarity(z_j, z_l) / tau  # (B, B)
        weight = logits.masked_fill(itself, -torch.inf).softmax(1)
        masked = F.cross_entropy(logits.masked_fill(same, -torch.inf), match)
        part = same.sum() / (~itself).sum()
        found.append(torch.stack([part, (weight * same).sum(1).mean(), masked]))
    return torch.stack(found).mean(0)


def gradient_sizes(model, x, y, tau):
    """[(m,) each]: |gradient| of each encoder under CE(fused), L_MM and, with heads, CE(o_j)."""
    with eval_mode(model, batch_statistics=True):
        z, o = model(x)
    losses = [classification_loss(o[0], y), modality_matching_loss(z, tau)]
    if len(o) > 1:
        losses.append(sum(classification_loss(o_j, y) for o_j in o[1:]))
    sizes = []
    for loss in losses:
        parts = [grad(loss, list(phi.parameters()), retain_graph=True) for phi in model.phi]
        sizes.append([torch.cat([g.flatten() for g in part]).norm().item() for part in parts])
    return sizes


def measure(model, train, test, tau):
    """(same, weight, L_MM train, L_MM test, masked) and gradient_sizes, means over N batches."""
    values, sizes = [], []
    for (x, y), (x_test, y_test) in itertools.islice(zip(train.draw(1), test.draw(1)), N):
        with torch.no_grad(), eval_mode(model):
            z, z_test = model(x)[0], model(x_test)[0]
        same, weight, _ = negatives(z, y, tau).tolist()
        l_mm = [modality_matching_loss(features, tau).item() for features in (z, z_test)]
        values.append([100 * same, 100 * weight, *l_mm, negatives(z_test, y_test, tau)[2].item()])
        sizes.append(gradient_sizes(model, x, y, tau))
    return np.mean(values, axis=0), np.mean(sizes, axis=0)


def table(folder, root=""):
    """The table of a run's folder; root: the folder of its own data, if it has moved."""
    args, data = own_data(folder, root=root)
    model = make_model(args, data)
    device = next(model.parameters()).device
    parts = [data.splits["train"], data.splits["test"]]
    size = min(args.batch_size, *map(len, parts))
    batches = [Batches(part, size, [args.seed], device) for part in parts]
    head = ["t", "same class, %", "weight, %", "L_MM train", "L_MM test", "masked"]
    lines = []
    for t in checkpoint_epochs(folder):
        load_state(load_checkpoint(folder, t), model=model)
        values, sizes = measure(model, *batches, args.tau)
        percent = [f"{value:.0f}" for value in values[:2]]
        l_mm = [f"{value:.2f}" for value in values[2:]]
        lines.append([t, *percent, *l_mm, *(f"{size:.3f}" for size in sizes.flatten())])
    losses = ["CE", "L_MM", "own CE"][: len(sizes)]
    head += [f"|g| {loss} {name}" for loss in losses for name in data.modalities]
    return one_table([head, *lines])


def main(arguments=None):
    """Print the tables of runs; returns the exit status."""
    with cli.one_sentence("why") as program:
        parser = cli.Parser("why", description=__doc__)
        parser.add_argument("runs", nargs="+", help="folders of runs")
        parser.add_argument("--root", default="", help="folder of own data, if they have moved")
        args = parser.parse_args(arguments)
        for folder in args.runs:
            print(f"{folder}\n\n{table(folder, args.root)}\n")
    return program.status


if __name__ == "__main__":
    sys.exit(main())
