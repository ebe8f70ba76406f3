"""A run's folder: its log, its checkpoints, its lock; resuming and evaluating it.

RUN/log.jsonl    the settings and the data; one line per epoch; the test scores
RUN/t0007.pt     after epoch 7: parameters, buffers, optimizer, alpha, random states, settings, log,
                 and `data`, utils.trained.describe: classes, modalities, channels, folder
RUN/.lock        held by the process that writes into RUN

All files are written atomically. A checkpoint is torch.save's bytes and their SHA-256; it is loaded
with weights_only=True, so that no code in it is ever run.
"""

import contextlib
import dataclasses
import hashlib
import io
import itertools
import json
import math
import os
import re
import time
from pathlib import Path
from typing import NamedTuple

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from utils import cli, distributed
from utils.annotations import LISTS
from utils.atomic import UnwritableFile, atomic, remove
from utils.cli import RunError, SettingsError, quoted
from utils.media import UnreadableFile
from utils.modalities import all_files
from utils.prepare import prepare_command
from utils.trained import FACTS, at, describe, find_data

PARTS = {"t", "alpha", "settings", "random", "log", "model", "optimizer", "plateau"}
WIDTH = 100  # columns of an epoch's line
LONG = 120  # s; if the epochs after the first take longer, a line says so
LEAST_OF_A_CLASS, LEAST_TO_TEST = 10, 30  # with fewer samples there is a warning
UNRECORDED = ("out", "overwrite", "resume", "eval", "split", "keep")  # not in a run's settings


@contextlib.contextmanager
def deterministic_kernels():
    """Only deterministic kernels inside the block, and not in a notebook's next run."""
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def write_bytes(path, content):
    """Replace a file atomically; OSError in one sentence where it cannot be written."""
    try:
        with atomic(path) as part, open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except UnwritableFile as error:
        intact = "; its old content is intact" if path.exists() else ""
        raise UnwritableFile(f"{error}{intact}") from error


def read_bytes(path, advice):
    """A file's content; RunError with the advice if it is no file or cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read ({error.strerror}); {advice}") from error


class Log(NamedTuple):
    """log.jsonl: its first record, the records of the epochs, the test scores or None."""

    first: dict
    epochs: list
    test: dict | None


def parse_log(text):
    """The Log of a text; some error if the text is not a log."""
    first, *rest = map(json.loads, text.splitlines())
    if {"settings", "modalities"} - first.keys():
        raise ValueError
    epochs = [record for record in rest if "alpha" in record]
    return Log(first, epochs, next((record["test"] for record in rest if "test" in record), None))


def log_path(folder):
    return Path(folder) / "log.jsonl"


def no_run(folder):
    """The SettingsError for a folder that is not a run's; it names the runs inside."""
    give = "give the folder of a run, like runs/NAME"
    if not Path(folder).is_dir():
        return SettingsError(f"{folder} is not a folder; {give}")
    runs = sorted(quoted(path.parent) for path in Path(folder).glob("*/log.jsonl"))
    hint = f"it holds the runs {cli.first_of(runs)}; give one of them" if runs else give
    return SettingsError(f"{folder} is not the folder of a run (it has no log.jsonl); {hint}")


def read_log(folder):
    """The Log of a run's folder; SettingsError or RunError, in one sentence, without one."""
    path = log_path(folder)
    if not path.exists():
        raise no_run(folder)
    saved = ", the checkpoint has a copy" if checkpoint_epochs(folder) else ""
    advice = f"remove it{saved}" if saved else "choose another folder, or remove it"
    content = read_bytes(path, f"make it readable, or {advice}")
    try:
        return parse_log(content)
    except (ValueError, AttributeError, TypeError) as error:
        raise RunError(f"{path} is not a log of train.py; {advice}") from error


def checkpoint_path(folder, t):
    return Path(folder) / f"t{t:04d}.pt"


def checkpoint_epochs(folder):
    """The epochs that have a checkpoint, in order."""
    found = (re.fullmatch(r"t(\d{4,})\.pt", path.name) for path in Path(folder).glob("t*.pt"))
    return sorted(int(match[1]) for match in found if match)


def stopped_early(folder):
    """Whether a run has begun, and ended before its first epoch did."""
    begun = not checkpoint_epochs(folder) and log_path(folder).exists()
    return begun and not read_log(folder).epochs


def save_checkpoint(folder, state, kept):
    """Write the checkpoint of epoch state["t"]; then remove all others but the `kept` ones."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).digest()
    write_bytes(checkpoint_path(folder, state["t"]), content + digest)
    for t in checkpoint_epochs(folder):
        if t != state["t"] and t not in kept:
            checkpoint_path(folder, t).unlink()


def is_intact(content):
    """Whether these bytes end in the SHA-256 of the others, as a checkpoint's do."""
    return hashlib.sha256(content[:-32]).digest() == content[-32:]


def load_checkpoint(folder, t=None):
    """The checkpoint after epoch t, or the last; RunError or FileNotFoundError in one sentence."""
    epochs = checkpoint_epochs(folder)
    if not epochs and not log_path(folder).exists():
        raise no_run(folder)
    if stopped_early(folder):
        raise RunError(f"{folder} stopped before epoch 1 ended; run the same command again")
    if not epochs or t not in (None, *epochs):
        wanted = "" if t is None else f" of epoch {t}"
        there = f" (only of t = {', '.join(map(str, epochs))})" if epochs else ""
        more = " with a larger --keep" if epochs else ""
        problem = f"{folder} has no checkpoint{wanted}{there}"
        raise FileNotFoundError(f"{problem}; train it again{more}")
    path = checkpoint_path(folder, epochs[-1] if t is None else t)
    advice = "remove it to resume from the one before"
    if len(epochs) == 1:
        advice = "there is no other; train the run again with --overwrite"
    content = read_bytes(path, advice)
    if not is_intact(content):
        raise RunError(f"{path} is damaged (wrong checksum); {advice}")
    try:
        state = torch.load(io.BytesIO(content[:-32]), map_location="cpu", weights_only=True)
        missing = PARTS - state.keys() or {"cpu", "cuda"} - state["random"].keys()
        if "data" in state:  # without it: of an earlier version
            missing |= FACTS - state["data"].keys()
        if missing or not parse_log(state["log"]).epochs:
            raise ValueError
    except Exception as error:  # weights_only refuses in many ways
        raise RunError(f"{path} is not a checkpoint of train.py; no code in it was run") from error
    return state


def load_state(state, **parts):
    """Load state["model"] into model=..., and so on; RunError if a part does not fit."""
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        problem = "the checkpoint belongs to another model or data set; nothing was written"
        raise RunError(problem) from error


def best_epoch(epochs):
    """The epoch to test: the best by fused ACC on the validation part, else the last."""
    if epochs[-1]["split"] != "val":
        return epochs[-1]["t"]
    return max(epochs, key=lambda record: record["fused"]["acc"])["t"]


def mean_losses(steps, t):
    """An epoch's mean losses; steps: for each step a tensor [L_Total, L_CLS, L_MM].

    FloatingPointError if a loss is not finite.
    """
    steps = distributed.all_reduce_mean(torch.stack(steps)).cpu()  # (Inner_Iters, 3)
    names = ["l_total", "l_cls", "l_mm"]
    bad = (~steps.isfinite()).any(1).nonzero()
    if len(bad):
        i = int(bad[0])
        values = ", ".join(f"{n} = {v:.4g}" for n, v in zip(names, steps[i].tolist()))
        raise FloatingPointError(
            f"epoch {t}, step {i + 1}: a loss is not finite ({values}); try a smaller --lr"
        )
    return dict(zip(names, steps.mean(0).tolist()))


def check_together(given):
    """Raise SettingsError for flags, {name: value}, that exclude each other."""
    for a, b in itertools.product(("resume", "eval"), ("eval", "out", "overwrite")):
        if a != b and {a, b} <= given.keys():
            both = f"{cli.flag(a)} and {cli.flag(b)} exclude each other"
            raise SettingsError(f"{both}; leave one of them out")
    if "split" in given and "eval" not in given:
        raise SettingsError("--split is for --eval; leave it out")


def command_of(settings, settings_class, defaults, folder):
    """The command that starts a run with these settings in the folder; defaults: data.defaults."""
    usual = dataclasses.asdict(settings_class())
    with contextlib.suppress(SettingsError, OSError):  # your own data are no longer there
        usual |= defaults(settings.get("dataset"), settings.get("device"))
    apart = {name: value for name, value in settings.items() if value != usual.get(name)}
    return " ".join(["python train.py", *cli.as_flags(apart | {"out": folder})])


def same_alpha(omega, T, longer):
    """Whether T epochs have the same alpha in a longer run; omega: the schedule, None: without."""
    return omega is None or all(omega(t, T) == omega(t, longer) for t in range(1, T + 1))


def check_schedule(folder, omega, epochs, T):
    """RunError if a schedule is not the one that a run of T epochs had; epochs: its records."""
    for record in epochs:
        t, then = record["t"], record["alpha"]
        now = omega(t, T)
        if not math.isclose(then, now, rel_tol=1e-6):  # a computed one differs in rounding
            problem = f"{folder} has alpha {then:.4g} in epoch {t}, now it would be {now:.4g}"
            raise RunError(f"{problem}; the schedule has changed, use another --out")


def check_version(folder, state, settings_class):
    """RunError if a checkpoint does not have today's settings, or not the record of its data."""
    expected = {f.name for f in dataclasses.fields(settings_class)} - {*UNRECORDED}
    if other := expected ^ {*state["settings"]} or {"data"} - state.keys():
        problem = f"{folder} comes from another version of train.py"
        names = ", ".join(sorted(other))
        raise RunError(f"{problem}, which differs in {names}; use that version")


def resumed_settings(folder, given, settings_class, datasets, defaults, schedule_of):
    """A run's settings, {name: value}, to resume or evaluate it with the flags `given`.

    datasets: the names of all data sets but your own folders; defaults: data.defaults; schedule_of:
    baselines.schedule_of, by which a run may become longer. Not a run of a single epoch: resuming
    an ended run takes the checkpoint before its last epoch.
    SettingsError for a flag that would make it another run; RunError if the folder's checkpoint and
    log do not belong together or come from another version.
    """
    if stopped_early(folder):
        command = command_of(read_log(folder).first["settings"], settings_class, defaults, folder)
        again = "stopped before epoch 1 ended; run the same command again"
        raise RunError(f"{folder} {again}: {command}")
    state = load_checkpoint(folder)
    settings, log = state["settings"], log_path(folder)
    longer = {"epochs": settings["epochs"]}  # the log may not have it yet
    if log.exists() and read_log(folder).first["settings"] | longer != settings:
        raise RunError(f"the checkpoint in {folder} and {log} belong to different runs")
    check_version(folder, state, settings_class)
    omega = schedule_of(settings["method"])
    if omega and "resume" in given:
        check_schedule(folder, omega, parse_log(state["log"]).epochs, settings["epochs"])
    own = settings["dataset"] not in datasets
    place = given.get("root") or (given.get("dataset") if own else None)
    may_change = cli.changeable(settings_class)
    if own and "root" not in given:
        may_change.add("dataset")  # the folder has moved
    for name, value in given.items():
        if name in may_change or value == settings[name]:
            continue
        what = f"{cli.flag(name)} {value} would make {folder} another run"
        if name == "epochs":
            T = settings["epochs"]
            if "resume" in given and value > T > 1 and same_alpha(omega, T, value):
                continue
            why = f"it has {settings[name]}, and a run cannot become shorter"
            if value > settings[name]:
                why = f"alpha's schedule can depend on T, which is {settings[name]} there"
            new = f"{os.path.normpath(folder)}-epochs{value}"
            there = settings | at(place, own) | {name: value}
            command = command_of(there, settings_class, defaults, new)
            raise SettingsError(f"{what}: {why}; start a new run instead: {command}")
        advice = "leave the flag out, or start a new run with --out"
        raise SettingsError(f"{what}, it has {settings[name]}; {advice}")
    return settings | given | find_data(folder, state["data"]["folder"], place, own)


def counted(samples):
    """{"train": 48, "test": 15} -> `48 train, 15 test`."""
    return ", ".join(f"{n} {split}" for split, n in samples.items())


def few_samples(classes, splits, absent):
    """A warning where there are too few samples to trust the scores, else "".

    classes: {name: its number of training samples}; splits: {split to evaluate on: its number};
    absent: `class (split)` of each class without a sample there.
    """
    parts = []
    limits = [("train on", LEAST_OF_A_CLASS, classes), ("evaluate on", LEAST_TO_TEST, splits)]
    for purpose, least, counts in limits:
        if names := [f"{name} ({n})" for name, n in counts.items() if n < least]:
            parts.append(f"fewer than {least} to {purpose} in {cli.first_of(names)}")
    if absent:
        parts.append(f"none to evaluate on of {cli.first_of(absent)}")
    return f"warning: few samples, the scores are unreliable: {'; '.join(parts)}" if parts else ""


def near_chance(result, modalities, counts):
    """A line for the fused model and for each modality whose ACC is surely near chance, in a list.

    counts: the samples of each class. Chance: the ACC of one class for all. Near: with the ACC a
    tenth of the way from there to 100 %, so few right answers have a probability below 1 %.
    """
    from scipy.stats import binom

    n = sum(counts)
    chance = max(counts) / n
    limit, lines = chance + 0.1 * (1 - chance), []
    for name in ["fused", *modalities]:
        who, acc = "the fused model" if name == "fused" else f"{name} alone", result[name]["acc"]
        if binom.cdf(round(acc * n / 100), n, limit) < 0.01:
            one = f"one class for all samples gives {100 * chance:.1f}"
            lines.append(f"{who} is near chance: its ACC is {acc:.1f}, {one}")
    return lines


def load_best(folder, model):
    """Load the weights of the epoch to test into the model; returns that epoch."""
    state = load_checkpoint(folder)
    t = best_epoch(parse_log(state["log"]).epochs)
    load_state(state if t == state["t"] else load_checkpoint(folder, t), model=model)
    return t


def epoch_line(record, modalities, T):
    """One epoch's record as text: a line of at most WIDTH columns, or several, the next indented.

    L_Total is left out: the log has it.
    """
    t = f"{record['t']:{len(str(T))}d}/{T}"
    losses = f"L_CLS {record['l_cls']:.3f} L_MM {record['l_mm']:.3f}"
    lines = [f"t {t}  alpha {record['alpha']:.3f}  {losses} "]
    parts = [f"{name} {record[name]['acc']:5.1f}" for name in ["fused", *modalities]]
    parts += [f"perf_gap {record['perf_gap']:4.1f}", record.get("note", "")]
    for part in filter(None, parts):
        if len(lines[-1]) + 1 + len(part) > WIDTH:
            lines.append("   ")
        lines[-1] += f" {part}"
    return "\n".join(lines)


def score_table(result, modalities, split):
    """The scores of train.evaluate as lines of text."""
    lines = [f"{split + ' split':12}{'ACC %':>8}{'MAP %':>8}{'macro-F1 %':>12}"]
    for name in ["fused", *modalities]:
        lines.append("{:12}{acc:8.2f}{map:8.2f}{f1:12.2f}".format(name, **result[name]))
    return "\n".join([*lines, f"perf_gap {result['perf_gap']:.2f} points of ACC"])


class Run:
    """The folder that a run writes into. Of several processes only rank 0 writes.

    args: Settings, of which out, resume, eval and overwrite choose the folder; program: the
    cli.one_sentence around. Raises FileExistsError for a folder whose run is neither resumed nor
    overwritten.
    """

    def __init__(self, args, program):
        self.args, self.folder, self.program = args, folder_of(args), program
        state = load_checkpoint(self.folder) if args.resume or args.eval else {}
        if state and state["t"] == state["settings"]["epochs"] < args.epochs:
            # Epoch T is trained again: of a schedule its checkpoint has no alpha of epoch T + 1.
            state = load_checkpoint(self.folder, state["t"] - 1)
        self.state = state if args.resume else {}
        self.trained = state.get("data")  # load_data brings today's data into its order
        self.writes = distributed.rank() == 0
        self.no_bar = None if self.writes else True  # None: a progress bar only on a terminal
        if args.dataset in LISTS or os.path.isdir(args.dataset):
            command = prepare_command(args.dataset, args.root)
            hint = f"{command} finds all such files, and they are left out"
            program.hints[UnreadableFile] = hint

    @contextlib.contextmanager
    def started(self, data, model):
        """Hold RUN/.lock for the block; an error inside it has exit status 1, not 2.

        A killed process releases the lock. BlockingIOError if another process holds it.
        """
        self.data, self.device = data, next(model.parameters()).device
        self.records = [self.first_record()]
        self.warn(data)
        if self.args.split == "val":
            self.check_validation()
        writes = self.writes and not self.args.eval
        if writes:
            self.make_folder()
        self.program.started = True
        self.program.stopped = self.stopped
        lock = self.lock() if writes else contextlib.nullcontext()
        with lock, deterministic_kernels() if self.args.deterministic else contextlib.nullcontext():
            yield

    def warn(self, data):
        """Print a line where there are few samples: to train on, or to evaluate on."""
        first, args = self.records[0], self.args
        evaluated = [args.split] if args.eval else [s for s in first["samples"] if s != "train"]
        of_class = {s: dict(zip(data.classes, n)) for s, n in first["data"]["class_counts"].items()}
        splits = {split: first["samples"][split] for split in evaluated}
        absent = [f"{k} ({s})" for s in evaluated for k, n in of_class[s].items() if not n]
        if warning := few_samples({} if args.eval else of_class["train"], splits, absent):
            print(warning)

    def make_folder(self):
        """The folder itself; OSError in one sentence."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = f"the folder {self.folder} cannot be made ({error.strerror})"
            raise OSError(f"{problem}; choose another --out") from error

    def lock(self):
        """RUN/.lock, acquired; BlockingIOError where another process holds it."""
        try:
            lock = FileLock(self.folder / ".lock").acquire(timeout=0)
        except Timeout as error:
            problem = f"another process writes into {self.folder}; choose another --out"
            raise BlockingIOError(problem) from error
        for part in self.folder.glob(".part-*"):  # left by a process that was killed
            if re.fullmatch(r"\.part-\d+-(t\d+\.pt|log\.jsonl)", part.name):
                remove(part)
        return lock

    def stopped(self):
        """The sentence for a run that was stopped by a signal."""
        if self.args.eval:
            return "stopped"
        if checkpoint_epochs(self.folder):
            longer = f" --epochs {self.args.epochs}" if "before" in self.records[0] else ""
            return f"stopped; resume with: python train.py --resume {quoted(self.folder)}{longer}"
        return "stopped before epoch 1 ended; run the same command again"

    def first_record(self):
        """The first record of a log: settings, the data, device, versions."""
        settings = dataclasses.asdict(self.args)
        data = describe(self.data)
        return {
            "settings": {k: v for k, v in settings.items() if k not in UNRECORDED},
            "modalities": self.data.modalities,
            "samples": {split: sum(counts) for split, counts in data["class_counts"].items()},
            "data": data,
            "device": str(self.device),
            "processes": distributed.world_size(),
            "versions": cli.versions(),
        }

    def log_text(self):
        """The content of log.jsonl."""
        return "".join(json.dumps(record) + "\n" for record in self.records)

    def write_log(self):
        if self.writes:
            write_bytes(log_path(self.folder), self.log_text().encode())

    def resume(self, alpha, model, optimizer, plateau):
        """(first epoch, its alpha): 1 and the given alpha in a new run, or the checkpoint's."""
        args, state, first = self.args, self.state, self.records[0]
        samples = f"{counted(first['samples'])} samples of {' + '.join(first['modalities'])}"
        print(
            f"{args.dataset}, {args.method}, seed {args.seed}, {first['device']}: {samples}; "
            f"{cli.amount(args.epochs, 'epoch')}, batches of {args.batch_size}, {args.encoders}, "
            f"lr {args.lr:g}; writing {log_path(self.folder)}"
        )
        self.began, self.first = time.perf_counter(), state["t"] + 1 if state else 1
        if not state:
            for t in checkpoint_epochs(self.folder) if self.writes else []:  # of an overwritten run
                checkpoint_path(self.folder, t).unlink()
            self.write_log()
            return self.first, alpha
        log = parse_log(state["log"])
        self.check_same(log)
        self.check_validation()
        self.lengthen(log, state, plateau)
        load_state(state, model=model, optimizer=optimizer, plateau=plateau)
        torch.set_rng_state(state["random"]["cpu"])
        if torch.cuda.is_available():  # there may be fewer GPUs than before
            for i, random in enumerate(state["random"]["cuda"][: torch.cuda.device_count()]):
                torch.cuda.set_rng_state(random, i)
        self.records = [log.first, *log.epochs]
        self.state = {}  # frees its memory
        return self.first, state["alpha"]

    def lengthen(self, log, state, plateau):
        """Where --epochs is another than the run had: note it in the log's first record."""
        before, now = log.first["settings"]["epochs"], self.args.epochs
        if before == now:
            return
        old = read_log(self.folder) if log_path(self.folder).exists() else log
        log.first["before"] = [*old.first.get("before", []), {"epochs": before, "test": old.test}]
        log.first["settings"]["epochs"] = now
        state["plateau"]["patience"] = plateau.patience  # T without --plateau
        again = ", trained again" if len(old.epochs) > state["t"] else ""
        began = f"it begins at epoch {self.first}{again}"
        print(f"the run had {before} epochs, now it has {now}; {began}")

    def check_same(self, log):
        """RunError if the resumed run has other samples."""
        began, now = self.trained, self.records[0]
        if log.first["samples"] != now["samples"]:
            then = counted(log.first["samples"])
            problem = f"{self.folder} began with {then} samples, now there are "
            raise RunError(f"{problem}{counted(now['samples'])}; resume it with the same data")
        if any(began[fact] != now["data"][fact] for fact in ("class_counts", "samples")):
            problem = f"{self.folder} began with other labels or files"
            raise RunError(f"{problem}; resume it with the same data")

    def check_validation(self):
        """RunError if the validation part has other samples of the same data than the run's had."""
        then, now = self.trained or {}, self.records[0]["data"]
        held_out = then.get("validation", now["validation"])  # an earlier version has none
        if then.get("samples") == now["samples"] and held_out != now["validation"]:
            problem = f"the validation part of {self.folder} had other samples of these data"
            raise RunError(
                f"{problem}; give the rows of samples.csv the splits and the order of then"
            )

    def progress(self, batches, t):
        """The batches of epoch t, with a progress bar on a terminal; once, the time left."""
        title, left = f"epoch {t}/{self.args.epochs}", self.args.epochs - t + 1
        seconds = (time.perf_counter() - self.began) * left  # after the first epoch
        if t == self.first + 1 and seconds > LONG and self.writes:
            about = f"about {tqdm.format_interval(seconds)} ([h:]mm:ss)"
            tqdm.write(f"{about} for {cli.amount(left, 'more epoch')}")
        return tqdm(batches.epoch(t), title, len(batches), leave=False, disable=self.no_bar)

    def save(self, record, alpha, model, optimizer, plateau):
        """Log an epoch's record, and write the checkpoint from which the next epoch continues."""
        self.records.append(record)
        tqdm.write(epoch_line(record, self.data.modalities, self.args.epochs))
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        t, first = record["t"], self.records[0]
        state = {
            "t": t,
            "alpha": alpha,
            "settings": first["settings"],
            "data": first["data"],
            "random": {"cpu": torch.get_rng_state(), "cuda": cuda},
            "log": self.log_text(),
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "plateau": plateau.state_dict(),
        }
        if self.writes:
            epochs = self.records[1:]
            kept = {best_epoch(epochs), *range(max(1, t - self.args.keep), t)}
            if 1 < t == self.args.epochs and record["split"] == "val":
                kept.add(best_epoch(epochs[:-1]))  # a longer run trains epoch T again
            # Before the log: a log with an epoch and no checkpoint could not be resumed.
            save_checkpoint(self.folder, state, kept)
        self.write_log()

    def load_best(self, model):
        """Load the weights of the epoch to test into the model; returns that epoch."""
        distributed.barrier()  # until rank 0 has written
        return load_best(self.folder, model)

    def report(self, t, result):
        """Print the scores of epoch t; log them, too, if the run was trained."""
        args, modalities = self.args, self.data.modalities
        if args.eval:
            print(f"{self.folder}, epoch {t}:")
            print(score_table(result, modalities, args.split))
            split = "" if args.split == "test" else f" --split {args.split}"
            place, known = args.root or args.dataset, self.trained["folder"]
            moved = f" --root {quoted(place)}" if known and place not in known.values() else ""
            command = f"python -m scripts.figures confusion {quoted(self.folder)}{split}{moved}"
            print(f"to see the largest confusions: {command}")
            return
        epochs = cli.amount(args.epochs - self.first + 1, "epoch")
        print(f"trained {epochs} in {time.perf_counter() - self.began:.0f} s")
        self.records.append({"test": result, "t": t})
        self.write_log()
        which = "the best on the validation part" if "val" in self.data.splits else "the last"
        print(f"epoch {t}, {which}:")
        print(score_table(result, modalities, "test"))
        counts = self.records[0]["data"]["class_counts"]["test"]
        hint = "" if args.method == "unimodal" else "; --method unimodal shows if it can be learned"
        for line in near_chance(result, modalities, counts):
            print(line + hint)
        print(f"to see it: python -m scripts.figures curves {quoted(self.folder)}")
        if all_files(self.records[0]["data"]["kinds"]):
            print(f"to use it: python -m scripts.predict {quoted(self.folder)} FOLDER")


def folder_of(args):
    """The run's folder; FileExistsError for a run that is neither resumed nor overwritten."""
    outer = "" if args.outer == "train" else f"-{args.outer}"
    dataset = Path(args.dataset).resolve().name  # of your own data, the folder's name
    name = f"{dataset}-{args.method.replace(':', '')}{outer}-seed{args.seed}"
    folder = Path(args.resume or args.eval or args.out or f"runs/{name}")
    if args.resume or args.eval:
        return folder
    if args.overwrite:
        cli.check_own(log_path(folder), '{"settings"')
        for path in (checkpoint_path(folder, t) for t in checkpoint_epochs(folder)):
            if not is_intact(read_bytes(path, "move it away")):
                lost = "is damaged, or a file of yours, and would be lost"
                raise SettingsError(f"{path} {lost}; move it away, or give another --out")
        return folder
    resumable = bool(checkpoint_epochs(folder))
    if resumable or (log_path(folder).exists() and read_log(folder).epochs):
        resume = f"resume it with --resume {quoted(folder)}, " if resumable else ""
        raise FileExistsError(
            f"{folder} holds a run already; {resume}choose another --out, or --overwrite it"
        )
    return folder
