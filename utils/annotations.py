"""The annotation files of the six sets, a function each.

A list function takes the result of `files.index`. For each sample of the annotation files it
yields (split, class, group, names, wanted): the names that its files may have, and for each
modality the name that `files.source_of` looks for. Classes come from fixed lists, never from the
order of files or rows.
"""

import ast
import codecs
import csv
import os
import re
from contextlib import contextmanager
from pathlib import Path

from utils.cli import SettingsError
from utils.media import first_bytes

CREMAD = ["NEU", "HAP", "SAD", "FEA", "DIS", "ANG"]
KINETICS_SOUNDS_TEXT = (
    "blowing nose, blowing out candles, bowling, chopping wood, dribbling basketball, laughing, "
    "mowing lawn, playing accordion, playing bagpipes, playing bass guitar, playing clarinet, "
    "playing drums, playing guitar, playing harmonica, playing keyboard, playing organ, "
    "playing piano, playing saxophone, playing trombone, playing trumpet, playing violin, "
    "playing xylophone, ripping paper, shoveling snow, shuffling cards, singing, "
    "stomping grapes, tap dancing, tapping guitar, tapping pen, tickling"
)
KINETICS_SOUNDS = KINETICS_SOUNDS_TEXT.split(", ")
SARCASM_HINTS_TEXT = "exgag sarcasm sarcastic reposting <url> joke humour humor jokes irony ironic"
SARCASM_HINTS = set(SARCASM_HINTS_TEXT.split())  # words that give a tweet's class away


def annotation_file(files, *names):
    """The path of the first of these annotation files that exists, else FileNotFoundError.

    files["read"] collects these paths.
    """
    for name in names:
        if name in files["list"]:
            files["read"][name] = files["list"][name]
            return files["read"][name]
    raise FileNotFoundError(f"{files['root']} has no {' or '.join(names)}; see docs/DATA.md")


@contextmanager
def reading_text(path):
    """Inside the block a file that is no UTF-8 text, or is not permitted, is a SettingsError."""
    try:
        yield
    except UnicodeDecodeError as error:
        usual = f"is not UTF-8 text ({error.reason} at byte {error.start})"
        forms = dict.fromkeys([codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE], "is UTF-16 text")
        forms[b"PK"] = "is an Excel workbook"
        form = forms.get(first_bytes(path, 2), usual)
        way_out = "save it as UTF-8 (in a spreadsheet: choose Save As and CSV UTF-8)"
        raise SettingsError(f"{path} {form}, expected UTF-8; {way_out}") from error
    except PermissionError as error:
        message = f"{path} cannot be read ({error.strerror}); change its permissions"
        raise SettingsError(message) from error


def read_lines(path):
    """Yield (place, line) for every line that is not blank; place is "PATH, line N".

    SettingsError if the file is not UTF-8.
    """
    with reading_text(path), open(path, encoding="utf-8-sig", newline="\n") as file:
        for n, line in enumerate(file, 1):
            if line.strip():
                yield f"{path}, line {n}", line.rstrip("\r\n")


def read_table(path, errors="strict", comments=0):
    """Yield (place, [fields]) for every line of a csv file that is not blank, as read_lines does.

    Commas, semicolons or tabs separate the fields. The first `comments` lines are skipped.
    SettingsError for a file that is not UTF-8 or csv.
    """
    how = {"encoding": "utf-8-sig", "errors": errors, "newline": ""}
    with reading_text(path), open(path, **how) as file:
        for _ in range(comments):
            file.readline()
        start = file.tell()
        separator = max(",;\t", key=file.readline().count)
        file.seek(start)
        rows = csv.reader(file, delimiter=separator, strict=True)
        try:
            for row in rows:
                if any(field.strip() for field in row):
                    yield f"{path}, line {comments + rows.line_num}", row
        except csv.Error as error:
            place = f"{path}, line {comments + rows.line_num}"
            raise SettingsError(f"{place} is not csv ({error}); check its quotes") from error


def read_csv(path, *columns):
    """Yield (place, field, ...) for every line of a csv file: the fields of the named columns.

    If the first line names them, it is a header; otherwise the fields are in the order of
    `columns`. SettingsError for a line with too few or too many fields.
    """
    positions, width = range(len(columns)), len(columns)
    for n, (place, row) in enumerate(read_table(path)):
        fields = [field.strip() for field in row]
        names = [field.lower() for field in fields]
        if n == 0 and set(names) & set(columns):
            if absent := [c for c in columns if c not in names]:
                expected = f"expected {', '.join(columns)}"
                raise SettingsError(f"{place} is a header without {', '.join(absent)}; {expected}")
            positions, width = [names.index(c) for c in columns], len(names)
        elif len(fields) != width:
            expected = f"{width}: {', '.join(columns)}"
            raise SettingsError(f"{place} has {len(fields)} columns, expected {expected}")
        else:
            yield place, *(fields[i] for i in positions)


def class_number(place, label, classes):
    """The place of a label in the list of classes; SettingsError for an unknown label."""
    if label not in classes:
        known = ", ".join(classes[:40]) + " and more" * (len(classes) > 40)
        raise SettingsError(f"{place}: unknown label {label!r}, expected one of {known}")
    return classes.index(label)


def youtube_names(place, video, start):
    """The names that the files of a 10 s clip from YouTube may have; SettingsError for a bad id.

    ID, or ID and the start, perhaps the end, in seconds or milliseconds: ID_000030, ID_30_40,
    ID-30.0, ID_000030_000040, ID_30000_40000.
    """
    if not (len(video) == 11 and re.fullmatch(r"\d+(\.0*)?", start)):
        expected = "expected a YouTube id and a start in seconds"
        raise SettingsError(f"{place} is {video!r} from {start!r}, {expected}")
    t, names = int(float(start)), []
    for form in (lambda t: f"{t:06d}", str, lambda t: f"{t}.0", lambda t: f"{t}000"):
        for separator in "_-":
            one = f"{video}{separator}{form(t)}"
            names += [one, f"{one}{separator}{form(t + 10)}"]
    return [*names, video]


def list_cremad(files):
    """train.csv and test.csv of OGM-GE, `1088_IOM_NEU_XX,NEU`. A group is an actor."""
    for split in ("train", "test"):
        for place, name, label in read_csv(annotation_file(files, f"{split}.csv"), "name", "label"):
            names = [name.removesuffix(".wav").removesuffix(".flv")]
            yield split, class_number(place, label, CREMAD), name[:4], names, [names, names]


def list_kinetics_sounds(files):
    """my_train.txt and my_test.txt of OGM-GE, `--4-0ihtnBU_000058_000068,10,4`.

    Without them: train.csv and test.csv, `youtube_id,label`, and files named by the id alone.
    """
    ogm_ge = "my_train.txt" in files["list"]
    classes = [str(k) for k in range(len(KINETICS_SOUNDS))] if ogm_ge else KINETICS_SOUNDS
    for split in ("train", "test"):
        if ogm_ge:
            path = annotation_file(files, f"my_{split}.txt")
            rows = read_csv(path, "name", "length", "class")
        else:
            rows = read_csv(annotation_file(files, f"{split}.csv"), "youtube_id", "label")
        for place, name, *_, label in rows:
            names = [name]
            if ogm_ge:
                names = youtube_names(place, name[:11], name[12:].split("_")[0])
            yield split, class_number(place, label, classes), name[:11], names, [names, names]


def list_vggsound(files):
    """vggsound.csv, `---g-f_I2yQ,1,people marching,test`.

    The classes are the sorted names of stat.csv, or without it of the whole list.
    """
    rows = list(read_csv(annotation_file(files, "vggsound.csv"), "id", "start", "label", "split"))
    labels = {label for _, _, _, label, _ in rows}
    if "stat.csv" in files["list"]:
        stat = read_csv(annotation_file(files, "stat.csv"), "label", "count", "group")
        labels = {label for _, label, *_ in stat}
    classes = sorted(labels)
    print(f"vggsound: {len(classes)} classes (309 in the published lists, 310 in the paper)")
    for place, video, start, label, split in rows:
        if split not in ("train", "test"):
            raise SettingsError(f"{place}: unknown split {split!r}, expected train or test")
        names = youtube_names(place, video, start)
        yield split, class_number(place, label, classes), video, names, [names, names]


def list_sarcasm(files):
    """train.txt, valid2.txt and test2.txt of HFM, a Python list a line: [id, text, ..., label].

    A line is parsed, never evaluated. Tweets with one of SARCASM_HINTS are left out: their images
    were never published.
    """
    texts = {"train": ["train.txt"], "val": ["valid2.txt", "valid.txt"]}
    texts["test"] = ["test2.txt", "test.txt"]
    for split, names in texts.items():
        for place, line in read_lines(annotation_file(files, *names)):
            try:
                image, sentence, *_, label = ast.literal_eval(line)
                if not (image.isdecimal() and sentence.strip() and label in (0, 1)):
                    raise ValueError
            except Exception:  # literal_eval raises half a dozen types
                expected = "['tweet id', 'text', label 0 or 1]"
                raise SettingsError(f"{place} is not {expected}; download the file again") from None
            # Half an emoji, which no tokenizer takes, becomes a replacement character.
            sentence = sentence.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            if not SARCASM_HINTS & set(sentence.split()):
                yield split, int(label), image, [image], [[image], sentence]


def list_twitter2015(files):
    """train.tsv, dev.tsv and test.tsv of TomBERT: index, sentiment 0 to 2, image, sentence, target.

    The sentence has $T$ in place of its target.
    """
    for split, name in [("train", "train.tsv"), ("val", "dev.tsv"), ("test", "test.tsv")]:
        for n, (place, line) in enumerate(read_lines(annotation_file(files, name))):
            fields = line.split("\t")
            if n == 0 and not fields[0].isdecimal():
                continue  # a header; test.tsv's is wrong, it names four of the five columns
            sentiments = ("0", "1", "2")
            if len(fields) != 5 or not fields[0].isdecimal() or fields[1] not in sentiments:
                expected = "index, sentiment 0 to 2, image, sentence, target"
                raise SettingsError(f"{place} is not {expected}; download the file again")
            image = os.path.splitext(fields[2])[0]
            # Paper silent: whether the model sees the target, the only difference between the rows
            # of one image. Here: the target is put back into the sentence.
            sentence = fields[3].replace("$T$", fields[4])
            yield split, int(fields[1]), image, [image], [[image], sentence]


def list_nvgesture(files):
    """NVIDIA's lists, version 2: `path:./Video_data/class_01/subject3_r0 depth:sk_depth:146:226`...

    The label is the list's; the folder's differs for some clips. A group is a subject.
    """
    form = r"path:(\S+) depth:(\w+):(\d+):(\d+) color:(\w+):(\d+):(\d+) .*label:(\d+)\s*"
    for split in ("train", "test"):
        versions = ("_cvpr2016", "")
        path = annotation_file(files, *(f"nvgesture_{split}_correct{v}_v2.lst" for v in versions))
        for n, (place, line) in enumerate(read_lines(path)):
            match = re.fullmatch(form, line)
            if not match or not 1 <= int(match[8]) <= 25:
                expected = "path:.. depth:..:.. color:..:.. label:1 to 25"
                raise SettingsError(f"{place} is not {expected}; download the file again")
            folder = os.path.join(os.path.dirname(path), match[1])
            name = "-".join(Path(match[1]).parts[-2:])
            depth = os.path.join(folder, match[2]), int(match[3]), int(match[4])
            rgb = os.path.join(folder, match[5]), int(match[6]), int(match[7])
            wanted = [("rgb", name, *rgb), (name, f"{split}/{n}"), ("depth", name, *depth)]
            subject = match[1].rsplit("/", 1)[1].split("_")[0]
            yield split, int(match[8]) - 1, subject, [name], wanted


LISTS = {
    "cremad": list_cremad,
    "kinetics-sounds": list_kinetics_sounds,
    "vggsound": list_vggsound,
    "sarcasm": list_sarcasm,
    "twitter2015": list_twitter2015,
    "nvgesture": list_nvgesture,
}
