"""scripts/figures.py: the table's numbers, what is drawn, and the folders that are refused."""

import dataclasses
import errno
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import train
from data import Samples
from model import MultimodalModel
from scripts import errors, figures, inside, landscape, plots, predict
from scripts.predict import Predictor
from utils.loader import identity
from utils.run import checkpoint_path, load_checkpoint, save_checkpoint

ROOT = Path(__file__).parents[2]
READING = [
    name for name in figures.COMMANDS if name not in ("landscape", "scatter")
]  # the commands that read runs
PRINTED = ["table", "probe"]  # those that draw nothing
OF_ONE = ["confusion", "mistakes", "animate"]  # those of one run


def write(folder, method="heuristic", seed=0, acc=50.0, test=True, **settings):
    """A log as train.py writes it, of two epochs."""
    folder.mkdir()
    one = {"acc": acc, "map": acc + 1, "f1": acc}
    scores = {"fused": one, "image": one | {"acc": 40.0}, "sound": one | {"acc": 30.0, "f1": 20.0}}
    scores["perf_gap"] = 10.0
    settings |= {"dataset": settings.get("dataset", "keypad"), "method": method, "seed": seed}
    lines = [{"settings": settings | {"epochs": 10}, "modalities": ["image", "sound"]}]
    epoch = {"alpha": 0.5, "split": "test", "l_total": 1.0, "l_cls": 1.0, "l_mm": 1.0, **scores}
    lines += [{"t": t, **epoch} for t in (1, 2)]
    lines += [{"test": scores}] * test
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def table(capsys, *arguments):
    """The lines that `figures table` prints."""
    capsys.readouterr()
    assert figures.main(["table", *arguments]) == 0
    return capsys.readouterr().out.splitlines()


def refused(capsys, *arguments):
    """The one sentence with which figures refuses a command."""
    capsys.readouterr()
    assert figures.main([*arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("figures: ") and said.count("\n") == 1
    return said


def test_a_run_of_your_own_data_is_drawn_without_the_data(tmp_path, capsys):
    """Its folder may be elsewhere by now: table, curves and alpha read the log alone."""
    run = write(tmp_path / "run", dataset="moved/away", batch_size=16)
    assert "| heuristic --batch-size 16 | 1 |" in table(capsys, run)[-1]
    for command in ("curves", "alpha"):
        assert figures.main([command, run, "--out", str(tmp_path / "picture.png")]) == 0


def test_table_is_mean_and_std_over_seeds(tmp_path, capsys):
    """One row per setting, with the sample's standard deviation; unusual settings are named."""
    accs = [50.0, 52.0, 57.0]
    runs = [write(tmp_path / f"{seed}", seed=seed, acc=acc) for seed, acc in enumerate(accs)]
    header, rule, row, wide = table(capsys, *runs, write(tmp_path / "wide", tau=0.5))
    mean, std = statistics.mean(accs), statistics.stdev(accs)
    assert header == "| keypad | seeds | ACC | MAP | macro-F1 | image ACC | sound ACC | perf_gap |"
    assert header.count("|") == rule.count("|") == row.count("|")
    cells = [f"{x:.1f} ± {std:.1f}" for x in (mean, mean + 1, mean)] + ["40.0 ± 0.0"]
    assert row.startswith(f"| heuristic | 3 | {' | '.join(cells)} |")
    assert wide == "| heuristic --tau 0.5 | 1 | 50.0 | 51.0 | 50.0 | 40.0 | 30.0 | 10.0 |"


def test_a_label_is_the_same_on_every_machine(monkeypatch):
    """A run in bfloat16 is named so, also where a GPU makes this the default."""
    monkeypatch.setattr("utils.distributed.has_bf16", lambda device: device != "cpu")
    settings = dataclasses.asdict(train.Settings()) | plots.defaults("cremad", "cpu")
    settings |= {"dataset": "cremad", "method": "heuristic"}
    assert figures.label(settings) == "heuristic"
    assert figures.label(settings | {"bf16": True}) == "heuristic --bf16"


def test_table_gives_unimodal_and_its_sum_a_row_each(tmp_path, capsys):
    """Nothing is fused in unimodal; the summed logits have a row of their own."""
    *_, alone, summed = table(capsys, write(tmp_path / "u", method="unimodal"))
    assert alone == "| unimodal | 1 |  |  |  | 40.0 | 30.0 | 10.0 |"
    assert summed == "| unimodal, logits summed | 1 | 50.0 | 51.0 | 50.0 |  |  |  |"


def test_table_of_another_metric(tmp_path, capsys):
    """Table 3: the modalities' scores and their difference in MAP or macro-F1."""
    run = write(tmp_path / "a")
    header, _, row = table(capsys, run, "--metric", "f1")
    names = "| image macro-F1 | sound macro-F1 | perf_gap of macro-F1 |"
    assert header == f"| keypad | seeds | ACC | MAP | macro-F1 {names}"
    assert row == "| heuristic | 1 | 50.0 | 51.0 | 50.0 | 50.0 | 20.0 | 30.0 |"
    assert table(capsys, run, "--metric", "map")[-1].endswith("| 50.0 | 51.0 | 51.0 | 0.0 |")


@pytest.fixture
def runs(tiny_data):
    """Two real runs with three checkpoints each."""
    flags = ["--dataset", "tiny", "--epochs", "3", "--inner-iters", "2", "--keep", "2", "--method"]
    for method in ("learning-based", "stepwise:0.05"):
        assert train.main([*flags, method, "--out", method[:4]]) == 0
    return ["lear", "step"]


def test_figures_read_real_runs(runs, tmp_path, capsys):
    """Every command reads the files that train.py writes."""
    assert "| learning-based --epochs 3 --inner-iters 2 | 1 |" in table(capsys, *runs)[2]
    assert figures.main(["probe", *runs]) == 0
    for name in READING:
        if name not in [*PRINTED, *OF_ONE]:
            assert figures.main([name, *runs]) == 0
            assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    flags = ["--modality", "sound", "--sample", "14", "--out", "a.pdf"]
    assert figures.main(["gradcam", *runs, *flags]) == 0
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    assert figures.main(["animate", "lear"]) == 0
    with Image.open(tmp_path / "lear/animation.gif") as film:
        assert film.format == "GIF" and film.n_frames == 3  # one for each checkpoint


@pytest.fixture
def pictures(monkeypatch):
    """The figures that a command would save, in order; they are closed after the test."""
    seen = []
    for module in (figures, inside, errors):
        monkeypatch.setattr(module, "save", lambda figure, out: seen.append(figure))
    yield seen
    for figure in seen:
        plots.pyplot().close(figure)


def test_curves_of_thirty_runs_are_small_panels_with_the_median(tmp_path, pictures):
    """Each run has a panel with its own name and last score; the median is the same in all."""
    accs = np.random.default_rng(0).uniform(10, 99, 30)
    runs = [write(tmp_path / f"student{k}", acc=acc) for k, acc in enumerate(accs)]
    assert figures.main(["curves", *runs]) == 0
    axes = [axis for axis in pictures[0].axes if axis.get_visible()]
    titles = [axis.get_title() for axis in axes]
    assert titles == [f"student{k}: fused {acc:.1f}" for k, acc in enumerate(accs)]
    for axis, acc in zip(axes, accs):
        own = {line.get_label(): line.get_ydata()[-1] for line in axis.lines}
        assert own["fused"] == acc and own["median of fused"] == pytest.approx(np.median(accs))
        assert own["perf_gap"] == 10 and own["100 α"] == 50
        assert sum(line.get_color() == "#dddddd" for line in axis.lines) == 30
    width, height = pictures[0].get_size_inches()
    assert width < 20 and height < 15


def test_the_median_counts_the_runs_that_reached_the_epoch(tmp_path, pictures):
    """A shorter run ends where it ends."""
    runs = [write(tmp_path / f"{k}", acc=acc) for k, acc in enumerate([10, 20, 30, 40, 50, 60, 70])]
    short = tmp_path / "0/log.jsonl"
    short.write_text("".join(short.read_text().splitlines(keepends=True)[:2]))
    figures.main(["curves", *runs, write(tmp_path / "7", acc=80)])
    median = next(x for x in pictures[0].axes[0].lines if x.get_label() == "median of fused")
    assert list(median.get_ydata()) == [45, 50]


def test_seven_runs_have_columns_and_any_metric(tmp_path, pictures):
    """Scores, losses and alpha below each other; perf_gap is that of the metric."""
    runs = [write(tmp_path / f"{k}") for k in range(7)]
    assert figures.main(["curves", *runs, "--metric", "f1"]) == 0
    axes = pictures[0].axes
    assert len(axes) == 21 and axes[0].get_ylabel().startswith("macro-F1")
    lines = {text.get_text(): text.xy[1] for text in axes[0].texts}
    assert sorted(lines) == ["fused", "image", "perf_gap", "sound"]
    assert [line.get_ydata()[-1] for line in axes[0].lines] == [50, 50, 20, 30]


@pytest.mark.slow
def test_the_ending_of_out_is_the_format(tmp_path, capsys):
    """Also where the environment has a notebook's backend, which may not exist here."""
    run = write(tmp_path / "a")
    environment = os.environ | {"MPLBACKEND": "module://no_such_module.backend_inline"}
    command = [sys.executable, "-m", "scripts.figures", "alpha", run, "--out", tmp_path / "a.svg"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True)
    assert (tmp_path / "a.svg").read_bytes().startswith(b"<?xml")
    assert "xyz" in refused(capsys, "alpha", run, "--out", str(tmp_path / "a.xyz"))


def test_landscape_draws_both_outer_levels(tmp_path, monkeypatch):
    """From the command to the picture, on four points of alpha and two epochs."""
    monkeypatch.setattr(landscape, "ALPHAS", [0.0, 0.5, 0.95, 1.0])
    monkeypatch.setattr(landscape, "TANGENTS", [0.5])
    monkeypatch.setattr(landscape, "UPDATES", 2)
    out = tmp_path / "picture.svg"
    assert figures.main(["landscape", "--seed", "1", "--out", str(out)]) == 0
    text = out.read_text()
    for words in ("outer level: training samples", "outer level: held-out samples", "Eq. 3, K = 5"):
        assert words in text


def test_names_stand_apart_and_within_the_axis():
    """Each at its line's end where there is room; pushed up where it would overlap another, but
    not out of sight."""
    figure, axis = plots.pyplot().subplots()
    axis.set(ylim=(0, 120))
    ends = {"d": 119, "b": 5, "a": 4, "c": 118, "e": 60}
    figures.name_ends(axis, {name: ([0, 0, 0, 0, end], "k", "-") for name, end in ends.items()})
    places = {text.get_text(): text.xy for text in axis.texts}
    assert places == {"a": (5, 4), "b": (5, 14), "e": (5, 60), "c": (5, 110), "d": (5, 120)}
    plots.pyplot().close(figure)


def test_a_run_is_titled_by_its_folder_where_that_says_more():
    """--out may name a run that differs in the code alone."""
    settings = {"dataset": "keypad", "method": "constant:0.5", "tau": 0.2}
    assert plots.titled("runs/keypad-constant0.5-seed0", settings) == "α = 0.5, τ = 0.2"
    assert plots.titled("runs/mine", settings) == "mine: α = 0.5, τ = 0.2"


def test_a_picture_names_a_run_in_words(monkeypatch):
    """No flags: a fusion, a number, a switch that is on and one that is off."""
    settings = {"dataset": "elsewhere/x", "method": "stepwise:0.05", "fusion": "affine"}
    settings |= {"terms": 20, "heads": True, "pretrained": False}
    assert plots.in_words(settings) == "stepwise 0.05, affine fusion, terms 20, heads"
    monkeypatch.setattr(plots, "defaults", lambda *_: {"heads": True, "terms": 20})
    settings |= {"dataset": "keypad", "heads": False}
    assert plots.in_words(settings) == "stepwise 0.05, affine fusion, no heads"


def test_modality_gap_is_the_distance_of_the_means():
    """By hand: two modalities, then three, the mean over the pairs."""
    a, b, c = np.array([[[1.0, 0], [1, 0]], [[0, 1], [0, 1]], [[1, 0], [-1, 0]]])
    assert inside.modality_gap([a, b]) == pytest.approx(2**0.5)
    assert inside.modality_gap([a, b, c]) == pytest.approx((2**0.5 + 1 + 1) / 3)


def test_the_plane_shows_the_gap_to_scale():
    """The means' distance in the plane is the modality gap, all of it along x, the first modality
    left; the y axis is a principal component across it, in its old direction."""
    z = np.random.default_rng(0).normal(size=(2, 50, 6)) * [9, 4, 1, 1, 1, 1] + [
        [[0] * 6],
        [[3] * 6],
    ]
    points = inside.gap_plane([*z])
    (left, low), (right, high) = (p.mean(0) for p in points)
    assert right - left == pytest.approx(inside.modality_gap(z)) and low == pytest.approx(high)
    x = (z[1].mean(0) - z[0].mean(0)) / inside.modality_gap(z)
    flat = np.concatenate(z) - z.mean((0, 1))
    variances = np.linalg.eigvalsh(np.cov((flat - np.outer(flat @ x, x)).T))
    assert np.concatenate(points)[:, 1].var(ddof=1) == pytest.approx(variances[-1])
    turned = [p * [1, -1] for p in points]
    assert np.allclose(inside.gap_plane([*z], turned), turned)


def test_features_are_those_that_the_similarity_sees(tiny_data):
    """z of the test split in evaluation mode, in order; `directions` are on the unit sphere."""
    data = tiny_data()
    torch.manual_seed(0)
    model = MultimodalModel([1, 2], 3).eval()
    z, y = inside.features(data, model.train())
    assert (y == data.splits["test"].y.numpy()).all()
    expected, _ = model.eval()([x.float() for x in data.splits["test"].sources])
    for z_j, unit, e in zip(z, inside.directions(z), expected):
        assert z_j == pytest.approx(e.detach().numpy(), abs=1e-5)
        assert unit == pytest.approx(nn.functional.normalize(e, dim=1).detach().numpy(), abs=1e-5)


def test_probe_is_a_classifier_of_the_training_features(tmp_path, capsys, monkeypatch):
    """One modality tells the class in both splits: 100; the other says the opposite on the test
    split: 0, whatever the run's own classifier makes of them."""
    y = torch.arange(40) % 2
    sign = (2.0 * y - 1)[:, None]
    parts = {"train": [sign, sign], "test": [1e3 * sign, -sign]}  # a probe of the test has 100
    splits = {name: Samples(x, y, [identity] * 2) for name, x in parts.items()}
    model = MultimodalModel([1, 1], 2, "mlp")
    model.phi = nn.ModuleList([nn.Identity(), nn.Identity()])
    model.classifier = nn.Linear(2, 2)
    data = SimpleNamespace(splits=splits, modalities=["image", "sound"])

    def load_run(folder, root):
        print("of its data")  # as load_data may; only the table is printed to stdout
        return data, model, ""

    monkeypatch.setattr(inside, "load_run", load_run)
    monkeypatch.setattr(inside, "load_best", lambda folder, model: 1)
    run = write(tmp_path / "run", acc=57.0)
    assert figures.main(["probe", run]) == 0
    _, _, line = capsys.readouterr().out.splitlines()
    cells = line.split("|")
    assert [float(cell) for cell in cells[3:4] + cells[6:9]] == [57.0, 100.0, 0.0, 100.0]


def test_grad_cam_of_a_linear_encoder():
    """Where the logit is linear in the averaged maps the heat is relu(sum_c W_kc A_c), up to its
    maximum."""
    torch.manual_seed(0)
    model = MultimodalModel([1, 1], 3)
    conv, head = nn.Conv2d(1, 4, 1), nn.Linear(4, 64)
    model.phi[0] = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    x = [torch.randn(1, 1, 6, 6), torch.randn(1, 1, 8, 8)]
    seen = 0
    for k in range(3):
        weights = model.classifier.weight[k, :64] @ head.weight  # (4,)
        expected = (weights.view(4, 1, 1) * conv(x[0])[0]).sum(0).relu()
        seen += bool(expected.any())
        expected = expected / expected.max().clamp(min=1e-12)
        assert torch.allclose(inside.grad_cam(model, x, 0, k), expected, atol=1e-5)
    assert seen > 1


def test_gap_joins_the_features_of_a_sample(runs, pictures):
    """A thin line from each sample's point to its partner's, a thick one as long as the gap; the
    colour of a point is its class."""
    assert figures.main(["gap", "lear"]) == 0
    (axis,) = pictures[0].axes
    *pairs, means = (line.get_xydata() for line in axis.lines)
    image, sound = (axis.collections[k].get_offsets() for k in (0, 2))
    assert len(pairs) == len(image) == len(sound) == 15
    assert np.allclose(np.stack(pairs), np.stack([image, sound], axis=1))
    assert f"modality gap {np.linalg.norm(means[0] - means[1]):.2f}" in axis.get_title()
    y = inside.load_run("lear")[0].splits["test"].y.tolist()
    assert axis.collections[0].get_array().tolist() == y and axis.get_aspect() == 1


def test_gradcam_shows_four_samples_and_says_where_nothing_lights(runs, pictures, monkeypatch):
    """The samples' own pictures are seen where a map is 0; a map of zeros has words."""
    lit, dark = torch.eye(16), torch.zeros(16, 16)
    monkeypatch.setattr(inside, "grad_cam", lambda model, x, j, k: dark if k == 0 else lit)
    assert figures.main(["gradcam", *runs]) == 0
    data, _, _ = inside.load_run("lear")
    axes = np.reshape(pictures[0].axes, (4, 8))
    for row, i in zip(axes, [0, 3, 7, 11]):
        x, _, k = data.splits["test"][i]
        assert row[0].get_ylabel() == f"sample {i}, class {data.classes[k]}"
        words = [text.get_text() for axis in row for text in axis.texts]
        assert words == ([] if k else ["nothing lights"] * 6)
        for axis in row:
            picture, *heat = axis.images
            assert (picture.get_array() == inside.shown(x)).all()
            assert all((h.get_alpha() == 0).sum() == (256 if k == 0 else 240) for h in heat)
    titles = [axis.get_title() for axis in axes[0, :4]]
    assert titles[1:] == ["epoch 1", "epoch 2", "epoch 3"] and titles[0].startswith(
        "lear: learning"
    )


def test_scatter_has_a_dot_for_each_finished_run(tmp_path, pictures, capsys):
    """At its mean alpha, with a line over all of its alphas; far below the best it is at the edge
    with its number; a row for each data set; unfinished runs are counted."""
    write(tmp_path / "a", method="constant:0.5", acc=90.0)
    write(tmp_path / "b", method="constant:0.5", acc=91.0, seed=1)
    write(tmp_path / "c", method="constant:1", acc=20.0)
    write(tmp_path / "d", dataset="cremad", acc=70.0)
    write(tmp_path / "e", test=False)
    log = tmp_path / "c/log.jsonl"
    log.write_text(log.read_text().replace('"t": 2, "alpha": 0.5', '"t": 2, "alpha": 1.0'))
    assert figures.main(["scatter", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "left out: 1 run without test scores\n"
    (keypad, gaps), (cremad, _) = np.reshape(pictures[0].axes, (2, 2))
    dots = [line.get_xydata()[0].tolist() for line in keypad.lines if line.get_marker() != "None"]
    spans = [line.get_xdata().tolist() for line in keypad.lines if line.get_marker() == "None"]
    assert dots == [[0.5, 90], [0.5, 91], [0.75, 81]] and spans == [[0.5, 0.5]] * 2 + [[0.5, 1]]
    assert [text.get_text() for text in keypad.texts] == ["↓ 20"]
    names = [text.get_text() for text in gaps.get_legend().get_texts()]
    assert names == ["α = 0.5 (2)", "α = 1 (1)"]
    assert keypad.get_title().startswith("keypad") and cremad.get_title().startswith("cremad")
    (tmp_path / "empty").mkdir()
    assert "empty has no finished run" in refused(capsys, "scatter", str(tmp_path / "empty"))


def test_the_logs_for_the_class_are_finished_runs(pictures, capsys):
    """docs/class: ten settings, small logs, without a path of a machine; curves, alpha and scatter
    draw all of them, table has a row for each setting."""
    folders = sorted(map(str, (ROOT / "docs/class").iterdir()))
    assert sum(folder.endswith("-seed0") for folder in folders) == 10
    for folder in folders:
        (log,) = Path(folder).iterdir()
        assert log.name == "log.jsonl" and log.stat().st_size < 9000
        assert not re.search(r"/(home|work|tmp|root|Users)\b", log.read_text())
    lines = table(capsys, *folders)
    assert len(lines) == 2 + 10
    for words in (["curves", *folders], ["alpha", *folders], ["scatter", str(ROOT / "docs/class")]):
        assert figures.main(words) == 0
    curves, alpha, scatter = pictures
    panels = [axis for axis in curves.axes if axis.get_visible()]
    assert len(panels) == len(folders) and panels[0].get_title().startswith("α = 0, seed 0: fused ")
    assert len(alpha.axes[0].lines) == len(folders) + 1  # omega(t), too
    assert sum(line.get_marker() != "None" for line in scatter.axes[0].lines) == len(folders)


def test_a_clip_shows_its_middle_frame():
    """Of five frames the third, and its own heat."""
    torch.manual_seed(0)
    model = MultimodalModel([3, 1], 9)
    x = [torch.randn(1, 5, 3, 16, 16), torch.randn(1, 1, 8, 8)]
    k, heat = next((k, heat) for k in range(9) if (heat := inside.grad_cam(model, x, 0, k)).any())
    assert heat.shape == (16, 16) and heat.max() == 1
    x[0][0, 2] = 0
    assert not torch.equal(inside.grad_cam(model, x, 0, k), heat)
    shown = inside.shown(x[0][0])
    assert shown.shape == (16, 16, 3) and not shown.any()
    assert inside.shown(torch.randn(2, 8, 4)).shape == (8, 4)  # flow, depth, sound: one grey value
    pixels = torch.tensor([[[0, 51, 255]]], dtype=torch.uint8)
    assert inside.shown(pixels).tolist() == [pytest.approx([0, 0.2, 1])]


def test_a_wrong_word_is_one_sentence(runs, capsys):
    """A modality, a sample, a metric, a command, a flag; the nearest right one is named."""
    for words, message in [
        ("gradcam lear --modality smell", "unknown modality 'smell'; choose from image, sound"),
        ("gradcam lear --sample 2,15", "--sample has '15', expected numbers from 0 to 14"),
        ("gradcam lear --sample one", "--sample has 'one'"),
        ("gradcam lear --sample ,", "--sample has ''"),
        ("landscape --seed -1", "--seed is -1, expected 0 or more"),
        ("animate lear --out a.xyz", "a.xyz cannot be drawn"),
        (
            "table lear --metric auc",
            "unknown metric 'auc' (did you mean acc?); choose from acc, f1",
        ),
        ("curve lear", "unknown command 'curve' (did you mean curves?); choose from alpha, "),
        ("table lear --metrc f1", "unknown flag '--metrc' (did you mean --metric?)"),
        ("table", "missing: RUN; see --help"),
    ]:
        assert message in refused(capsys, *words.split())


def test_gradcam_needs_maps(tiny_bert):
    """A text encoder has none."""
    with pytest.raises(ValueError, match="has no maps"):
        inside.grad_cam(MultimodalModel([1, 0], 2, f"cnn,bert:{tiny_bert}"), [None, None], 1, 0)


@pytest.mark.parametrize("command", ["gap", "gradcam"])
def test_checkpoints_that_cannot_be_drawn_are_one_sentence(runs, capsys, command):
    """None; for gradcam fewer than three; one of another model; half of one."""
    state, path = load_checkpoint("step"), checkpoint_path("step", 3)
    save_checkpoint("step", state | {"model": {}}, range(4))
    assert "another model" in refused(capsys, command, *runs)
    path.write_bytes(path.read_bytes()[:999])
    assert "t0003.pt is damaged" in refused(capsys, command, *runs)
    save_checkpoint("step", state, [])
    if command == "gradcam":
        few = "step has 1 checkpoint, gradcam needs 3 or more; train with --keep 9"
        assert few in refused(capsys, command, *runs)
    path.unlink()
    assert "step has no checkpoint" in refused(capsys, command, *runs)


@pytest.mark.parametrize("command", READING)
def test_a_folder_that_is_no_run_is_one_sentence(tmp_path, capsys, command):
    """No folder, no log, a broken line, foreign lines."""
    with open(Path(write(tmp_path / "torn"), "log.jsonl"), "a") as file:
        file.write('{"t": 3, "al')
    for name, content in {"blank": "", "other": '{"loss": 1}\n', "foreign": "\xff\n"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "log.jsonl").write_text(content, encoding="latin-1")
    (tmp_path / "empty").mkdir()
    for folder in ("absent", "empty", "torn", "blank", "other", "foreign"):
        assert str(tmp_path / folder) in refused(capsys, command, str(tmp_path / folder))


def test_table_takes_finished_runs_and_each_seed_once(tmp_path, capsys):
    """Another run is refused by name."""
    unfinished = write(tmp_path / "unfinished", test=False)
    assert "did not finish" in refused(capsys, "table", unfinished)
    twice = [write(tmp_path / "a"), write(tmp_path / "b")]
    assert "repeats seed 0 of 'heuristic'" in refused(capsys, "table", *twice)


@pytest.mark.parametrize("command", [name for name in READING if name not in PRINTED])
def test_the_picture_of_one_run_is_in_its_folder(runs, tmp_path, capsys, command):
    """--out wins; nothing is written into the current folder."""
    before, kept = {*tmp_path.iterdir()}, {*Path("lear").iterdir()}
    assert figures.main([command, "lear"]) == 0
    (picture,) = {*Path("lear").iterdir()} - kept
    assert picture.stem == {"animate": "animation"}.get(command, command)
    assert picture.read_bytes()[:4] in (b"\x89PNG", b"GIF8")
    assert f"wrote {picture}" in capsys.readouterr().out
    assert {*tmp_path.iterdir()} == before
    picture.unlink()
    assert figures.main([command, "lear", "--out", "own.png"]) == 0
    assert Path("own.png").exists() and not picture.exists()


def test_confusion_counts_the_answers(runs, pictures, capsys):
    """Each panel has the counts of the predictions; rows are labels. The largest are printed."""
    predictor = Predictor("lear")
    _, records = predict.own_records(predictor, "lear", "test")
    assert figures.main(["confusion", "lear"]) == 0
    said = capsys.readouterr().out
    axes = pictures[0].axes
    assert len(axes) == 3 and axes[0].get_title().startswith("fused: ")
    for axis, name in zip(axes, ["fused", "image", "sound"]):
        found = [r["prediction"] for r in records]
        found = [p.label if name == "fused" else p.alone[name] for p in found]
        answers = [*zip([r["label"] for r in records], found)]
        counts = axis.images[0].get_array()
        for i, j in itertools.product(range(3), repeat=2):
            assert counts[i, j] == answers.count((str(i), str(j)))
        right = sum(a == b for a, b in answers)
        assert axis.get_title().endswith(f"{right} of 15 right")
        lines = [f"{name}: {right} of 15 right", *(f"  {x}" for x in predict.confusions(answers))]
        assert "\n".join(lines) in said
    assert "unknown split 'exam'" in refused(capsys, "confusion", "lear", "--split", "exam")
    assert "lear has no validation part" in refused(capsys, "mistakes", "lear", "--split", "val")


def test_mistakes_are_the_surest_wrong_samples(runs, pictures, capsys, monkeypatch):
    """Sorted by probability, with the sample's own inputs and the class by each modality alone."""
    samples, _ = predict.own_records(Predictor("step"), "step", "train")
    samples.y = (samples.y + 1) % 3  # most samples are wrong, whatever was learned
    records = predict.sample_records(Predictor("step"), samples, "train")
    monkeypatch.setattr(predict, "own_records", lambda *_: (samples, records))
    wrong = [r for r in records if r["label"] != r["prediction"].label]
    wrong = sorted(wrong, key=lambda r: -r["prediction"].probability)
    monkeypatch.setattr(errors, "SHOWN", 2)
    assert len(wrong) > 2
    assert figures.main(["mistakes", "step", "--split", "train"]) == 0
    first, *rows = capsys.readouterr().out.splitlines()
    assert first.startswith(f"wrong: {len(wrong)} of 48 samples of the train split")
    assert [row.split("  ")[0] for row in rows[1:]] == [r["sample"] for r in wrong[:2]]
    axes = pictures[0].axes
    for k, record in enumerate(wrong[:2]):
        i = int(record["sample"].split()[1])
        for j, name in enumerate(["image", "sound"]):
            axis = axes[2 * k + j]
            assert axis.get_title() == f"{name} alone: {record['prediction'].alone[name]}"
            assert (axis.images[0].get_array() == inside.shown(samples[i][j])).all()
        assert (
            f"{record['label']}, taken for\n{record['prediction'].label} ("
            in axes[2 * k].get_ylabel()
        )


def test_a_run_without_mistakes_draws_nothing(runs, monkeypatch, capsys):
    """It says so."""
    right = {"label": "0", "sample": "a", "prediction": predict.Prediction("0", 0.9, {})}
    monkeypatch.setattr(predict, "sample_records", lambda *_: [right])
    capsys.readouterr()
    assert figures.main(["mistakes", "lear"]) == 0
    assert capsys.readouterr().out == "wrong: 0 of 1 sample of the test split\n"
    assert not list(Path("lear").glob("*.png"))


def test_a_picture_is_written_completely_or_not_at_all(tmp_path, monkeypatch, capsys):
    """A full disk leaves the old one; without an ending it is a PNG, whose name is said."""

    def full(part, **_):
        Path(part).write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    old = tmp_path / "a.png"
    old.write_text("old")
    figure, _ = figures.panels(1, 1, 1, 1)
    with monkeypatch.context() as patch:
        patch.setattr(figure, "savefig", full)
        with pytest.raises(OSError, match="a.png cannot be written .No space left on device"):
            figures.save(figure, old)
    assert old.read_text() == "old" and [*tmp_path.iterdir()] == [old]
    figures.save(figure, tmp_path / "b")
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"wrote {tmp_path / 'b.png'}\n"


def test_every_kind_of_input_is_drawn(tmp_path):
    """A text with dollar signs as it is, a vector as bars, a sound with its low pitch below."""
    figure, (axes,) = figures.panels(1, 4, 8, 2)
    errors.show_input(axes[0], "text", "text", torch.zeros(2, 3).long(), "it costs $5_ or $6_")
    errors.show_input(axes[1], "a", "vector", torch.arange(3.0), "a.npy")
    errors.show_input(axes[2], "left", "audio-3s", torch.rand(1, 4, 9), "a.npy")
    errors.show_input(axes[3], "image", "image", torch.zeros(3, 8, 8), "a.jpg")
    figures.save(figure, tmp_path / "a.png")  # a formula that cannot be read would fail here
    assert axes[0].texts[0].get_text() == r"it costs \$5_ or \$6_"
    assert [bar.get_height() for bar in axes[1].patches] == [0, 1, 2]
    assert [axis.images[0].origin for axis in axes[2:]] == ["lower", "upper"]
