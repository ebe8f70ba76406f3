"""docs/omega-rendered.html: the notebook with its outputs, to read without Python or a network.

    pip install nbconvert ipykernel ipywidgets
    python -m scripts.render                runs all cells, which takes minutes

Equations become MathML, as on the page; the file has no script.
"""

import html
import re
import sys

from scripts.page import ROOT, mathml
from utils import cli
from utils.atomic import atomic

NOTEBOOK = ROOT / "docs/omega.ipynb"
RENDERED = ROOT / "docs/omega-rendered.html"


def with_mathml(text):
    """Markdown with MathML for its $$...$$ and $...$; no star in it is read as emphasis."""

    def insert(match):
        latex, display = (match[1], "block") if match[1] else (match[2], "inline")
        return mathml(latex, display).replace("*", "&#42;")

    return re.sub(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", insert, text, flags=re.S)


def page_of(notebook):
    """The HTML of a notebook that has been run."""
    from nbconvert import HTMLExporter

    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = with_mathml(cell.source)
    text, _ = HTMLExporter().from_notebook_node(notebook)
    text = re.sub(r"<script\b.*?</script>", "", text, flags=re.S)
    return text.replace("<title>Notebook</title>", f"<title>{html.escape(NOTEBOOK.stem)}</title>")


def main(arguments=None):
    """Exit status 0, or 2 and one sentence."""
    with cli.one_sentence("render") as program:
        cli.Parser("render", description=__doc__).parse_args(arguments)
        try:
            import nbformat
            from nbconvert.preprocessors import ExecutePreprocessor
        except ImportError as error:
            needed = "pip install nbconvert ipykernel ipywidgets"
            raise cli.SettingsError(f"{error}; run: {needed}") from error
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        ExecutePreprocessor(timeout=None).preprocess(
            notebook, {"metadata": {"path": str(NOTEBOOK.parent)}}
        )
        with atomic(RENDERED) as part:
            part.write_text(page_of(notebook), encoding="utf-8", newline="\n")
        print(f"wrote {RENDERED.relative_to(ROOT)}")
    return program.status


if __name__ == "__main__":
    sys.exit(main())
