"""One self-contained page per analysis: figures, numbers with their intervals, and how they were made."""

from __future__ import annotations

import base64
import datetime
import io
import os
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trajstats.errors import ArgumentError, StoreError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PACKAGES = (
    "trajstats",
    "numpy",
    "scipy",
    "xarray",
    "dask",
    "zarr",
    "numba",
    "lmfit",
    "emcee",
    "matplotlib",
    "jax",
    "torch",
)

# Inches from which a figure takes the whole width of a page.
WIDE = 6.5


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; the first column names the row."""

    header: Sequence[str]  # Column titles, units included
    rows: Sequence[Sequence[str]]  # One per row, as long as the header


@dataclass(frozen=True)
class Section:
    """A part of a page."""

    title: str  # Heading
    text: Sequence[str] = ()  # Paragraphs, shown as they are (nothing in them is read as HTML)
    figures: Sequence[tuple[Figure, str]] = ()  # matplotlib figures, embedded as SVG
    tables: Sequence[Table] = ()  # Numbers with their intervals
    code: str = ""  # Python that redoes the figures
    drawn: list[tuple[str, str, bool]] = field(default_factory=list, init=False, repr=False)


def write_report(path: str | Path, *, title: str, lead: str, sections: Sequence[Section]) -> Path:
    """Write one self-contained HTML page: no script, no network access, readable on a phone, in print, light and dark.

    Parameters
    ----------
    path : str or path
        The file to write; an older one is replaced at once, when the page is complete.
    title, lead : str
        Heading and the paragraph under it.
    sections : sequence of Section
        What to show, in order. Versions and platform are added at the end.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ArgumentError
        If there is no section, or a table's row is not as long as its header.
    StoreError
        If the folder does not exist.

    Examples
    --------
    >>> import tempfile
    >>> page = write_report(Path(tempfile.mkdtemp()) / "report.html", title="A run", lead="What it did.",
    ...                     sections=[Section("Loss", text=["It fell."])])
    >>> "It fell." in page.read_text()
    True
    """
    path = Path(path)
    if not sections:
        msg = "a report needs at least one section"
        raise ArgumentError(msg)
    for section in sections:
        for table in section.tables:
            if any(len(row) != len(table.header) for row in table.rows):
                msg = f"a row of a table in {section.title!r} is not as long as its header {list(table.header)}"
                raise ArgumentError(msg)
    if not path.parent.is_dir():
        msg = f"folder {path.parent} does not exist; create it first"
        raise StoreError(msg)
    for section in sections:
        section.drawn[:] = [
            (_svg_uri(figure), caption, figure.get_figwidth() > WIDE) for figure, caption in section.figures
        ]
    import jinja2

    template = resources.files("trajstats.report.page").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string(template).render(
        title=title, lead=lead, sections=sections, provenance=provenance(), made=_now()
    )
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, suffix=".html", delete=False) as file:
        file.write(page)
    Path(file.name).chmod(0o644)
    os.replace(file.name, path)
    return path


def provenance() -> dict[str, str]:
    """List what made a result: versions and platform, nothing personal."""
    found = {"python": platform.python_version(), "platform": f"{platform.system()} {platform.machine()}"}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def interval_text(value: float, low: float, high: float, *, digits: int = 2) -> str:
    """Word a number with its interval."""
    import math

    width = abs(high - low) / 2
    places = digits - 1 - math.floor(math.log10(width)) if width > 0 and math.isfinite(width) else 4
    places = max(places, 0)
    return f"{value:.{places}f} [{low:.{places}f}, {high:.{places}f}]"


def _svg_uri(figure: Any) -> str:
    import matplotlib as mpl

    buffer = io.BytesIO()
    # A fixed salt and no date: the same figure gives the same bytes.
    with mpl.rc_context({"svg.hashsalt": "trajstats", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
