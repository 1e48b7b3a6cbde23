"""The table of mutants keeps in step with the library and with its tests (`python -m tests.mutants` runs them)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mutant_table import MUTANTS

import fastswl

TESTS = Path(__file__).parent
PACKAGE = Path(fastswl.__file__).parent


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_changes_one_place_and_names_its_tests(mutant):
    source = (PACKAGE / mutant.file).read_text("utf-8")
    assert source.count(mutant.old) == 1
    assert mutant.old != mutant.new
    compile(source.replace(mutant.old, mutant.new), mutant.file, "exec")
    assert mutant.tests
    for test in mutant.tests:
        file, *names = test.partition("[")[0].split("::")
        text = (TESTS / file).read_text("utf-8")
        for name in names:
            assert re.search(rf"^ *(?:def|class) {name}\b", text, re.MULTILINE), test


def test_names_are_different():
    names = [mutant.name for mutant in MUTANTS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("file", ["cache", "layouts", "overlap", "properties", "threads", "walks"])
def test_every_test_of_some_files_has_a_mutant(file):
    text = (TESTS / f"test_{file}.py").read_text("utf-8")
    named = {test.partition("[")[0] for mutant in MUTANTS for test in mutant.tests}
    assert [name for name in re.findall(r"^def (test_\w+)", text, re.M) if f"test_{file}.py::{name}" not in named] == []
