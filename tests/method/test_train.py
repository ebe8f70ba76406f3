"""train.py: Algorithm 1's steps, the log, the scores, the command line."""

import copy
import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import sentence

import train
from bilevel import SOLVERS
from data import load_data
from losses import SCHEDULES, make_schedule, modality_matching_loss
from model import ENCODERS, FUSIONS, MultimodalModel, encoder_names
from utils import cli
from utils.loader import eval_loader

ROOT = Path(__file__).parents[2]
METHODS = ["learning-based", *SCHEDULES]
EXAMPLE = {"constant": "constant:0.5", "stepwise": "stepwise:0.05"}
QUICK = dict(dataset="tiny", epochs=3, batch_size=16)


def log_of(out):
    return [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]


def arguments_of(**settings):
    """Settings as a command line."""
    words = [(cli.flag(name), value) for name, value in settings.items() if value is not False]
    return [x for name, value in words for x in ([name] if value is True else [name, str(value)])]


def run(**settings):
    """A run of the tiny set: (first line, epochs, test line) of its log."""
    settings = QUICK | dict(out="run", overwrite=True) | settings
    assert train.main(arguments_of(**settings)) == 0
    first, *epochs, test = log_of(settings["out"])
    return first, epochs, test["test"]


def prepared(**settings):
    """(args, data, model) as main() makes them."""
    args = train.Settings(**QUICK | settings)
    data = load_data(args, lambda m: encoder_names(args.encoders, m))
    return args, data, train.make_model(args, data)


@pytest.mark.parametrize("method", [EXAMPLE.get(m, m) for m in METHODS])
def test_every_method_runs_and_logs(tiny_data, capsys, method):
    """Settings, one line an epoch, the test scores; the same on the terminal, and a table."""
    first, epochs, test = run(method=method)
    assert first["settings"]["method"] == method and first["samples"] == {"train": 48, "test": 15}
    assert [r["t"] for r in epochs] == [1, 2, 3]
    for r in epochs:
        assert 0 <= r["alpha"] <= 1 and r["split"] == "test"
        for name in ("fused", "image", "sound"):
            assert all(0 <= r[name][key] <= 100 for key in ("acc", "map", "f1"))
        l_total = (1 - r["alpha"]) * r["l_cls"] + r["alpha"] * r["l_mm"]
        assert r["l_total"] == pytest.approx(l_total, rel=1e-5)
    assert test == {key: epochs[-1][key] for key in ("fused", "image", "sound", "perf_gap")}
    printed = capsys.readouterr().out
    assert printed.count("alpha") == 3 and "macro-F1" in printed
    assert f"perf_gap {test['perf_gap']:.2f}" in printed


@pytest.mark.parametrize("method", [EXAMPLE.get(m, m) for m in SCHEDULES])
def test_epoch_t_trains_with_omega_of_t(tiny_data, method):
    """Sec. 3.3: alpha_t = omega(t), t from 1."""
    _, epochs, _ = run(method=method)
    assert [r["alpha"] for r in epochs] == [make_schedule(method)(t, 3) for t in (1, 2, 3)]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("outer", train.OUTER)
def test_alpha_takes_clipped_gradient_steps(tiny_data, solver, outer):
    """alpha_1 = alpha_0, then max(0, min(1, alpha - eta_alpha * hypergradient)), as Alg. 1 has it,
    moved by no more than alpha_limit."""
    first, epochs, _ = run(solver=solver, outer=outer, alpha_0=0.6, eta_alpha=3.0, alpha_limit=0.2)
    assert epochs[0]["alpha"] == 0.6
    for before, after in zip(epochs, epochs[1:]):
        step = max(-0.2, min(0.2, 3.0 * (before["hypergradient"] or 0)))
        assert after["alpha"] == max(0.0, min(1.0, before["alpha"] - step))
    assert any(r["hypergradient"] for r in epochs)
    assert ("val" in first["samples"]) == (outer == "held-out")


@pytest.mark.parametrize(
    "gradient, expected",
    [(9.0, [0.6, 0.35, 0.1, 0.0]), (-9.0, [0.6, 0.85, 1.0, 1.0]), (0.1, [0.6, 0.4, 0.2, 0.0])],
)
def test_one_update_moves_alpha_by_no_more_than_its_limit(
    tiny_data, monkeypatch, gradient, expected
):
    """Whatever the hypergradient, in both directions; below the limit the update is Alg. 1's."""
    monkeypatch.setattr(train, "hypergradient", lambda *_, **__: (gradient, {"note": ""}))
    _, epochs, _ = run(alpha_0=0.6, eta_alpha=2.0, alpha_limit=0.25, epochs=4)
    assert [r["alpha"] for r in epochs] == pytest.approx(expected)


def call_eq_3(monkeypatch, **settings):
    """What a run hands to hypergradient in its epochs: [(L_CLS of its outer batches, L_CLS of its
    inner ones, params, alpha, its other arguments)]."""
    calls, models = [], []

    def record(outer, inner, params, alpha, solver, terms, **options):
        for module in models[-1].modules():
            assert module.training == isinstance(module, torch.nn.BatchNorm2d)
        losses = [outer().item() for _ in range(3)], [inner()[0].item() for _ in range(3)]
        calls.append((*losses, alpha, solver, terms, options))
        return 0.0, {"note": ""}

    monkeypatch.setattr(train, "hypergradient", record)
    real = train.make_model
    monkeypatch.setattr(train, "make_model", lambda *a: models.append(real(*a)) or models[-1])
    run(**settings)
    return calls


def test_each_factor_of_eq_3_has_batches_of_its_own(tiny_data, monkeypatch):
    """No batch of an update is that of another call, of either level, or of another epoch; settings
    are passed."""
    calls = call_eq_3(monkeypatch, alpha_batch=8, weight_decay=0.2, terms=7, draws=3)
    seen = [loss for outer, inner, *_ in calls for loss in (*outer, *inner)]
    assert len(calls) == 3 and len(set(seen)) == len(seen) == 18
    assert len({options["rng"].initial_seed() for *_, options in calls}) == 3
    for *_, alpha, solver, terms, options in calls:
        assert (alpha, solver, terms) == (0.95, "lanczos", 7)
        assert options["decay"] == 0.2 and options["draws"] == 3


def test_a_shared_batch_is_the_same_for_every_factor(tiny_data, monkeypatch):
    """--outer shared: one batch an update, another in the next epoch, one draw."""
    calls = call_eq_3(monkeypatch, alpha_batch=8, outer="shared")
    assert all(len({*outer, *inner}) == 1 for outer, inner, *_ in calls)
    assert len({outer[0] for outer, *_ in calls}) == 3 and all(c[-1]["draws"] == 1 for c in calls)


def test_the_outer_batches_are_held_out(tiny_data, monkeypatch):
    """--outer held-out: from samples that are not trained on, all of them where there are fewer
    than alpha_batch."""
    calls = call_eq_3(monkeypatch, outer="held-out", val_fraction=0.25)
    assert all(outer == pytest.approx([outer[0]] * 3, rel=1e-5) for outer, *_ in calls)
    args, data, _ = prepared(outer="held-out", val_fraction=0.25)
    _, inner, outer, _ = train.make_batches(args, data, torch.device("cpu"))
    assert inner.dataset is data.splits["train"] and outer.dataset is data.splits["val"]


def test_the_batches_of_eq_3_depend_on_seed_and_epoch_alone(tiny_data, monkeypatch):
    """Those of the third epoch are the same whatever came before; those of the inner and the outer
    level differ."""
    args, data, _ = prepared(alpha_batch=8)
    cpu = torch.device("cpu")
    batches = [train.make_batches(args, data, cpu) for _ in range(2)]
    next(batches[0][1].draw(1))
    drawn = [[next(level.draw(3)) for level in b[1:3]] for b in batches]
    for (_, y), (_, again) in zip(*drawn):
        assert torch.equal(y, again)
    assert not torch.equal(drawn[0][0][0][0], drawn[0][1][0][0])
    other = train.make_batches(dataclasses.replace(args, seed=1), data, cpu)
    assert not torch.equal(next(other[1].draw(3))[0][0], drawn[0][0][0][0])


def test_a_refused_hypergradient_leaves_alpha(tiny_data, monkeypatch, capsys):
    """None from the solver changes nothing and is said on the epoch's line."""
    refused = None, {"note": "refused: because"}
    monkeypatch.setattr(train, "hypergradient", lambda *_, **__: refused)
    _, epochs, _ = run(alpha_0=0.7)
    assert [r["alpha"] for r in epochs] == [0.7] * 3
    assert capsys.readouterr().out.count("refused: because") == 3


def test_inner_iters_counts_batches(tiny_data, monkeypatch):
    """0 is one pass (48 samples in 16s make 3), another number is itself, also beyond one pass."""
    steps = []
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: steps.append(1))
    for inner_iters, expected in [(0, 3), (2, 2), (7, 7)]:
        steps.clear()
        run(method="heuristic", inner_iters=inner_iters)
        assert len(steps) == 3 * expected


class NoFolder:
    """In place of utils.run.Run: nothing is written."""

    def resume(self, alpha, *parts):
        return 1, alpha

    def progress(self, batches, t):
        return batches.epoch(t)

    def save(self, *_):
        pass


@pytest.mark.parametrize("steps, renewed", [(2, 3), (3, 0)])
def test_statistics_are_renewed_in_epochs_of_few_steps(tiny_data, monkeypatch, steps, renewed):
    """Once before each evaluation, with batches of the inner level."""
    seen = []
    monkeypatch.setattr(train, "FEW_STEPS", 3)
    monkeypatch.setattr(train, "renew_statistics", lambda model, batches: seen.append(batches))
    run(method="constant:0", inner_iters=steps, alpha_batch=8)
    assert len(seen) == renewed and all(len(next(batches)[1]) == 8 for batches in seen)


def test_the_optimiser_minimises_the_total_loss(tiny_data):
    """alpha = 1 leaves the classifier as it was initialised, alpha = 0 moves it."""
    for method, moved in [("constant:1", False), ("constant:0", True)]:
        args, data, model = prepared(method=method, weight_decay=0.0)
        before = model.eval().classifier.weight.clone()
        train.train(args, data, model, NoFolder())
        assert model.training
        assert torch.equal(before, model.classifier.weight) != moved


def test_matching_takes_the_labels_to_l_mm(tiny_data):
    """--matching classes: L_MM of one batch with the labels, for theta and for alpha."""
    args, data, model = prepared(matching="classes", device="cpu")
    (x, y), z = next(train.make_batches(args, data, "cpu")[1].draw(1)), None
    z, o = model.eval()(x)
    expected = modality_matching_loss(z, args.tau, y)
    assert torch.equal(train.losses(z, o, y, args)[1], expected)
    args.matching = "pairs"
    assert train.losses(z, o, y, args)[1] != expected


def test_heads_add_their_losses_and_score_their_modality(tiny_data):
    """L_CLS = CE(fused) + CE(o_1) + CE(o_2); a modality's score is that of its own head."""
    args, data, model = prepared(heads=True, device="cpu")
    x, y = next(train.make_batches(args, data, "cpu")[1].draw(1))
    z, o = model.eval()(x)
    own = [head(z_j) for head, z_j in zip(model.classifiers, z)]
    expected = sum(torch.nn.functional.cross_entropy(o_k, y) for o_k in [model.logits(z), *own])
    assert torch.allclose(train.losses(z, o, y, args)[0], expected)
    assert torch.equal(model.unimodal_logits(z, 1), own[1])
    joint = prepared(device="cpu")[2]
    assert len(o) == 3 and len(joint(x)[1]) == 1 and not len(joint.classifiers)


def test_constant_0_with_heads_is_the_method_heads(tiny_data):
    """The same parameters after the same steps; learning-based trains with heads, too."""
    _, ours, test = run(method="constant:0", heads=True)
    _, theirs, same = run(method="heads", out="heads")
    assert test == same
    for a, b in zip(ours, theirs):
        assert a["l_total"] == b["l_total"] and a["fused"] == b["fused"]
        assert a["l_cls"] == a["l_total"] > b["l_cls"]
    _, epochs, _ = run(heads=True, fusion="weight")
    assert all(math.isfinite(r["hypergradient"]) for r in epochs)


@pytest.mark.parametrize("method", ["learning-based", "heuristic"])
def test_the_same_seed_gives_the_same_log(tiny_data, method):
    """Byte for byte; another seed another one."""
    for out, seed in [("a", 0), ("b", 0), ("c", 1)]:
        run(out=out, seed=seed, method=method, val_fraction=0.2, solver="randomised")
    a, b, c = (Path(out, "log.jsonl").read_bytes() for out in "abc")
    assert a == b != c


def test_methods_see_the_same_batches(tiny_data, monkeypatch):
    """What the alpha update draws changes nothing of the order of the training batches."""

    def draw(outer, inner, *_, **__):
        outer(), inner()
        return 0.0, {"note": ""}

    monkeypatch.setattr(train, "hypergradient", draw)
    learned = run(method="learning-based", alpha_0=0.5)[1]
    constant = run(method="constant:0.5")[1]
    assert [r["l_total"] for r in learned] == [r["l_total"] for r in constant]


def test_the_batch_of_eq_3_has_a_size_of_its_own(tiny_data, monkeypatch):
    """--alpha-batch, for both levels, --draws of it for v and for c, one for H; a smaller held-out
    part gives all."""
    sizes, real = [], train.losses

    def losses(z, logits, y, args):
        sizes.append(len(y))
        return real(z, logits, y, args)

    monkeypatch.setattr(train, "losses", losses)
    run(epochs=1, alpha_batch=8, draws=2)
    assert sizes == [16, 16, 16, *[8] * 5]
    sizes.clear()
    run(epochs=1, alpha_batch=8, draws=1, outer="held-out", val_fraction=0.1)
    assert sizes == [16, 16, 4, 8, 8]


def test_bf16_is_for_the_steps_alone(tiny_data, monkeypatch):
    """A step's features are rounded to bfloat16, its losses and gradients are float32; Eq. 3's
    losses are exact."""
    args, data, model = prepared(device="cpu")
    x, y = [x_j[:16] for x_j in data.splits["train"].sources], data.splits["train"].y[:16]
    seen, real = {}, train.losses

    def losses(z, logits, y, args):
        seen.setdefault(args.bf16, z[0].dtype)
        return real(z, logits, y, args)

    monkeypatch.setattr(train, "losses", losses)
    for bf16 in (False, True):
        start = copy.deepcopy(model)
        optimizer = torch.optim.SGD(start.parameters(), 0.1)
        flags = dataclasses.replace(args, bf16=bf16)
        seen[bf16, "losses"] = train.inner_step(start, optimizer, x, y, 0.5, flags)
        assert all(p.grad.dtype == torch.float32 for p in start.parameters())
    assert (seen[False], seen[True]) == (torch.float32, torch.bfloat16)
    full, half = seen[False, "losses"], seen[True, "losses"]
    assert half.dtype == torch.float32 and not torch.equal(full, half)
    assert torch.allclose(full, half, rtol=0.05)
    batches = train.make_batches(args, data, torch.device("cpu"))[1:3]
    full, half = (dataclasses.replace(args, bf16=bf16) for bf16 in (False, True))
    exact = train.alpha_gradient(model, *batches, 0.5, 1, full)[0]
    assert exact == train.alpha_gradient(model, *batches, 0.5, 1, half)[0]
    kernel = next(p for p in prepared(bf16=True)[2].parameters() if p.dim() == 4)
    assert kernel.is_contiguous(memory_format=torch.channels_last)


def test_scores_are_acc_map_and_macro_f1():
    """Worked by hand: 4 of 6 right; a class that the labels lack does not count in MAP."""
    y = np.array([0, 0, 0, 1, 1, 1])
    logits = torch.tensor([[3.0, 0, 0], [2, 0, 0], [0, 1, 0], [0, 2, 0], [0, 3, 0], [1, 0, 0]])
    result = train.scores(logits, y)
    assert result["acc"] == pytest.approx(100 * 4 / 6)
    assert result["f1"] == pytest.approx(100 * 2 / 3)

    precisions, p = [], logits.softmax(1).numpy()
    for k in (0, 1):
        relevant = (y == k)[np.argsort(-p[:, k], kind="stable")]
        at = np.flatnonzero(relevant)
        precisions.append(np.mean([relevant[: i + 1].mean() for i in at]))
    assert result["map"] == pytest.approx(100 * np.mean(precisions), abs=1e-6)


def test_evaluate_is_in_eval_mode_and_measures_the_gap(tiny_data):
    """Buffers and modes stay; perf_gap is the best modality's ACC minus the worst's."""
    data, model = tiny_data(), MultimodalModel([1, 2], 3)
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    loader = eval_loader(data.splits["test"], 4, torch.device("cpu"))
    result = train.evaluate(model, loader, data.modalities)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items()) and model.training
    assert result["perf_gap"] == abs(result["image"]["acc"] - result["sound"]["acc"])
    model.eval()
    y = data.splits["test"].y
    z, (logits,) = model(data.splits["test"].sources)
    assert result["fused"] == train.scores(logits.detach(), y.numpy())
    assert result["sound"] == train.scores(model.unimodal_logits(z, 1).detach(), y.numpy())


def test_with_a_validation_part_its_best_epoch_is_tested(tiny_data, monkeypatch, capsys):
    """Epochs are scored on it; the first epoch with its highest ACC is the one whose parameters are
    tested."""
    kept, real = [], train.evaluate

    def evaluate(model, loader, *rest):
        if len(loader.dataset) == 12:
            kept.append([p.clone() for p in model.parameters()])
            acc = [50.0, 70.0, 70.0][len(kept) - 1]
            return real(model, loader, *rest) | {"fused": {"acc": acc}}
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), kept[1]))
        return real(model, loader, *rest)

    monkeypatch.setattr(train, "evaluate", evaluate)
    monkeypatch.setattr("utils.run.epoch_line", lambda *_: "")
    first, epochs, _ = run(method="heuristic", val_fraction=0.25)
    assert first["samples"] == {"train": 36, "val": 12, "test": 15} and epochs[0]["split"] == "val"
    assert log_of("run")[-1]["t"] == 2
    assert "epoch 2, the best on the validation part" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_stops_the_run(tiny_data, monkeypatch, capsys):
    """Exit status 1, a sentence with epoch, step and losses; the epochs before stay in the log."""
    calls, real = [], train.losses

    def losses(*arguments):
        calls.append(1)
        l_cls, l_mm = real(*arguments)
        broken = len(calls) == 8  # 3 steps an epoch: the 2nd of the 3rd
        return (l_cls * math.nan if broken else l_cls), l_mm

    monkeypatch.setattr(train, "losses", losses)
    assert train.main(arguments_of(**QUICK, method="heuristic", out="run")) == 1
    message = sentence(capsys)
    assert "epoch 3, step 2" in message and "l_cls = nan" in message and "l_mm = " in message
    assert [r.get("t") for r in log_of("run")] == [None, 1, 2]


BAD = [  # arguments, and what is said of them
    (
        "--dataset cremat",
        "unknown data set or folder 'cremat' (did you mean cremad?); choose from ",
    ),
    ("--method heuristics", "unknown method 'heuristics' (did you mean heuristic?)"),
    ("--method constant", "expected constant:p with numbers"),
    ("--method heuristic:2", "heuristic(t, T); expected heuristic without a number"),
    ("--method unimodal:1", "does not fit unimodal(); expected unimodal without a number"),
    ("--method learning-based:1", "'learning-based:1' (did you mean learning-based?)"),
    ("--fusion cat", "unknown fusion 'cat'"),
    ("--encoders vit", "unknown encoder 'vit'"),
    ("--encoders bert", "cannot encode this data set; choose other --encoders"),
    ("--solver exact", "unknown solver 'exact'"),
    ("--outer test", "unknown outer 'test'; choose from held-out, shared, train"),
    ("--optimizer lbfgs", "unknown optimizer 'lbfgs'"),
    ("--device tpu", "device 'tpu' is not available; choose from auto, "),
    ("--dataset spoken-digits", "data/spoken-digits is not a folder"),
    ("--dataset spoken-digits --root nowhere", "nowhere is not a folder; expected recordings/"),
    ("--epochs many", "--epochs is 'many', expected a whole number"),
    ("--metod heuristic", "unknown flag '--metod' (did you mean --method?); --help lists"),
    ("keypad", "unknown argument 'keypad'; --help lists all flags"),
    ("--lr", "--lr: expected one argument"),
    ("--epochs 0", "--epochs is 0, expected more than 0"),
    ("--batch-size 1", "--batch-size is 1, expected 2 or more"),
    ("--method constant:5", "has p = 5, expected 0 to 1"),
    ("--method heuristic --outer held-out", "--outer held-out is for learning-based"),
    ("--dataset keypad --root x", "keypad is built in and takes no --root"),
    ("--tau nan", "--tau is nan, expected more than 0"),
    ("--lr inf", "--lr is inf"),
    ("--seed -1", "--seed is -1, expected 0 to 4294967295"),
    ("--alpha-0 1.5", "--alpha-0 is 1.5, expected 0 to 1"),
    ("--workers -1", "--workers is -1, expected 0 to 512"),
    ("--val-fraction 1", "leaves nothing to train on"),
    ("--out file/run", "the folder file/run cannot be made"),
    ("--epochs 9999999999", "--epochs is 9999999999, expected at most 4294967295"),
]


@pytest.mark.parametrize("arguments, said", BAD)
def test_bad_input_is_one_sentence(tiny_data, capsys, arguments, said):
    """Exit status 2 and what to do; nothing is written."""
    Path("file").write_text("")
    defaults = [] if "--dataset" in arguments else ["--dataset", "tiny"]
    assert train.main([*arguments.split(), *defaults]) == 2
    assert said in sentence(capsys)
    assert not Path("runs").exists()


def test_a_run_is_not_written_over(tiny_data, capsys):
    """The second is refused unless asked for, and the first one's log stays."""
    run(out="run", overwrite=False, method="heuristic")
    before = Path("run/log.jsonl").read_bytes()
    capsys.readouterr()
    assert train.main(["--dataset", "tiny", "--out", "run"]) == 2
    message = sentence(capsys)
    for words in ("holds a run already", "--overwrite", "--resume run"):
        assert words in message
    assert Path("run/log.jsonl").read_bytes() == before
    assert train.main(["--dataset", "tiny", "--out", "run", "--epochs", "1", "--overwrite"]) == 0


def test_the_command_line_is_the_settings():
    """Every field is a flag, every default is the field's, every flag arrives with its type."""
    assert train.parse([]) == train.Settings()
    given = {"method": "cubic:26", "lr": 0.5, "epochs": 3, "overwrite": True, "out": "x"}
    usual = {f.name: f.default for f in dataclasses.fields(train.Settings)}
    assert dataclasses.asdict(train.parse(arguments_of(**given))) == usual | given


def test_a_set_brings_its_settings_and_a_flag_wins():
    """Sec. 4.1's: SGD at 1e-2 in batches of 256 for audio-video, Adam at 1e-4 in batches of 128 for
    image-text; smaller batches for what would not fit 24 GB."""
    s = train.parse(["--dataset", "cremad"])
    assert (s.optimizer, s.lr, s.batch_size, s.encoders) == ("sgd", 1e-2, 256, "resnet18")
    s = train.parse(["--dataset", "sarcasm", "--lr", "0.02", "--batch-size", "64"])
    assert (s.optimizer, s.lr, s.batch_size, s.encoders) == ("adam", 0.02, 64, "resnet50,bert")
    for name, size in {"kinetics-sounds": 128, "vggsound": 128, "nvgesture": 32}.items():
        assert train.parse(["--dataset", name]).batch_size == size


def test_alpha_can_cross_its_range_once_in_all_epochs():
    """alpha_limit is 1 / T, and eta_alpha 20 / T, for the built-in sets and for the paper's six."""
    for name in train.DATASETS:
        s = train.parse(["--dataset", name])
        assert s.alpha_limit * s.epochs == pytest.approx(1)
        assert s.eta_alpha * s.epochs == pytest.approx(20)


def test_the_optimiser_is_the_one_that_is_asked_for(tiny_data):
    """Adam or SGD with momentum, both with the weight decay; on a plateau the learning rate falls
    to a tenth."""
    params = [torch.nn.Parameter(torch.ones(2))]
    for name, kind in [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam)]:
        s = train.Settings(optimizer=name, lr=0.1, weight_decay=0.3, plateau=1)
        optimizer, plateau = train.make_optimizer(s, params)
        assert type(optimizer) is kind and optimizer.defaults["weight_decay"] == 0.3
        for loss in (1.0, 1.0, 1.0):
            plateau.step(loss)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_a_plateau_is_one_of_l_cls(tiny_data, monkeypatch):
    """While it falls, the learning rate stays; it is lowered after more than --plateau epochs. What
    L_Total does counts for nothing: its meaning changes with alpha."""
    values = [3.0, 2.0, 1.0, 1.0, 1.0, 1.0]
    means = [{"l_total": 9.0 + t, "l_cls": value, "l_mm": 0.0} for t, value in enumerate(values)]
    monkeypatch.setattr(train, "mean_losses", lambda steps, t: means[t - 1])
    _, epochs, _ = run(method="heuristic", epochs=6, plateau=1, lr=0.01, inner_iters=1)
    assert [r["lr"] for r in epochs] == pytest.approx([0.01] * 5 + [0.001])


def test_weights_that_are_not_finite_stop_the_run(tiny_data, monkeypatch, capsys):
    """Where the last step of an epoch breaks them, the evaluation says so."""
    real = torch.optim.SGD.step

    def step(self):
        real(self)
        self.param_groups[0]["params"][-1].data.fill_(math.nan)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    assert train.main(["--dataset", "tiny", "--inner-iters", "1"]) == 1
    assert "scores are not finite" in sentence(capsys)


def global_state():
    """All of the running Python that a call of main could leave changed."""
    signals = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    modes = torch.are_deterministic_algorithms_enabled(), torch.is_grad_enabled()
    return signals, sys.stdout, sys.stderr, modes, dict(os.environ), os.getcwd()


def test_entries_made_in_a_notebook_are_choices(tiny_data, monkeypatch, capsys):
    """A schedule, a fusion, a solver, a data set, an encoder, added after the import: each is run
    twice and shown by --help, and nothing of the running Python is changed."""

    def solver(hvp, v, c, terms, step, damping, **_):
        return 0.1, {"terms": 1}

    monkeypatch.setitem(SCHEDULES, "my-method", lambda t, T: 1 - t / T)
    monkeypatch.setitem(FUSIONS, "my-fusion", FUSIONS["add"])
    monkeypatch.setitem(SOLVERS, "my-solver", solver)
    monkeypatch.setitem(train.DATASETS, "my-dataset", tiny_data)
    monkeypatch.setitem(ENCODERS, "my-encoders", ENCODERS["cnn"])
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as a deterministic run sets it
    before = global_state()
    for kind in ("method", "fusion", "solver", "dataset", "encoders"):
        settings = {kind: f"my-{kind}", "epochs": 2, "inner_iters": 2, "deterministic": True}
        first = run(**settings)
        assert run(**settings) == first and first[0]["settings"][kind] == f"my-{kind}"
    assert global_state() == before
    capsys.readouterr()
    with pytest.raises(SystemExit):
        train.main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for kind in ("method", "fusion", "solver", "dataset", "encoders"):
        assert re.search(rf"--{kind} NAME .*, my-{kind}\b", shown), kind
    for method in train.methods():
        assert re.search(rf"--method NAME .*\b{method}\b", shown), method


def test_main_works_in_any_thread(tiny_data):
    """A notebook's server may call it from one that is not the main one."""
    statuses = []
    flags = arguments_of(**QUICK, method="heuristic", out="run", workers=1)
    thread = threading.Thread(target=lambda: statuses.append(train.main(flags)))
    thread.start()
    thread.join()
    assert statuses == [0]


BROKEN = [lambda t, T: {1: 1}[t], lambda t, T: None if t > 1 else 1]
BROKEN += [lambda t, T: exec("raise ValueError('two' + chr(10) + 'lines')") if t > 1 else 1]


@pytest.mark.parametrize("omega", BROKEN)
def test_a_schedule_that_fails_is_one_sentence(tiny_data, monkeypatch, capsys, omega):
    """It names the schedule and the epoch, whatever the student's function raises; the next run
    works."""
    monkeypatch.setitem(SCHEDULES, "broken", omega)
    assert train.main(arguments_of(**QUICK, method="broken", out="run")) == 2
    assert "schedule 'broken' does not return a number at t = 2 of T = 3 (" in sentence(capsys)
    assert run(method="heuristic", out="next")


def test_train_py_is_a_program(tmp_path):
    """As a process: the sentence goes to stderr, the status to the shell, and there is no
    traceback."""
    command = [sys.executable, ROOT / "train.py", "--method", "none"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("train.py: unknown method 'none'")


@pytest.mark.slow
def test_nothing_is_imported_that_a_run_does_not_use():
    """librosa and sklearn do not come with train.py, nor matplotlib with keypad's data."""
    heavy = ["matplotlib", "transformers", "av", "cv2"]
    code = f"""
import sys, train
print(*(m for m in {[*heavy, "librosa", "soundfile", "sklearn", "scipy"]} if m in sys.modules))
from utils import digits
digits.KEYPAD_COPIES = {{"train": 1, "test": 1}}  # to be quick
train.DATASETS["keypad"]()
print(*(m for m in {heavy} if m in sys.modules))"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == []
