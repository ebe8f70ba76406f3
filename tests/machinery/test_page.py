"""docs/paper-and-code.html: up to date, whole, readable; what it names exists."""

import ast
import html
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from scripts import page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
COMMITTED = page.PAGE.read_text(encoding="utf-8")


class Tags(HTMLParser):
    """Every start tag with its attributes, and the tags that are open at the end."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("meta", "hr", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def made():
    return page.make()


@pytest.fixture(scope="module")
def tags(made):
    return Tags(made)


def text_of(page):
    return html.unescape(re.sub(r"<[^>]*>", "", page))


def test_the_page_is_up_to_date(made):
    """The committed page equals the one made anew: byte for byte with the same libraries, with
    others in all of its text."""
    again = "the code or the text has changed; run: python -m scripts.page"
    if page.made_with() in COMMITTED:
        assert made == COMMITTED, again
    assert text_of(made) == text_of(COMMITTED), again


def test_the_page_is_one_small_file(made, tags):
    """Nothing is loaded: no script, no picture, no style sheet, no address but the namespace of
    MathML; no path of this computer."""
    assert len(made.encode()) < 1_000_000
    assert {tag for tag, _ in tags.found}.isdisjoint({"script", "link", "img", "iframe", "object"})
    assert set(re.findall(r"\bhttps?://[^\s\"<]*", made)) <= {"http://www.w3.org/1998/Math/MathML"}
    assert "url(" not in made and "@import" not in made and str(ROOT) not in made


def test_the_page_has_its_structure(tags):
    """Tags are closed; a language, a title, one h1, no level of headings skipped; no id twice;
    every equation has its LaTeX as alternative text."""
    assert tags.open == []
    assert ("html", {"lang": "en"}) in tags.found and ("title", {}) in tags.found
    levels = [int(tag[1]) for tag, _ in tags.found if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below - above <= 1 for above, below in zip(levels, levels[1:]))
    ids = [attributes["id"] for _, attributes in tags.found if "id" in attributes]
    assert len(ids) == len(set(ids)) > 80
    assert all(attributes["alttext"] for tag, attributes in tags.found if tag == "math")


def test_every_link_leads_somewhere(made, tags):
    """To an id of the page, to a heading of another page, or to the line where the name stands."""
    ids = {attributes.get("id") for _, attributes in tags.found}
    links = [attributes["href"] for tag, attributes in tags.found if tag == "a"]
    assert len(links) > 100
    for link in links:
        file, _, place = link.partition("#")
        if not file:
            assert place in ids, link
            continue
        text = (DOCS / file).read_text(encoding="utf-8")
        if place and file.endswith(".md"):
            headings = re.findall(r"^#+ (.*)", text, re.M)
            assert place in map(page.anchor, headings), link
    for file, line, name in re.findall(r'href="\.\./([\w/]+\.py)#L(\d+)"><code>(\w+)<', made):
        after = (ROOT / file).read_text(encoding="utf-8").splitlines()[int(line) - 1 :]
        assert f"def {name}(" in next(x for x in after if not re.match(r"[@\s)\]]", x)), name


def test_the_page_follows_the_paper(made):
    """Its sections are the paper's, in the paper's order."""
    titles = re.findall(r"<h2[^>]*>(?:(Sec\. [\d.]+\d|Eq\. \d|Alg\. 1))", made)
    order = [
        "3.1",
        "3.2",
        "Eq. 1",
        "3.3",
        "Eq. 2",
        "Eq. 3",
        "Alg. 1",
        *(f"4.{i}" for i in range(1, 6)),
    ]
    assert [title.removeprefix("Sec. ") for title in titles] == order


def test_a_function_is_shown_as_it_stands_in_its_file(made):
    """losses.total_loss: its lines, their numbers, its colours."""
    lines = (ROOT / "losses.py").read_text().splitlines()
    first = lines.index("def total_loss(l_cls, l_mm, alpha):")
    figure = re.search(r'<figure id="losses.py:total_loss">.*?</figure>', made, re.S)[0]
    shown = text_of(re.search(r"<pre>(.*?)</pre>", figure, re.S)[1]).splitlines()
    for number, line, expected in zip(range(first + 1, first + 4), shown, lines[first:]):
        assert line == f"{number}{expected}"
    for name, key in [
        ("l_cls", "Cls"),
        ("l_mm", "Mm"),
        ("alpha", "Alpha"),
        ("total_loss", "Total"),
    ]:
        assert re.search(rf'<span class="[\w ]*-{key}">{name}</span>', figure), name


def test_a_test_is_shown_by_its_name_and_first_sentence(made):
    """One with two sentences, from the file itself."""
    name = "test_alpha_ends_at_0_or_at_the_held_out_optimum"
    tree = ast.parse((ROOT / "tests/method/test_bilevel.py").read_text())
    node = next(n for n in tree.body if getattr(n, "name", "") == name)
    first, rest = ast.get_docstring(node).split(". ", 1)
    item = re.search(rf'<li id="tests/method/test_bilevel.py:{name}">(.*?)<details>', made, re.S)[1]
    assert text_of(item) == f"{name}: {first}." and rest


def test_every_choice_stands_on_the_page(made):
    """Each row of docs/CHOICES.md once: the silences, the departures, the release's differences."""
    rows = [row for row in page.choices() if row[1] not in ("what", "the paper, and this code")]
    assert len(rows) > 20
    md = page.Page("").md
    for mark, what, _, place in rows:
        head = f"<strong>{mark}:</strong> {md.renderInline(what)}."
        assert made.count(head) == 1, (mark, what, place)


def test_the_worked_numbers_are_right(made):
    """Eq. 3 agrees with its finite difference, and equal features with log B, as printed."""
    text = text_of("".join(re.findall(r"<samp>.*?</samp>", made, re.S)))
    assert "omega(1) = 0.632" in text
    assert re.search(r"all features equal +4\.1589 +log 64 +4\.1589\n", text)
    pairs = re.findall(r"Eq\. 3 (\S+) +finite difference (\S+)\n", text)
    assert len(pairs) == 4 and all(value == difference for value, difference in pairs)


@pytest.mark.parametrize(
    "code, place, keys",
    [
        ("alpha = f(alpha=decay)\n", "losses.py:f", [("alpha", "n n-Alpha"), ("alpha", "n")]),
        ("c = v\n", "losses.py:f", [("c", "n"), ("v", "n")]),
        ("c = v\n", "bilevel.py:f", [("c", "n n-C"), ("v", "n n-V")]),
        ("x  # L_MM, not L_MMM\n", "losses.py:f", [("L_MM", "c1 c1-Mm"), (", not L_MMM", "c1")]),
        ("# Paper silent: x\n", "losses.py:f", [("# Paper silent: x", "c1 c1-Mark")]),
    ],
)
def test_names_have_the_colours_of_their_symbols(code, place, keys):
    """Not the keyword of a call, not a part of a word, v, c and H only where they are Eq. 3's."""
    spans = re.findall(r'<span class="([^"]*)">([^<]*)</span>', page.highlighted(code, place))
    for name, kind in keys:
        assert (kind, name) in spans, spans


@pytest.mark.parametrize(
    "block, said",
    [
        ("code\ntrain.py:alpha_slope", "train.py has no function, class or table alpha_slope"),
        ("code\nmodel.py:MultimodalModel.gone", "model.py has no .* MultimodalModel.gone"),
        (
            "test\ntests/method/test_losses.py:test_gone",
            "tests/method/test_losses.py has no .* test_gone",
        ),
        ("code\ngone.py:f", "there is no file gone.py"),
        ("notes\ntrain.py:gone", "train.py has no .* gone"),
        ("release\nEq. 9", "no row of the release that begins: Eq. 9"),
        ("python\n1 / 0", r"the worked number fails \(ZeroDivisionError: division by zero\)"),
    ],
)
def test_what_does_not_exist_is_one_sentence(block, said, tmp_path, monkeypatch, capsys):
    """What a rename leaves behind: the name and the row that has it; the old page stays."""
    text = f"# Title\n\n## Section\n\n### Eq. 3\n\n```{block}\n```\n"
    (tmp_path / "page.md").write_text(
        text + "\n```symbols\nA | a | a | a | #000000 | #ffffff\n```\n"
    )
    monkeypatch.setattr(page, "TEXT", tmp_path / "page.md")
    monkeypatch.setattr(page, "PAGE", tmp_path / "page.html")
    assert page.main([]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(rf"page: .*{said}; see 'Eq. 3' in scripts/page.md\n", error), error
    assert not (tmp_path / "page.html").exists()


def luminance(colour):
    """WCAG's relative luminance of #rrggbb."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_every_colour_can_be_read(made):
    """A contrast of 4.5 or more with the page and with a box of code, on light and dark ground."""
    light, dark = {}, {}
    css = re.search(r"<style>(.*?)</style>", made, re.S)[1]
    for media, variables in re.findall(
        r"(prefers-color-scheme: dark\) \{\s*)?:root \{([^}]*)\}", css
    ):
        (dark if media else light).update(re.findall(r"--(\w+): (#\w{6});", variables))
    assert light.keys() == dark.keys() and len(light) == 6 + len(page.symbols())
    for colours in (light, dark):
        for name in colours.keys() - {"page", "box", "line"}:
            for ground in ("page", "box"):
                pair = sorted((luminance(colours[name]), luminance(colours[ground])))
                assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, (name, ground)
