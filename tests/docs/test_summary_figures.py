"""Summary figures of README and pages equal docs/data/summary_figures.json; `python FILE` writes them from there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUMMARY = json.loads((ROOT / "docs" / "data" / "summary_figures.json").read_text(encoding="utf-8"))
FIGURES: dict[str, str] = SUMMARY["figures"]
NUMBER = r"\d[\d.,]*"


def pattern(sentence: str) -> re.Pattern[str]:
    """A sentence as a pattern: any number for `{name}`, any line break for a blank."""
    parts = re.split(r"\{(\w+)\}", sentence)
    fixed = [r"\s+".join(map(re.escape, re.split(r"\s+", part))) for part in parts[::2]]
    return re.compile(f"({NUMBER})".join(fixed))


def names(sentence: str) -> list[str]:
    return re.findall(r"\{(\w+)\}", sentence)


def differences(page: str) -> Iterator[str]:
    """The sentences that a page lacks or in which it has other figures."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for sentence in SUMMARY["sentences"][page]:
        found = pattern(sentence).findall(text)
        if len(found) != 1:
            yield f"{page} has this sentence {len(found)} times: {sentence}"
        else:
            given = found if isinstance(found[0], str) else list(found[0])
            wanted = [FIGURES[name] for name in names(sentence)]
            if given != wanted:
                yield f"{page} has {given}, summary_figures.json has {wanted}: {sentence}"


def write_figures() -> None:
    """Write the figures of the data file into all sentences."""
    for page, sentences in SUMMARY["sentences"].items():
        text = (ROOT / page).read_text(encoding="utf-8")
        for sentence in sentences:
            match = pattern(sentence).search(text)
            if match is None:
                raise SystemExit(page + " lacks the sentence: " + sentence)
            for group, name in reversed(list(enumerate(names(sentence), 1))):
                start, stop = match.span(group)
                text = text[:start] + FIGURES[name] + text[stop:]
        (ROOT / page).write_text(text, encoding="utf-8")


@pytest.mark.parametrize("page", SUMMARY["sentences"])
def test_a_page_has_the_figures_of_the_data_file(page):
    assert list(differences(page)) == [], "run: python tests/docs/test_summary_figures.py"


def test_every_figure_is_used():
    used = {name for sentences in SUMMARY["sentences"].values() for s in sentences for name in names(s)}
    assert used == set(FIGURES)


def test_the_range_of_naive_coverage_is_that_of_the_table():
    page = (ROOT / "docs" / "explanation" / "error-bars.md").read_text(encoding="utf-8")
    table = page.split("\n## Coverage\n")[1].split("\n### ")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines() if re.match(r"\|.*\d / \d", line)]
    # without transitions and decays, and without the row whose seeds have no common exponent
    rows = [row for row in rows if not re.match(r" (w_c|nu|beta)\b|.*exponents that differ", row[0])]
    naive = [float(row[3].split("/")[0]) for row in rows]
    assert len(naive) == 20
    assert [f"{min(naive):.0f}", f"{max(naive):.0f}"] == [FIGURES["naive_from"], FIGURES["naive_to"]]


def test_ratios_are_those_of_the_measured_seconds():
    page = (ROOT / "docs" / "developers" / "performance.md").read_text(encoding="utf-8")

    def seconds(row: str) -> float:
        return float(re.search(rf"^\| \**{re.escape(row)}.*?\| ([\d.]+) \|", page, re.MULTILINE)[1])

    kernel = seconds("pair kernel")
    assert f"{seconds('SciPy `pdist`') / kernel:.1f}" == FIGURES["pdist_over_kernel"]
    assert f"{seconds('NumPy double loop') / kernel:.0f}" == FIGURES["numpy_over_kernel"]
    assert f"{kernel / seconds('float64 `X @ X.T`'):.1f}" == FIGURES["kernel_over_gemm"]


if __name__ == "__main__":
    write_figures()
