"""What the examples share: their command line, and the tables and words in which they end.

An example is ``python examples/NAME.py [--quick] [--out FOLDER]``. It keeps runs, figures and results in the folder,
uses finished runs again, and ends with `conclude`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Read when JAX and matplotlib start: one thread (examples share a machine), and no screen.
os.environ.setdefault("PJRT_NPROC", "1")
os.environ.setdefault("MPLBACKEND", "agg")

from trajstats.report.page.html import interval_text, provenance

Row = Mapping[str, Any]


def parse(doc: str, file: str) -> argparse.Namespace:
    """Read --quick and --out, and make the folder.

    Parameters
    ----------
    doc : str
        The example's docstring, shown by --help.
    file : str
        The example's ``__file__``: gives the folder's name if none is given, ``runs/NAME``, or ``runs/NAME-quick`` with
        --quick, so that short runs never pass for full ones.

    Returns
    -------
    argparse.Namespace
        ``quick`` (bool), ``out`` (Path), ``began`` (float, for `conclude`).
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, at most a minute on one core")
    parser.add_argument("--out", type=Path, help="folder for runs, figures and results (default: runs/NAME)")
    given = parser.parse_args()
    if given.out is None:
        given.out = Path("runs") / f"{Path(file).stem}{'-quick' if given.quick else ''}"
    given.out.mkdir(parents=True, exist_ok=True)
    given.began = time.perf_counter()
    return given


def conclude(given: argparse.Namespace, tables: Mapping[str, Sequence[Row]], words: Sequence[str]) -> None:
    """Print tables and paragraphs, and keep them as ``results.md`` and, with full digits, as ``results.json``.

    Parameters
    ----------
    given : argparse.Namespace
        What `parse` gave.
    tables : mapping title -> rows
        A row is a mapping column -> text, number, or (value, lower, upper). Columns are those of the first row.
    words : sequence of str
        Paragraphs, computed from the numbers: what agrees with the paper and what does not.
    """
    seconds = time.perf_counter() - given.began
    parts = [f"## {title}\n\n{markdown(rows)}" for title, rows in tables.items()]
    text = "\n\n".join([*parts, *words, f"({'quick' if given.quick else 'full'} setting; this call: {seconds:.0f} s)"])
    print(text)
    given.out.joinpath("results.md").write_text(f"{text}\n", encoding="utf-8")
    kept = {
        "setting": "quick" if given.quick else "full",
        "seconds_of_this_call": round(seconds, 1),
        "tables": {title: [dict(row) for row in rows] for title, rows in tables.items()},
        "words": list(words),
        "versions": provenance(),
    }
    given.out.joinpath("results.json").write_text(json.dumps(kept, indent=1, default=float), encoding="utf-8")
    print(f"figures and results: {given.out}")


def markdown(rows: Sequence[Row]) -> str:
    """Lay rows out as a Markdown table.

    Parameters
    ----------
    rows : sequence of mappings
        As for `conclude`.

    Returns
    -------
    str
    """
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([_cell(row[name]) for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, tuple):
        return interval_text(*value) if all(map(math.isfinite, value)) else "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    number = float(value)
    if not math.isfinite(number):
        return "-"
    return f"{int(number):,}" if number == int(number) and abs(number) < 1e9 else f"{number:.3g}"
