"""figures.py: the table's numbers, the picture's existence, and what is said of folders that are no runs."""

import json
import statistics

import pytest

import figures
import train


def write(folder, method="heuristic", seed=0, acc=50.0, test=True, **settings):
    """A log as train.py writes it, of two epochs."""
    folder.mkdir()
    one = {"acc": acc, "map": acc + 1, "f1": acc}
    result = {
        "fused": one,
        "image": one | {"acc": 40.0},
        "sound": one | {"acc": 30.0},
        "perf_gap": 10.0,
    }
    first = {
        "settings": {"dataset": "keypad", "method": method, "seed": seed, "epochs": 10, **settings},
        "modalities": ["image", "sound"],
    }
    lines = [first, *({"t": t, "alpha": 0.5, "split": "test", **result} for t in (1, 2))] + [
        {"test": result}
    ] * test
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def test_table_is_mean_and_std_over_seeds(tmp_path, capsys):
    """One row per setting, the sample's standard deviation, and settings that are not the default are named."""
    accs = [50.0, 52.0, 57.0]
    runs = [write(tmp_path / f"{seed}", seed=seed, acc=acc) for seed, acc in enumerate(accs)]
    runs.append(write(tmp_path / "wide", tau=0.5))
    assert figures.main(["table", *runs]) == 0
    header, rule, row, wide = capsys.readouterr().out.splitlines()
    mean, std = statistics.mean(accs), statistics.stdev(accs)
    assert header == "| keypad | seeds | ACC | MAP | image ACC | sound ACC | perf_gap |"
    assert header.count("|") == rule.count("|") == row.count("|")
    assert row.startswith(
        f"| heuristic | 3 | {mean:.1f} ± {std:.1f} | {mean + 1:.1f} ± {std:.1f} | 40.0 ± 0.0 |"
    )
    assert wide == "| heuristic --tau 0.5 | 1 | 50.0 | 51.0 | 40.0 | 30.0 | 10.0 |"


def test_table_gives_unimodal_and_its_sum_a_row_each(tmp_path, capsys):
    """Trained alone nothing is fused; the summed logits stand apart."""
    figures.main(["table", write(tmp_path / "u", method="unimodal")])
    *_, alone, summed = capsys.readouterr().out.splitlines()
    assert alone == "| unimodal | 1 |  |  | 40.0 | 30.0 | 10.0 |"
    assert summed == "| unimodal, logits summed | 1 | 50.0 | 51.0 |  |  |  |"


def test_figures_read_a_real_run(tiny_data, tmp_path, capsys):
    """What train.py writes is what figures.py reads, by table and by curves."""
    runs = []
    for method in ("learning-based", "stepwise:0.05"):
        runs.append(str(tmp_path / method[:4]))
        assert (
            train.main(
                ["--dataset", "tiny", "--epochs", "2", "--method", method, "--out", runs[-1]]
            )
            == 0
        )
    capsys.readouterr()
    assert figures.main(["table", *runs]) == 0
    assert "| learning-based --epochs 2 | 1 |" in capsys.readouterr().out
    for command in ("curves", "alpha"):
        assert figures.main([command, *runs, "--out", f"{command}.png"]) == 0
        assert (tmp_path / f"{command}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("command", ["table", "curves", "alpha"])
def test_a_folder_that_is_no_run_is_one_sentence(tmp_path, capsys, command):
    """No folder, no log, a broken line, an unfinished run: exit status 2 and what is wrong."""
    write(tmp_path / "torn")
    with open(tmp_path / "torn/log.jsonl", "a") as file:
        file.write('{"t": 3, "al')
    unfinished = write(tmp_path / "unfinished", test=False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank/log.jsonl").write_text("")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/log.jsonl").write_text('{"loss": 1}\n')
    for folder in ("absent", "empty", "torn", "blank", "other"):
        assert (
            figures.main(
                [command, str(tmp_path / folder), "--out", str(tmp_path / "x.png")][
                    : 2 + 2 * (command != "table")
                ]
            )
            == 2
        )
        said = capsys.readouterr().err
        assert (
            said.count("\n") == 1
            and said.startswith("figures.py: ")
            and str(tmp_path / folder) in said
        )
    if command == "table":
        assert figures.main(["table", unfinished]) == 2
        assert "did not finish" in capsys.readouterr().err
        twice = [write(tmp_path / "a"), write(tmp_path / "b")]
        assert figures.main(["table", *twice]) == 2
        assert "repeats seed 0 of 'heuristic'" in capsys.readouterr().err


def test_a_format_that_matplotlib_does_not_know_is_said(tmp_path, capsys):
    """One sentence, status 2."""
    assert figures.main(["alpha", write(tmp_path / "a", epochs=2), "--out", str(tmp_path / "a.xyz")]) == 2
    assert "xyz" in capsys.readouterr().err
