"""The page is one file, escapes what it is given, and never replaces an old page by half a new one."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from trajstats.errors import ArgumentError, StoreError
from trajstats.report.page.html import Section, Table, interval_text, provenance, write_report


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.tags = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in {"meta", "img", "br"}:
            self.open.append(tag)
        self.links += [value for name, value in attrs if name in {"src", "href"}]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def section():
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots()
    ax.plot([1, 2], [3, 4])
    table = Table(["layer", "value"], [["<script>alert(1)</script>", "0.6 [0.5, 0.7]"]])
    return Section("A & B", text=["1 < 2"], figures=[(figure, 'a "caption"')], tables=[table], code="x = 1 < 2")


def test_self_contained_and_escaped(tmp_path, section):
    text = write_report(tmp_path / "r.html", title="<t>", lead="l", sections=[section]).read_text()
    page = Page(text)
    assert page.open == []
    assert "script" not in page.tags
    assert all(link.startswith(("data:image/svg+xml;base64,", "#")) for link in page.links)
    assert not re.search(r"(src|href)=\"?https?:", text)
    assert "&lt;script&gt;" in text
    assert "<title>&lt;t&gt;</title>" in text
    assert provenance()["numpy"] in text


def test_same_figure_same_bytes(tmp_path, section):
    one, two = (
        write_report(tmp_path / name, title="t", lead="l", sections=[section]).read_text()
        for name in ("a.html", "b.html")
    )
    source = re.compile(r"data:image/svg\+xml;base64,[^\"]+")
    assert source.findall(one) == source.findall(two)


def test_old_page_survives_a_failure(tmp_path, section):
    path = tmp_path / "r.html"
    path.write_text("old")
    broken = Section("x", tables=[Table(["a", "b"], [["only one"]])])
    with pytest.raises(ArgumentError, match="not as long as its header"):
        write_report(path, title="t", lead="l", sections=[section, broken])
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["r.html"]


def test_bad_input(tmp_path, section):
    with pytest.raises(ArgumentError, match="at least one section"):
        write_report(tmp_path / "r.html", title="t", lead="l", sections=[])
    with pytest.raises(StoreError, match="does not exist"):
        write_report(tmp_path / "no" / "r.html", title="t", lead="l", sections=[section])


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ((0.61234, 0.5612, 0.6733), "0.612 [0.561, 0.673]"),
        ((1234.5, 1200.0, 1300.0), "1234 [1200, 1300]"),
        ((1e-3, 0.9e-3, 1.1e-3), "0.00100 [0.00090, 0.00110]"),
    ],
)
def test_interval_text(given, shown):
    assert interval_text(*given) == shown
