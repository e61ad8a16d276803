"""Open every page of a built site in Chromium: `nox -s docs_site -- --browser [--pictures out]`.

At the width of a desk and of a phone, light and dark, read from files as from a server. A page
fails that writes an error to the console, asks another host for anything, is wider than the
screen, or has text whose contrast with its ground is below 4.5 to 1 (3 to 1 where it is large), as
WCAG 2.1 AA wants it. Then the search must find something, and a table must sort.
"""

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

WIDTHS = {"desk": 1280, "phone": 400}

# The texts that can be seen and are too faint, once each by their colours.
FAINT = """
() => {
  const rgb = (colour) => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const known = new Map();
  const parse = (colour) => {
    if (!known.has(colour)) known.set(colour, rgb(colour));
    return known.get(colour);
  };
  const over = (top, below) => top.slice(0, 3).map((c, i) => c * top[3] + below[i] * (1 - top[3]));
  const ground = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour[3] > 0) layers.push(colour);
      if (colour[3] === 1) break;
    }
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const luminance = (colour) => {
    const [r, g, b] = colour.map((c) => {
      const s = c / 255;
      return s <= 0.03928 ? s / 12.92 : ((s + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = new Map();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.textContent.trim();
    const element = walker.currentNode.parentElement;
    if (!text || !element.checkVisibility({ opacityProperty: true, visibilityProperty: true })) {
      continue;
    }
    const style = getComputedStyle(element);
    const box = element.getBoundingClientRect();
    if (style.clip !== "auto" || box.width < 2 || box.height < 2) continue;
    const below = ground(element);
    const colour = over(parse(style.color), below);
    const [dark, bright] = [luminance(colour), luminance(below)].sort((a, b) => a - b);
    const ratio = (bright + 0.05) / (dark + 0.05);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && parseInt(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) {
      const place = `${element.tagName.toLowerCase()}.${element.className}`;
      found.set(`${style.color} on ${below.map(Math.round)}`,
        `contrast ${ratio.toFixed(2)} of ${JSON.stringify(text.slice(0, 30))} in ${place}`);
    }
  }
  return [...found.values()];
}
"""


def look(page: Page, address: str, pictures: Path | None, label: str) -> list[str]:
    """What is wrong with one page at one width in one scheme."""
    found: list[str] = []
    listeners = {
        "console": lambda message: message.type == "error" and found.append(message.text),
        "pageerror": lambda error: found.append(str(error)),
        "request": lambda request: (
            not request.url.startswith(("file:", "data:", "blob:"))
            and found.append(f"asks for {request.url}")
        ),
        "requestfailed": lambda request: found.append(f"cannot read {request.url}"),
    }
    for event, listener in listeners.items():
        page.on(event, listener)  # type: ignore[call-overload]
    page.goto(address)
    page.wait_for_timeout(50)
    wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    if wide > 0:
        found.append(f"{wide} px wider than the screen")
    found += page.evaluate(FAINT)
    if pictures:
        page.screenshot(path=pictures / f"{label}.png")
    for event, listener in listeners.items():
        page.remove_listener(event, listener)
    return found


def search(page: Page, address: str) -> list[str]:
    """Whether the search answers, with nothing but files."""
    page.goto(address)
    page.keyboard.press("/")
    page.keyboard.type("lengths")
    try:
        page.wait_for_selector(".md-search-result__item", timeout=10_000)
    except Exception as error:  # reported as what it is, a page that fails
        return [f"the search for 'lengths' finds nothing: {error}".splitlines()[0]]
    return []


def sort(page: Page, address: str) -> list[str]:
    """Whether a click on a heading sorts the table."""
    page.goto(address)
    buttons = page.locator("th button.sort")
    if not buttons.count():
        return ["no table can be sorted"]
    column = "[...document.querySelectorAll('tbody')].map(b => b.rows[0].cells[0].innerText)[0]"
    buttons.first.click()
    first = page.evaluate(column)
    buttons.first.click()
    return [] if page.evaluate(column) != first else ["a click on a heading changes nothing"]


def main() -> None:
    """Open all pages, and end by 1 if something is wrong with one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("site", type=Path)
    parser.add_argument("--pictures", type=Path, help="a folder for a picture of each page")
    parser.add_argument("--only", default="", help="pages with this in the name")
    options = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        sys.exit("no chromium and no google-chrome on PATH: install one, or leave out --browser")
    site = options.site.resolve()
    paths = [p for p in sorted(site.rglob("*.html")) if p.name != "404.html"]
    paths = [p for p in paths if options.only in str(p.relative_to(site))]
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
    found: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            for name, width in WIDTHS.items():
                page = browser.new_page(
                    viewport={"width": width, "height": 900},
                    color_scheme=scheme,
                )
                for path in paths:
                    relative = path.relative_to(site)
                    label = f"{str(relative.with_suffix('')).replace('/', '-')}-{name}-{scheme}"
                    problems = look(page, path.as_uri(), options.pictures, label)
                    found += [f"{relative}, {name}, {scheme}: {problem}" for problem in problems]
                page.close()
        page = browser.new_page()
        found += search(page, (site / "index.html").as_uri())
        found += sort(page, (site / "keras_suite.html").as_uri())
        browser.close()
    print(*found, sep="\n")
    sys.exit(f"{len(found)} problems" if found else 0)


if __name__ == "__main__":
    main()
