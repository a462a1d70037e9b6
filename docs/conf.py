"""Sphinx settings."""

import trajstats

project = "trajstats"
author = "The trajstats developers"
copyright = "2026, the trajstats developers"
version = release = trajstats.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
html_theme = "furo"
html_title = "trajstats"
myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
# The pages are read without a network connection too: mathjax then shows the TeX source.
nitpicky = False
