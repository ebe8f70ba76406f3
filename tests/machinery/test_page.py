"""docs/paper-and-code.html and docs/handout.html: up to date, whole, readable; what they name
exists; the arithmetic of scripts/page.js is that of bilevel.py and losses.py."""

import ast
import html
import itertools
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from bilevel import hypergradient, neumann
from losses import modality_matching_loss, similarity
from scripts import page

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {page.TEXT: page.PAGE, page.HANDOUT: DOCS / "handout.html"}


class Tags(HTMLParser):
    """Every start tag with its attributes, and the tags that are open at the end."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("meta", "hr", "br", "img", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def made():
    return page.make(page.TEXT)


@pytest.fixture(scope="module")
def tags(made):
    return Tags(made)


def text_of(page):
    return html.unescape(re.sub(r"<[^>]*>", "", page))


@pytest.mark.parametrize("source", PAGES, ids=lambda path: path.name)
def test_the_page_is_up_to_date(source):
    """The committed page equals the one made anew: with the same libraries byte for byte, but for
    the bytes of its pictures, whose files are known by their digests; with others in its text."""
    committed, made = PAGES[source].read_text(encoding="utf-8"), page.make(source)
    again = "the code or the text has changed; run: python -m scripts.page"
    if page.made_with() in committed:
        data = re.compile(r'src="data:image/png;base64,[^"]*"')
        assert data.sub("", made) == data.sub("", committed), again
    assert text_of(made) == text_of(committed), again


def test_the_page_is_one_small_file(made, tags):
    """Nothing is loaded: no style sheet, script or picture from elsewhere; an address is only where
    a reader clicks; no path of this computer."""
    assert len(made.encode()) < 900_000
    assert {tag for tag, _ in tags.found}.isdisjoint({"link", "iframe", "object", "audio", "video"})
    sources = [attributes["src"] for _, attributes in tags.found if "src" in attributes]
    assert len(sources) == 4 and all(x.startswith("data:image/png;base64,") for x in sources)
    assert ("script", {}) in tags.found
    clicked = {attributes.get("href") for tag, attributes in tags.found if tag == "a"}
    listed = "https://download.pytorch.org/whl/cpu"  # in a command of the lesson
    namespace = "http://www.w3.org/1998/Math/MathML"
    assert set(re.findall(r"\bhttps?://[^\s\"<]*", made)) <= {namespace, listed} | clicked
    assert "url(" not in made and "@import" not in made and str(ROOT) not in made


def test_the_handout_is_a_sheet_without_a_script():
    """Nothing on it moves, and it is printed."""
    assert "<script" not in page.make(page.HANDOUT)


def test_the_sources_of_the_page_are_short():
    """Fewer than 1,500 lines together."""
    lines = [len(path.read_text().splitlines()) for path in (ROOT / "scripts").glob("page.*")]
    assert len(lines) == 4 and sum(lines) < 1500


def test_the_page_is_for_everybody(made, tags):
    """A link that skips to the text comes first; nothing is a tab stop unless it is a link, a
    control or opens something (a script adds those that scroll); a picture and a moving picture
    have words; a control starts hidden, because it needs the script."""
    first = next(attributes for tag, attributes in tags.found if tag == "a")
    assert first == {"class": "skip", "href": "#main"}
    assert {a.get("tabindex") for _, a in tags.found} == {None, "-1"}
    assert all(a.get("alt") for tag, a in tags.found if tag == "img")
    assert all(a.get("aria-label") and a["role"] == "img" for tag, a in tags.found if tag == "svg")
    forms = [attributes for tag, attributes in tags.found if tag == "form"]
    assert len(forms) == 4 and all("hidden" in attributes for attributes in forms)


def test_a_symbol_has_its_meaning(made):
    """In the text, at each place; no LaTeX is left that was not made into MathML."""
    assert made.count('title="weight of L_MM in L_Total, from 0 to 1"') > 20
    text = re.sub(r"<(style|script|code|pre)\b.*?</\1>", "", made, flags=re.S)
    assert "$" not in text and "\\mathbf" not in text_of(text)


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
    """To an id of the page, or to a file beside it that a browser shows: not to Markdown."""
    ids = {attributes.get("id") for _, attributes in tags.found}
    links = [attributes["href"] for tag, attributes in tags.found if tag == "a"]
    assert len(links) > 100
    for link in links:
        file, _, place = link.partition("#")
        if not file:
            assert place in ids, link
        elif not link.startswith("https://"):
            assert (DOCS / file).exists() and not place and not file.endswith(".md"), link
    for words in ("papers.nips.cc", "omega-rendered.html", "handout.html"):
        assert any(words in link for link in links), words


def test_the_page_follows_the_paper(made):
    """Its sections are the paper's, in the paper's order."""
    titles = re.findall(r"<h2[^>]*><a[^>]*>#</a>(Sec\. [\d.]+\d|Eq\. \d|Alg\. 1)", made)
    order = ["3.1", "3.2", "Eq. 1", "3.3", "Eq. 2", "Eq. 3", "Alg. 1"]
    order += [f"4.{i}" for i in range(1, 6)]
    assert [title.removeprefix("Sec. ") for title in titles] == order


def test_a_function_is_shown_as_it_stands_in_its_file(made):
    """losses.total_loss: its lines, their numbers, its colours."""
    lines = (ROOT / "losses.py").read_text().splitlines()
    first = lines.index("def total_loss(l_cls, l_mm, alpha):")
    figure = re.search(r'<figure id="losses.py:total_loss">.*?</figure>', made, re.S)[0]
    shown = text_of(re.search(r"<pre>(.*?)</pre>", figure, re.S)[1]).splitlines()
    for number, line, expected in zip(range(first + 1, first + 4), shown, lines[first:]):
        assert line == f"{number}{expected}"
    keys = {"l_cls": "Cls", "l_mm": "Mm", "alpha": "Alpha", "total_loss": "Total"}
    for name, key in keys.items():
        assert re.search(rf'<span class="[\w ]*-{key}">{name}</span>', figure), name


def test_a_test_is_shown_by_its_name_and_first_sentence(made):
    """One with two sentences, from the file itself."""
    name = "test_alpha_ends_at_0_or_at_the_held_out_optimum"
    tree = ast.parse((ROOT / "tests/method/test_bilevel.py").read_text())
    node = next(n for n in tree.body if getattr(n, "name", "") == name)
    first, rest = ast.get_docstring(node).split(". ", 1)
    item = re.search(rf'<li id="tests/method/test_bilevel.py:{name}">(.*?)<details>', made, re.S)[1]
    assert text_of(item) == f"{name}: {first}." and rest


def test_the_tests_come_after_the_example(made):
    """In each row that has both, so that they do not part the text from its example."""
    rows = re.findall(r'<section class="row">.*?</section>', made, re.S)
    both = [row for row in rows if "Worked example" in row and "Tests that check it" in row]
    assert len(both) > 10
    assert all(row.index("Worked example") < row.index("Tests that check it") for row in both)


def test_no_line_begins_with_a_mark(made):
    """A browser may break a line between a formula and the comma after it, unless one element that
    is not broken has both."""
    after = re.findall(r"<math (?:(?!</math>).)*</math>(?:</span>)?[.,:;)]+(.{7})", made)
    assert len(after) > 50 and set(after) == {"</span>"}


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
    assert len(pairs) == 6 and all(value == difference for value, difference in pairs)
    assert [value[0] for value, _ in pairs] == list("+++++-")


@pytest.mark.parametrize(
    "code, place, keys",
    [
        ("alpha = f(alpha=decay)\n", "losses.py:f", [("alpha", "n n-Alpha")]),
        ("self.alpha = alpha\n", "baselines.py:OGM", []),
        ("c = v\n", "losses.py:f", []),
        ("c = v\n", "bilevel.py:f", [("c", "n n-C"), ("v", "n n-V")]),
        ("x  # L_MM, not L_MMM\n", "losses.py:f", [("L_MM", "c1 c1-Mm"), (", not L_MMM", "c1")]),
        ("# Paper silent: x\n", "losses.py:f", [("# Paper silent: x", "c1 c1-Mark")]),
    ],
)
def test_names_have_the_colours_of_their_symbols(code, place, keys):
    """Not the keyword of a call, not a part of a word, not OGM's own alpha; v, c and H only where
    they are Eq. 3's."""
    spans = re.findall(r'<span class="([^"]*)">([^<]*)</span>', page.highlighted(code, place))
    found = [(name, kind) for kind, name in spans if name.strip(", ")]
    assert [pair for pair in found if pair in keys] == keys and (keys or not found), found


@pytest.mark.parametrize(
    "block, said",
    [
        ("code\ntrain.py:alpha_slope", "train.py has no function, class or table alpha_slope"),
        ("code\nmodel.py:MultimodalModel.gone", "model.py has no .* MultimodalModel.gone"),
        ("code\ntests/method/test_losses.py:test_gone", "test_losses.py has no .* test_gone"),
        ("code\ngone.py:f", "there is no file gone.py"),
        ("code\nnotes train.py:gone", "train.py has no .* gone"),
        ("code\nrelease Eq. 9", "docs/CHOICES.md has no row that begins with this release Eq. 9"),
        ("python\n1 / 0", r"the worked example fails \(ZeroDivisionError: division by zero\)"),
        ("svg x 1 1\n1 / 0", r"the worked example fails \(ZeroDivisionError: division by zero\)"),
    ],
)
def test_what_does_not_exist_is_one_sentence(block, said, tmp_path, monkeypatch, capsys):
    """What a rename leaves behind: the name and the row that has it; the old page stays."""
    text = f"# Title\n\n## Section\n\n### Eq. 3\n\n```{block}\n```\n"
    (tmp_path / "page.md").write_text(text + "\n```symbols\nA | a | a | a\n```\n")
    monkeypatch.setattr(page, "TEXT", tmp_path / "page.md")
    monkeypatch.setattr(page, "PAGE", tmp_path / "page.html")
    page.symbols.cache_clear()
    assert page.main([]) == 2
    page.symbols.cache_clear()
    error = capsys.readouterr().err
    assert re.fullmatch(rf"page: .*{said}; see 'Eq. 3' in the page's text\n", error), error
    assert not (tmp_path / "page.html").exists()


def linear(colour):
    """The linear red, green and blue of #rrggbb."""
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def luminance(colour):
    """WCAG's relative luminance of #rrggbb."""
    return linear(colour) @ [0.2126, 0.7152, 0.0722]


# Machado, Oliveira and Fernandes (2009): how people without M and L cones see linear colours
SIGHTS = {
    "usual": np.eye(3),
    "deuteranopia": np.array(
        [[0.3673, 0.8606, -0.228], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]]
    ),
    "protanopia": np.array(
        [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.052]]
    ),
}


def lab(rgb):
    """CIE L*a*b* of linear red, green and blue."""
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]]
    )
    x, y, z = np.cbrt(to_xyz @ rgb.clip(0, 1) / [0.9505, 1, 1.0888])  # no colour here is near black
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def schemes():
    """{name: #rrggbb} of page.css on light and on dark ground."""
    light, dark = {}, {}
    css = page.STYLE.read_text(encoding="utf-8")
    pattern = r"(prefers-color-scheme: dark\) \{\s*)?:root \{([^}]*)\}"
    for media, variables in re.findall(pattern, css):
        (dark if media else light).update(re.findall(r"--(\w+): (#\w{6});", variables))
    return [light, dark]


def test_every_colour_can_be_read():
    """A contrast of 4.5 or more with the page and with a box of code, on light and dark ground."""
    light, dark = schemes()
    assert light.keys() == dark.keys() and len(light) == 12
    for colours in (light, dark):
        for name in colours.keys() - {"page", "box", "line"}:
            for ground in ("page", "box"):
                pair = sorted((luminance(colours[name]), luminance(colours[ground])))
                assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, (name, ground)


def test_a_symbol_in_a_comment_has_its_colour():
    """Of two rules that are equally specific the later one counts: the comments' rule is first."""
    css = page.STYLE.read_text(encoding="utf-8")
    symbols = [css.index(f'[class$="-{key}"]') for key in ("Alpha", "Theta", "V", "C", "H")]
    assert css.index(".c1, .sd {") < min(symbols)


@pytest.mark.parametrize("sight", SIGHTS)
def test_the_symbols_colours_differ_for_everybody(sight):
    """By a distance of 15 or more in L*a*b*, from each other and from the text."""
    for colours in schemes():
        seen = {
            name: lab(SIGHTS[sight] @ linear(colours[name]))
            for name in ("Alpha", "Theta", "V", "C", "H", "ink")
        }
        for a, b in itertools.combinations(seen, 2):
            assert np.linalg.norm(seen[a] - seen[b]) >= 15, (a, b)


def javascript(expression):
    """The value of an expression with the functions of scripts/page.js; without Node.js: skip."""
    node = shutil.which("node")
    if not node:
        pytest.skip("Node.js is not here: the arithmetic of scripts/page.js is not checked")
    program = page.SCRIPT.read_text(encoding="utf-8")
    program += f"console.log(JSON.stringify({expression}));"
    done = subprocess.run([node, "-"], input=program, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


PROBLEM = {"A": [[2, 1], [1, 2]], "a": [1, 0], "M": [[1, 0], [0, 3]], "b": [0, 1]}
PROBLEM |= {"other": [0.7, 0.5]}
ALPHAS, TERMS = [0, 0.1, 0.3, 0.6, 0.9, 1], [1, 5, 40]


@pytest.mark.parametrize("outer", ["training", "held-out"])
def test_the_parabolas_to_play_with_are_eq_3(outer, made):
    """v, c and both values of Eq. 3, exact and by K terms, are those of bilevel.hypergradient; the
    problem is the page's own."""
    shown = json.loads(re.search(r'<metadata id="problem">(.*?)</metadata>', made)[1])
    assert {key: shown[key] for key in PROBLEM} == PROBLEM
    cases = list(itertools.product(ALPHAS, TERMS))
    calls = [f"eq3({json.dumps(PROBLEM)}, {a}, {outer!r}, {k}, 0.1)" for a, k in cases]
    A, a, M, b, other = (torch.tensor(PROBLEM[k], dtype=torch.float64) for k in PROBLEM)
    for (alpha, terms), found in zip(cases, javascript(f"[{', '.join(calls)}]")):
        H, right = (1 - alpha) * A + alpha * M, (1 - alpha) * A @ a + alpha * M @ b
        theta = torch.linalg.solve(H, right).requires_grad_()

        def inner():
            return (theta - a) @ A @ (theta - a) / 2, (theta - b) @ M @ (theta - b) / 2

        def level():
            return inner()[0] if outer == "training" else (theta - other) @ A @ (theta - other) / 2

        exact, _ = hypergradient(level, inner, [theta], alpha, "cg", 2)
        series, _ = hypergradient(level, inner, [theta], alpha, "neumann", terms, 0.1)
        assert found["theta"] == pytest.approx(theta.tolist())
        assert found["l_cls"] == pytest.approx(level().item(), abs=1e-12)
        if exact is not None:  # v = 0: cg has nothing to do
            assert found["exact"] == pytest.approx(exact, abs=1e-9)
        assert found["series"] == pytest.approx(series, abs=1e-9)
        (v,) = torch.autograd.grad(level(), theta)
        assert found["v"] == pytest.approx(v.tolist(), abs=1e-9)


def test_the_matrix_to_play_with_is_l_mm():
    """Of four pairs at an angle, for several temperatures."""
    cases = list(itertools.product([0, 20, 60, 90], [0.05, 0.5, 2]))
    calls = [f"matching(similarities({degrees}), {tau})" for degrees, tau in cases]
    for (degrees, tau), found in zip(cases, javascript(f"[{', '.join(calls)}]")):
        angle, one = math.radians(degrees), torch.eye(4).double()
        turned = one * math.cos(angle) + one.roll(1, 1) * math.sin(angle)
        assert found == pytest.approx(modality_matching_loss([one, turned], tau).item())
    z = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)).double()
    found = javascript(f"matching({similarity(*z).tolist()}, 0.5)")  # its rows and columns differ
    assert found == pytest.approx(modality_matching_loss([*z], 0.5).item())
    expected = similarity(one, turned).flatten().tolist()
    assert javascript("similarities(90).flat()") == pytest.approx(expected, abs=1e-12)


def test_the_series_to_play_with_is_neumann():
    """Its weight of a curvature h is neumann's value where H = h and v = c = 1."""
    cases = list(itertools.product([0.1, 1, 3.5], [1, 5, 40], [0.1, 0.5]))
    calls = [f"weight({h}, {terms}, {step})" for h, terms, step in cases]
    one = [torch.ones(1).double()]
    for (h, terms, step), found in zip(cases, javascript(f"[{', '.join(calls)}]")):
        value, _ = neumann(lambda u: [h * u[0]], one, one, terms, step, 0)
        assert found == pytest.approx(float(value))


def test_a_formula_says_the_meaning_of_its_symbol():
    """As the title of the element around it, as long as the pointer is on the symbol."""
    program = """() => {
        const around = { removeAttribute(name) { delete this[name]; } };
        const symbol = { className: "C", closest: () => ({ parentElement: around }) };
        globalThis.document = { querySelector: (place) => ({ title: place }) };
        point({ target: { closest: () => symbol } });
        const shown = around.title;
        point({ target: { closest: () => null } });
        return [shown, "title" in around];
    }"""
    assert javascript(f"({program})()") == [".C[title]", False]


def test_the_script_begins_where_the_page_is(made):
    """Each arrow, slope and dot is drawn by the script where the page has it without a script."""
    problem = re.search(r'<metadata id="problem">(.*?)</metadata>', made)[1]
    now = javascript(f"eq3({problem}, 0.9, 'training', 5, 0.1)")
    frames, theta = json.loads(problem), now["theta"]
    tip = [x + frames["reach"] * c for x, c in zip(theta, now["c"])]
    ends = [[0.9 + d, now["l_cls"] + d * now["exact"]] for d in (-0.15, 0.15)]
    drawn = {"theta": ("plane", [theta, theta]), "arrow-c": ("plane", [theta, tip])}
    drawn |= {"slope-exact": ("chart", ends)}
    for name, (frame, pairs) in drawn.items():
        points = javascript(f"to({frames[frame]}, {pairs})")
        numbers = [float(x) for x in re.split("[ ,]", points)]
        shown = re.search(rf'id="{name}" points="([^"]*)"', made)[1]
        assert [float(x) for x in re.split("[ ,]", shown)] == pytest.approx(numbers, abs=0.11)
