"""The examples of the README and of all docstrings run as printed."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import fastswl

README = Path(__file__).parents[1] / "README.md"
MODULES = ["fastswl"] + [
    module.name
    for module in pkgutil.walk_packages(fastswl.__path__, "fastswl.")
    if not module.name.endswith("__main__")
]
PUBLIC = [name for name in fastswl.__all__ if name != "LossAndGrad"]


def run(test: doctest.DocTest) -> None:
    report: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    runner.run(test, out=report.append)
    assert runner.failures == 0, "".join(report)


def test_readme():
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.M | re.S)
    examples = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "README.md", str(README), 0)
    assert len(examples.examples) >= len(blocks) > 0
    run(examples)


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    for test in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name)):
        run(test)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_example(name):
    assert ">>>" in getattr(fastswl, name).__doc__


def test_commands_of_the_readme_exist():
    from fastswl.cli import COMMANDS

    named = set(re.findall(r"(?:`|&& )fastswl ([a-z]+)", README.read_text("utf-8")))
    assert named == set(COMMANDS)
