"""Sphinx settings."""

import sys
from pathlib import Path

import trajstats

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
project = "trajstats"
author = "The trajstats developers"
copyright = "2026, the trajstats developers"
version = release = trajstats.__version__
extensions = [
    "mathml",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
html_math_renderer = "mathml"
html_theme = "furo"
html_title = "trajstats"
myst_enable_extensions = ["dollarmath", "amsmath", "deflist"]
myst_heading_anchors = 3
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "_ext"]
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_google_docstring = False
# Types in docstrings are words, not links.
nitpicky = False


def write_api(_app: object) -> None:
    """Write the pages of all public names from the package's own list, so that they cannot go stale."""
    folder = Path(__file__).parent / "reference" / "api"
    folder.mkdir(exist_ok=True)
    parts: dict[str, list[str]] = {}
    for module, names in trajstats._MODULES.items():
        lines = parts.setdefault(module.split(".")[1], [])
        lines += [f"## {module}", "", "```{eval-rst}"]
        for name in names:
            kind = "autoclass" if isinstance(getattr(trajstats, name), type) else "autofunction"
            lines.append(f".. {kind}:: {module}.{name}")
            lines += ["   :members:"] if kind == "autoclass" else []
        lines += ["```", ""]
    index = [
        "# API",
        "",
        "All public names, by the part of the package they live in. Each is also `trajstats.<name>`.",
        "",
    ]
    for part, lines in parts.items():
        names = [n for m, ns in trajstats._MODULES.items() if m.split(".")[1] == part for n in ns]
        index.append(f"- [{part}](api/{part}.md): " + ", ".join(f"`{name}`" for name in names))
        _write(folder / f"{part}.md", [f"# trajstats.{part}", "", *lines])
    index += ["", "```{toctree}", ":hidden:", "", *(f"api/{part}" for part in parts), "```"]
    _write(folder.with_suffix(".md"), index)


def _write(page: Path, lines: list[str]) -> None:
    text = "\n".join(lines) + "\n"
    if not page.exists() or page.read_text(encoding="utf-8") != text:
        page.write_text(text, encoding="utf-8")


def setup(app):
    """Hook the page of names into the build."""
    app.connect("builder-inited", write_api)
