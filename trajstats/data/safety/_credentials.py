"""Keep credentials out of what is written or shown: errors, attributes, reports."""

from __future__ import annotations

import re

HIDDEN = "[not shown]"

# user:password@ of a URL; the query of a URL, where signatures are; tokens that show themselves by their prefix.
_USER = re.compile(r"(?P<scheme>[a-zA-Z][\w+.-]*://)(?:[^/\s@'\"]+|/[^/\s@:'\"]+:[^/\s@'\"]+)@")
_QUERY = re.compile(r"(?P<url>[a-zA-Z][\w+.-]*://[^\s?'\"]+)\?[^\s'\"]+")
_TOKEN = re.compile(
    r"\b(hf_|gh[pousr]_|github_pat_|glpat-|sk-|xox[abprs]-|AKIA|ASIA|AIza|eyJ[\w-]{8,}\.)[\w.-]{10,}",
)


def without_credentials(text: object) -> str:
    """Take user names, passwords, signatures and tokens out of a text."""
    shown = _QUERY.sub(rf"\g<url>?{HIDDEN}", str(text))
    shown = _USER.sub(rf"\g<scheme>{HIDDEN}@", shown)
    return _TOKEN.sub(HIDDEN, shown)
