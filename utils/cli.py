"""Settings -> flags, and every error of a program as one sentence.

A settings class is a dataclass whose fields are made by `setting`: each carries its help, its range
or its choices, and whether it may change when a run is resumed.
"""

import argparse
import dataclasses
import difflib
import functools
import inspect
import linecache
import math
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import textwrap
import threading
import traceback
from dataclasses import field
from pathlib import Path

import torch

# Patterns of library errors, and advice to the user. The first pattern that is found counts.
ADVICE = {
    r"too many open files|received \d+ items of ancdata": "too many open files; choose --workers "
    "0, or raise the limit: ulimit -n 4096",
    r"shared memory|bus error|</torch_.*No space left on device": "the readers have no room in "
    "shared memory; choose --workers 0 (docker: or --shm-size 8g)",
    r"out of memory|not enough memory|allocate|ALLOC_FAILED|MemoryError": "out of memory; choose a "
    "smaller --batch-size or --alpha-batch, or --bf16 on a GPU",
    r"(DataLoader worker|Pin memory thread) .*(killed|exited)|^ConnectionResetError|^EOFError": "a "
    "process that reads the data was killed, most likely for lack of memory; choose fewer "
    "--workers or a smaller --batch-size",
    r"can't start new thread|Resource temporarily unavailable": "too many processes or threads; "
    "choose fewer --workers",
    r"cannot cache function|no locator available": "librosa found no folder for its cache; set "
    "NUMBA_CACHE_DIR to a folder that you may write to",
}
ROOT = Path(__file__).parents[1]
SHOWN = 20  # names in a message
LARGEST = 2**32 - 1  # of every whole number: torch's seeds and Python's len() allow no larger ones


class SettingsError(ValueError):
    """A setting, a file or a data set of the user's that cannot be used; the message is a sentence.

    Python's own ValueError, of a student's encoder or data set, keeps its traceback.
    """


class RunError(SettingsError):
    """A run that cannot be started, resumed or evaluated; the message is one sentence."""


def setting(
    default,
    text,
    group=None,
    choices=None,
    listed=None,
    least=None,
    above=None,
    most=math.inf,
    changeable=False,
    off=False,
):
    """A field of a settings class.

    text, group: its help, and the title under which --help shows it and the fields after it.
    choices: its possible values, a list or a dict; listed: the values that --help shows, or a
    function that returns them, if other values are possible, too. least, above, most: its range;
    `above` excludes the number itself.
    changeable: whether it may change on resume. off: of a bool, whether it also has a --no- flag.
    """
    rules = {"help": text, "group": group, "choices": choices, "least": least, "above": above}
    rules |= {"listed": choices if listed is None else listed}
    rules |= {"most": most, "changeable": changeable, "off": off}
    return field(default=default, metadata=rules)


def flag(name):
    """alpha_0 -> --alpha-0."""
    return "--" + name.replace("_", "-")


def quoted(path):
    """A path as a word of a command."""
    return shlex.quote(str(path))


def as_flags(settings):
    """{"lr": 0.5, "heads": True, "bf16": False} -> ["--lr 0.5", "--heads", "--no-bf16"]."""
    flags = []
    for name, value in settings.items():
        if isinstance(value, bool):
            flags.append(flag(name) if value else flag(f"no_{name}"))
        else:
            flags.append(f"{flag(name)} {quoted(value)}")
    return flags


def changeable(settings):
    """The names of the fields that may change on resume."""
    return {f.name for f in dataclasses.fields(settings) if f.metadata["changeable"]}


def amount(n, noun):
    """`1 epoch`, `2 epochs`, `2 classes`."""
    if n == 1:
        return f"1 {noun}"
    return f"{n} {noun}{'es' if noun.endswith('s') else 's'}"


def first_of(names):
    """The first names of a list, with commas; `, ...` for the others."""
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")


@functools.cache
def versions():
    """Python, torch, and the code's git revision where there is one."""
    command = ["git", "-C", ROOT, "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        revision = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git on this machine
        revision = ""
    return {"python": platform.python_version(), "torch": torch.__version__, "git": revision}


def meant(word, known):
    """` (did you mean --lr?)` where a known word is close to a user's word, else ""."""
    close = difflib.get_close_matches(word, known, 1)
    return f" (did you mean {close[0]}?)" if close else ""


def other_case(path):
    """The path that differs from this one in the case of its last name alone, or ""."""
    parent, name = os.path.split(os.path.normpath(path))
    names = os.listdir(parent or ".") if os.path.isdir(parent or ".") else []
    alike = [other for other in names if other.lower() == name.lower() and other != name]
    return os.path.join(parent, alike[0]) if alike else ""


def no_folder(path):
    """The SettingsError for a path that is no folder."""
    if os.path.exists(path):
        return SettingsError(f"{path} is a file; give its folder, {os.path.dirname(path) or '.'}")
    other = other_case(path)
    hint = f" (did you mean {other}?)" if other else "; check its path"
    return SettingsError(f"there is no folder {path}{hint}")


def check_choice(kind, value, choices):
    """The value, or a SettingsError that lists the choices, or says that there is no folder."""
    if value not in choices:
        is_path = "/" in value or os.sep in value or os.path.exists(value) or other_case(value)
        if "folder" in kind and is_path:
            raise no_folder(value)
        names = sorted(choices)
        hint = meant(value, names)
        raise SettingsError(f"unknown {kind} {value!r}{hint}; choose from {', '.join(names)}")
    return value


class Help(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the terminal; a name with a hyphen is not divided."""

    def _split_lines(self, text, width):
        return textwrap.wrap(text, width, break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """argparse with --version, and with a SettingsError of one sentence for a wrong flag."""

    def __init__(self, *names, **options):
        super().__init__(*names, allow_abbrev=False, formatter_class=Help, **options)
        project = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
        parts = [f"{name} {version}" for name, version in versions().items() if version]
        text = ", ".join([f"lfm {project}", *parts])
        self.add_argument("--version", action="version", version=text, help="print the versions")

    def parse_known_args(self, args=None, namespace=None):
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            kind = "flag" if unknown[0].startswith("-") else "argument"
            hint = meant(unknown[0].split("=")[0], self._option_string_actions)
            raise SettingsError(f"unknown {kind} {unknown[0]!r}{hint}; --help lists all flags")
        return namespace, unknown

    def error(self, message):
        text = message.removeprefix("argument ")
        if wrong := re.fullmatch(r"(\S+): invalid (int|float) value: (.*)", text):
            name, kind, value = wrong.groups()
            number = "a whole number" if kind == "int" else "a number"
            text = f"{name} is {value}, expected {number}"
        required = "the following arguments are required: "
        if text.startswith(required):
            text = f"missing: {text.removeprefix(required)}; see --help"
        if wrong := re.fullmatch(r"(\S+): invalid choice: '(.*)' \(choose from (.*)\)", text):
            name, value, choices = wrong.groups()
            check_choice(name.strip("-"), value, re.findall(r"[^\s',]+", choices))
        raise SettingsError(text)


def call_of(kind, text, functions, given):
    """`name` or `name:number:...` -> (functions[name], {parameter: number}).

    given: the names of the parameters before the numbers, "t, T", or "". Raises SettingsError for
    an unknown name, or for numbers that do not fit the function's parameters.
    """
    name, *numbers = text.split(":")
    function = functions[check_choice(kind, name, functions)]
    signature, before = inspect.signature(function), given.split(", ") if given else []
    own = list(signature.parameters)[len(before) :]
    try:
        bound = signature.bind(*before, *map(float, numbers)).arguments
        fits = all(abs(float(number)) <= 1e6 for number in numbers)  # neither nan nor inf
    except (ValueError, TypeError):
        fits = False
    if not fits:
        form = ":".join([name, *own])
        form += " with numbers of at most 1e6" if own else " without a number"
        form += f", with the parameters ({given}{', ...' * bool(own)}) first" if given else ""
        raise SettingsError(f"{kind} {text!r} does not fit {name}{signature}; expected {form}")
    return function, {key: value for key, value in bound.items() if key in own}


def line_of(function, error):
    """`mine, line 2 of FILE: source` where the function raised the error, else where it begins."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None:  # a partial, an object that can be called
        return repr(function)
    lines = [n for frame, n in traceback.walk_tb(error.__traceback__) if frame.f_code is code]
    n, file = lines[-1] if lines else code.co_firstlineno, code.co_filename
    place = "its cell" if "ipykernel" in file or "<" in file else Path(file).name  # of a notebook
    return f"{function.__name__}, line {n} of {place}: {linecache.getline(file, n).strip()}"


def number_of(what, function, *arguments, **numbers):
    """A user's function's value, as a float; FloatingPointError with `what` if it returns none."""
    try:
        value = function(*arguments, **numbers)
        if value is None:
            raise TypeError("None: a return line is missing")
        value = float(value)
        if math.isnan(value):
            raise ValueError("nan")
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise FloatingPointError(f"{what} ({why}); mend {line_of(function, error)}") from error
    return value


def check_own(path, begins):
    """SettingsError for a file that this program would replace, but has not written: one with a
    content that does not begin like its own."""
    if not os.path.isfile(path):
        return
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        start = file.read(len(begins))
    if start and start != begins:
        raise SettingsError(f"{path} is a file of yours, which would be lost; give another name")


def check(args):
    """Raise SettingsError for a field outside its choices or its range."""
    for f in dataclasses.fields(args):
        value, rules = getattr(args, f.name), f.metadata
        if rules["choices"] is not None:
            check_choice(f.name, value, rules["choices"])
        if isinstance(value, (bool, str)):
            continue
        least, above, most = rules["least"], rules["above"], rules["most"]
        fits = (least is None or value >= least) and (above is None or value > above)
        if not (fits and value <= most and abs(value) < math.inf):
            expected = f"more than {above}" if least is None else f"{least} or more"
            if most < math.inf:
                expected = f"{least} to {most}"
            raise SettingsError(f"{flag(f.name)} is {value}, expected {expected}")
        if isinstance(value, int) and value > LARGEST:
            raise SettingsError(f"{flag(f.name)} is {value}, expected at most {LARGEST}")


def parse(settings, argv, description):
    """{name: value} of the given flags; SettingsError for a wrong flag or an empty value.

    Empty: with RUN unset, `--resume "$RUN"` would start a new run.
    """
    group = parser = Parser(usage="%(prog)s [--FLAG VALUE] ...", description=description)
    for f in dataclasses.fields(settings):
        rules = f.metadata
        group = parser.add_argument_group(rules["group"]) if rules["group"] else group
        text = rules["help"].replace("%", "%%")
        if isinstance(f.default, bool):
            action = argparse.BooleanOptionalAction if rules["off"] else "store_true"
            group.add_argument(flag(f.name), action=action, default=None, help=text)
            continue
        listed = rules["listed"]() if callable(rules["listed"]) else rules["listed"]
        if listed is not None:
            text += "; one of " + ", ".join(listed)
        if f.default != "":
            text += f" (default {f.default})"
        metavar = {str: "NAME", int: "N", float: "X"}[type(f.default)]
        group.add_argument(flag(f.name), type=type(f.default), help=text, metavar=metavar)
    given = {k: v for k, v in vars(parser.parse_args(argv)).items() if v is not None}
    if empty := [name for name, value in given.items() if value == ""]:
        raise SettingsError(f"{flag(empty[0])} is empty; give it a value, or leave it out")
    return given


def advice(error):
    """The advice of ADVICE for an error of the machine, or None.

    Of an OSError only the text after its [Errno N] counts: the rest has paths, with any words.
    """
    text = str(error)
    if isinstance(error, OSError):
        text = " ".join(re.findall(r"\[Errno \d+\] ([\w ]+)", text))
    elif not isinstance(error, (RuntimeError, MemoryError, EOFError)):
        return None
    text = f"{type(error).__name__}: {text}"
    return next((ADVICE[x] for x in ADVICE if re.search(x, text, re.I | re.S)), None)


class one_sentence:
    r"""A context in which Ctrl-C, SIGTERM and the errors of users and machines end in one sentence.

    program.status is the exit status: 0; 2 for wrong settings or data, 1 once program.started is
    set, 130 and 143 for the signals; 141, without a sentence, where nobody reads the output any
    more, as after `| head`. Every other error is our fault and keeps its traceback.
    program.hints: {class of an error: a hint that is added to its sentence};
    program.stopped: a function that returns the sentence for a signal. Of several processes, rank
    0 alone speaks before the start. A character that the terminal cannot show is written as \u0301.
    """

    def __init__(self, name):
        self.name, self.status, self.started = name, 0, False
        self.hints = {}
        self.stopped = lambda: "stopped; run the same command again to continue"

    def __enter__(self):
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a notebook's has none
                stream.reconfigure(errors="backslashreplace")
        self.main_thread = threading.current_thread() is threading.main_thread()
        if self.main_thread:
            self.before = signal.signal(signal.SIGTERM, self.stop)
        return self

    @staticmethod
    def stop(number, frame):
        raise KeyboardInterrupt(number)

    def __exit__(self, kind, error, traceback):
        if self.main_thread:
            signal.signal(signal.SIGTERM, self.before)
        try:
            if isinstance(error, BrokenPipeError):
                print()  # fails again if it was the output's, not another process's
            sys.stdout.flush()
        except BrokenPipeError:  # Python writes the rest when it ends: not into the pipe again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self.status = 141
            return True
        if error is None:
            return False
        sentence = self.explain(error)
        if sentence is None:
            return False
        if self.started or os.environ.get("RANK", "0") == "0":
            print(f"{self.name}: {sentence}", file=sys.stderr)
        return True

    def explain(self, error):
        """The sentence for an error, with self.status set; None for a fault of ours."""
        self.status = 1 if self.started else 2
        if isinstance(error, KeyboardInterrupt):
            self.status = 128 + (error.args[0] if error.args else signal.SIGINT)
            return self.stopped()
        text = str(error).strip()
        if told := advice(error):
            return told
        if not isinstance(error, (SettingsError, OSError, FloatingPointError)):
            return None
        if isinstance(error, OSError) and error.filename and error.strerror:
            text = f"{error.filename} cannot be used ({error.strerror})"
        last = re.sub(r"^[\w.]+Error: |^[\w.]*UnreadableFile: ", "", text.splitlines()[-1])
        hints = [hint for kind, hint in self.hints.items() if isinstance(error, kind)]
        return "; ".join([last, *hints])
