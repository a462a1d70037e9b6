"""Every Python block of the documentation runs, page by page, or says why not."""

from __future__ import annotations

import re
import unittest
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

import trajstats as ts

pytest.importorskip("sybil")
from sybil.document import Document
from sybil.parsers.myst import PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "```" in page.read_text(encoding="utf-8") and "_build" not in page.parts]
BLOCK = re.compile(r"^```(?:\{code-block\} ?)?python\b", re.MULTILINE)
SKIP = re.compile(r"<!-- skip: next \"[^\"]{10,}\" -->\n+```")


@pytest.fixture(scope="session")
def runs(tmp_path_factory):
    """Short runs under the names that `make demo` gives to long ones: the pages' own numbers come from those."""
    pytest.importorskip("jax")
    pytest.importorskip("mlxtend")
    from trajstats_trainers.demo import nets
    from trajstats_trainers.demo.training import train

    folder = tmp_path_factory.mktemp("pages") / "runs"
    folder.mkdir()
    schedule = ts.aging_schedule([100, 316, 1_000, 3_162, 10_000], nets.LAGS[nets.LAGS <= 4_000])
    train(replace(nets.UNDER, seeds=(0, 1)), folder, schedule=schedule)
    train(replace(nets.OVER, sizes=(196, 52, 10)), folder, schedule=schedule)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(page, request, tmp_path, monkeypatch):
    text = page.read_text(encoding="utf-8")
    document = Document.parse(str(page), SkipParser(), PythonCodeBlockParser())
    if "runs/digits" in text:
        (tmp_path / "runs").symlink_to(request.getfixturevalue("runs"))
    monkeypatch.chdir(tmp_path)
    examples, skipped = list(document.examples()), []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for example in examples:
            try:
                example.evaluate()
            except unittest.SkipTest as reason:
                skipped.append(str(reason))
    assert len(skipped) == len(SKIP.findall(text)), f'every skip gives a reason, <!-- skip: next "why" -->: {skipped}'
    assert len(examples) == len(BLOCK.findall(text)) + len(skipped), "a block was not seen"
