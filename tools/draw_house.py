"""Draw the house of CONTRIBUTING.md from the imports: `python tools/draw_house.py`.

It writes docs/images/house.svg, and `tests/unit/test_house.py` fails where that is not what the
imports say. A box is a folder of the package, or a file beside them that uses one; a line leads
down to what it imports, within functions and for a type checker too. What follows from other lines
is left out: `cli` imports `layers` by itself, but also through `agreement`.
"""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "multibackend_lstm"
PICTURE = ROOT / "docs" / "images" / "house.svg"

Graph = dict[str, set[str]]

WIDTH, ROW, BOX = 860, 92, 38


def imports(package: Path) -> Graph:
    """For each folder and file of a package, the others that it imports."""
    places = {path.stem for path in package.iterdir() if path.suffix == ".py" or path.is_dir()}
    places -= {"__init__", "__main__", "__pycache__"}
    graph: Graph = {place: set() for place in places}
    for path in sorted(package.rglob("*.py")):
        place = path.relative_to(package).parts[0].removesuffix(".py")
        if place not in graph:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                base = [node.module or ""]
                names = base + [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                top, _, rest = name.partition(".")
                target = rest.partition(".")[0]
                if top == package.name and target in graph and target != place:
                    graph[place].add(target)
    return graph


def below(graph: Graph, place: str) -> set[str]:
    """All that a place imports, directly or not."""
    found: set[str] = set()
    ahead = [*graph[place]]
    while ahead:
        node = ahead.pop()
        if node not in found:
            found.add(node)
            ahead.extend(graph[node])
    return found


def house(graph: Graph, folders: set[str]) -> Graph:
    """Folders and the files that use one, with the lines that do not follow from others."""
    circle = sorted(place for place in graph if place in below(graph, place))
    if circle:
        raise ValueError(f"imports in a circle: {', '.join(circle)}")
    kept = {place for place in graph if place in folders or below(graph, place) & folders}
    graph = {place: graph[place] & kept for place in kept}
    return {
        place: {
            target
            for target in targets
            if not any(target in below(graph, other) for other in targets - {target})
        }
        for place, targets in graph.items()
    }


def floors(graph: Graph) -> list[list[str]]:
    """The places by how many stand below one another, the lowest first; each near what it uses."""
    level: dict[str, int] = {}
    while len(level) < len(graph):
        ready = [p for p in graph if p not in level and graph[p] <= {*level}]
        level |= {p: 1 + max((level[target] for target in graph[p]), default=-1) for p in ready}
    rows: list[list[str]] = [[] for _ in range(1 + max(level.values()))]
    position: dict[str, float] = {}
    for number, row in enumerate(rows):
        members = sorted(place for place in graph if level[place] == number)
        middle = {
            place: sum(position[target] for target in graph[place]) / max(len(graph[place]), 1)
            for place in members
        }
        row.extend(sorted(members, key=lambda place: (round(middle[place], 6), place)))
        position |= {place: (i + 0.5) / len(row) for i, place in enumerate(row)}
    return rows


def draw(package: Path = PACKAGE) -> str:
    """The picture, as SVG."""
    folders = {path.name for path in package.iterdir() if (path / "__init__.py").exists()}
    graph = house(imports(package), folders)
    rows = floors(graph)
    height = ROW * len(rows) + 20
    place_of: dict[str, tuple[float, float, float]] = {}
    for number, row in enumerate(rows):
        y = height - 20 - BOX - number * ROW
        for i, place in enumerate(row):
            wide = 22 + 9 * len(place + "/" * (place in folders))
            place_of[place] = (round(WIDTH * (i + 0.5) / len(row), 1), y, wide)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img">',
        "  <title>The house</title>",
        "  <desc>Folders and files of multibackend_lstm, each above what it imports.</desc>",
        f'  <rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        '  <g stroke="#8b93a5" stroke-width="1.5">',
    ]
    for place in sorted(graph):
        x, y, _ = place_of[place]
        for target in sorted(graph[place]):
            to_x, to_y, _ = place_of[target]
            lines.append(f'    <line x1="{x}" y1="{y + BOX}" x2="{to_x}" y2="{to_y}"/>')
    lines.append("  </g>")
    lines.append('  <g font-family="sans-serif" font-size="16" text-anchor="middle">')
    for row in rows:
        for place in row:
            x, y, wide = place_of[place]
            folder = place in folders
            lines.append(
                f'    <rect x="{x - wide / 2:.1f}" y="{y}" width="{wide}" height="{BOX}" rx="4" '
                f'fill="{"#dbe4f3" if folder else "#f4f5f8"}" stroke="#1f2430"/>'
            )
            text = f"{place}/" if folder else place
            lines.append(f'    <text x="{x}" y="{y + 25}" fill="#1f2430">{text}</text>')
    return "\n".join([*lines, "  </g>", "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
    sys.stdout.write(f"{PICTURE.relative_to(ROOT)} written\n")
