"""baselines.py and its rules: each method computes its formula, trains, stops and resumes."""

import dataclasses
import functools
import itertools
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny
from torch import nn

import data
import train
from baselines import BASELINES, Unimodal, held_out
from bilevel import SOLVERS
from losses import classification_loss, modality_matching_loss
from model import ENCODERS, FUSIONS, MultimodalModel
from utils import distributed, rebalance
from utils.run import load_checkpoint, read_log
from utils.samples import LOGGED

TINY = ["--dataset", "tiny", "--batch-size", "16"]
FLAGS = {name: ["--val-fraction", "0.2"] * kind.needs_val for name, kind in BASELINES.items()}
FLAGS["greedy"] = ["--fusion", "channel"]


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def made(name, *numbers, m=2, fusion="concat"):
    """(a method's model in float64, x of 6 samples, y)."""
    torch.manual_seed(0)
    kind = BASELINES.get(name, MultimodalModel)
    model = kind(list(range(1, m + 1)), 3, fusion=fusion).double()
    if name in BASELINES:
        args = train.Settings(method=":".join([name, *map(str, numbers)]), dataset="tiny")
        model.start(args, None)
        model.double()
    x = [torch.randn(6, c, 16, 16, dtype=torch.float64) for c in range(1, m + 1)]
    return model, x, torch.arange(6) % 3


def forward(model, x):
    """z, and the fused logits."""
    z, o = model(x)
    return z, o[0]


def loss_of(model, x, y):
    """The loss that a method has for a batch."""
    z, o = model(x)
    return model.loss(z, o, y, functools.partial(classification_loss, y=y))


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


def joint_gradients(model, x, y):
    """Those of CE of the fused logits."""
    return gradients(model, classification_loss(MultimodalModel.logits(model, model(x)[0]), y))


def same(a, b, **tolerance):
    """Whether two dicts of gradients agree; exactly without a tolerance."""
    equal = functools.partial(torch.allclose, **tolerance) if tolerance else torch.equal
    return all((a[n] is None and b[n] is None) or equal(a[n], b[n]) for n in a)


def epochs_of(out):
    lines = [json.loads(line) for line in Path(out, "log.jsonl").read_text().splitlines()]
    return lines[1:-1]


def three_modalities(root=""):
    """The tiny data set with its first modality once more."""
    data = tiny()
    for split in ("train", "test"):
        data.splits[split].sources.append(data.splits[split].sources[0].flip(3))
        data.splits[split].readers.append(data.splits[split].readers[0])
    return dataclasses.replace(data, kinds=data.kinds | {"touch": "tensor"})


def check_epochs(name, out):
    """The records of a run have finite losses and scores, and an alpha if the method has one."""
    for record in epochs_of(out):
        assert record["l_total"] > 0 and record["l_cls"] > 0
        assert (record["alpha"] == 0) == (not name.startswith("released"))
        assert record["l_mm"] > 0 and math.isfinite(record["fused"]["map"])


@pytest.mark.parametrize("name", BASELINES)
def test_every_method_trains_three_modalities(tiny_data, monkeypatch, name):
    """Three epochs in bfloat16, and the test scores."""
    monkeypatch.setitem(data.DATASETS, "tiny", three_modalities)
    flags = ["--epochs", "3", "--method", name, *FLAGS[name], "--bf16", "--out", "run"]
    assert train.main([*TINY, *flags]) == 0
    check_epochs(name, "run")


def test_no_modality_can_be_named_like_a_key_of_the_log(tiny_data):
    """LOGGED has the keys of every method's records, and no others."""
    runs = [["heuristic"], *(["learning-based", "--solver", solver] for solver in SOLVERS)]
    runs += [[name, *FLAGS[name]] for name in BASELINES]
    keys = {"test"}
    for method in runs:
        flags = ["--epochs", "3", "--inner-iters", "1", "--method", *method, "--out", "run"]
        assert train.main([*TINY, *flags, "--overwrite"]) == 0
        _, *records = map(json.loads, Path("run/log.jsonl").read_text().splitlines())
        keys = keys.union(*records) - {"image", "sound"}
    assert keys == {*LOGGED}


@pytest.mark.parametrize("name", BASELINES)
def test_every_method_resumes(tiny_data, monkeypatch, name):
    """Stopped in the last epoch but one and resumed: the log of the whole run, byte for byte."""
    numbers = {"mses": ":1", "g-blend": ":2", "reconboost": ":1:2", "greedy": ":0:3"}
    T = {"mslr": 8, "g-blend": 6}.get(name, 4)
    flags = [*TINY, "--epochs", str(T), "--method", name + numbers.get(name, ""), *FLAGS[name]]
    assert train.main([*flags, "--out", "whole"]) == 0
    check_epochs(name, "whole")
    real, calls = train.evaluate, []

    def evaluate(*arguments):
        calls.append(1)
        if len(calls) == T - 1:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as stopped:
        stopped.setattr(train, "evaluate", evaluate)
        assert train.main([*flags, "--out", "cut"]) == 130
    assert len(Path("cut/log.jsonl").read_text().splitlines()) == T - 1
    assert train.main(["--resume", "cut"]) == 0
    assert Path("cut/log.jsonl").read_bytes() == Path("whole/log.jsonl").read_bytes()


@pytest.mark.parametrize(
    "flags, said",
    [
        ("--method ogm:-1", "method 'ogm:-1' has alpha = -1, expected 0 or more"),
        ("--method mses:0", "method 'mses:0' has patience = 0, expected a whole number from 1 on"),
        ("--method g-blend:1.5", "has every = 1.5, expected a whole number from 1 on"),
        ("--method agm:x", "does not fit agm(alpha=1.0, epochs=20); expected agm:alpha:epochs"),
        ("--method agm:1e30", "expected agm:alpha:epochs with numbers of at most 1e6"),
        ("--method agm:1:2:3", "does not fit agm(alpha=1.0, epochs=20)"),
        ("--method g-blend:5", "--method g-blend:5 needs more than 10 epochs"),
        ("--method ogm --heads", "ogm has a loss of its own; leave --heads out"),
        (
            "--method released --matching classes",
            "released has a loss of its own; leave --matching classes out",
        ),
        ("--method heads:1", "does not fit heads(); expected heads without a number"),
        ("--method mslr:1:-1", "has rates = -1, expected 0 or more"),
        ("--method greedy", "--method greedy needs --fusion channel, got concat"),
        ("--method mla --fusion affine", "--method mla needs --fusion concat, got affine"),
        ("--method etmc --smoothing 0.1", "--smoothing changes nothing in --method etmc"),
        ("--method agn", "unknown method 'agn' (did you mean agm?); choose from agm, "),
    ],
)
def test_settings_that_do_not_fit_are_one_sentence(flags, said):
    """Before any data are read."""
    with pytest.raises(ValueError) as error:
        train.check(train.parse(flags.split()))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_data_that_do_not_fit_are_one_sentence(tiny_data, capsys):
    """What only the data can tell: status 2, and no folder is made."""
    assert train.main([*TINY, "--method", "mslr:1"]) == 2
    said = "--method mslr has 1 rates, expected 2: one a modality"
    assert said in capsys.readouterr().err and not Path("runs").exists()


@pytest.mark.parametrize("flags, said", [("", True), ("--val-fraction 0.2", False)])
@pytest.mark.parametrize("method", ["mses", "learning-based --outer held-out", "ogm"])
def test_what_needs_held_out_samples_gets_a_tenth(tiny_data, capsys, method, flags, said):
    """It says so, and logs how many; --resume and --eval have the same samples."""
    given = [*TINY, "--epochs", "2", "--out", "run", "--method", *method.split(), *flags.split()]
    assert train.main(given) == 0
    said = said and method != "ogm"
    assert ("a tenth of the training split is held out" in capsys.readouterr().out) == said
    held_out = read_log("run")[0]["samples"].get("val")
    assert held_out == (4 if said else 10 if flags else None)
    assert train.main(["--eval", "run"]) == 0 and "held out" not in capsys.readouterr().out


def test_ogm_says_what_adam_does_to_it(tiny_data, capsys):
    """Once, before it trains; with SGD, and by a method that does more than scale, nothing."""
    said = "--method ogm scales gradients, most of which Adam undoes: exercise 11 shows it"
    for flags, times in [("ogm --optimizer adam", 1), ("ogm", 0), ("pmr --optimizer adam", 0)]:
        assert train.main([*TINY, "--epochs", "1", "--overwrite", "--method", *flags.split()]) == 0
        assert capsys.readouterr().out.count(said) == times


def test_several_processes_are_refused(monkeypatch):
    """By each method whose hooks see one shard of a batch; unimodal is trained by any number."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert not Unimodal.one_process
    with pytest.raises(ValueError, match="--method ogm runs in one process"):
        made("ogm")


def test_unimodal_trains_each_modality_alone():
    """The gradient of its loss is, for each encoder and classifier, that of its own loss."""
    model, x, y = made("unimodal")
    loss = loss_of(model, x, y)
    found = gradients(model, loss)
    for j in (0, 1):
        own = {f"phi.{j}.{n}": p for n, p in model.phi[j].named_parameters()}
        own |= {f"classifiers.{j}.{n}": p for n, p in model.classifiers[j].named_parameters()}
        alone = classification_loss(model.classifiers[j](model.phi[j](x[j])), y)
        for name, g in zip(own, torch.autograd.grad(alone, list(own.values()))):
            assert torch.allclose(found[name], g)
    z, o = model(x)
    assert torch.equal(model.unimodal_logits(z, 1), model.classifiers[1](z[1]))
    assert torch.allclose(model.logits(z), o[1] + o[2])


def test_a_step_logs_l_mm_and_does_not_train_it():
    """inner_step: (loss, CE of the fused logits, L_MM); theta moves along the loss's gradient."""
    model, x, y = made("heads")
    model, x = model.float(), [x_j.float() for x_j in x]
    args = SimpleNamespace(bf16=False, smoothing=0.0, tau=0.1)
    l_mm = modality_matching_loss([z_j.float() for z_j in model(x)[0]], 0.1)
    loss, fused = loss_of(model, x, y), forward(model, x)[1].detach()
    found = gradients(model, loss)
    expected = {n: p.detach() - 0.1 * found[n] for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    logged = model.inner_step(model, optimizer, x, y, 0.0, args)
    fused = classification_loss(fused, y).item()
    assert logged.tolist() == pytest.approx([loss.item(), fused, l_mm.item()], rel=1e-5)
    for name, p in model.named_parameters():
        assert torch.allclose(p, expected[name], atol=1e-5)


def test_a_step_is_along_the_modulated_gradient():
    """modulate comes after each backward and before the optimizer's step: here it stops theta."""
    model, x, y = made("mla")
    model, x = model.float(), [x_j.float() for x_j in x]
    seen = []

    def modulate():
        seen.append([p.grad is None for p in model.phi.parameters()])
        for p in model.parameters():
            p.grad = None

    model.modulate = modulate
    before = [p.detach().clone() for p in model.parameters()]
    args = SimpleNamespace(bf16=False, smoothing=0.0, tau=0.1)
    model.inner_step(model, torch.optim.SGD(model.parameters(), 0.1), x, y, 0.0, args)
    assert all(map(torch.equal, before, model.parameters()))
    assert len(seen) == 2 and all(a != b for a, b in zip(*seen))


def moved(model, optimizer):
    """How far one step along random gradients moves each encoder."""
    before = [rebalance.vector(phi.parameters()).detach() for phi in model.phi]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    return [
        (rebalance.vector(phi.parameters()) - b).norm().item() for phi, b in zip(model.phi, before)
    ]


def held_out_of(monkeypatch, *epochs):
    """Epochs of ([CE], [ACC]) of (fused, modality 0, modality 1), for held_out."""
    values = iter([tensor(ce, acc) for ce, acc in epochs])
    monkeypatch.setattr("baselines.held_out", lambda model, batches: next(values))


def test_held_out_scores_are_those_of_the_model():
    """CE and ACC of the fused logits and of each modality, over all batches, in eval mode."""
    model, x, y = made("heads")
    batches = [(*(x_j[part] for x_j in x), y[part]) for part in (slice(0, 4), slice(4, 6))]
    found = held_out(model, batches)
    assert model.training
    z = model.eval()(x)[0]
    for column, o in zip(
        found.T, [model.logits(z), *(model.unimodal_logits(z, j) for j in (0, 1))]
    ):
        assert column[0] == pytest.approx(classification_loss(o, y).item(), rel=1e-5)
        assert column[1] == pytest.approx((o.argmax(1) == y).double().mean().item(), rel=1e-5)


def test_mses_stops_the_modality_that_overfits(monkeypatch):
    """Held-out CE 1, 1.1, 1.2 with patience 2: its rate is 0 for good, and it does not move."""
    model, *_ = made("mses", 2)
    optimizer = torch.optim.SGD(model.groups(0.1), 0.1, 0.9, weight_decay=0.1)
    moved(model, optimizer)
    falling = [[1, ce, 1 / t] for t, ce in enumerate([1, 1.1, 1.2, 0.1], 1)]
    held_out_of(monkeypatch, *((ce, [0, 0, 0]) for ce in falling))
    stopped = [model.end_of_epoch(optimizer, [])["stopped"] for _ in range(4)]
    assert stopped == [[False, False], [False, False], [True, False], [True, False]]
    assert [group["lr"] for group in optimizer.param_groups] == [0, 0.1, 0.1]
    still, moving = moved(model, optimizer)
    assert still == 0 and moving > 0


def test_mses_is_heads_until_it_stops(tiny_data):
    """With a patience that is never over: the same epochs, bit for bit."""
    for method in ("heads", "mses:99"):
        flags = ["--epochs", "3", "--val-fraction", "0.2", "--method", method, "--out", method[:4]]
        assert train.main([*TINY, *flags]) == 0
    ours = epochs_of("mses")
    assert [record.pop("stopped") for record in ours] == [[False, False]] * 3
    assert ours == epochs_of("head")


def test_mslr_follows_the_accuracies(monkeypatch):
    """50, 40 five times, then 60, 40 and 60, 50: 0.12, 0.10 and 0.11538, 0.125, times the rates."""
    model, *_ = made("mslr", 1, 0.5)
    optimizer = torch.optim.SGD(model.groups(0.1), 0.1)
    accs = [[0, 50, 40]] * 5 + [[0, 60, 40], [0, 60, 50]]
    held_out_of(monkeypatch, *(([0, 0, 0], acc) for acc in accs))
    rates = []
    for _ in accs:
        model.end_of_epoch(optimizer, [])
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert rates[4] == pytest.approx([0.1, 0.05])
    assert rates[5] == pytest.approx([0.12, 0.05])
    assert rates[6] == pytest.approx([0.1 * 60 / 52, 0.05 * 50 / 40])


def test_mslr_with_equal_rates_is_the_sum_of_predictions(tiny_data, monkeypatch):
    """While the accuracies stand still: the fused model of --fusion sum, bit for bit."""
    monkeypatch.setattr("baselines.held_out", lambda *_: torch.ones(2, 3))
    for name, flags in {"mslr": [], "constant:0": ["--fusion", "sum"]}.items():
        flags = [*flags, "--epochs", "7", "--val-fraction", "0.2", "--device", "cpu"]
        flags += ["--method", name]
        assert train.main([*TINY, *flags, "--out", name[:4]]) == 0
    for ours, theirs in zip(epochs_of("mslr"), epochs_of("cons")):
        for key in ("l_total", "l_mm", "lr", "fused"):
            assert ours[key] == theirs[key]


def test_blend_weighs_by_generalisation_and_overfitting():
    """G = (0.1, 0.2), O = (0.4, -0.1): w = (1/33, 32/33); equal heads alike; none that gains."""
    before, otherwise = tensor([1, 1], [1.2, 1.2]), tensor(0.3, 0.7)
    w = rebalance.blend(before, tensor([0.5, 0.9], [1.1, 1.0]), otherwise)
    assert w.tolist() == pytest.approx([1 / 33, 32 / 33])
    assert rebalance.blend(before, before - 0.1, otherwise).tolist() == [0.5, 0.5]
    assert torch.equal(rebalance.blend(before, before + 0.1, otherwise), otherwise)


def test_slowed_is_ogms_factor():
    """rho = 2 and rho = (2.25, 1.33, 0.42); no one is slowed at rho = 1."""
    assert rebalance.slowed(tensor(2, 1), 0.1).tolist() == pytest.approx([0.80262, 1], abs=1e-5)
    assert rebalance.slowed(tensor(2, 1), 0.3).tolist() == pytest.approx([0.46295, 1], abs=1e-5)
    three = rebalance.slowed(tensor(0.9, 0.6, 0.3), 0.1)
    assert three.tolist() == pytest.approx([0.77872, 0.86745, 1], abs=1e-5)
    assert rebalance.slowed(tensor(1, 1), 0.1).tolist() == [1, 1]


def test_ogm_noise_has_the_gradients_std():
    """With k = 0: mean 0 and the standard deviation of the tensor's own gradient."""
    p = nn.Parameter(torch.zeros(200, 300))
    p.grad = 3 * torch.randn(200, 300) + 1
    std = float(p.grad.std())
    rebalance.slow([p], 0.0, 2.0)
    assert float(p.grad.mean()) == pytest.approx(0, abs=0.1)
    assert float(p.grad.std()) == pytest.approx(2 * std, rel=0.02)


@pytest.mark.parametrize("m", [2, 3])
@pytest.mark.parametrize("fusion", ["concat", "affine", "weight"])
def test_agm_parts_add_up_to_the_logits(m, fusion):
    """Shapley values: their sum is f(all); with concat, part_j = W^(j) z^(j) + b / m."""
    model, x, _ = made("agm", m=m, fusion=fusion)
    z, logits = forward(model, x)
    parts = rebalance.parts(model.logits, z)
    assert torch.allclose(sum(parts), logits)
    if fusion == "concat":
        W, b = model.classifier.weight.chunk(m, dim=1), model.classifier.bias
        for part, z_j, W_j in zip(parts, z, W):
            assert torch.allclose(part, z_j @ W_j.T + b / m)


def test_shapley_is_the_mean_over_all_orders():
    """What player j adds, averaged over the orders in which three players can come."""
    value = {S: sum(S) ** 2 + 1.0 for n in (1, 2, 3) for S in itertools.combinations(range(3), n)}
    expected = [0.0, 0.0, 0.0]
    for order in itertools.permutations(range(3)):
        for n, j in enumerate(order):
            after, before = tuple(sorted(order[: n + 1])), tuple(sorted(order[:n]))
            expected[j] += (value[after] - value.get(before, 0.0)) / 6
    assert rebalance.shapley(value.__getitem__, 3) == pytest.approx(expected)


def test_without_conflict_by_hand():
    """Agreement, right angles, a conflict, opposites, nothing at all."""
    cases = [((1, 0), (1, 0), (2, 0)), ((2, 0), (0, 1), (1, 2))]
    cases += [
        ((1, 0), (-1, 1), (0.4472, 0.8944)),
        ((1, 2), (-1, -2), (0, 0)),
        ((0, 0), (0, 0), (0, 0)),
    ]
    for g, u, expected in cases:
        found = rebalance.without_conflict(tensor(*g), tensor(*u))
        assert found.tolist() == pytest.approx(expected, abs=1e-4)


def test_without_conflict_raises_neither_loss():
    """In random conflicts h has no negative product with g or u, and the length of g + u."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        g, u = torch.randn(2, 5, generator=generator, dtype=torch.float64)
        h = rebalance.without_conflict(g, u)
        if g @ u > 0:
            assert torch.allclose(h, g + u)
        else:
            assert h @ g >= -1e-9 and h @ u >= -1e-9
            assert float(h.norm()) == pytest.approx(float((g + u).norm()))


def test_weaker_is_pmrs_beta():
    """max s / s_j - 1, from 0 for the surest modality to at most 1."""
    assert rebalance.weaker(tensor(3, 1, 2)).tolist() == [0, 1, 0.5]


def test_surest_takes_each_samples_own():
    """Modality 1 is surer of the first sample, modality 0 of the second."""
    o = tensor([[0, 1], [9, 0]], [[3, 0], [0, 1]])
    assert rebalance.surest(o).tolist() == [[3, 0], [9, 0]]


def test_a_parameter_that_an_encoder_does_not_use_stays(tiny_data, monkeypatch):
    """It has no gradient, and every method leaves it alone."""

    def spare(channels, pretrained=False, source=""):
        net, d = ENCODERS["cnn"](channels)
        net.spare = nn.Parameter(torch.ones(2, 2))
        return net, d

    monkeypatch.setitem(ENCODERS, "spare", spare)
    for name in ("mmpareto", "ogm", "greedy", "mla"):
        flags = ["--epochs", "1", "--encoders", "spare", "--method", name, *FLAGS[name]]
        assert train.main([*TINY, *flags, "--out", name]) == 0
        assert load_checkpoint(name)["model"]["phi.0.spare"].eq(1).all()


def test_etmc_fits_every_view_and_scores_by_the_dirichlet():
    """Three views and the fused one; the KL's weight is 0 in epoch 1, 1 after `anneal` epochs;
    softmax of the logits is the mean of Dirichlet(e + 1)."""
    model, x, y = made("etmc", 2)
    z = model(x)[0]
    e = model.evidence(z)
    views = [*e, rebalance.dempster(e)]
    for weight in (0, 0.5, 1, 1):
        expected = sum(rebalance.evidential_loss(view, y, weight) for view in views)
        assert torch.allclose(loss_of(model, x, y), expected)
        model.end_of_epoch(None, [])
    alpha = views[-1] + 1
    assert len(e) == 3 and torch.allclose(model.logits(z).softmax(1), alpha / alpha.sum(1, True))
    alpha = e[2] + 1
    alone = model.unimodal_logits(z, 1).softmax(1)
    assert torch.allclose(alone, alpha / alpha.sum(1, True))


def test_sum_is_concat_with_other_names():
    """W = [W^(1), ..., W^(m)], b = sum_j b^(j); its weights start as those of d inputs."""
    model, x, _ = made("joint", m=3, fusion="sum")
    z, logits = forward(model, x)
    W = torch.cat([own.weight for own in model.classifier], dim=1)
    b = sum(own.bias for own in model.classifier)
    assert torch.allclose(logits, torch.cat(z, dim=1) @ W.T + b)
    assert len(model.classifier) == 3 and 0.9 < float(W.abs().max()) * 64**0.5 <= 1


def test_weight_averages_the_predictions():
    """sum_j w_j o_j; without attention the mean over the modalities; o_j scores modality j."""
    model, x, _ = made("joint", m=3, fusion="weight")
    z, (fused, *o) = model(x)
    w = torch.stack([model.fusion.attention(z_j) for z_j in z]).softmax(0)
    assert torch.allclose(fused, (w * torch.stack(o)).sum(0)) and w.std() > 0
    assert torch.equal(model.unimodal_logits(z, 2), o[2])
    for p in model.fusion.attention.parameters():
        nn.init.zeros_(p)
    assert torch.allclose(model.logits(z), sum(o) / 3)


def test_channel_gates_by_all_modalities():
    """All weights 0: gates of 1/2; a gate of one modality follows the other's features."""
    model, x, _ = made("joint", fusion="channel")
    z = model(x)[0]
    other = model.fusion.gates([z[0], z[1] + 1])
    assert not torch.allclose(model.fusion.gates(z)[0], other[0])
    for p in model.fusion.parameters():
        nn.init.zeros_(p)
    assert torch.equal(model.fusion(z), torch.cat(z, dim=1) / 2)


def test_lstm_reads_the_modalities_in_order():
    """Its last output, of two layers; the order counts."""
    model, x, _ = made("joint", fusion="lstm")
    z = model(x)[0]
    expected = model.fusion.net(torch.stack(z, dim=1))[0][:, 1]
    assert torch.equal(model.fusion(z), expected) and model.fusion.net.num_layers == 2
    assert not torch.allclose(model.fusion(z[::-1]), expected)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_fusion_trains_with_eq_3(tiny_data, fusion):
    """learning-based needs second derivatives of it."""
    flags = ["--epochs", "2", "--draws", "1", "--alpha-batch", "8", "--fusion", fusion]
    assert train.main([*TINY, *flags, "--out", "run"]) == 0
    assert all(math.isfinite(r["hypergradient"]) for r in epochs_of("run"))
