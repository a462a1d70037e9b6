"""Every source that a docstring or a page names by arXiv id or DOI is in the bibliography."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = re.compile(r"arXiv:((?:[a-z-]+/)?[0-9]{4}[.0-9]+[0-9])|doi:(10\.[0-9]{4,}/[^\s,;)\]]*[^\s,;.)\]])")


def named(text):
    return {first or second for first, second in SOURCE.findall(text)}


def test_all_sources_are_listed():
    page = ROOT / "docs" / "reference" / "bibliography.md"
    listed = named(page.read_text(encoding="utf-8"))
    files = [
        *(ROOT / "trajstats").rglob("*.py"),
        *(ROOT / "trainers").rglob("*.py"),
        *(ROOT / "docs").rglob("*.md"),
    ]
    found = {
        key: file for file in files if "_build" not in file.parts for key in named(file.read_text(encoding="utf-8"))
    }
    assert len(found) > 25
    assert {key: str(file.relative_to(ROOT)) for key, file in found.items() if key not in listed} == {}
