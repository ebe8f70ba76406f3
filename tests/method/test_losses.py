"""losses.py against closed forms and literal double loops."""

import inspect
import math

import pytest
import torch

from losses import (
    SCHEDULES,
    classification_loss,
    make_schedule,
    modality_matching_loss,
    similarity,
    total_loss,
)


def features(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_similarity_is_the_cosine():
    """Every entry is z_i . z_k over the product of their norms."""
    a, b = features(3, 5), features(4, 5, seed=1)
    for i in range(3):
        for k in range(4):
            cosine = sum(a[i] * b[k]) / (math.sqrt(sum(a[i] ** 2)) * math.sqrt(sum(b[k] ** 2)))
            assert similarity(a, b)[i, k] == pytest.approx(cosine.item(), abs=1e-14)


def test_classification_loss_is_the_mean_of_y_log_softmax():
    """Sec. 3.1's sum, written out; class indices and one-hot rows give the same."""
    logits, y = features(6, 4), torch.tensor([0, 1, 2, 3, 1, 1])
    rows = zip(logits.tolist(), y)
    expected = -sum(math.log(math.exp(o[k]) / sum(map(math.exp, o))) for o, k in rows) / 6
    assert classification_loss(logits, y).item() == pytest.approx(expected, abs=1e-14)
    one_hot = torch.eye(4, dtype=torch.float64)[y]
    assert classification_loss(logits, one_hot).item() == pytest.approx(expected, abs=1e-14)


def test_smoothed_labels_mix_one_hot_and_uniform():
    """Fig. 1's 0.7 L_S + 0.3 L_U, L_U being the loss of the labels 1/c."""
    logits, y = features(6, 4), torch.tensor([0, 1, 2, 3, 1, 1])
    uniform = torch.full((6, 4), 0.25, dtype=torch.float64)
    l_s, l_u = classification_loss(logits, y), classification_loss(logits, uniform)
    assert torch.allclose(classification_loss(logits, y, 0.3), 0.7 * l_s + 0.3 * l_u, atol=1e-14)


def literal_l_mm(z_j, z_l, tau):
    """The formula of Sec. 3.2, symbol by symbol."""

    def e(i, k):
        cosine = (z_j[i] @ z_l[k]) / (z_j[i].norm() * z_l[k].norm())
        return math.exp(cosine / tau)

    n_b, total = len(z_j), 0.0
    for i in range(n_b):
        total += math.log(e(i, i) / sum(e(i, k) for k in range(n_b)))
        total += math.log(e(i, i) / sum(e(k, i) for k in range(n_b)))
    return -total / (2 * n_b)


@pytest.mark.parametrize("tau", [0.07, 0.5, 2.0])
def test_l_mm_equals_the_literal_double_loop(tau):
    """Both directions, the temperature and the 1 / (2 n_b) are the paper's."""
    z = [features(7, 5), features(7, 5, seed=1)]
    assert modality_matching_loss(z, tau).item() == pytest.approx(literal_l_mm(*z, tau), rel=1e-12)


def test_l_mm_of_three_modalities_is_the_mean_over_the_pairs():
    """(1,2), (1,3) and (2,3) count alike."""
    a, b, c = (features(6, 5, seed=s) for s in range(3))
    expected = (literal_l_mm(a, b, 0.3) + literal_l_mm(a, c, 0.3) + literal_l_mm(b, c, 0.3)) / 3
    assert modality_matching_loss([a, b, c], 0.3).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("B", [1, 2, 8])
def test_l_mm_has_its_closed_forms(B):
    """Equal features give log B, orthonormal pairs log(1 + (B-1) e^(-1/tau)); with B = 1 both are
    0."""
    tau = 0.2
    same = torch.ones(B, 8, dtype=torch.float64)
    assert modality_matching_loss([same, same], tau).item() == pytest.approx(math.log(B), abs=1e-12)
    pairs = torch.eye(8, dtype=torch.float64)[:B]
    expected = math.log(1 + (B - 1) * math.exp(-1 / tau))
    assert modality_matching_loss([pairs, pairs], tau).item() == pytest.approx(expected, abs=1e-12)


def test_l_mm_of_classes_takes_all_of_the_class_as_matches():
    """The mean over the samples p of i's class of the printed log, in both directions; with a class
    for each sample it is the printed loss."""
    z, y, tau = [features(7, 5), features(7, 5, seed=1)], [0, 1, 0, 2, 2, 0, 1], 0.4
    total = 0.0
    for i in range(7):
        matches = [p for p in range(7) if y[p] == y[i]]
        for a, b in (z, z[::-1]):
            e = [math.exp(similarity(a, b)[i, k].item() / tau) for k in range(7)]
            total += sum(math.log(e[p] / sum(e)) for p in matches) / len(matches)
    found = modality_matching_loss(z, tau, torch.tensor(y)).item()
    assert found == pytest.approx(-total / 14, rel=1e-12)
    pairs = modality_matching_loss(z, tau)
    assert torch.allclose(modality_matching_loss(z, tau, torch.arange(7)), pairs)


def test_l_mm_of_one_modality_is_an_error():
    """There is nothing to match."""
    with pytest.raises(ValueError, match="at least 2"):
        modality_matching_loss([features(3, 2)], 0.1)


@pytest.mark.parametrize("alpha, expected", [(0, 2.0), (1, 5.0), (0.25, 2.75)])
def test_total_loss_is_eq_1(alpha, expected):
    """(1 - alpha) L_CLS + alpha L_MM."""
    assert total_loss(2.0, 5.0, alpha) == expected


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("T", [1, 7, 100])
def test_every_schedule_stays_in_0_1(name, T):
    """Also one that was just added: its required arguments get 0.3."""
    parameters = inspect.signature(SCHEDULES[name]).parameters.values()
    required = [p for p in parameters if p.default is p.empty][2:]
    alpha = make_schedule(":".join([name, *["0.3"] * len(required)]))
    assert all(0 <= alpha(t, T) <= 1 for t in range(1, T + 1))


VALUES = [("heuristic", 1, 20, 0.632), ("heuristic", 2, 20, 0.393), ("heuristic", 10, 20, 0.095)]
VALUES += [("constant:0.5", 9, 20, 0.5), ("stepwise:0.05", 9, 20, 0.05)]
VALUES += [("stepwise:0.05", 10, 20, 0.95), ("stepwise:0", 20, 20, 1)]
VALUES += [("cubic", 3, 20, 1), ("cubic", 10, 20, 0.820), ("cubic", 26, 40, 0.074)]
VALUES += [("cubic:26", 40, 40, 0.074), ("cubic:20", 5, 10, 0.820)]  # cubic(3): 1.042, clipped


@pytest.mark.parametrize("text, t, T, expected", VALUES)
def test_schedules_have_the_papers_values(text, t, T, expected):
    """Sec. 3.3 and 4.4, to three digits, clipped to [0, 1]."""
    assert make_schedule(text)(t, T) == pytest.approx(expected, abs=5e-4)


WRONG = ["heuristics", "", "constant", "constant:", "constant:a", "constant:nan"]
WRONG += ["constant:0.1:0.2", "heuristic:1", "constant:5", "stepwise:-1", "cubic:1e200", "lacks_T"]


@pytest.mark.parametrize("text", WRONG)
def test_unknown_schedule_lists_choices(text, monkeypatch):
    """An unknown name lists the choices, a wrong argument shows the form."""
    monkeypatch.setitem(SCHEDULES, "lacks_T", lambda t: 0.5)
    with pytest.raises(ValueError, match="choose from|does not fit|expected 0 to 1"):
        make_schedule(text)


def test_a_students_p_may_be_any_number(monkeypatch):
    """Only the paper's p is an alpha."""
    monkeypatch.setitem(SCHEDULES, "power", lambda t, T, p: (1 - t / T) ** p)
    assert make_schedule("power:2")(1, 2) == 0.25


BROKEN = [lambda t, T: math.nan, lambda t, T: None, lambda t, T: 1 / (t - 2)]
BROKEN += [lambda t, T: math.exp(1000 * t), lambda t, T: math.sqrt(1 - t)]


@pytest.mark.parametrize("broken", BROKEN)
def test_a_schedule_that_is_not_a_number_is_said(monkeypatch, broken):
    """nan, a forgotten return, a division by zero, ...: none is an alpha, and clipping must not
    hide it."""
    monkeypatch.setitem(SCHEDULES, "broken", broken)
    said = "'broken' does not return a number at t = 2 of T = 5"
    with pytest.raises(FloatingPointError, match=said):
        make_schedule("broken")(2, 5)
