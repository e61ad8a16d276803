"""The page of an agreement report."""

import math
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from multibackend_lstm.agreement import Comparison, Finding, Report
from multibackend_lstm.agreement.report import TargetResult

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

READY = {
    "device": "CPU <0>",
    "versions": {"keras": "3.15.1", "jax": "0.10", "torch": "2.13"},
    "precision": {"TF32": "off"},
    "set_switches": {"allow_tf32": "False"},
}


def comparison(kind, path, score=1.0, verdict="agrees", **more):
    return Comparison(
        kind, path, verdict, score, rms=1e-7, max_absolute=2e-7, max_relative=3e-6, max_ulp=4.0,
        nan=(5, 6), worst=(1, 2), values=(1.25, 1.5), shape=(2, 3), **more,
    )  # fmt: skip


@pytest.fixture
def report():
    settings = {"precision": "strict", "dtype": None, "twins": 8, "seed": 3}
    settings["training"] = {"steps": 2, "optimizer": "adam", "loss": "mse"}
    off = [
        comparison("layer", "<lstm>", 2e3, "disagrees"),
        comparison("output", "0", math.inf, "disagrees", problem="NaN or infinity on one side"),
        Comparison("loss", "of each step", "disagrees", math.inf, "the tensor is missing"),
    ]
    results = [
        TargetResult("jax@cpu", READY, [replace(c, score=0.0, verdict="agrees") for c in off]),
        TargetResult("torch@cpu", READY, off, distances={1: 1e-6, 2: 1e-5}),
        TargetResult("tensorflow@gpu", failed={"target": "it sees <no> gpu"}),
    ]
    known = {"title": "pooling", "upstream": "https://github.com/keras-team/keras/pull/1"}
    findings = [
        Finding("torch@cpu", "disagrees", "layers", "torch@cpu is <off>", known=known),
        Finding("tensorflow@gpu", "failed", "target", "tensorflow@gpu: it sees <no> gpu"),
    ]
    twins = {1: (1e-8, 2e-8), 2: (1e-7, 2e-7)}
    return Report("<b>model</b>", "float64 here", True, settings, results, findings, twins)


class _Balance(HTMLParser):
    """That every element is closed, and nothing comes from elsewhere."""

    def __init__(self):
        super().__init__()
        self.open = []
        self.fetched = []

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "br", "link", "img"):
            self.open.append(tag)
        names = dict(attributes)
        self.fetched += [names[key] for key in ("src",) if key in names]
        self.fetched += [tag] if tag in ("link", "script") else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def text_of(page):
    assert "<svg" in page or "Score of every tensor" not in page
    parser = _Balance()
    parser.feed(page)
    assert parser.open == []
    assert parser.fetched == []
    return page


def test_a_page_shows_all_of_a_report(report):
    page = text_of(report.to_html())
    assert page.count("<svg") == 2
    assert page.index("Findings") < page.index("Scores") < page.index("Every tensor")
    for words in (
        "Disagrees: torch@cpu.",
        "torch@cpu is &lt;off&gt;",
        'href="https://github.com/keras-team/keras/pull/1"',
        "2e+03",
        "∞",
        "NaN or infinity on one side",
        "the tensor is missing",
        "5 / 6",
        "allow_tf32 = False",
        "it sees &lt;no&gt; gpu",
        "did not start",
        "2 training\nsteps with adam",
        "&lt;b&gt;model&lt;/b&gt;",
    ):
        assert words in page, words
    assert "<b>model" not in page
    # Only the target's own backend among the versions.
    assert page.count("torch 2.13<br>") == page.count("jax 0.10<br>") == 1


def test_a_page_is_the_same_from_the_same_report(report):
    assert report.to_html() == report.to_html()


def test_a_page_of_a_target_that_never_started(report):
    report.results = report.results[2:]
    report.settings["training"] = None
    report.settings["resolution"] = "there is no float64"
    page = text_of(report.to_html())
    assert "<svg" not in page
    assert "there is no float64" in page


def test_many_targets_and_steps(report):
    report.results = [replace(report.results[1], target=f"torch@{i}") for i in range(5)]
    report.twins = {step: (1e-8 * step, 2e-8 * step) for step in (1, 2, 10, 100)}
    page = text_of(report.to_html())
    assert all(re.search(f">torch@{i}<", page) for i in range(5))


def test_the_extra_is_named_where_it_is_missing(report, monkeypatch):
    for name in ("multibackend_lstm.agreement.page", "multibackend_lstm.pages"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"matplotlib.*pip install 'multibackend-lstm\[plot\]'"):
        report.to_html()


def test_a_finding_unfolds_to_the_operations_inside_of_its_layer(report):
    dense = comparison("layer alone", "dense", 99.0, "disagrees", layer="dense", worst_score=412.0)
    matmul = comparison("layer alone", "1 <Matmul>", 98.0, "disagrees", worst_score=77.0)
    report.results[0].comparisons.append(dense)
    report.results[0].opened["dense"] = [matmul]
    report.findings.append(Finding("jax@cpu", "disagrees", "layers alone", "dense", "dense"))
    page = text_of(report.to_html())
    assert page.count("Operations inside of the layer") == 1
    findings, tensors = page.split("<h2>Scores</h2>")
    assert "1 &lt;Matmul&gt;" in findings
    assert ">77<" in findings
    assert ">412<" in tensors
