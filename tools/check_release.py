"""Is a version ready to be built? `python tools/check_release.py 0.1.0`, in `nox -s release`.

Every place that names the version names this one, the changelog has a dated section of it, and
everything is committed.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def problems(version: str, root: Path = ROOT) -> list[str]:
    """What stands in the way, apart from git."""
    if not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", version):
        return [f"a version is such as 1.2.3 or 1.2.3rc1. Received {version!r}"]
    places = {
        "pyproject.toml": tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"][
            "version"
        ],
        "multibackend_lstm/__init__.py": _find(
            root / "multibackend_lstm" / "__init__.py", r'^__version__ = "(.+)"$'
        ),
        "CITATION.cff": _find(root / "CITATION.cff", r"^version: (.+)$"),
    }
    found = [
        f"{place} names {named}, not {version}"
        for place, named in places.items()
        if named != version
    ]
    changelog = (root / "CHANGELOG.md").read_text("utf-8")
    section = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d{{2}}-\d{{2}}$"
    if not re.search(section, changelog, re.MULTILINE):
        found.append(f"CHANGELOG.md has no section '## [{version}] - YEAR-MONTH-DAY'")
    return found


def _find(path: Path, pattern: str) -> str | None:
    match = re.search(pattern, path.read_text("utf-8"), re.MULTILINE)
    return match[1] if match else None


def uncommitted(root: Path = ROOT) -> list[str]:
    """What git would leave out of the release."""
    command = ["git", "status", "--porcelain"]
    lines = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    return [f"not committed: {line}" for line in lines.splitlines()]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tools/check_release.py VERSION")
    if problem := [*problems(sys.argv[1]), *uncommitted()]:
        sys.exit("\n".join(problem))
