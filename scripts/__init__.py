"""Programs that run on top of the five files: `python -m scripts.NAME --help`."""
