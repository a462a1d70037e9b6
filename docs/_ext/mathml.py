"""Write formulas as MathML when the pages are built: browsers draw it themselves, without scripts or a network."""

from __future__ import annotations

from html import escape
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.util import logging

logger = logging.getLogger(__name__)


def _mathml(translator: Any, node: nodes.math | nodes.math_block, display: str) -> str:
    text = node.astext()
    try:
        return convert(text, display=display)
    except Exception as error:  # the converter raises many kinds; any of them is a formula to mend
        logger.warning("formula %r: %s", text, error, location=node)
        return f"<code>{escape(text)}</code>"


def visit_inline(translator: Any, node: nodes.math) -> None:
    """Write an inline formula."""
    translator.body.append(_mathml(translator, node, "inline"))
    raise nodes.SkipNode


def visit_block(translator: Any, node: nodes.math_block) -> None:
    """Write a displayed formula; it scrolls in itself where a screen is narrow."""
    translator.body.append(f'<div class="math" style="overflow-x:auto">{_mathml(translator, node, "block")}</div>\n')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Register the renderer."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
