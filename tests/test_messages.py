"""Messages name only what exists: functions, methods, options, commands and their options, pages, extras."""

from __future__ import annotations

import ast
import builtins
import re
import tomllib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import click
import numpy as np
import xarray as xr

import trajstats as ts
from trajstats.cli import main

ROOT = Path(__file__).parents[1]
FILES = [*sorted((ROOT / "trajstats").rglob("*.py")), *sorted((ROOT / "trainers").rglob("*.py"))]
# Calls and options of other libraries in texts, by owner
OTHERS = {
    "xarray": {"open_zarr"},
    "mathematics": {"evidence"},
    "python": {"removeprefix", "replace", "endswith"},
    "tensorflow": {"load_checkpoint", "get_variable_to_shape_map", "get_tensor"},
    "torch": {
        *(
            "named_buffers",
            "resolve_conj",
            "resolve_neg",
            "to_dense",
            "dequantize",
            "full_tensor",
            "get_model_state_dict",
        ),
        "load",
        "save",
        "state_dict",
        "unscale_",
        "sdpa_kernel",
        "eval",
        "detach",
        "cpu",
        "numpy",
    },
    "numpy": {"savez", "save"},
    "safetensors": {"save_file"},
    "dask": {"Client", "LocalCluster"},
}
OPTIONS_OF_OTHERS = {
    "torch": {"weights_only", "full_state_dict", "checkpoint_id"},
    "huggingface_hub": {"revision"},
    "zarr": {"zarr_format"},
    "xarray": {"keep_attrs", "data_vars", "join", "pair"},
}


def words(tree: ast.AST) -> Iterator[str]:
    """The fixed parts of every text that is no docstring, values that are filled in replaced by …"""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(id(node.value))
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.JoinedStr):
            yield "".join(p.value if isinstance(p, ast.Constant) else "…" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@lru_cache
def sentences() -> list[tuple[str, str]]:
    found = []
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found += [(path.name, text) for text in words(tree) if " " in text and "\n\n" not in text]
    return found


@lru_cache
def defined() -> tuple[set[str], set[str]]:
    """Names of functions, methods and classes; names of arguments, fields and assigned keys."""
    functions, options = set(), set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                functions.add(node.name)
            if isinstance(node, ast.FunctionDef):
                options |= {a.arg for a in (*node.args.args, *node.args.kwonlyargs, *node.args.posonlyargs)}
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                options.add(node.target.id)
    return functions, options


def commands(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from commands(child, (*path, name))


def test_public_names_in_messages_exist():
    named = [(file, name) for file, text in sentences() for name in re.findall(r"\b(?:trajstats|ts)\.(\w+)", text)]
    assert len(named) > 20
    modules = {path.stem for path in (ROOT / "trajstats").rglob("*.py")} | {
        p.name for p in (ROOT / "trajstats").iterdir()
    }
    gone = {(file, name) for file, name in named if name not in ts.__all__ and name not in modules}
    assert not gone


def test_functions_called_in_messages_exist():
    functions, _ = defined()
    known = functions | set(dir(builtins)) | set(dir(xr.DataArray)) | set(dir(xr.Dataset)) | set(dir(np))
    known |= set().union(*OTHERS.values())
    called = [(f, n) for f, text in sentences() for n in re.findall(r"\b([a-z]\w{3,})\((?!s\))", text)]
    assert len(called) > 40
    assert {(file, name) for file, name in called if name not in known} == set()


def test_options_in_messages_exist():
    options = defined()[1].union(*OPTIONS_OF_OTHERS.values())
    given = [
        (f, n) for f, text in sentences() for n in re.findall(r"(?<![\w.\-])([a-z_]\w{2,})=(?=[\w'\"\[{(…])", text)
    ]
    assert len(given) > 60
    assert {(file, name) for file, name in given if name not in options} == set()


def test_commands_and_their_options_in_messages_exist():
    every = dict(commands(main))
    flags = {opt for command in every.values() for p in command.params for opt in (*p.opts, *p.secondary_opts)}
    flags |= {"--help", "--version"}
    texts = sentences()
    options = [(f, n) for f, text in texts for n in re.findall(r"(?<![\w-])(--[a-z][\w-]+)", text)]
    assert {(file, name) for file, name in options if name not in flags} == set()
    named = [(f, n) for f, text in texts for n in re.findall(r"[`'\"]trajstats ([a-z]+)", text)]
    known = main.list_commands(click.Context(main))  # those of other packages too
    assert {(file, name) for file, name in named if name not in known} == set()


def test_pages_and_extras_in_messages_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for file, text in sentences():
        for page in re.findall(r"\bdocs/[\w/.-]+\.md", text):
            assert (ROOT / page).exists(), (file, page)
        for extra in re.findall(r"trajstats\[([\w,]+)\]", text):
            assert set(extra.split(",")) <= set(extras), (file, extra)
