"""Train many methods over several seeds, then compare them: the paper's tables on any data set.

    python -m scripts.sweep --dataset keypad --methods constant:0 heuristic ogm:0.3 --seeds 0 3 7
    python -m scripts.sweep --dataset cremad --preset table1 --seeds 3 -- --root DIR
    python -m scripts.sweep --dataset keypad --preset losses --against heads -- --epochs 5
    python -m scripts.sweep --dataset keypad --methods all --tune --seeds 5 --jobs 2
    python -m scripts.sweep --print > commands; xargs -d '\\n' -n 1 -P 4 sh -c < commands

Each run is train.py in a process with one thread, in a folder of its own below --runs. A complete
run is left alone, an interrupted one is resumed. A failed run is named, and the others continue.
Flags after -- are for every train.py. With --tune, or if a method needs held-out samples, all runs
hold out a tenth of the training split (unless the set has a validation part), so that they train on
the same samples. At the end come a table and a picture, OUT.md and OUT.png, of the runs that have
the same data; a run on other data is named and left out.

--tune first chooses a number for every row, by the mean ACC on held-out samples of seeds 0 and 1:
the method's own, or the learning rate (scripts/tuning.py). OUT-tune.md has all values that were
tried with their ACC. The test split chooses nothing.

--print starts nothing: it prints the commands of the incomplete runs, a line each, for a job array
or `xargs`, and makes the table of the finished ones. With --tune the trials come first: run them
and print again, until nothing is printed.
"""

import concurrent.futures
import contextlib
import csv
import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from scipy import stats
from tqdm import tqdm

import train
from baselines import methods, requirements
from scripts import figures, tuning
from scripts.tuning import validation_acc
from utils import cli
from utils.atomic import atomic
from utils.cli import RunError, SettingsError
from utils.run import checkpoint_epochs, log_path, read_log

HERE = Path(__file__).parent
TAKEN = {"--dataset", "--method", "--seed", "--out", "--resume", "--eval"}  # the sweep gives them
JOINT = "constant:0"  # every row is compared with it, unless --against names another one
OURS = {"Ours-H": "heuristic", "Ours-LB": "learning-based"}
FUSIONS = {"Affine": "affine", "Channel": "channel", "ML-LSTM": "lstm", "Sum": "sum"}
FUSIONS |= {"Weight": "weight"}
REBALANCING = {"MSES": "mses", "G-Blend": "g-blend", "OGM": "ogm"}
REBALANCING |= {"Greedy": "greedy --fusion channel", "DOMFN": "domfn", "MSLR": "mslr", "PMR": "pmr"}
LATEST = {"AGM": "agm", "MLA": "mla", "ReconBoost": "reconboost", "MMPareto": "mmpareto"}
OURS_IN = ["constant:0.5", "heuristic", "learning-based"]  # the rows that --preset losses varies
OTHERS_IN = ["unimodal", "heads", "mmpareto", "released", "released:quintic"]
# What the runs of a table have in common (utils.trained.describe); "samples" is a digest.
COMPARED = {"kinds": "modalities", "classes": "classes", "samples": "labels or files"}


def presets():
    """{preset: {the paper's name of a row: --method and further flags}}."""
    fusions = {name: f"{JOINT} --fusion {fusion}" for name, fusion in FUSIONS.items()}
    single = {"Unimodal": "unimodal", "Concat": JOINT, **fusions, "ETMC": "etmc"}
    constant = {f"constant {p}": f"constant:{p}" for p in ("0", "0.5", "1")}
    stepwise = {f"h({p})": f"stepwise:{p}" for p in ("0", "1", "0.05", "0.95")}
    flags = ("", " --heads", " --matching classes", " --heads --matching classes")
    ours = [f"{row}{flag}" for flag in flags for row in OURS_IN]
    clip = {"CLIP": JOINT, "CLIP+MLA": "mla", "CLIP+Ours": "learning-based"}
    return {
        "table1": single | REBALANCING | LATEST | OURS,
        "table2": LATEST | OURS,
        # Paper silent: the constant alpha of Table 3's "CL" without "DI". Here: 0.5.
        "table3": {"without CL": JOINT, "CL": "constant:0.5", "CL and DI": "learning-based"},
        "table4": constant | stepwise | OURS,
        "table5": {name: f"{row} --encoders clip" for name, row in clip.items()},
        # Not in the paper: ours with a classifier per modality, or with L_MM between classes.
        "losses": {row: row for row in [JOINT, *OTHERS_IN, *ours]},
        "fig1": {"L_S": JOINT, "0.7 L_S + 0.3 L_U": f"{JOINT} --smoothing 0.3"},
    }


PRESETS = presets()


def kind_of(row):
    """The class with the requirements of a row's method."""
    return requirements(row.split()[0])


def rows_of(given, preset, against=JOINT):
    """{row: the paper's name or ""}; a row is --method and further flags, as in PRESETS.

    given: the rows, or ["all"]. All rows are compared with the first, `against`, which is added if
    it is missing.
    """
    if preset:
        rows = {row: name for name, row in PRESETS[preset].items()}
    elif given == ["all"]:
        rows = dict.fromkeys([*PRESETS["table1"].values(), *PRESETS["losses"]], "")
    else:
        rows = {}
        for row in given:
            fusions = kind_of(row).fusions
            fits = not fusions or "concat" in fusions or "--fusion" in row
            rows[row if fits else f"{row} --fusion {fusions[0]}"] = ""
    if preset and against == JOINT:  # the preset's joint training may have flags
        against = next((row for row in rows if row.split()[0] == JOINT), JOINT)
    if against not in rows:
        which = "which all rows are compared with; --against ROW names another"
        print(f"{against} is added, {which}", file=sys.stderr)
    return {against: "", **rows}


@dataclasses.dataclass(eq=False)
class Job:
    """A run: its row of the table, its seed, the flags of train.py, its settings and its folder."""

    row: str
    seed: int
    flags: list
    settings: train.Settings
    folder: Path

    def command(self):
        """train.py that starts or resumes the run, or None for one that is complete.

        SettingsError if the folder holds a run with other settings.
        """
        mode = "--resume" if checkpoint_epochs(self.folder) else "--out"
        program = [sys.executable, str(HERE.parent / "train.py"), *self.flags]
        log = self.log()
        if log is None:
            return [*program, mode, str(self.folder)]
        silent = cli.changeable(train.Settings)
        if not {"--bf16", "--no-bf16"} & {*self.flags}:
            silent.add("bf16")  # the default is the machine's
        # The log of an earlier version lacks the settings that came later: they are the defaults.
        recorded = dataclasses.asdict(train.Settings()) | log.first["settings"]
        for name, value in dataclasses.asdict(self.settings).items():
            if name not in silent and recorded[name] != value:
                flag = f"{cli.flag(name)} {recorded[name]}"
                hint = f"write -- {flag} at the end, or " if name == "val_fraction" else ""
                raise SettingsError(
                    f"{self.folder} holds a run with {flag}, expected {value}; "
                    f"{hint}give --runs another folder"
                )
        return None if log.test else [*program, mode, str(self.folder)]

    def log(self):
        """The run's Log, None before it begins."""
        return read_log(self.folder) if log_path(self.folder).exists() else None


def data_name(dataset):
    """A data set's name; of a folder of your own data, the folder's."""
    return Path(dataset).resolve().name


def folder_of(dataset, row, seed):
    """`constant:0.5 --heads --lr 0.01` -> keypad-constant0.5-heads-lr-0.01-seed0."""
    words = re.sub("[:/]", "", row.replace(" --", " ").replace("=", " ")).split()
    return "-".join([data_name(dataset), *words, f"seed{seed}"])


def jobs_of(dataset, rows, seeds, runs, extra, hold_out=False):
    """The runs of all rows, seed by seed; SettingsError for flags that train.py refuses.

    Rows with equal settings are one. hold_out: also hold out samples if no row needs them.
    """
    given = [word.split("=")[0] for word in [*extra, *" ".join(rows).split()]]
    if taken := TAKEN & {*given}:
        raise SettingsError(f"{min(taken)} is set by the sweep itself; leave it out")
    common, distinct = train.parse(["--dataset", dataset, *extra]), {}
    needs = any(kind_of(row).needs_val or "held-out" in row for row in rows)  # or --outer held-out
    if (hold_out or needs) and not common.val_fraction and not tuning.has_val(dataset):
        if "--val-fraction" in given[: len(extra)]:
            hint = "leave it out, or give a tenth, 0.1"
            raise SettingsError(f"--val-fraction is 0, but held-out samples are needed; {hint}")
        extra = [*extra, "--val-fraction", "0.1"]
        common = dataclasses.replace(common, val_fraction=0.1)
    for row in rows:
        settings = tuning.with_row(common, row)
        distinct.setdefault(tuning.in_full(settings), (row, settings))
    jobs = {}
    for seed in seeds:
        for row, settings in distinct.values():
            settings = dataclasses.replace(settings, seed=seed)
            flags = ["--dataset", dataset, *extra, "--method", *row.split(), "--seed", str(seed)]
            job = Job(row, seed, flags, settings, Path(runs) / folder_of(dataset, row, seed))
            if other := jobs.get(job.folder):
                raise SettingsError(f"{row} and {other.row} share {job.folder}; leave one out")
            jobs[job.folder] = job
    return [*jobs.values()]


def fitting(dataset, names, extra):
    """The rows that train.py accepts with these flags; says why the others are skipped.

    SettingsError if it refuses the first, with which all are compared.
    """
    fit, refused = {}, {}
    for row, name in names.items():
        try:
            jobs_of(dataset, [row], [0], "", extra)
            fit[row] = name
        except SettingsError as error:
            refused[row] = error
    if (first := next(iter(names))) in refused:
        raise refused[first]
    for row, error in refused.items():
        print(f"{row} is left out: {error}", file=sys.stderr)
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


def run_all(jobs, args, later=0):
    """Run the incomplete jobs, args.jobs at a time; returns {job's folder: why it failed}.

    later: runs that follow, for the estimate. With --print the commands are printed instead.
    """
    todo = {job: command for job in jobs if (command := job.command())}
    if args.print:
        for command in todo.values():
            print("OMP_NUM_THREADS=1", shlex.join(command))
        return {}
    print(f"{len(jobs)} runs, {len(jobs) - len(todo)} of them complete already")
    failed, started, begun = {}, [], time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        futures = {pool.submit(call, command, started): job for job, command in todo.items()}
        finished = concurrent.futures.as_completed(futures)
        try:
            for n, future in enumerate(tqdm(finished, "runs", len(todo)), 1):
                if why := future.result():
                    failed[futures[future].folder] = why
                    tqdm.write(f"{futures[future].folder} failed: {why}")
                left = len(todo) - n + later
                if n == 2 * args.jobs and left:  # the first runs of all also fill the disk's cache
                    about = tqdm.format_interval((time.monotonic() - begun) / n * left)
                    tqdm.write(f"about {about} ([h:]mm:ss) for the other {left} runs")
        except BaseException:  # Ctrl-C, SIGTERM: each run can be resumed
            pool.shutdown(wait=False, cancel_futures=True)
            for process in started:
                process.terminate()
            raise
    return failed


def on_other_data(firsts):
    """{folder: why} of the runs on other data than most. firsts: {folder: first record}."""
    facts = {}
    for folder, first in firsts.items():
        data = dict(first.get("data", {}))  # the log of an earlier version does not name its data
        if first.get("settings", {}).get("train_groups"):
            data["samples"] = None  # they depend on the seed
        facts[folder] = tuple(json.dumps(data.get(fact)) for fact in COMPARED)
    [(usual, _)] = Counter(facts.values()).most_common(1)
    others = {}
    for folder, own in facts.items():
        apart = [name for name, a, b in zip(COMPARED.values(), own, usual) if a != b]
        if apart:
            others[folder] = f"it has other {apart[0]} than most runs"
    return others


def compared(tests, reference):
    """(`+1.2 [0.3, 2.1]`, p): the mean difference in fused ACC, its 95 % interval, a paired t-test.

    tests, reference: {seed: test scores}; of common seeds. ("", None) without one; no interval and
    p None for a single one or where all differences are the same.
    """
    difference = figures.differences(tests, reference)
    if not len(difference):
        return "", None
    if np.ptp(difference) < 1e-9:  # the same but for rounding: no test
        return f"{difference.mean():+.1f}", None
    test = stats.ttest_1samp(difference, 0)  # the paired test
    low, high = test.confidence_interval()
    return f"{difference.mean():+.1f} [{low:+.1f}, {high:+.1f}]", test.pvalue


def holm(p):
    """Holm's correction of p-values for their number: {key: p} -> {key: corrected p}."""
    corrected, largest = {}, 0.0
    for k, key in enumerate(sorted(p, key=p.get)):
        largest = max(largest, min(1.0, (len(p) - k) * p[key]))
        corrected[key] = largest
    return corrected


def printed(preset, name, dataset):
    """The paper's numbers of a row as `fused ACC / MAP or F1; of each modality`, or ""."""
    with open(HERE / "paper.csv", newline="") as file:
        for line in csv.DictReader(file):
            if [line["table"], line["row"], line["dataset"]] == [preset, name, dataset]:
                fused = " / ".join(filter(None, (line["acc"], line["map"], line["f1"])))
                return "; ".join(filter(None, (fused, line["single"].replace(" ", ", "))))
    return ""


def table(dataset, modalities, rows, names, preset, metric, daggers):
    """The table in Markdown, with sentences that explain it; rows: {row: {seed: test scores}}.

    daggers: {row: " †" or ""}, whether its modalities have classifiers of their own.
    """
    against = next(iter(names))
    differences = {row: compared(tests, rows.get(against, {})) for row, tests in rows.items()}
    p = holm({row: p for row, (_, p) in differences.items() if p is not None})
    head, *lines = figures.score_lines([dataset, *modalities], rows, metric)
    head += [f"ACC - ACC of {against}", "p, Holm"]
    paper = {row: printed(preset, name, dataset) for row, name in names.items()}
    if any(paper.values()):
        head += [f"the paper's {preset}", "ACC / MAP or F1; modalities"]
    for line in lines:
        row = line[0].removesuffix(", logits summed")
        if line[2] and row != against:
            line += [differences[row][0], f"{p[row]:.2g}" if row in p else ""]
        else:  # a row without fused scores, or the one that all are compared with
            line += ["", ""]
        if any(paper.values()):
            line += [names[row], paper[row]] if row == line[0] else ["", ""]
        line[0] += daggers[row]
    several = max(map(len, rows.values())) > 1
    text = (
        f"Scores of the test split{', mean ± std over the seeds' if several else ''}. "
        f"ACC - ACC of {against}: the difference in fused ACC between two runs with the same seed, "
        f"in points{', the mean over the seeds and its 95 % interval' if several else ''}."
    )
    if several:
        text += (
            " p: a two-sided paired t-test over these seeds, corrected for the "
            f"table's {len(p)} comparisons by Holm's method."
        )
    notes = [figures.one_table([head, *lines]), text]
    if any(daggers.values()):
        notes.append(
            "†: a modality is scored by a classifier of its own; in all other rows, by the fused "
            "classifier with zeros for the other features. Do not compare the two kinds."
        )
    return "\n\n".join(notes)


def notes_of(firsts, others):
    """Sentences below a table: on its data, and the runs left out. others: of on_other_data."""
    first, notes = firsts[0], []
    counts = first.get("data", {}).get("class_counts", {}).get("test", [])
    if len({*counts}) > 1:
        k = int(np.argmax(counts))
        acc = 100 * counts[k] / sum(counts)
        name = first["data"]["classes"][k]
        notes.append(f"Always saying the most frequent class, {name}, would have ACC {acc:.1f}.")
    parts = {first["settings"]["val_fraction"] for first in firsts}
    if len(parts) > 1:
        said = " or ".join(f"{part:.0%}" for part in sorted(parts))
        notes.append(f"The runs hold out {said} of the training split: they are not alike.")
    elif part := max(parts):
        notes.append(f"All runs hold out {part:.0%} of the training split.")
    if len({first["settings"]["bf16"] for first in firsts}) > 1:
        notes.append("Some runs trained in bfloat16 (--bf16), others in float32.")
    return notes + [f"{folder} is left out: {why}." for folder, why in others.items()]


def write(args, text, path):
    """Write and print a text; after --print only commands are on stdout."""
    with atomic(Path(path)) as part:
        part.write_text(text + "\n", encoding="utf-8")
    print(f"{text}\n\nwrote {path}", file=sys.stderr if args.print else sys.stdout)


def plot(dataset, modalities, rows, against, daggers, out):
    """Fused ACC and perf_gap of each row, sorted by ACC: mean and std over seeds.

    The row compared with is a dashed line; rows with classifiers of their own (†) have open marks.
    """
    values = {
        "fused ACC, %": lambda test: test["fused"]["acc"],
        "perf_gap, points": lambda test: figures.spread(test, modalities, "acc"),
    }
    order = sorted(rows, key=lambda row: np.mean([t["fused"]["acc"] for t in rows[row].values()]))
    figure, (axes,) = figures.panels(1, 2, 9, 1 + 0.3 * len(order), sharey=True)
    for axis, (name, value) in zip(axes, values.items()):
        for n, row in enumerate(order):
            of_seeds = [value(test) for test in rows[row].values()]
            std = np.std(of_seeds, ddof=1) if len(of_seeds) > 1 else 0
            colour = figures.COLOURS[2] if row.split()[0] in OURS.values() else figures.COLOURS[1]
            style = {"color": colour, "mfc": "white" if daggers[row] else colour}
            axis.errorbar(np.mean(of_seeds), n, xerr=std, fmt="o", capsize=3, **style)
            if row == against:
                axis.axvline(np.mean(of_seeds), color="#777777", ls="--", lw=1)
        axis.set_xlabel(f"{name}: mean and std over seeds")
    axes[0].set_yticks(range(len(order)), [row + daggers[row] for row in order])
    figure.suptitle(dataset)
    figures.save(figure, out)


def report(args, jobs, names):
    """Write OUT.md and OUT.png of the complete runs; returns {folder: why it is left out}."""
    logs = {job: log for job in jobs if (log := job.log()) and log.test}
    if not logs:
        return {}
    others = on_other_data({job.folder: log.first for job, log in logs.items()})
    alike = {job: log for job, log in logs.items() if job.folder not in others}
    firsts = [log.first for log in alike.values()]
    rows, daggers = {}, {}
    dataset, modalities = data_name(args.dataset), firsts[0]["modalities"]
    for job, log in alike.items():
        rows.setdefault(job.row, {})[job.seed] = log.test
        run = job.settings
        own = kind_of(job.row).own_heads or run.heads or run.fusion == "weight"
        daggers[job.row] = " †" if own else ""
    scores = table(dataset, modalities, rows, names, args.preset, args.metric, daggers)
    text = "\n\n".join([scores, *notes_of(firsts, others)])
    with contextlib.redirect_stdout(sys.stderr if args.print else sys.stdout):
        plot(dataset, modalities, rows, next(iter(names)), daggers, f"{args.out}.png")
    write(args, text, f"{args.out}.md")
    return others


def parse(arguments):
    """The flags of the sweep; those after -- are `extra`, for train.py."""
    parser = cli.Parser("sweep", description=__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--methods", nargs="+", default=["all"], help="constant:0 ogm:0.3, or all")
    which.add_argument("--preset", choices=PRESETS, help="the rows of a table or figure")
    parser.add_argument("--against", default=JOINT, help="the row to compare with (constant:0)")
    parser.add_argument("--dataset", default="keypad", help="as of train.py (default keypad)")
    parser.add_argument("--seeds", nargs="+", default=["5"], help="how many (default 5), or a list")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time (default 1)")
    parser.add_argument("--tune", action="store_true", help="first choose each method's number")
    parser.add_argument("--metric", choices=figures.METRICS, default="acc", help="of modalities")
    parser.add_argument("--runs", default="runs", help="folder of the runs' folders (default runs)")
    parser.add_argument("--out", default="", help="of the table and picture, without ending")
    parser.add_argument("--print", action="store_true", help="print the commands, start nothing")
    split = arguments.index("--") if "--" in arguments else len(arguments)
    of_train = {cli.flag(f.name) for f in dataclasses.fields(train.Settings)} - TAKEN
    for name in (word.split("=")[0] for word in arguments[:split]):
        if name in of_train and name not in parser._option_string_actions:
            hint = f"write it at the end after --, as in: -- {name} VALUE"
            raise SettingsError(f"{name} is a flag of train.py; {hint}")
    args = parser.parse_args(arguments[:split])
    args.dataset = os.path.normpath(args.dataset)  # mine/ is mine
    args.extra = arguments[split + 1 :]
    args.methods = rows_in(args.methods)
    args.seeds = seeds_of(",".join(args.seeds).split(","))
    if args.jobs < 1:
        raise SettingsError(f"--jobs is {args.jobs}, expected 1 or more")
    name = f"sweep-{data_name(args.dataset)}-{args.preset or 'methods'}"
    args.out = args.out or f"{args.runs}/{name}"
    cli.check_own(f"{args.out}.md", "| ")
    return args


def rows_in(words):
    """The rows of --methods: words, or several with commas between them.

    A comma inside a flag's value, as in --encoders cnn,mlp, separates nothing: after a flag, only
    the name of a method begins a row.
    """
    rows = []
    for word in words:
        for n, part in enumerate(word.split(",")):
            name = re.split("[: ]", part.strip())[0]
            if n and " --" in rows[-1] and name not in methods():
                rows[-1] += f",{part}"
            else:
                rows.append(part.strip())
    if not all(rows):
        raise SettingsError("--methods has an empty row; put one comma between two rows")
    return rows


def seeds_of(words):
    """["3"] -> [0, 1, 2], how many; ["0", "3"] -> [0, 3], a list."""
    if not all(word.isdecimal() for word in words) or len({*words}) < len(words):
        raise SettingsError(f"--seeds is {' '.join(words)}, expected how many, or different seeds")
    if words == ["0"]:
        raise SettingsError("--seeds is 0, expected 1 or more")
    return list(range(int(words[0]))) if len(words) == 1 else [int(word) for word in words]


def tune(args, names):
    """Run all trials and write OUT-tune.md; returns ({chosen row: name}, {folder: why it failed}).

    No row is chosen after --print, until all trials are complete.
    """
    searches = tuning.searches(args.dataset, names, args.extra)
    rows = [search.trials[value] for search in searches for value in search.first]
    later, accs, failed = len(names) * len({*args.seeds} - {*tuning.SEEDS}), {}, {}
    print(tuning.plan(searches, later), file=sys.stderr)
    while rows:
        jobs = jobs_of(args.dataset, rows, tuning.SEEDS, args.runs, args.extra, hold_out=True)
        failed |= run_all(jobs, args, later)
        if args.print and any(job.command() for job in jobs):
            return {}, failed
        for job in jobs:
            scores = accs.setdefault(job.row, [])
            if job.folder not in failed:
                scores.append(validation_acc(job.folder))
        rows = [row for search in searches for row in tuning.untried(search, accs)]
    write(args, tuning.report(searches, accs), f"{args.out}-tune.md")
    chosen = {}
    for search, name in zip(searches, names.values()):
        row = search.trials[tuning.best_of(search, accs)]
        if row in chosen:
            print(f"{search.row} is left out: {row} was also chosen before it", file=sys.stderr)
        chosen.setdefault(row, name)
    return chosen, failed


def main(arguments=None):
    """Exit status 0; 1 if a run failed, 2 for wrong flags, each with its sentence."""
    with cli.one_sentence("sweep") as program:
        args = parse(sys.argv[1:] if arguments is None else list(arguments))
        names, failed = rows_of(args.methods, args.preset, args.against), {}
        if args.preset or args.methods == ["all"]:
            names = fitting(args.dataset, names, args.extra)
        jobs = jobs_of(args.dataset, names, args.seeds, args.runs, args.extra, args.tune)
        distinct = {job.row: names[job.row] for job in jobs}
        for row in [row for row in names if row not in distinct]:
            print(f"{row} is left out: a row before it has the same settings", file=sys.stderr)
        if args.tune:
            names, failed = tune(args, distinct)
            jobs = jobs_of(args.dataset, names, args.seeds, args.runs, args.extra, args.tune)
        failed |= run_all(jobs, args)
        failed |= report(args, jobs, names)
        program.started = True  # from here on an error is a failed run, not a wrong flag
        if failed:
            folder, why = next(iter(failed.items()))
            raise RunError(f"{len(failed)} runs are left out; the first is {folder}: {why}")
    return program.status


if __name__ == "__main__":
    sys.exit(main())
