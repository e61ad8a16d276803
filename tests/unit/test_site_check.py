"""`tools/check_site.py` finds what is wrong with a page, and nothing in a good one."""

import runpy
from pathlib import Path

import pytest

check = runpy.run_path(Path(__file__).parents[2] / "tools" / "check_site.py")["check"]

GOOD = """<!doctype html><html lang="en"><head><title>A page</title>
<meta name="viewport" content="width=device-width,initial-scale=1">
<link rel="stylesheet" href="a.css"><script src="a.js"></script></head>
<body><h1 id="top">A page</h1><h2 id="part">A part</h2><p><a href="other.html#part">Other</a>
<a href="#part"><svg></svg>here</a> <a href="https://keras.io">Keras</a></p>
<img src="a.svg" alt="Axes"><a href="other.html"><img src="a.svg" alt="Axes"></a>
<button aria-label="Copy"></button>
<table><thead><tr><th>a</th></tr></thead><tbody><tr><td>1</td></tr></tbody></table></body></html>
"""


def write(folder, page, style="p { background: url(a.svg) }"):
    (folder / "index.html").write_text(page)
    (folder / "other.html").write_text(GOOD)
    (folder / "a.css").write_text(style)
    for name in ("a.js", "a.svg"):
        (folder / name).write_text("")


def test_a_good_site_passes(tmp_path):
    write(tmp_path, GOOD)
    assert check(tmp_path) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("other.html#part", "missing.html", "missing.html leads nowhere"),
        ("other.html#part", "other.html#gone", "#gone has no such anchor"),
        ('href="#part"', 'href="#gone"', "#gone has no such anchor"),
        ('src="a.js"', 'src="https://unpkg.com/a.js"', "from another host"),
        ('src="a.js"', 'src="//unpkg.com/a.js"', "from another host"),
        ('href="a.css"', 'href="https://fonts.googleapis.com/css"', "from another host"),
        ('src="a.svg"', 'src="b.svg"', "b.svg leads nowhere"),
        (' alt="Axes"', "", "has no alt text"),
        ('lang="en"', "", "no language"),
        ("<title>A page</title>", "<title></title>", "no title"),
        ("<h1", "<p", "0 main headings"),
        ("<h2 id", "<h1 id", "2 main headings"),
        ("<h2 id", "<h3 id", "level 3 follows one of level 1"),
        (' aria-label="Copy"', "", "<button > has no text"),
        ("</svg>here", "</svg>", "<a #part> has no text"),
        ("<th>a</th>", "<td>a</td>", "no header cells"),
        ('id="part"', 'id="top"', "'top' is there twice"),
        ("initial-scale=1", "user-scalable=no", "forbids zooming"),
        ("https://keras.io", "javascript:void(0)", "no link of the web"),
    ],
)
def test_each_problem_is_found(tmp_path, old, new, problem):
    assert old in GOOD
    write(tmp_path, GOOD.replace(old, new))
    assert any(problem in line for line in check(tmp_path))


def test_a_page_that_nothing_links_to_is_found(tmp_path):
    write(tmp_path, GOOD)
    (tmp_path / "alone.html").write_text(GOOD)
    assert check(tmp_path) == ["alone.html: no page links to it"]


def test_styles_from_elsewhere_are_found(tmp_path):
    write(tmp_path, GOOD, style="@import 'https://example.com/a.css';")
    assert check(tmp_path) == ["a.css: loads https://example.com/a.css from another host"]
