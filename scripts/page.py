"""docs/paper-and-code.html: the paper's equations beside the code that computes them.

    python -m scripts.page                  also makes docs/handout.html from docs/HANDOUT.md

scripts/page.md is the page's text, page.css its look, page.js its moving pictures. In the text `##`
begins a section, `###` a row: two columns, if it has code. These blocks are filled in:

block      lines                        becomes
math N     LaTeX                        MathML, with the number (N); also $...$ inside the text
code       file.py:name                 its source with line numbers, and its rows of CHOICES.md
           tests/x.py:test_name         its name, its first sentence, its source
           notes file.py:name           only its rows of CHOICES.md
           release WORDS                the row about the released code that begins with the words
python     a program                    the program and what it prints; later blocks see its names
svg ID W H a program                    the SVG that it prints; the words after H say what it shows
include    docs/FILE.md                 the text of each file, its headings one level lower
symbols    see Symbol                   the table of the symbols

![text](FILE.png) becomes the picture of docs/, smaller. Code and python fill the right column.
"""

import ast
import base64
import contextlib
import functools
import hashlib
import html
import io
import os
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from PIL import Image
from pygments import highlight
from pygments.filter import Filter
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from pygments.token import Comment, Keyword, Name, Operator, String, Text

from utils import cli
from utils.atomic import atomic

ROOT = Path(__file__).parents[1]
TEXT, STYLE, SCRIPT = (ROOT / f"scripts/page.{kind}" for kind in ("md", "css", "js"))
HANDOUT = ROOT / "docs/HANDOUT.md"
PAGE = ROOT / "docs/paper-and-code.html"
MARKS = {"Paper silent": "Here", "Departs from paper": "Why", "The release differs": "The release"}
STYLED = {Keyword, Keyword.Namespace, Keyword.Constant, Operator.Word, Name.Function, Name.Class}
WIDTH, COLOURS = 1100, 128  # of a picture in the page
PLACE = r"[\w/]+\.py:[\w.]+"
MARKED = r"(<span [^>]*>)?<math (?:(?!</math>).)*</math>(</span>)?[.,:;)]+"  # on one line


class Symbol(NamedTuple):
    """A line of the block `symbols`; five of them have a colour in page.css."""

    key: str  # its class in the style
    latex: str
    names: str  # in the code
    meaning: str
    places: str = ""  # a pattern: where the names mean this symbol; empty: everywhere


@functools.cache
def symbols():
    """The symbols of the page's text; a LaTeX text that contains another one comes first."""
    block = re.search(r"^```symbols\n(.*?)^```", TEXT.read_text(encoding="utf-8"), re.M | re.S)
    return [Symbol(*map(str.strip, line.split("|", 4))) for line in block[1].splitlines()]


def symbols_at(place):
    """{name: symbol} of the names that mean a symbol at `place`, file.py:name."""
    there = [s for s in symbols() if re.match(s.places, place)]
    return {name: s for s in there for name in s.names.split()}


class Symbols(Filter):
    """Pygments filter: the symbols' names have their keys, also in comments and docstrings."""

    def __init__(self, place):
        super().__init__()
        self.keys = {name: s.key for name, s in symbols_at(place).items()}
        words = "|".join(sorted(self.keys, key=len, reverse=True))
        self.words = re.compile(rf"(?<![\w.])({words})(?!\w)")

    def filter(self, lexer, stream):
        tokens = list(stream)
        for (kind, value), (_, after) in zip(tokens, [*tokens[1:], (None, "")]):
            if kind in Comment and any(f"# {mark}:" in value for mark in MARKS):
                yield kind.Mark, value
            elif kind in Comment or kind in String.Doc:
                for i, part in enumerate(self.words.split(value)):
                    yield (getattr(kind, self.keys[part]) if i % 2 else kind), part
            elif kind in Name and value in self.keys and after != "=":  # no keyword: `f(alpha=1)`
                yield getattr(kind, self.keys[value]), value
            else:
                yield (kind if kind in STYLED else Text), value  # Text has no tag


def highlighted(text, place, first=None):
    """Python as HTML; first: the number of its first line, without it no line is numbered."""
    lexer = PythonLexer(stripnl=False)
    lexer.add_filter(Symbols(place))
    numbers = {"linenos": "inline", "linenostart": first} if first else {}
    made = highlight(text, lexer, HtmlFormatter(cssclass="source", **numbers)).strip()
    return f'<div class="box">{made}</div>'


def mathml(latex, display):
    """MathML of LaTeX, its symbols with their keys; the LaTeX is its alternative text."""
    keys = {s.latex: s.key for s in symbols()}
    pattern = "|".join(map(re.escape, keys))
    coloured = re.sub(pattern, lambda m: rf"\class{{{keys[m[0]]}}}{{{m[0]}}}", latex)
    text = html.escape(" ".join(latex.split()))
    made = convert(coloured, display=display).replace("<math ", f'<math alttext="{text}" ', 1)
    return made.replace("<mo>&#x0002F;</mo>", '<mo lspace="0" rspace="0">/</mo>')


@functools.cache
def definitions(file):
    """(lines, syntax tree) of one of the project's files."""
    text = (ROOT / file).read_text(encoding="utf-8")
    return text.splitlines(), ast.parse(text)


def names(node):
    """The names that a statement defines: a function, a class, the targets of an assignment."""
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    return [getattr(node, "name", None), *(getattr(target, "id", None) for target in targets)]


def find(place):
    """(node, its first line, its source) of file.py:name; SettingsError if it does not exist."""
    file, _, name = place.partition(":")
    if not (ROOT / file).is_file():
        raise cli.SettingsError(f"there is no file {file}")
    lines, node = definitions(file)
    for part in name.split("."):
        node = next((n for n in getattr(node, "body", []) if part in names(n)), None)
        if node is None:
            raise cli.SettingsError(f"{file} has no function, class or table {name}")
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    source = lines[first - 1 : node.end_lineno]
    indent = len(source[0]) - len(source[0].lstrip())
    return node, first, "\n".join(line[indent:] for line in source)


def anchor(title):
    """The id of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


@functools.cache
def choices():
    """docs/CHOICES.md: [(mark, what, choice, place)]; the place of a release's row: release what"""
    rows, mark = [], None
    for line in (ROOT / "docs/CHOICES.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):  # the table of the baselines' numbers has no mark
            mark = "The release differs" if "released code" in line else None
        elif line.partition(":")[0] in MARKS:
            mark = line.partition(":")[0]
        elif mark and line.startswith("| "):
            what, choice, *place = (cell.strip() for cell in line.strip("|").split(" | "))
            rows.append((mark, what, choice, place[0].strip(" `") if place else f"release {what}"))
    return rows


class Page:
    """The HTML of a page's text."""

    def __init__(self, text):
        self.text, self.shown = text, set(re.findall(rf"^{PLACE}$", text, re.M))
        self.headings, self.program = [], {"__name__": "page"}
        self.md = MarkdownIt("commonmark").enable("table")
        own = (self.code_inline, self.fence, self.heading_open, self.image)
        self.md.renderer.rules |= {rule.__name__: rule for rule in own}

    def heading_open(self, tokens, i, options, env):
        tag, title = tokens[i].tag, tokens[i + 1].content
        self.headings.append((tag, title))
        place = anchor(title)  # its link is for the mouse alone: the contents have it, too
        link = f'<a class="permalink" href="#{place}" tabindex="-1" aria-hidden="true">#</a>'
        return f'<{tag} id="{place}">{link}'

    def image(self, tokens, i, options, env):
        """A picture of docs/ inside the page; its digest tells when the file has changed."""
        path, alt = ROOT / "docs" / tokens[i].attrs["src"], html.escape(tokens[i].content)
        digest, file = hashlib.sha256(path.read_bytes()).hexdigest()[:16], io.BytesIO()
        with Image.open(path) as picture:
            small = picture.convert("RGB")
        small.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
        small.quantize(COLOURS, Image.Quantize.MAXCOVERAGE).save(file, "PNG", optimize=True)
        data = base64.b64encode(file.getvalue()).decode()
        size = f'width="{small.width}" height="{small.height}"'
        return f'<img alt="{alt}" {size} data-of="{digest}" src="data:image/png;base64,{data}">'

    def code_inline(self, tokens, i, options, env):
        """Math, a symbol's name with its meaning, a link to a listing, or plain code."""
        text = tokens[i].content
        latex = text.removeprefix("math:")
        kind = "short" if len(text) < 24 else "long"  # a short name or option is not broken
        plain = f'<code class="{kind}">{html.escape(text)}</code>'
        code = plain if latex == text else mathml(latex, "inline")
        symbol = {s.latex: s for s in symbols()}.get(latex) or symbols_at("worked").get(text)
        if symbol:
            return f'<span class="{symbol.key}" title="{symbol.meaning}">{code}</span>'
        return f'<a href="#{text}">{code}</a>' if text in self.shown else code

    def fence(self, tokens, i, options, env):
        kind, *details = tokens[i].info.split() or ["text"]
        kinds = {"math": self.math, "symbols": self.symbols, "code": self.listings}
        kinds |= {"python": self.worked, "svg": self.svg}
        if kind in kinds:
            return kinds[kind](tokens[i].content, *details)
        return f'<div class="box"><pre>{html.escape(tokens[i].content)}</pre></div>'

    def math(self, latex, number=""):
        number = number and f'<span class="number">({number})</span>'
        scroll = f'<div class="scroll">{mathml(latex, "block")}</div>'
        return f'<div class="equation">{scroll}{number}</div>'

    def symbols(self, content):
        table = "| symbol | in the code | meaning |\n|---|---|---|\n"
        for s in symbols():
            names = " ".join(f"`{name}`" for name in s.names.split())
            table += f"| `math:{s.latex}` | {names} | {s.meaning} |\n"
        return self.md.render(table)

    def run(self, program):
        """What a program of the text prints; later ones see its names."""
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                exec(compile(program, "scripts/page.md", "exec"), self.program)
        except Exception as error:
            what = f"the worked example fails ({type(error).__name__}: {error})"
            raise cli.SettingsError(what) from error
        return printed.getvalue()

    def worked(self, program):
        output = f"<pre><samp>{html.escape(self.run(program))}</samp></pre>"
        code = f'{highlighted(program, "worked")}<div class="box output">{output}</div>'
        return f"<figure><figcaption>Worked example</figcaption>{code}</figure>"

    def svg(self, program, name, width, height, *words):
        size, words = f'viewBox="0 0 {width} {height}"', html.escape(" ".join(words))
        return f'<svg id="{name}" {size} role="img" aria-label="{words}">{self.run(program)}</svg>'

    def listings(self, content):
        """The functions of a block `code`; its tests come after the worked example."""
        places = [line for line in content.splitlines() if " " not in line]
        return "".join(self.code(place) for place in places if not place.startswith("tests/"))

    def tests(self, lines):
        shown = "".join(self.test(line) for line in lines if line.startswith("tests/"))
        return f'<p>Tests that check it:</p><ul class="tests">{shown}</ul>' if shown else ""

    def code(self, place):
        _, first, source = find(place)
        file, _, name = place.partition(":")
        caption = f"<figcaption><code>{name}</code> in {file}, line {first}</figcaption>"
        return f'<figure id="{place}">{caption}{highlighted(source, place, first)}</figure>'

    def test(self, place):
        node, first, source = find(place)
        sentence = re.split(r"(?<=[.?!])\s+(?=[A-Z])", " ".join(ast.get_docstring(node).split()))[0]
        summary = f"<summary>the test’s code, in {place.partition(':')[0]}</summary>"
        details = f"<details>{summary}{highlighted(source, place, first)}</details>"
        return f'<li id="{place}"><code>{node.name}</code>: {html.escape(sentence)}{details}</li>'

    def notes(self, line):
        """The rows of CHOICES.md for a line of a block `code`."""
        place = line.removeprefix("notes ")
        if not place.startswith("release "):
            find(place)
            return "".join(self.note(*row[:3]) for row in choices() if row[3] == place)
        for row in choices():
            if row[3].startswith(place):
                return self.note(*row[:3])
        raise cli.SettingsError(f"docs/CHOICES.md has no row that begins with this {place}")

    def note(self, mark, what, text):
        what, text = (self.md.renderInline(linked(part)) for part in (what, text))
        head, middle = f"<strong>{mark}:</strong>", f"<em>{MARKS[mark]}:</em>"
        return f'<p class="note">{head} {what}. {middle} {text}.</p>'

    def row(self, chunk):
        """A heading and its content, in two columns if it has code."""
        left, right, lines = [], [], []
        for token in self.md.parse(re.sub(r"\$([^$\n]+)\$", r"`math:\1`", chunk)):
            beside = token.type == "fence" and token.info in ("code", "python")
            (right if beside else left).append(token)
            lines += token.content.splitlines() if beside and token.info == "code" else []
        right.sort(key=lambda token: token.info)  # code, then python
        try:
            text = self.md.renderer.render(left, self.md.options, {})
            text = re.sub(MARKED, r'<span class="short">\g<0></span>', text)
            text += "".join(map(self.notes, lines))
            proof = self.md.renderer.render(right, self.md.options, {}) + self.tests(lines)
        except cli.SettingsError as error:
            title = chunk.splitlines()[0].strip("# ")
            raise cli.SettingsError(f"{error}; see {title!r} in the page's text") from error
        if not right:
            return f'<div class="text">{text}</div>'
        return f'<section class="row"><div>{text}</div><div>{proof}</div></section>'


def included(text):
    """The text with the files that it includes; links to a heading that is in it stay in it."""

    def insert(match):
        own = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in match[1].split())
        return re.sub(r"^#", "##", own.replace("```python", "```py"), flags=re.M)  # is not run

    text = re.sub(r"^```include\n(.*?)\n```$", insert, text, flags=re.M | re.S)
    here = set(map(anchor, re.findall(r"^#+ (.*)", text, re.M)))
    return linked(text, here)


def linked(text, here=()):
    """Links to the headings `here`; else a file's name, because a browser shows Markdown raw."""

    def link(match):
        words, file, place = match.groups()
        own = f"[{words}](#{place})"
        return own if place in here else f"{words} (`{os.path.normpath(f'docs/{file}')}`)"

    return re.sub(r"\[([^]]+)\]\(([\w./-]+\.md|paper-and-code\.html)#?([\w-]*)\)", link, text)


def contents(headings):
    """Links to the sections (h2) and their rows (h3)."""
    link = '<li class="{}"><a href="#{}">{}</a></li>'
    items = (link.format(tag, anchor(title), title) for tag, title in headings if tag < "h4")
    return f"<ul>{''.join(items)}</ul>"


def make(path):
    """A text as a whole HTML page; the same for the same files, wherever they are."""
    page = Page(included(path.read_text(encoding="utf-8")))
    header, *rows = map(page.row, re.split(r"^(?=###? )", page.text, flags=re.M))
    (_, title), *headings = page.headings
    rows, script = "\n".join(rows), SCRIPT.read_text(encoding="utf-8")
    script = f"<script>\n{script}</script>\n" if path == TEXT else ""  # the hand-out is printed
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<meta name="generator" content="{made_with()}">
<style>
{STYLE.read_text(encoding="utf-8")}</style>
</head>
<body class="{path.stem}">
<a class="skip" href="#main">Skip to the text</a>
<header>{header}</header>
<nav aria-label="Contents"><details><summary>Contents</summary>{contents(headings)}</details></nav>
<main id="main">
{rows}
</main>
{script}</body>
</html>
"""


def made_with():
    """The libraries whose versions decide how the page is written."""
    names = ("latex2mathml", "markdown-it-py", "Pygments")
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)


def main(arguments=None):
    """Exit status 0, or 2 and one sentence."""
    with cli.one_sentence("page") as program:
        cli.Parser("page", description=__doc__.splitlines()[0]).parse_args(arguments)
        for path, text in [(PAGE, make(TEXT)), (HANDOUT.with_name("handout.html"), make(HANDOUT))]:
            with atomic(path) as part:
                part.write_text(text, encoding="utf-8", newline="\n")
            print(f"wrote {path.relative_to(ROOT)}")
    return program.status


if __name__ == "__main__":
    sys.exit(main())
