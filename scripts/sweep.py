"""Train many methods over several seeds, then compare them: the paper's tables on any data set.

    python -m scripts.sweep --dataset keypad --methods all --seeds 5 --jobs 2
    python -m scripts.sweep --dataset keypad --methods constant:0,heuristic,ogm:0.3 --seeds 3
    python -m scripts.sweep --dataset cremad --preset table1 --seeds 3 -- --root DIR
    python -m scripts.sweep --dataset keypad --preset table4 -- --epochs 5
    python -m scripts.sweep --dataset keypad --methods all --tune --seeds 5 --jobs 2

Each run is train.py in a process with one thread, in a folder of its own below --runs. A complete
run is left alone, an interrupted one is resumed. A run that fails is named, and the others go on.
Flags after -- are for every train.py. With --tune, or if a method needs held-out samples, all runs
hold out a tenth of the training split (unless the set has a validation part), so that they train on
the same samples. At the end come a table and a picture, OUT.md and OUT.png.

--tune first gives every method in TRIALS the same budget: its default and two other values of its
main number (heuristic: of tau), seeds 0 and 1. The other methods have nothing to choose. The value
with the highest mean ACC on held-out samples is used, and OUT-tune.md says which. The test split
chooses nothing.
"""

import argparse
import concurrent.futures
import csv
import dataclasses
import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from scipy import stats
from tqdm import tqdm

import train
from baselines import requirements
from scripts.figures import (
    COLOURS,
    METRICS,
    cell,
    one_table,
    plain,
    pyplot,
    save,
    score_lines,
    spread,
)
from utils import cli
from utils.atomic import atomic
from utils.run import best_epoch, checkpoint_epochs, first_settings, read_log
from utils.samples import own_table, split_of

HERE = Path(__file__).parent
JOINT = "constant:0"  # what every row is compared with
OURS = {"Ours-H": "heuristic", "Ours-LB": "learning-based"}
FUSIONS = {"Affine": "affine", "Channel": "channel", "ML-LSTM": "lstm", "Sum": "sum"}
FUSIONS |= {"Weight": "weight"}
REBALANCING = {"MSES": "mses", "G-Blend": "g-blend", "OGM": "ogm"}
REBALANCING |= {"Greedy": "greedy --fusion channel", "DOMFN": "domfn", "MSLR": "mslr", "PMR": "pmr"}
LATEST = {"AGM": "agm", "MLA": "mla", "ReconBoost": "reconboost", "MMPareto": "mmpareto"}
OWN_VAL = ["sarcasm", "twitter2015"]  # the paper's sets that have a validation part
TRIALS = {  # what --tune tries beside a method's default
    "heuristic": (" --tau 0.05", " --tau 0.2"),
    "learning-based": (" --eta-alpha 1", " --eta-alpha 4"),
    "mses": (":1", ":5"),
    "g-blend": (":2", ":5"),
    "ogm": (":0.3", ":0.8"),
    "greedy": (":0.001", ":0.1"),
    "domfn": (":0.4", ":1.6"),
    "mslr": (":1:0.5", ":0.5:1"),
    "pmr": (":0.5", ":2"),
    "agm": (":0.5", ":2"),
    "mla": (":0.01", ":1"),
    "reconboost": (":2", ":10"),
    "mmpareto": (":1", ":2"),
    "etmc": (":1", ":50"),
}
TRIAL_SEEDS = 2


def presets():
    """{preset: {the paper's name of a row: --method and further flags}}."""
    fusions = {name: f"{JOINT} --fusion {fusion}" for name, fusion in FUSIONS.items()}
    single = {"Unimodal": "unimodal", "Concat": JOINT, **fusions, "ETMC": "etmc"}
    constant = {f"constant {p}": f"constant:{p}" for p in ("0", "0.5", "1")}
    stepwise = {f"h({p})": f"stepwise:{p}" for p in ("0", "1", "0.05", "0.95")}
    clip = {"CLIP": JOINT, "CLIP+MLA": "mla", "CLIP+Ours": "learning-based"}
    return {
        "table1": single | REBALANCING | LATEST | OURS,
        "table2": LATEST | OURS,
        # Paper silent: the constant alpha of Table 3's "CL" without "DI". Here: 0.5.
        "table3": {"without CL": JOINT, "CL": "constant:0.5", "CL and DI": "learning-based"},
        "table4": constant | stepwise | OURS,
        "table5": {name: f"{row} --encoders clip" for name, row in clip.items()},
        "fig1": {"L_S": JOINT, "0.7 L_S + 0.3 L_U": f"{JOINT} --smoothing 0.3"},
    }


PRESETS = presets()


def kind_of(row):
    """The class that says what a row's method requires."""
    return requirements(row.split()[0])


def rows_of(methods, preset):
    """{row: the paper's name or ""}; a row is --method and further flags, as in PRESETS.

    methods: `all`, or methods separated by commas. The first row is what the others are compared
    with, joint training, which is added if it is missing.
    """
    if preset:
        rows = {row: name for name, row in PRESETS[preset].items()}
    elif methods == "all":
        rows = {row: "" for row in [*PRESETS["table1"].values(), "heads"]}
    else:
        rows = dict.fromkeys(methods.split(","), "")
        for row in list(rows):
            fusions = kind_of(row).fusions
            if fusions and "concat" not in fusions and "--fusion" not in row:
                rows[f"{row} --fusion {fusions[0]}"] = rows.pop(row)
    joint = next((row for row in rows if preset and row.split()[0] == JOINT), JOINT)
    return {joint: "", **rows}


@dataclasses.dataclass(eq=False)
class Job:
    """A run: its row of the table, its seed, the flags of train.py, and its folder."""

    row: str
    seed: int
    flags: list
    folder: Path

    def command(self):
        """train.py that starts or resumes the run, or None for one that is complete.

        ValueError if the folder holds a run with other settings.
        """
        done = first_settings(self.folder)
        if done is None and not checkpoint_epochs(self.folder):
            return self.train("--out")
        expected, silent = train.parse(self.flags), cli.changeable(train.Settings)
        if expected.outer == "held-out":
            silent.add("val_fraction")  # load_data may set it
        if not {"--bf16", "--no-bf16"} & {*self.flags}:
            silent.add("bf16")  # the default is the machine's
        for name, value in dataclasses.asdict(expected).items():
            if done and name not in silent and done[name] != value:
                raise cli.SettingsError(
                    f"{self.folder} holds a run with {cli.flag(name)} {done[name]}, expected "
                    f"{value}; give --runs another folder"
                )
        if done and read_log(self.folder)[2] is not None:
            return None
        return self.train("--resume" if checkpoint_epochs(self.folder) else "--out")

    def train(self, mode):
        return [sys.executable, str(HERE.parent / "train.py"), *self.flags, mode, str(self.folder)]


def data_name(dataset):
    """A data set's name; of a folder of your own data, the folder's."""
    return Path(dataset).resolve().name


def has_val(dataset):
    """Whether a data set, or a folder of your own data, has a validation part of its own."""
    if not os.path.isdir(dataset):
        return dataset in OWN_VAL
    return any(split_of(row) == "val" for _, row in own_table(dataset)[1])


def trials_of(row):
    """A row with its method's default and, where TRIALS has some, with other values."""
    method, _, flags = row.partition(" ")
    return [row, *(f"{method}{value} {flags}".strip() for value in TRIALS.get(method, ()))]


def jobs_of(dataset, rows, seeds, runs, extra, hold_out=False):
    """The runs of all rows, seed by seed; ValueError for flags that train.py refuses.

    hold_out: also hold out samples if no row needs them.
    """
    given = [word.split("=")[0] for word in extra if word.startswith("--")]
    hold_out = hold_out or any(kind_of(row).needs_val for row in rows)
    if hold_out and "--val-fraction" not in given and not has_val(dataset):
        extra = [*extra, "--val-fraction", "0.1"]
    if taken := {"--dataset", "--method", "--seed", "--out", "--resume", "--eval"} & {*given}:
        raise cli.SettingsError(f"{min(taken)} after -- is set by the sweep itself; leave it out")
    jobs = []
    for seed in range(seeds):
        for row in rows:
            method, *own = row.split()
            flags = ["--dataset", dataset, *extra, "--method", method, *own, "--seed", str(seed)]
            if seed == 0:  # no flag depends on it
                train.check(train.parse(flags))
            parts = [data_name(dataset), method.replace(":", ""), *own[1::2], f"seed{seed}"]
            jobs.append(Job(row, seed, flags, Path(runs) / "-".join(parts)))
    return jobs


def fitting(dataset, names, extra):
    """names without the rows that train.py refuses with these flags, each said.

    ValueError if it refuses all.
    """
    fit, refused = {}, {}
    for row, name in names.items():
        try:
            jobs_of(dataset, trials_of(row), 1, "", extra)
            fit[row] = name
        except cli.SettingsError as error:
            refused[row] = error
    if not fit:
        raise next(iter(refused.values()))
    for row, error in refused.items():
        print(f"{row} is left out: {error}")
    return fit


def call(command, started):
    """Run a command with one thread; returns its last line on stderr, "" if it succeeded."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **output) as process:
        started.append(process)
        lines = process.communicate()[1].strip().splitlines()
    if process.returncode:
        return lines[-1] if lines else f"ended with status {process.returncode}"
    return ""


def run_all(jobs, workers):
    """Run what is not complete, `workers` at a time; returns {job's folder: why it failed}."""
    failed, todo, started = {}, {}, []
    for job in jobs:
        if command := job.command():
            todo[job] = command
    print(f"{len(jobs)} runs, {len(jobs) - len(todo)} of them complete already")
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        futures = {pool.submit(call, command, started): job for job, command in todo.items()}
        finished = concurrent.futures.as_completed(futures)
        try:
            for future in tqdm(finished, "runs", len(todo)):
                if why := future.result():
                    failed[futures[future].folder] = why
                    tqdm.write(f"{futures[future].folder} failed: {why}")
        except BaseException:  # Ctrl-C, SIGTERM: each run can be resumed
            pool.shutdown(wait=False, cancel_futures=True)
            for process in started:
                process.terminate()
            raise
    return failed


def scores_of(jobs):
    """({row: {seed: test scores}}, [first line of the log]) of the complete runs."""
    rows, firsts = {}, []
    for job in jobs:
        if (job.folder / "log.jsonl").is_file():
            first, _, test = read_log(job.folder)
            if test is not None:
                rows.setdefault(job.row, {})[job.seed] = test
                firsts.append(first)
    return rows, firsts


def validation_acc(folder):
    """The fused ACC on the validation part, of the epoch that is tested."""
    records = read_log(folder)[1]
    return records[best_epoch(records) - 1]["fused"]["acc"]


def tuned(names, accs):
    """({row with its chosen value: name}, the table of all trials in Markdown).

    accs: {trial: [validation ACC of each seed]}. A trial without all seeds is not chosen; of equal
    ones the first, the default, is.
    """
    rows, lines = {}, [["method", "validation ACC, by value"]]
    for row, name in names.items():
        trials = trials_of(row)
        known = [trial for trial in trials if len(accs.get(trial, ())) == TRIAL_SEEDS]
        best = max(known, key=lambda trial: np.mean(accs[trial]), default=row)
        rows[best] = name
        if len(trials) > 1:
            cells = [f"`{trial}` {cell(accs[trial])}" for trial in known]
            cells = [f"**{c}**" if trial == best else c for trial, c in zip(known, cells)]
            lines.append([row, ", ".join(cells)])
    seeds = " and ".join(map(str, range(TRIAL_SEEDS)))
    note = f"ACC on held-out samples, mean ± std over seeds {seeds}; the chosen value is bold."
    return rows, f"{one_table(lines)}\n\n{note}"


def compared(tests, joint):
    """`+1.2 (p 0.03)`: the mean difference in fused ACC over common seeds, and its paired t-test.

    tests, joint: {seed: test scores}; "" without a common seed, no p for a single one or where all
    differences are the same.
    """
    seeds = sorted({*tests} & {*joint})
    a, b = ([scores[seed]["fused"]["acc"] for seed in seeds] for scores in (tests, joint))
    if not seeds:
        return ""
    difference = np.subtract(a, b)
    p = f" (p {stats.ttest_rel(a, b).pvalue:.2g})" if np.ptp(difference) > 0 else ""
    return f"{difference.mean():+.1f}{p}"


def printed(preset, name, dataset):
    """The paper's numbers of a row as `fused ACC / MAP or F1; of each modality`, or ""."""
    with open(HERE / "paper.csv", newline="") as file:
        for line in csv.DictReader(file):
            if [line["table"], line["row"], line["dataset"]] == [preset, name, dataset]:
                fused = " / ".join(filter(None, (line["acc"], line["map"], line["f1"])))
                return "; ".join(filter(None, (fused, line["single"].replace(" ", ", "))))
    return ""


def table(dataset, modalities, rows, names, preset, metric):
    """The table in Markdown, with what it compares in words; rows: {row: {seed: test scores}}."""
    joint = next(iter(names))
    head, *lines = score_lines([dataset, *modalities], rows, metric)
    head = [*head, f"ACC - ACC of {joint}"]
    paper = {row: printed(preset, name, dataset) for row, name in names.items()}
    if any(paper.values()):
        head += [f"the paper's {preset}", "ACC / MAP or F1; modalities"]
    for line in lines:
        row = line[0].removesuffix(", logits summed")
        fused = line[2] != ""
        known = fused and row != joint
        line.append(compared(rows[row], rows.get(joint, {})) if known else "")
        if any(paper.values()):
            line += [names[row], paper[row]] if row == line[0] else ["", ""]
        if kind_of(row).own_heads:
            line[0] += " †"
    spread_of, mean, p = "", "", ""
    if max(len(tests) for tests in rows.values()) > 1:
        spread_of, mean = ", mean ± std over the seeds", ", the mean over the seeds"
        p = (
            " p: a two-sided paired t-test over these seeds (scipy's ttest_rel), not corrected for "
            "the number of rows."
        )
    text = [
        one_table([head, *lines]),
        f"Scores of the test split{spread_of}. ACC - ACC of {joint}: the difference in fused ACC "
        f"between two runs with the same seed, in points{mean}.{p}",
    ]
    if any(kind_of(row).own_heads for row in rows):
        text.append(
            "†: a modality is scored by a classifier of its own; in all other rows, by the fused "
            "classifier with zeros for the other features. Do not compare the two kinds."
        )
    return "\n\n".join(text)


def write(path, text):
    """Write a text, in a folder that may not be there yet."""
    with atomic(Path(path)) as part:
        part.write_text(text + "\n")


def picture(dataset, modalities, rows, joint, out):
    """Fused ACC and perf_gap of each row, sorted by ACC: mean and std over seeds.

    Joint training is a dashed line; rows with classifiers of their own (†) have open marks.
    """
    values = {
        "fused ACC, %": lambda test: test["fused"]["acc"],
        "perf_gap, points": lambda test: spread(test, modalities, "acc"),
    }
    order = sorted(rows, key=lambda row: np.mean([t["fused"]["acc"] for t in rows[row].values()]))
    size = (9, 1 + 0.3 * len(order))
    figure, axes = pyplot().subplots(1, 2, figsize=size, sharey=True, layout="constrained")
    for axis, (name, value) in zip(axes, values.items()):
        for n, row in enumerate(order):
            of_seeds = [value(test) for test in rows[row].values()]
            std = np.std(of_seeds, ddof=1) if len(of_seeds) > 1 else 0
            colour = COLOURS[2] if row.split()[0] in OURS.values() else COLOURS[1]
            style = {"color": colour, "mfc": "white" if kind_of(row).own_heads else colour}
            axis.errorbar(np.mean(of_seeds), n, xerr=std, fmt="o", capsize=3, **style)
            if row == joint:
                axis.axvline(np.mean(of_seeds), color="#777777", ls="--", lw=1)
        axis.set_xlabel(f"{name}: mean and std over seeds")
        plain(axis)
    axes[0].set_yticks(range(len(order)), [f"{r} †" if kind_of(r).own_heads else r for r in order])
    figure.suptitle(dataset)
    save(figure, out)


def parser():
    """The flags of the sweep; those of train.py follow after --."""
    flags = argparse.ArgumentParser(
        "sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = flags.add_mutually_exclusive_group()
    which.add_argument("--methods", default="all", help="all, or names like constant:0,ogm:0.3")
    which.add_argument("--preset", choices=PRESETS, help="the rows of a table or figure")
    flags.add_argument("--dataset", default="keypad", help="as of train.py (default keypad)")
    flags.add_argument("--seeds", type=int, default=5, help="how many, from 0 on (default 5)")
    flags.add_argument("--jobs", type=int, default=1, help="runs at the same time (default 1)")
    flags.add_argument("--tune", action="store_true", help="first choose each method's number")
    flags.add_argument("--metric", choices=METRICS, default="acc", help="of the modalities")
    flags.add_argument("--runs", default="runs", help="folder of the runs' folders (default runs)")
    flags.add_argument("--out", default="", help="of the table and picture, without ending")
    return flags


def main(arguments=None):
    """Exit status 0; 1 if a run failed, 2 for wrong flags, each with its sentence."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    split = arguments.index("--") if "--" in arguments else len(arguments)
    args = parser().parse_args(arguments[:split])
    with cli.one_sentence("sweep") as program:
        for name in ("seeds", "jobs"):
            if getattr(args, name) < 1:
                raise cli.SettingsError(f"--{name} is {getattr(args, name)}, expected 1 or more")
        dataset = data_name(args.dataset)
        out = args.out or f"{args.runs}/sweep-{dataset}-{args.preset or 'methods'}"
        names, trials, failed = rows_of(args.methods, args.preset), [], {}
        prepare = functools.partial(
            jobs_of, args.dataset, runs=args.runs, extra=arguments[split + 1 :], hold_out=args.tune
        )
        if args.preset or args.methods == "all":
            names = fitting(args.dataset, names, arguments[split + 1 :])
        if args.tune:
            trials = prepare([trial for row in names for trial in trials_of(row)], TRIAL_SEEDS)
            failed, accs = run_all(trials, args.jobs), {}
            for job in trials:
                if job.folder not in failed:
                    accs.setdefault(job.row, []).append(validation_acc(job.folder))
            names, text = tuned(names, accs)
            write(f"{out}-tune.md", text)
            print(text, f"wrote {out}-tune.md", sep="\n\n")
        jobs = prepare(names, args.seeds)
        failed |= run_all(jobs, args.jobs)
        rows, firsts = scores_of(jobs)
        if rows:
            modalities = firsts[0]["modalities"]
            text = table(dataset, modalities, rows, names, args.preset, args.metric)
            if part := train.parse(jobs[0].flags).val_fraction:
                text += f"\n\nAll runs hold out {part:.0%} of the training split."
            if len({first["settings"]["bf16"] for first in firsts}) > 1:
                text += "\n\nSome runs trained in bfloat16 (--bf16), others in float32."
            write(f"{out}.md", text)
            picture(dataset, modalities, rows, next(iter(names)), f"{out}.png")
            print(text, f"wrote {out}.md and {out}.png", sep="\n\n")
        program.started = True  # what follows is a failed run, not a wrong flag
        if failed:
            folder, why = next(iter(failed.items()))
            n = len({job.folder for job in [*trials, *jobs]})
            raise cli.RunError(f"{len(failed)} of {n} runs failed; the first is {folder}: {why}")
    return program.status


if __name__ == "__main__":
    sys.exit(main())
