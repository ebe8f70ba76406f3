"""Programs that run on top of the five files: `python -m scripts.NAME --help`."""

import sys

if sys.argv[0] == "-m":  # python -m: Ctrl-C during the slow imports of NAME gives no traceback
    __import__("utils.interrupt")
