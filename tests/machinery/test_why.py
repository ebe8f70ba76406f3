"""scripts/why.py: what L_MM pushes apart, and the gradients of the encoders."""

import math

import pytest
import torch

import train
from losses import modality_matching_loss
from model import MultimodalModel
from scripts import why
from utils.run import checkpoint_epochs


def test_the_weight_of_negatives_of_the_same_class_equals_a_double_loop():
    """B = 5, three modalities; L_MM without these negatives, too."""
    torch.manual_seed(0)
    z, y, tau = [torch.randn(5, 4) for _ in range(3)], torch.tensor([0, 1, 0, 0, 1]), 0.3
    weights, masked = [], []
    pairs = [(j, k) for j in range(3) for k in range(3) if j != k]
    for j, k in pairs:
        s = torch.cosine_similarity(z[j][:, None], z[k][None], dim=2) / tau
        for i in range(5):
            e = [math.exp(s[i, n]) for n in range(5)]
            same = sum(e[n] for n in range(5) if n != i and y[n] == y[i])
            weights.append(same / (sum(e) - e[i]))
            masked.append(-math.log(e[i] / (sum(e) - same)))
    part, weight, loss = why.negatives(z, y, tau).tolist()
    assert part == pytest.approx(8 / 20)  # ordered pairs: 3 * 2 of class 0, 2 of class 1
    assert weight == pytest.approx(sum(weights) / len(weights), rel=1e-5)
    assert loss == pytest.approx(sum(masked) / len(masked), rel=1e-5)


def test_without_a_shared_class_masking_changes_nothing():
    torch.manual_seed(1)
    z = [torch.randn(4, 3) for _ in range(2)]
    part, weight, masked = why.negatives(z, torch.arange(4), 0.1).tolist()
    assert part == weight == 0
    assert masked == pytest.approx(modality_matching_loss(z, 0.1).item(), rel=1e-5)


def test_the_gradients_are_each_encoders_own():
    """A head's loss reaches its own encoder alone: the sum of both gives each its own gradient."""
    torch.manual_seed(0)
    model = MultimodalModel([1, 2], 3, heads=True)
    x, y = [torch.randn(6, 1, 8, 8), torch.randn(6, 2, 8, 8)], torch.arange(6) % 3
    sizes = why.gradient_sizes(model, x, y, 0.1)
    assert len(sizes) == 3 and all(len(pair) == 2 and min(pair) > 0 for pair in sizes)
    model.train()
    z, o = model(x)
    torch.nn.functional.cross_entropy(o[2], y).backward()
    squares = sum(p.grad.square().sum().item() for p in model.phi[1].parameters())
    assert sizes[2][1] == pytest.approx(squares**0.5, rel=1e-4)


def test_a_line_for_each_kept_epoch(tiny_data, capsys):
    """With heads three losses for two modalities."""
    flags = ["--dataset", "tiny", "--method", "constant:0.5", "--batch-size", "8"]
    flags += ["--epochs", "2", "--keep", "9", "--out", "run", "--heads"]
    assert train.main(flags) == 0 and checkpoint_epochs("run") == [1, 2]
    capsys.readouterr()
    assert why.main(["run"]) == 0
    _, _, head, _, *lines = capsys.readouterr().out.strip().splitlines()
    assert head.endswith("| |g| own CE image | |g| own CE sound |")
    assert [line.split(" | ")[0] for line in lines] == ["| 1", "| 2"]
    same = [float(line.split(" | ")[1]) for line in lines]
    assert all(15 < part < 45 for part in same)  # of 7 negatives about 7 / 3


def test_a_method_with_heads_of_its_own_has_their_column(tiny_data, capsys):
    """Without --heads."""
    flags = ["--dataset", "tiny", "--method", "heads", "--batch-size", "8", "--epochs", "1"]
    assert train.main([*flags, "--out", "run"]) == 0
    capsys.readouterr()
    assert why.main(["run"]) == 0
    _, _, head, _, line = capsys.readouterr().out.strip().splitlines()
    assert head.endswith("| |g| own CE image | |g| own CE sound |")
    assert len(line.split(" | ")) == 12


def test_a_folder_without_a_run_is_one_sentence(tmp_path, capsys):
    assert why.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("why: ")
