"""What MkDocs asks on the way from docs/ to the site (`hooks:` in mkdocs.yml).

The pages link to files outside of docs/ as a repository host shows them, `../benchmarks/x.py`.
The site has no such host, so that it reads the same offline: each of these files becomes a page
or a file of the site. CHANGELOG.md and CONTRIBUTING.md become pages of it too.
"""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
_OUTSIDE = re.compile(r"\]\(\.\./([^)#\s]+)(#[^)\s]*)?\)")
_RELATIVE = re.compile(r"\]\(([^)#\s:]+)(#[^)\s]*)?\)")
_ROOT_PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
_LANGUAGES = {".py": "python", ".toml": "toml", ".yml": "yaml", ".yaml": "yaml", ".cff": "yaml"}


def on_files(files: Files, config: Any) -> Files:
    """Add the files that the pages link to."""
    outside = set()
    for page in files.documentation_pages():
        outside |= {match[0] for match in _OUTSIDE.findall(page.content_string)}
    for name in [name for name in outside if name.endswith(".md") and (ROOT / name).is_file()]:
        outside |= _linked_by(ROOT / name)
    for name in sorted(outside - {*_ROOT_PAGES, "README.md"}):
        path = ROOT / name
        if not path.exists():
            continue  # the link stays as it is, and fails the strict build
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if not file.is_file() or "__pycache__" in file.parts:
                continue
            if files.get_file_from_path(_place(file)) is None:  # as part of a folder
                files.append(_generated(file, config))
        if path.is_dir():
            files.append(File.generated(config, f"source/{name}/index.md", content=_listing(path)))
    for name, page in _ROOT_PAGES.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        text = re.sub(r"\]\(docs/", "](", text)
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead links out of docs/ to where the site has those files."""
    uri = page.file.src_uri
    if uri.startswith("source/") and (ROOT / uri.removeprefix("source/")).is_file():
        return _from_outside(markdown, uri)
    if "/" in uri:
        return markdown

    def target(match: re.Match[str]) -> str:
        name, anchor = match[1].rstrip("/"), match[2] or ""
        if name == "README.md":
            return f"](index.md{anchor})"
        if name in _ROOT_PAGES:
            return f"]({_ROOT_PAGES[name]}{anchor})"
        path = ROOT / name
        if not path.exists():
            return match[0]
        return f"](source/{name}/index.md)" if path.is_dir() else f"]({_place(path)}{anchor})"

    return _OUTSIDE.sub(target, markdown)


def _linked_by(page: Path) -> set[str]:
    """What a Markdown file outside of docs/ links to, and docs/ does not hold."""
    found = (page.parent / match[0] for match in _RELATIVE.findall(page.read_text("utf-8")))
    names = {Path(os.path.relpath(path, ROOT)).as_posix() for path in found if path.exists()}
    return {name for name in names if not name.startswith("docs/")}


def _from_outside(markdown: str, uri: str) -> str:
    """The links of a Markdown file outside of docs/, as the site has their targets."""
    folder = (ROOT / uri.removeprefix("source/")).parent

    def target(match: re.Match[str]) -> str:
        path = (folder / match[1]).resolve()
        if not path.exists():
            return match[0]  # and fails the strict build
        name = path.relative_to(ROOT).as_posix()
        if name == "README.md":
            place = "index.md"
        elif name.startswith("docs/"):
            place = name.removeprefix("docs/")
        elif path.is_dir():
            place = f"source/{name}/index.md"
        else:
            place = _ROOT_PAGES.get(name) or _place(path)
        return f"]({os.path.relpath(place, Path(uri).parent)}{match[2] or ''})"

    return _RELATIVE.sub(target, markdown)


def _place(path: Path) -> str:
    """Where the site has a file of the repository: sources as pages, data as it is."""
    # MkDocs leaves out whatever begins with a dot.
    name = path.relative_to(ROOT).as_posix().replace("/.", "/_")
    return f"source/{name}.md" if path.suffix in _LANGUAGES else f"source/{name}"


def _generated(path: Path, config: Any) -> File:
    place = _place(path)
    if not place.endswith(".md") or path.suffix == ".md":
        return File.generated(config, place, abs_src_path=str(path))
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(ROOT).as_posix()
    fence = f"~~~~{_LANGUAGES[path.suffix]}\n{text.rstrip()}\n~~~~\n"
    # A page of code would drown the search.
    return File.generated(
        config, place, content=f"---\nsearch:\n  exclude: true\n---\n# `{name}`\n\n{fence}"
    )


def _listing(folder: Path) -> str:
    name = folder.relative_to(ROOT).as_posix()
    lines = [f"# `{name}`", ""]
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            inside = path.relative_to(folder).as_posix()
            place = Path(_place(path)).relative_to(f"source/{name}").as_posix()
            lines.append(f"- [`{inside}`]({place})")
    return "\n".join(lines) + "\n"
