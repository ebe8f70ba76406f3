"""Use a trained model: what it says of new samples.

python -m scripts.predict runs/RUN FOLDER                    the samples of FOLDER/samples.csv
python -m scripts.predict runs/RUN image=a.jpg audio=b.wav   one sample
python -m scripts.predict runs/RUN                           the test split of the run's own data

FOLDER/samples.csv has the columns of your own data (docs/DATA.md); split and label may be blank or
missing. Without a samples.csv the files with one name, a.jpg and a.wav, are one sample. A sample
without one of the modalities is predicted from the others. --csv OUT writes a line for each sample;
--export OUT.pt2 writes the model for torch.export.load, which needs nothing of this project.

In Python:

    from scripts.predict import Predictor
    predictor = Predictor("runs/mine")
    predictor(image="photo.jpg", audio="call.wav")
"""

import csv
import functools
import json
import os
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from tqdm import tqdm

import data as datasets
import train
from model import encoder_names
from utils import cli, distributed, folders
from utils.atomic import atomic
from utils.cli import SettingsError
from utils.loader import collate, eval_loader
from utils.modalities import ARRAYS, MODALITIES, all_files, make_readers
from utils.modules import eval_mode
from utils.prepare import prepare_sample
from utils.pretrained import is_text
from utils.run import check_version, load_best, load_checkpoint
from utils.samples import USABLE, Sample, own_source, own_table, split_of

SHOWN = 40  # samples in the printed table


class Prediction(NamedTuple):
    """The class of a sample: its name, its probability, {modality: the class by it alone}.

    alone has the modalities that the sample has.
    """

    label: str
    probability: float
    alone: dict


class Predictor:
    """The model of a run, at the epoch that was tested: predictor(image="a.jpg", audio="b.wav").

    run: the folder; device: cpu, cuda, mps, auto. The run's training data are not needed.
    kinds: {modality: kind}; classes: the names of the classes; args: the run's settings.
    """

    def __init__(self, run, device="auto"):
        state = load_checkpoint(run)
        check_version(run, state, train.Settings)
        self.args = train.Settings(**state["settings"] | {"device": device})
        self.classes, self.kinds = state["data"]["classes"], state["data"]["kinds"]
        self.channels = state["data"]["channels"]
        facts = SimpleNamespace(channels=self.channels, classes=self.classes)
        self.device = distributed.pick_device(device)
        self.model = train.make_model(self.args, facts)
        self.t = load_best(run, self.model)
        names = encoder_names(self.args.encoders, len(self.kinds))
        self.readers = make_readers(self.kinds.values(), names)

    def __call__(self, **files):
        """The Prediction of one sample: of each modality a path, or a text; some may be left out.

        SettingsError for a name that the run does not have, or a file that cannot be read.
        """
        self.check_files()
        if unknown := files.keys() - self.kinds.keys():
            known = ", ".join(self.kinds)
            raise SettingsError(f"the run has no modality {min(unknown)}; it has {known}")
        with tempfile.TemporaryDirectory() as folder:
            status, problem, sources = self.prepared(folder, "", self.cells(files))
            if status != USABLE:
                raise SettingsError(problem)
            return self.predictions([self.read(sources)])[0]

    def check_files(self):
        """SettingsError where a sample of the run's data set is no file, as of keypad."""
        if not all_files(self.kinds):
            what = f"the samples of {self.args.dataset} are not single files: this run reads none"
            own = "to predict files, train on your own data (docs/DATA.md#your-own-data)"
            raise SettingsError(f"{what}; without them its test split is shown; {own}")

    def cells(self, files):
        """A cell for each modality of {name: path or text}; of a text's .txt file the content."""
        cells = [os.fspath(files.get(name) or "") for name in self.kinds]
        for j, kind in enumerate(self.kinds.values()):
            if kind == "text" and cells[j].lower().endswith(".txt"):
                if os.path.isfile(cells[j]):
                    cells[j] = folders.cell("", kind, Path(cells[j]))
                elif " " not in cells[j]:
                    what = f"there is no file {cells[j]}"
                    raise SettingsError(f"{what}; give a text file, or the sentence itself")
        return cells

    def prepared(self, folder, root, cells):
        """(status, problem, sources) of a sample's cells, "" where one is missing.

        Prepared files are written in a folder; root: where relative paths begin.
        """
        sources, given = [None] * len(cells), [j for j, cell in enumerate(cells) if cell]
        if not given:
            return "blank cell", f"the sample has no file; give {' or '.join(self.kinds)}", sources
        names, kinds = [*self.kinds], [*self.kinds.values()]
        found = [own_source(root, kinds[j], cells[j]) for j in given]
        if missing := [path for _, _, path in found if path and not os.path.exists(path)]:
            return "missing", f"there is no file {missing[0]}", sources
        stems, direct, originals = ([f[k] for f in found] for k in range(3))
        sample = Sample("", "", "", stems, direct, originals, [None] * len(given), "", "")
        modalities = {names[j]: (kinds[j], MODALITIES[kinds[j]]) for j in given}
        result = prepare_sample(modalities, False, Path(folder), set(), sample)
        status, problem, made, shapes = result
        for j, source, shape in zip(given, made, shapes):
            sources[j], c = source, self.channels[j]
            if status == USABLE and MODALITIES[kinds[j]].one_shape and shape[-3:][0] != c:
                trained = f"({c}, H, W)" if len(shape) > 1 else f"({c},)"
                what = f"{source} holds {shape}, the run was trained on {trained}"
                status, problem = "another shape", f"{what}; give a file of that shape"
        return status, problem, sources

    def read(self, sources):
        """The inputs of a sample, None where it has no source."""
        return [source and read(source) for read, source in zip(self.readers, sources)]

    @torch.no_grad()
    def logits(self, samples):
        """(1 + m, n, c) of n samples, lists of m inputs: fused, and by each modality alone.

        The feature of a missing input is 0, as in the score of one modality.
        """
        z = []
        with eval_mode(self.model):
            for phi, column in zip(self.model.phi, zip(*samples)):
                z_j = torch.zeros(len(samples), self.model.d, device=self.device)
                positions = defaultdict(list)  # of the inputs that can be stacked
                for i, x in enumerate(column):
                    if x is not None:
                        positions["text" if is_text(x) else x.shape].append(i)
                for there in positions.values():
                    (x_j,) = collate([(column[i],) for i in there])
                    z_j[there] = phi(x_j.to(self.device).contiguous())
                z.append(z_j)
            alone = [self.model.unimodal_logits(z, j) for j in range(len(z))]
            return torch.stack([self.model.logits(z), *alone]).cpu()

    def predictions(self, samples):
        """A Prediction for each sample, a list of m inputs."""
        logits, found = self.logits(samples), []
        best = logits.argmax(2).tolist()
        for i, probabilities in enumerate(logits[0].softmax(1)):
            columns = zip(self.kinds, best[1:], samples[i])
            alone = {name: self.classes[k[i]] for name, k, x in columns if x is not None}
            label = self.classes[best[0][i]]
            found.append(Prediction(label, probabilities.max().item(), alone))
        return found


def rows_of(predictor, files):
    """[(root, split, label, cells)] of a folder, or of `name=path` words; a cell per modality."""
    predictor.check_files()
    value = {"text": '"A SENTENCE"'}
    words = [f"{name}={value.get(kind, 'FILE')}" for name, kind in predictor.kinds.items()]
    expected = f"a folder, or {' '.join(words)}"
    if len(files) == 1 and os.path.isdir(files[0]):
        return rows_of_folder(predictor, files[0])
    if len(files) == 1 and "=" not in files[0]:
        what = "is a file" if os.path.exists(files[0]) else "does not exist"
        raise SettingsError(f"{files[0]} {what}; expected {expected}")
    pairs = [word.partition("=") for word in files]
    if bad := [word for word, (name, _, _) in zip(files, pairs) if name not in predictor.kinds]:
        raise SettingsError(f"{bad[0]} names no modality of the run; expected {expected}")
    given = {name: path for name, _, path in pairs}
    if len(given) < len(pairs):
        what = f"give each modality once, not {' '.join(files)}"
        raise SettingsError(f"{what}; for several samples give a folder, see docs/DATA.md")
    return [("", "", "", predictor.cells(given))]


def rows_of_folder(predictor, folder):
    """[(root, split, label, cells)] of FOLDER/samples.csv; without it, of its files."""
    if not os.path.isfile(os.path.join(folder, "samples.csv")):
        if rows := folders.by_name(folder, predictor.kinds.values()):
            print(f"{folder} has no samples.csv: files with one name are one sample")
            return [(folder, "", "", cells) for cells in rows]
        hint = f"write its first line, {','.join(predictor.kinds)}, and a line for each sample"
        names = "and no files of each kind with one name"
        raise SettingsError(f"{folder} has no samples.csv, {names}; {hint}, see docs/DATA.md")
    kinds, rows = own_table(folder, needed=[])
    for name, kind in predictor.kinds.items():
        now = kinds.get(name, kind)
        if now != kind and {now, kind} != ARRAYS:  # an array is checked on its own
            what = f"{folder}/samples.csv has {name} as {now}"
            raise SettingsError(f"{what}; the run was trained on {kind}")
    unknown = ", ".join(name for name in kinds if name not in predictor.kinds)
    if unknown and not predictor.kinds.keys() <= kinds.keys():
        what = f"{folder}/samples.csv has the columns {', '.join(kinds)}"
        trained = f"the run was trained on {', '.join(predictor.kinds)}"
        raise SettingsError(f"{what}; {trained}; rename or remove {unknown}")
    place = {name: j for j, name in enumerate(kinds)}
    found = []
    for _, row in rows:
        cells = [row["cells"][place[name]] if name in place else "" for name in predictor.kinds]
        found.append((folder, split_of(row) or "", row["label"], cells))
    return found


def predict(predictor, rows):
    """A record for each row: its path, split, label, status, problem and Prediction or None.

    The batches of a split are those of train.evaluate: full, without the samples that are unusable.
    """
    records = [None] * len(rows)
    for split in sorted({row[1] for row in rows}):
        batch, part = [], [i for i, row in enumerate(rows) if row[1] == split]
        for i in tqdm(part, f"predicting {split}".strip(), disable=None):
            records[i], inputs = read_row(predictor, *rows[i])
            if inputs:
                batch.append((records[i], inputs))
            if len(batch) == predictor.args.batch_size:
                predict_batch(predictor, batch)
                batch = []
        predict_batch(predictor, batch)
    return records


def read_row(predictor, root, split, label, cells):
    """(record, inputs) of a row, inputs None where it is unusable; prepared files are removed."""
    with tempfile.TemporaryDirectory() as folder:
        status, problem, sources = predictor.prepared(folder, root, cells)
        inputs = predictor.read(sources) if status == USABLE else None
    record = {"sample": next(filter(None, cells), ""), "split": split, "label": label}
    return record | {"status": status, "problem": problem, "prediction": None}, inputs


def predict_batch(predictor, batch):
    """Set the prediction in the record of each (record, inputs)."""
    found = predictor.predictions([inputs for _, inputs in batch]) if batch else []
    for (record, _), prediction in zip(batch, found):
        record["prediction"] = prediction


def table(records, modalities):
    """The records as rows of text, the first a header."""
    rows = [["sample", "label", "predicted", "probability", *(f"by {m} alone" for m in modalities)]]
    for record in records:
        found = record["prediction"]
        says = [found.label, f"{found.probability:.3f}"] if found else [record["status"], ""]
        alone = [found.alone.get(m, "") if found else "" for m in modalities]
        rows.append([record["sample"], record["label"], *says, *alone])
    return rows


def aligned(rows):
    """Rows of text as lines with columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    pad = [[cell.ljust(width) for cell, width in zip(row, widths)] for row in rows]
    return ["  ".join(cells).rstrip() for cells in pad]


def confusions(pairs):
    """The three most frequent confusions in words; pairs: of each sample (label, predicted)."""
    sizes, wrong = Counter(pair[0] for pair in pairs), Counter(p for p in pairs if p[0] != p[1])
    return [
        f"{label} was taken for {found}: {n} of {sizes[label]}"
        for (label, found), n in wrong.most_common(3)
    ]


def report(records, modalities):
    """Print the predictions, the samples that could not be read, and the accuracy."""
    rows = table(records, modalities)
    print("\n".join(aligned(rows[: SHOWN + 1])))
    if len(records) > SHOWN:
        print(f"... and {len(records) - SHOWN} more; --csv FILE writes all")
    bad = [record for record in records if record["prediction"] is None]
    for record in bad[:5]:
        print(f"not predicted: {record['problem']}")
    if len(bad) > 5:
        print(f"... and {len(bad) - 5} more that could not be read")
    known = [(r["label"], r["prediction"].label) for r in records if r["label"] and r["prediction"]]
    if known:
        right = sum(label == found for label, found in known)
        print(f"right: {right} of {len(known)} with a label, {100 * right / len(known):.1f} %")
    for line in confusions(known):
        print(line)


def write_csv(path, records, modalities):
    """All predictions, a line each."""
    with atomic(path) as part, open(part, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        header, *rows = table(records, modalities)
        writer.writerow([*header, "split", "status", "problem"])
        for row, record in zip(rows, records):
            says = row if record["prediction"] else [*row[:2], *[""] * (len(row) - 2)]
            writer.writerow([*says, record["split"], record["status"], record["problem"]])
    print(f"wrote {path}")


def own_data(run, split="test", root="", device="auto"):
    """(settings, Data) of a run, as train.py --eval reads them.

    root: the folder of the data, if it has moved; device: any, not that of the training.
    """
    moved = ["--root", root] if root else []
    flags = ["--eval", os.fspath(run), "--split", split, "--device", device, *moved]
    args = train.parse(flags)
    trained = load_checkpoint(run)["data"]
    encoders = functools.partial(encoder_names, args.encoders)
    needs_val = train.requirements(args.method).needs_val
    return args, datasets.load_data(args, encoders, needs_val, trained)


def own_records(predictor, run, split, root=""):
    """(samples, records) of a split of the run's own data, in their order."""
    _, data = own_data(run, split, root, predictor.args.device)
    samples = data.splits[split]
    return samples, sample_records(predictor, samples, split)


def sample_records(predictor, samples, split):
    """The records of Samples, in their order."""
    args, records = predictor.args, []
    for *x, y in eval_loader(samples, args.batch_size, predictor.device, args.workers):
        predictions = predictor.predictions([*zip(*x)])
        for k, prediction in zip(y.tolist(), predictions):
            source = samples.sources[0]
            name = f"{split} {len(records)}" if torch.is_tensor(source) else source[len(records)]
            record = {"sample": name, "split": split, "label": predictor.classes[k]}
            records.append(record | {"status": USABLE, "problem": "", "prediction": prediction})
    return records


class Exported(torch.nn.Module):
    """inputs (B, ...) of each modality -> the probabilities of the classes, (B, c)."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *x):
        return self.model(list(x))[1][0].softmax(1)


def export(predictor, rows, path):
    """Write the model for torch.export.load, for batches of any size; rows: of one good sample.

    The file also has classes.json: the names of the classes and the modalities, in their order.
    """
    with tempfile.TemporaryDirectory() as folder:
        root, _, _, cells = rows[0]
        status, problem, sources = predictor.prepared(folder, root, cells)
        if status != USABLE or None in sources:
            raise SettingsError(problem or "--export needs a sample that has all modalities")
        x = [collate([(x_j,)] * 2)[0].to(predictor.device) for x_j in predictor.read(sources)]
    batch = torch.export.Dim("batch")
    shapes = [{0: batch} for _ in x]
    for j, kind in enumerate(predictor.kinds.values()):
        if kind == "text":  # each text has a length of its own
            most = predictor.readers[j].keywords["tokenizer"].model_max_length
            shapes[j] |= {2: torch.export.Dim(f"tokens_{j}", max=most)}
    model = Exported(predictor.model).eval()
    expected = model(*x)
    try:
        program = torch.export.export(model, tuple(x), dynamic_shapes=(tuple(shapes),))
        torch.testing.assert_close(program.module()(*x), expected)
    except Exception as error:
        why = str(error).strip().splitlines()[0]
        raise SettingsError(
            f"torch.export cannot trace --encoders {predictor.args.encoders}: {why}"
        ) from error
    facts = json.dumps({"classes": predictor.classes, "modalities": [*predictor.kinds]})
    with tempfile.TemporaryDirectory() as folder, atomic(path) as part:
        named = Path(folder, path.name)  # the archive inside has the name of its file
        torch.export.save(program, named, extra_files={"classes.json": facts})
        shutil.copyfile(named, part)
    print(f"wrote {path}; load it with torch.export.load({os.fspath(path)!r}).module()")


def main(arguments=None):
    """Exit status 0; with one sentence 2 for wrong arguments, 1 for a failure, 130 for Ctrl-C."""
    with cli.one_sentence("predict") as program:
        parser = cli.Parser("predict", description=__doc__)
        parser.add_argument("run", metavar="RUN", help="folder of a run")
        files = "a folder, or MODALITY=FILE ..."
        parser.add_argument("files", metavar="FILES", nargs="*", default=[], help=files)
        parser.add_argument("--split", choices=train.SPLITS, help="of these samples alone")
        root = "folder of the run's own data, if it has moved"
        parser.add_argument("--root", metavar="DIR", default="", help=root)
        parser.add_argument("--csv", metavar="OUT", help="write all predictions, a line each")
        parser.add_argument("--export", metavar="OUT", help="write the model for torch.export.load")
        parser.add_argument("--device", default="auto", help="cpu, cuda, mps, auto")
        args = parser.parse_args(arguments)
        if args.csv:
            cli.check_own(args.csv, "sample,label,predicted")
        if args.export and os.path.exists(args.export):
            raise SettingsError(f"{args.export} exists; give another name, or remove it")
        predictor = Predictor(args.run, "cpu" if args.export else args.device)
        if args.files and args.root:
            raise SettingsError("--root is where the run's own data are; with FILES leave it out")
        if args.files:
            rows = rows_of(predictor, args.files)
            rows = [row for row in rows if args.split in (None, row[1])]
            if not rows:
                of_split = f" of the split {args.split}" if args.split else ""
                raise SettingsError(f"{args.files[0]} has no sample{of_split}")
            if args.export:
                export(predictor, rows, Path(args.export))
            records = predict(predictor, rows)
        elif args.export:
            raise SettingsError("--export needs one sample: a folder, or MODALITY=FILE ...")
        else:
            _, records = own_records(predictor, args.run, args.split or "test", args.root)
        report(records, predictor.kinds)
        if args.csv:
            write_csv(Path(args.csv), records, predictor.kinds)
        if not any(record["prediction"] for record in records):
            program.status = 1
    return program.status


if __name__ == "__main__":
    sys.exit(main())
