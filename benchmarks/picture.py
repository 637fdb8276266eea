"""Pictures and a page of what peers.py measured.

``python benchmarks/picture.py FIGURES.json FOLDER`` draws them again.
"""

import argparse
import html
import json
import math
import sys
from pathlib import Path

if not __package__:  # started as a file: Python put this folder on the path
    sys.path[0] = str(Path(__file__).parents[1])

from benchmarks import tables
from benchmarks.engines import ENGINES

COLUMNS = 3  # panels side by side
PALETTE = ("black", "#4477aa", "#228833", "#ee6677", "#aa3377", "#cc9911")
COLORS = dict(zip(ENGINES, PALETTE, strict=True))
STYLE = """
body { font: 15px/1.5 sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem }
img { max-width: 100% }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { padding: .15rem .6rem; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
"""


def parts(results):
    """Return ``{(what, dtype): {family: rows}}``."""
    found = {}
    for row in results:
        families = found.setdefault((row["what"], row["dtype"]), {})
        families.setdefault(row["family"], []).append(row)
    return found


def draw(report, folder):
    """Write a PNG per part and ``index.html`` into a folder; return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    body = [f"<h1>numbagru and other engines</h1><p>{html.escape(report['machine'])}"]
    versions = ", ".join(f"{name} {v}" for name, v in report["versions"].items())
    body.append(f"<p>{html.escape(versions)}; instructions: {report['isa']}")
    body += [f"<p>({engine}) is not held to them." for engine in report["aside"]]
    body.append(table_of(tables.roof_table(report["roofline"])))
    for (what, dtype), families in parts(report["results"]).items():
        name = f"{what}_{dtype}.png"
        draw_part(f"{what} {dtype}", families, report["aside"], folder / name)
        rows = [row for family in families.values() for row in family]
        body.append(f"<h2>{what} {dtype}</h2><p>{tables.verdict(rows)}")
        body.append(f"<p><img src='{name}' alt='{what} {dtype}'>")
        engines = [e for e in ENGINES if any(e in row["ms"] for row in rows)]
        for family, rows in families.items():
            comparison = tables.comparison(rows, engines, report["aside"])
            body.append(f"<h3>{family}</h3>{table_of(comparison)}")
    page = folder / "index.html"
    head = "<!doctype html><meta charset=utf-8><title>numbagru: speed</title>"
    page.write_text(f"{head}<style>{STYLE}</style>{' '.join(body)}", encoding="utf-8")
    return page


def table_of(markdown):
    """Return a Markdown table as HTML."""
    head, _, *rows = (
        [html.escape(text.strip()) for text in line.strip("|").split("|")]
        for line in markdown.splitlines()
    )
    lines = ["".join(f"<th>{text}" for text in head)]
    lines += ["".join(f"<td>{text}" for text in row) for row in rows]
    return f"<table>{''.join(f'<tr>{line}' for line in lines)}</table>"


def relative(row):
    """Return each engine's time over numbagru's, without those that are missing."""
    ours = row["ms"].get("numbagru", math.nan)
    times = {engine: ms / ours for engine, ms in row["ms"].items()}
    return {e: t for e, t in times.items() if e != "numbagru" and not math.isnan(t)}


def draw_part(title, families, aside, path):
    """Draw one panel per family: each engine's time over numbagru's, shape by shape."""
    from matplotlib.figure import Figure  # with no pyplot, nothing opens a display

    columns = min(COLUMNS, len(families))
    sizes = [len(rows) for rows in families.values()]
    heights = [max(sizes[i : i + columns]) for i in range(0, len(sizes), columns)]
    size = 1 + 4.4 * columns, 1.2 + 0.33 * sum(heights) + 0.8 * len(heights)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(
        len(heights), columns, squeeze=False, sharex=True, height_ratios=heights
    )
    drawn = {}
    for panel, (family, rows) in zip(grid.flat, families.items(), strict=False):
        panel.set_title(family, fontsize=11)
        drawn |= draw_panel(panel, rows, aside)
    for panel in grid.flat[len(families) :]:
        panel.set_visible(False)
    panel = grid.flat[0]
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter("{x:g}")
    least, most = panel.get_xlim()
    panel.set_xlim(min(least, 0.5), max(most, 2))
    for panel in grid.flat:
        panel.axvspan(panel.get_xlim()[0], 1, color="#cc3311", alpha=0.1, linewidth=0)
    figure.legend(
        drawn.values(), drawn, loc="outside lower center", ncols=6, frameon=False
    )
    figure.suptitle(f"{title}: time of each engine / time of numbagru")
    figure.savefig(path, dpi=110)


def draw_panel(panel, rows, aside):
    """Draw the shapes of a family, the first on top; return a mark by engine."""
    drawn = {}
    for place, row in enumerate(rows):
        for engine, time in relative(row).items():
            color = COLORS[engine]
            face = "white" if engine in aside else color
            (drawn[engine],) = panel.plot(
                time, place, "o", color=color, markerfacecolor=face, alpha=0.9
            )
    panel.axvline(1, color=COLORS["numbagru"], linewidth=1)
    panel.set_yticks(range(len(rows)), [row["shape"] for row in rows])
    panel.set_ylim(len(rows) - 0.5, -0.5)
    panel.tick_params(labelbottom=True)
    panel.grid(axis="x", alpha=0.3)
    return drawn


def with_nan(value):
    """Return a copy with NaN for None: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: with_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [with_nan(item) for item in value]
    return math.nan if value is None else value


def load(path):
    """Return the report that peers.py wrote."""
    report = json.loads(path.read_text(encoding="utf-8"))
    return report | {"results": with_nan(report["results"])}


def main():
    """Draw figures from a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figures", type=Path, help="what peers.py --json wrote")
    parser.add_argument("folder", type=Path, help="where the page goes")
    options = parser.parse_args()
    print(draw(load(options.figures), options.folder))


if __name__ == "__main__":
    main()
