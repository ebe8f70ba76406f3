"""docs/paper-and-code.html: the paper's equations beside the code that computes them.

    python -m scripts.page

scripts/page.md is the page's text, scripts/page.css its look. In the text a `##` heading begins a
section, a `###` heading a row of two columns. These blocks are filled in when the page is made:

block      lines                        becomes
math N     LaTeX                        MathML, with the number (N); also $...$ inside the text
code       file.py:name                 its source with line numbers, and its rows of CHOICES.md
notes      file.py:name                 only its rows of CHOICES.md
test       tests/x.py:test_name         its name, its first sentence, its source
release    how a row begins             that row of CHOICES.md about the authors' released code
python     a program                    the program and what it prints; later blocks see its names
symbols    see Symbol                   the table of the symbols that have a colour

`value:NAME:FORMAT` inside the text becomes the value that a program has given to NAME. The blocks
code, test and python go into the right column, in this order, all others into the left one.
"""

import ast
import contextlib
import functools
import html
import io
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from pygments import highlight
from pygments.filter import Filter
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer
from pygments.token import Comment, Name, String

from utils import cli
from utils.atomic import atomic

ROOT = Path(__file__).parents[1]
TEXT, STYLE = ROOT / "scripts/page.md", ROOT / "scripts/page.css"
PAGE = ROOT / "docs/paper-and-code.html"
RELEASE = "The release differs"
MARKS = {"Paper silent": "Here", "Departs from paper": "Why", RELEASE: "The release"}


class Symbol(NamedTuple):
    """A line of the block `symbols`."""

    key: str  # its colour's name in the style
    latex: str
    names: str  # in the code
    meaning: str
    light: str  # its colour on light ground
    dark: str
    places: str = ""  # a pattern: where the names mean this symbol; empty: everywhere


def symbols():
    """The symbols that have a colour; a LaTeX text that contains another one comes first."""
    return symbols_of(TEXT)


@functools.cache
def symbols_of(path):
    """The symbols of a page's text."""
    block = re.search(r"^```symbols\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S)
    return [Symbol(*map(str.strip, line.split(" | "))) for line in block[1].splitlines()]


def symbols_at(place):
    """{name: key} of the names that mean a symbol at `place`, file.py:name."""
    there = [s for s in symbols() if re.match(s.places, place)]
    return {name: s.key for s in there for name in s.names.split()}


class Colours(Filter):
    """Pygments filter: names, comments and docstrings carry the colours of the symbols."""

    def __init__(self, place):
        super().__init__()
        self.keys = symbols_at(place)
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
                yield kind, value


def highlighted(text, place, first=None):
    """Python as HTML; first: the number of its first line, without it no line is numbered."""
    lexer = PythonLexer(stripnl=False)
    lexer.add_filter(Colours(place))
    numbers = {"linenos": "inline", "linenostart": first} if first else {}
    return highlight(text, lexer, HtmlFormatter(cssclass="source", **numbers)).strip()


def box(inside, label, kind=""):
    """A box in which content wider than its column scrolls, also by keyboard."""
    label = html.escape(label)
    return f'<div class="box{kind}" tabindex="0" role="region" aria-label="{label}">{inside}</div>'


def mathml(latex, display):
    """MathML of LaTeX, its symbols coloured; the LaTeX is its alternative text."""
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
    """(node, its first line, its source) of file.py:name; ValueError if it does not exist."""
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
    """docs/CHOICES.md: [(mark, what, choice, place)]; the release has no place."""
    rows, mark = [], None
    for line in (ROOT / "docs/CHOICES.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):  # the table of the baselines' numbers has no mark
            mark = RELEASE if "released code" in line else None
        elif line.partition(":")[0] in MARKS:
            mark = line.partition(":")[0]
        elif mark and line.startswith("| "):
            what, choice, *place = (cell.strip() for cell in line.strip("|").split(" | "))
            rows.append((mark, what, choice, "".join(place).strip(" `")))
    return rows


class Page:
    """The HTML of the blocks of scripts/page.md."""

    def __init__(self, text):
        self.shown = set(re.findall(r"^[\w/]+\.py:[\w.]+$", text, re.M))
        self.headings, self.program = [], {"__name__": "page"}
        self.md = MarkdownIt("commonmark")
        own = (self.code_inline, self.fence, self.heading_open)
        self.md.renderer.rules |= {rule.__name__: rule for rule in own}

    def heading_open(self, tokens, i, options, env):
        tag, title = tokens[i].tag, tokens[i + 1].content
        self.headings.append((tag, title))
        return f'<{tag} id="{anchor(title)}">'

    def code_inline(self, tokens, i, options, env):
        text = tokens[i].content
        if text.startswith("math:"):
            return mathml(text.removeprefix("math:"), "inline")
        if text.startswith("value:"):
            return f"<!--{text}-->"  # make puts it in, when all programs have run
        key = symbols_at("worked").get(text, "")
        code = f'<code class="{key}">{text}</code>' if key else f"<code>{html.escape(text)}</code>"
        return self.link(text, code) if re.fullmatch(r"[\w/]+\.py:[\w.]+", text) else code

    def link(self, place, text):
        """A link to the place on this page, or else to its line in the file."""
        file, first = place.partition(":")[0], find(place)[1]
        target = f"#{place}" if place in self.shown else f"../{file}#L{first}"
        return f'<a href="{target}">{text}</a>'

    def fence(self, tokens, i, options, env):
        kind, _, number = tokens[i].info.partition(" ")
        content, lines = tokens[i].content, tokens[i].content.splitlines()
        if kind == "math":
            return self.math(content, number)
        if kind == "symbols":
            return self.symbols()
        if kind == "python":
            return self.worked(content)
        if kind == "test":
            return f'<ul class="tests">{"".join(map(self.test, lines))}</ul>'
        return "".join(map(self.code if kind == "code" else self.release, lines))

    def math(self, latex, number):
        number = number and f'<span class="number">({number})</span>'
        scroll = '<div class="scroll" tabindex="0" role="region" aria-label="equation">'
        return f'<div class="equation">{scroll}{mathml(latex, "block")}</div>{number}</div>'

    def symbols(self):
        rows = []
        for s in symbols():
            names = " ".join(f'<code class="{s.key}">{name}</code>' for name in s.names.split())
            math = mathml(s.latex, "inline")
            rows.append(f"<tr><td>{math}</td><td>{names}</td><td>{s.meaning}</td></tr>")
        head = "".join(f'<th scope="col">{x}</th>' for x in ("symbol", "in the code", "meaning"))
        return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"

    def worked(self, program):
        """Run a program of the text; later ones see its names."""
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                exec(compile(program, "scripts/page.md", "exec"), self.program)
        except Exception as error:
            what = f"the worked number fails ({type(error).__name__}: {error})"
            raise cli.SettingsError(what) from error
        code = box(highlighted(program, "worked"), "worked number: program")
        output = f"<pre><samp>{html.escape(printed.getvalue())}</samp></pre>"
        output = box(output, "worked number: what it prints", " output")
        return f"<figure><figcaption>Worked number</figcaption>{code}{output}</figure>"

    def code(self, place):
        _, first, source = find(place)
        file, _, name = place.partition(":")
        link = f'<a href="../{file}#L{first}">{file}, line {first}</a>'
        inside = box(highlighted(source, place, first), f"source of {name} in {file}")
        caption = f"<figcaption><code>{name}</code> in {link}</figcaption>"
        return f'<figure id="{place}">{caption}{inside}</figure>'

    def test(self, place):
        node, first, source = find(place)
        file, _, name = place.partition(":")
        sentence = re.split(r"(?<=[.?!])\s+(?=[A-Z])", " ".join(ast.get_docstring(node).split()))[0]
        link = f'<a href="../{file}#L{first}"><code>{name}</code></a>'
        inside = box(highlighted(source, place, first), f"source of {name}")
        details = f"<details><summary>the test’s code</summary>{inside}</details>"
        return f'<li id="{place}">{link}: {html.escape(sentence)}{details}</li>'

    def notes(self, place):
        find(place)
        found = [row for row in choices() if row[3] == place]
        return "".join(self.note(*row[:3]) for row in found)

    def release(self, beginning):
        for mark, what, text, _ in choices():
            if mark == RELEASE and what.startswith(beginning):
                return self.note(mark, what, text)
        raise cli.SettingsError(
            f"docs/CHOICES.md has no row of the release that begins: {beginning}"
        )

    def note(self, mark, what, text):
        what, text = self.md.renderInline(what), self.md.renderInline(text)
        head, middle = f"<strong>{mark}:</strong>", f"<em>{MARKS[mark]}:</em>"
        return f'<p class="note">{head} {what}. {middle} {text}.</p>'

    def row(self, chunk):
        """A heading and its content, in two columns if it has code."""
        blocks, left = {"code": [], "test": [], "python": [], "notes": []}, []
        for token in self.md.parse(re.sub(r"\$([^$\n]+)\$", r"`math:\1`", chunk)):
            blocks.get(token.info if token.type == "fence" else "", left).append(token)
        right = blocks["code"] + blocks["test"] + blocks["python"]
        places = [x for token in blocks["code"] + blocks["notes"] for x in token.content.split()]
        try:
            text = self.md.renderer.render(left, self.md.options, {})
            text += "".join(map(self.notes, places))
            proof = self.md.renderer.render(right, self.md.options, {})
        except cli.SettingsError as error:
            title = chunk.splitlines()[0].strip("# ")
            raise cli.SettingsError(f"{error}; see {title!r} in scripts/page.md") from error
        if not right:
            return f'<div class="text">{text}</div>'
        return f'<section class="row"><div>{text}</div><div>{proof}</div></section>'


def contents(headings):
    """Links to the sections and their rows: nested lists."""
    items = []
    for tag, title in headings:
        link = f'<a href="#{anchor(title)}">{title}</a>'
        if tag == "h2":
            items.append((link, []))
        elif tag == "h3":
            items[-1][1].append(f"<li>{link}</li>")
    inner = ((link, f"<ul>{''.join(rows)}</ul>" if rows else "") for link, rows in items)
    return f"<ul>{''.join(f'<li>{link}{rows}</li>' for link, rows in inner)}</ul>"


def style():
    """scripts/page.css and the symbols' colours."""
    light = " ".join(f"--{s.key}: {s.light};" for s in symbols())
    dark = " ".join(f"--{s.key}: {s.dark};" for s in symbols())
    rules = [
        f":root {{ {light} }}",
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}",
        *(f'.{s.key}, [class$="-{s.key}"] {{ color: var(--{s.key}); }}' for s in symbols()),
    ]
    return STYLE.read_text(encoding="utf-8") + "\n".join(rules)


def make():
    """The whole page as HTML; the same text for the same files, wherever they are."""
    text = TEXT.read_text(encoding="utf-8")
    page = Page(text)
    first, *rest = map(page.row, re.split(r"^(?=###? )", text, flags=re.M))
    (_, title), *headings = page.headings
    rows = "\n".join([*rest, ""])
    for marker, name, form in re.findall(r"(<!--value:(\w+):(.*?)-->)", rows):
        rows = rows.replace(marker, format(page.program[name], form))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<meta name="generator" content="{made_with()}">
<style>
{style()}
</style>
</head>
<body>
<header>{first}</header>
<nav aria-label="Sections">{contents(headings)}</nav>
<main>
{rows}</main>
</body>
</html>
"""


def made_with():
    """The libraries whose versions decide how the page is written."""
    libraries = ("latex2mathml", "markdown-it-py", "Pygments")
    return ", ".join(f"{name} {metadata.version(name)}" for name in libraries)


def main(arguments=None):
    """Exit status 0, or 2 and one sentence."""
    with cli.one_sentence("page") as program:
        cli.Parser("page", description=__doc__.splitlines()[0]).parse_args(arguments)
        text = make()
        with atomic(PAGE) as part:
            part.write_text(text, encoding="utf-8", newline="\n")
        print(f"wrote {PAGE.relative_to(ROOT)}")
    return program.status


if __name__ == "__main__":
    sys.exit(main())
