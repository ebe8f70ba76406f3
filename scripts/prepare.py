"""Decode videos and recordings once, and read every file of a data set (Sec. 4.1).

    python -m scripts.prepare NAME [--root DIR]
    python -m scripts.prepare --table FOLDER    write samples.csv for a folder a class

NAME is one of the six sets, whose folder is data/NAME unless --root says another, or a folder of
your own with a samples.csv. Everything is written into DIR/prepared, see utils/prepare.py. You can
stop it and run it again: it continues.
"""

import os
import sys

from data import SETS
from utils import cli
from utils.folders import write_samples
from utils.prepare import prepare


def main(arguments=None):
    """Exit status 0; with one sentence 2 for wrong arguments, 1 for a failure, 130 for Ctrl-C."""
    with cli.one_sentence("prepare") as program:
        parser = cli.Parser("prepare", description=__doc__.splitlines()[0])
        names = f"one of {', '.join(SETS)}, or a folder with a samples.csv"
        parser.add_argument("name", metavar="NAME", nargs="?", help=names)
        table = "write FOLDER/samples.csv, from a folder for each class"
        parser.add_argument("--table", metavar="FOLDER", help=table)
        group = "with --table: names that are alike up to this text are one group (one person)"
        parser.add_argument("--group", metavar="TEXT", help=group)
        parser.add_argument("--root", metavar="DIR", help="folder of the data set (data/NAME)")
        cores, workers = os.cpu_count(), "processes (all cores)"
        parser.add_argument("--workers", type=int, default=cores, metavar="N", help=workers)
        raw = "keep the frames of videos as uint8 arrays: 2.6 MB a clip"
        parser.add_argument("--raw", action="store_true", help=raw)
        args = parser.parse_args(arguments)
        program.stopped = lambda: (
            "stopped; finished samples are kept, run the same command again to continue"
        )
        if args.table and args.name or args.group and not args.table:
            raise cli.SettingsError("give either NAME, or --table FOLDER and --group TEXT with it")
        if args.table:
            write_samples(args.table, args.group)
            return program.status
        if not args.name:
            raise cli.SettingsError(f"nothing to prepare; give {names}, or --table FOLDER")
        if not 0 <= args.workers <= 512:
            raise cli.SettingsError(f"--workers is {args.workers}, expected 0 to 512")
        own = os.path.isdir(args.name) and args.name not in SETS
        if not own:
            cli.check_choice("data set or folder", args.name, SETS)
        elif args.root:
            raise cli.SettingsError(f"{args.name} is a folder of your own data; leave --root out")
        root = args.root or (args.name if own else os.path.join("data", args.name))
        kinds = None if own else SETS[args.name]["kinds"]
        prepare(args.name, root, kinds, args.workers, args.raw, program)
    return program.status


if __name__ == "__main__":
    sys.exit(main())
