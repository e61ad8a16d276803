"""Check a built site: `python tools/check_site.py site`, in `nox -s docs_site`.

Every link and resource of every page leads to a file of the site, to an anchor that is there too;
nothing is loaded from another host; every page is reached from the first one; and what a screen
reader needs is there: a language, a title, one main heading, no heading that skips a level, texts
for images, buttons and links, and header cells of tables.
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser loads by itself, by tag and attribute.
_LOADED = {
    ("script", "src"),
    ("img", "src"),
    ("iframe", "src"),
    ("source", "src"),
    ("video", "src"),
    ("audio", "src"),
    ("object", "data"),
}
_LOADED_LINKS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "dns-prefetch"}
_CSS_URL = re.compile(r"(?:url\(|@import\s*)\s*['\"]?\s*((?:https?:)?//[^'\")\s]+)")
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")


class Page(HTMLParser):
    """What is to be known of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.problems: list[str] = []
        self.links: list[str] = []  # to follow
        self.loaded: list[str] = []
        self.ids: set[str] = set()
        self.language = ""
        self.title = ""
        self.headings: list[int] = []
        self._open: list[tuple[str, dict[str, str]]] = []
        self._names: list[tuple[int, str, str]] = []  # of links and buttons, with what names them
        self._tables: list[bool] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note links, resources and anchors."""
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            if given["id"] in self.ids:
                self.problems.append(f"the id {given['id']!r} is there twice")
            self.ids.add(given["id"])
        if tag == "html":
            self.language = given.get("lang", "")
        for name, value in given.items():
            if (tag, name) in _LOADED:
                self.loaded.append(value)
        if tag == "link" and _LOADED_LINKS & {*given.get("rel", "").split()}:
            self.loaded.append(given.get("href", ""))
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "img":
            if not given.get("alt", "").strip():
                self.problems.append(f"the image {given.get('src')!r} has no alt text")
            self._named(given.get("alt", ""))
        if tag in _HEADINGS:
            self.headings.append(int(tag[1]))
        if tag == "meta" and given.get("name") == "viewport":
            content = given.get("content", "").replace(" ", "")
            if "user-scalable=no" in content or "maximum-scale" in content:
                self.problems.append("the viewport forbids zooming")
        if tag == "table":
            self._tables.append(False)
        if tag == "th" and self._tables:
            self._tables[-1] = True
        if (tag == "a" and "href" in given) or tag == "button":
            name = given.get("aria-label", "") or given.get("title", "")
            self._names.append((len(self._open), f"<{tag} {given.get('href', '')}>", name))
        if tag not in ("meta", "link", "img", "br", "hr", "input", "source", "wbr", "path", "use"):
            self._open.append((tag, given))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """As a tag that opens and closes."""
        depth = len(self._open)
        self.handle_starttag(tag, attrs)
        del self._open[depth:]

    def handle_endtag(self, tag: str) -> None:
        """Close what is open, and judge tables, links and buttons that end here."""
        while any(name == tag for name, _ in self._open):
            closed, _ = self._open.pop()
            if closed == "table" and self._tables and not self._tables.pop():
                self.problems.append("a table has no header cells")
            while self._names and self._names[-1][0] >= len(self._open):
                _, what, name = self._names.pop()
                if not name.strip():
                    self.problems.append(f"{what} has no text")
            if closed == tag:
                break

    def handle_data(self, data: str) -> None:
        """Texts name the page, and the link or button around them."""
        if self._open and self._open[-1][0] == "title" and len(self._open) < 4:
            self.title += data
        self._named(data)

    def _named(self, text: str) -> None:
        self._names = [(depth, what, name + text) for depth, what, name in self._names]

    def judge(self) -> list[str]:
        """What is wrong with the page by itself."""
        found = [*self.problems]
        if not self.language:
            found.append("no language on <html>")
        if not self.title.strip():
            found.append("no title")
        if self.headings.count(1) != 1:
            found.append(f"{self.headings.count(1)} main headings in place of one")
        for above, below in zip(self.headings, self.headings[1:], strict=False):
            if below > above + 1:
                found.append(f"a heading of level {below} follows one of level {above}")
        found += [f"loads {url} from another host" for url in self.loaded if _elsewhere(url)]
        return found


def _elsewhere(url: str) -> bool:
    return bool(urlsplit(url).netloc)


def check(site: Path) -> list[str]:
    """Every problem, as `page: what`."""
    # Served for whatever is not there, so its links begin at the root of some host.
    paths = [path for path in sorted(site.rglob("*.html")) if path != site / "404.html"]
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in paths}
    found, reached = [], {(site / "index.html").resolve()}
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        found += [f"{name}: {problem}" for problem in page.judge()]
        for url in [*page.links, *page.loaded]:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                if url in page.links and parts.scheme not in ("https", "http", "mailto"):
                    found.append(f"{name}: {url} is no link of the web")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target = target / "index.html"
            if not target.is_file():
                found.append(f"{name}: {url} leads nowhere")
            elif target in pages:
                if target != path:
                    reached.add(target)
                anchor = unquote(parts.fragment)
                if anchor and anchor not in pages[target].ids:
                    found.append(f"{name}: {url} has no such anchor")
    found += [
        f"{path.relative_to(site.resolve())}: no page links to it"
        for path in pages
        if path not in reached
    ]
    for style in sorted(site.rglob("*.css")):
        urls = _CSS_URL.findall(style.read_text(encoding="utf-8"))
        found += [f"{style.relative_to(site)}: loads {url} from another host" for url in urls]
    if not pages:
        found.append(f"{site}: no page")
    return found


if __name__ == "__main__":
    problems = check(Path(sys.argv[1]))
    print(*problems, sep="\n")
    sys.exit(f"{len(problems)} problems" if problems else 0)
