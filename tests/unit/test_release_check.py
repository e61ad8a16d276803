"""`tools/check_release.py` finds what stands in the way of a release."""

import re
import runpy
from pathlib import Path

import pytest

import multibackend_lstm

ROOT = Path(__file__).parents[2]
problems = runpy.run_path(ROOT / "tools" / "check_release.py")["problems"]
VERSION = multibackend_lstm.__version__
FILES = ("pyproject.toml", "multibackend_lstm/__init__.py", "CITATION.cff", "CHANGELOG.md")


@pytest.fixture
def ready(tmp_path):
    """This repository's files, with a changelog as on the day of a release."""
    (tmp_path / "multibackend_lstm").mkdir()
    for name in FILES:
        (tmp_path / name).write_text((ROOT / name).read_text("utf-8"), "utf-8")
    changelog = tmp_path / "CHANGELOG.md"
    changelog.write_text(f"# Changelog\n\n## [Unreleased]\n\n## [{VERSION}] - 2026-12-01\n")
    return tmp_path


def test_every_place_names_the_same_version(ready):
    assert problems(VERSION, ready) == []


@pytest.mark.parametrize("name", FILES)
def test_another_version_is_found(ready, name):
    text = (ready / name).read_text("utf-8")
    (ready / name).write_text(text.replace(VERSION, "9.9.9"), "utf-8")
    assert [line for line in problems(VERSION, ready) if name in line]


def test_a_section_without_a_date_is_found(ready):
    changelog = ready / "CHANGELOG.md"
    changelog.write_text(re.sub(r" - \d.*", " (soon)", changelog.read_text()))
    assert problems(VERSION, ready)[0].startswith("CHANGELOG.md has no section")


def test_what_is_no_version_is_refused(ready):
    assert problems("v1", ready) == ["a version is such as 1.2.3 or 1.2.3rc1. Received 'v1'"]


def test_the_changelog_is_kept():
    """By Keep a Changelog: what comes next on top, and its kinds of change alone."""
    lines = (ROOT / "CHANGELOG.md").read_text("utf-8").splitlines()
    sections = [line for line in lines if line.startswith("## ")]
    assert sections[0] == "## [Unreleased]"
    assert all(re.fullmatch(r"## \[[\d.abrc]+\] - \d{4}-\d\d-\d\d", line) for line in sections[1:])
    kinds = {line[4:] for line in lines if line.startswith("### ")}
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
