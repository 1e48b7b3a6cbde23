"""Formulas: functions that write their code by being run (`fastswl.simd.symbols`)."""

import re
from typing import Any, NamedTuple

import numpy as np
import pytest
from numba import njit
from numba.core.errors import TypingError

from fastswl.simd import (
    FLOAT32,
    FLOAT64,
    SideBySide,
    any_lane,
    by_type,
    choose,
    fma,
    formula,
    has_fma,
    lane,
    lanes,
    load,
    load_double,
    select,
    splat_like,
    steps,
    store,
    store_double,
    word,
)


class Pair(NamedTuple):
    first: Any
    second: Any


@formula
def pick(which, a, b):
    return choose(which, lambda: a, lambda: b, lambda: a + b)


@formula
def clamped(number):
    """A choice between a value and constants: of the value's type, whatever the constants are."""
    return select(number < 0, -1, select(number <= 9, number, 9)) + 0.5


@formula
def swapped(pair):
    return Pair(pair.second, pair.first)


@formula
def branching(number):
    return 1 if number else 2


@formula
def only_one_runs(flag, place):
    def write(value):
        store_double(place, value)

    choose(flag, lambda: write(1.0), lambda: write(2.0))


@formula
def count_up(place, n, step):
    for i in steps(0, n):
        for k in steps(2, 7, 2):
            store_double(place, load_double(place) + i * k * step)


@formula
def scaled(storage, place, factor):
    x = load(storage, place)
    store(storage, place, fma(x, factor, 0.5) if has_fma() else x * factor + 0.5)
    return lane(splat_like(x, by_type(storage, 32, 64)), lanes(storage) - 1)


def test_choose_gives_the_chosen_one():
    @njit
    def all_of_them(a, b):
        return [pick(i, a, b) for i in range(3)]

    assert all_of_them(2.5, 4.0) == [2.5, 4.0, 6.5]
    assert all_of_them(2, 4) == [2, 4, 6]


def test_constants_take_the_type_of_the_value():
    @njit
    def all_of_them():
        return [clamped(i) for i in (-5, 3, 12)]

    assert all_of_them() == [-0.5, 3.5, 9.5]


def test_what_is_not_chosen_is_not_run():
    memory = np.zeros(1)

    @njit
    def run(flag, place):
        only_one_runs(flag, place)

    for flag, expected in ((False, 1.0), (True, 2.0)):
        run(flag, memory.ctypes.data)
        assert memory[0] == expected


def test_named_tuples_go_in_and_out():
    @njit
    def run(a, b):
        pair = swapped(Pair(a, b))
        return pair.first, pair.second

    assert run(1, 2.5) == (2.5, 1)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_steps_are_a_loop(n):
    memory = np.zeros(1)

    @njit
    def run(place, n, step):
        count_up(place, n, step)

    run(memory.ctypes.data, n, 3.0)
    assert memory[0] == sum(i * k * 3.0 for i in range(n) for k in (2, 4, 6))


def test_the_rounds_of_a_loop_are_not_written_out():
    """LLVM is told so, each loop by itself, and hears it: the loop loads and stores one number, whatever their count."""

    @njit
    def kernel(place, n):
        count_up(place, n, 1.0)

    place = np.zeros(1)
    kernel(place.ctypes.data, 3)
    (code,) = kernel.inspect_llvm().values()
    assert code.count("llvm.loop.unroll.runtime.disable") == 1
    (assembly,) = kernel.inspect_asm().values()
    # the inner loop, of three rounds, is written out
    assert len(re.findall("addsd", assembly)) <= 6


@pytest.mark.parametrize("storage", [FLOAT32, FLOAT64])
def test_a_storage_decides_while_the_code_is_written(storage):
    memory = np.arange(16, dtype=storage.name)

    @njit
    def run(place):
        return scaled(storage, word(place), 2.0)

    assert run(memory.ctypes.data) == storage.arithmetic.bitwidth
    np.testing.assert_array_equal(memory[: storage.lanes], np.arange(storage.lanes) * 2 + 0.5)
    np.testing.assert_array_equal(memory[storage.lanes :], np.arange(storage.lanes, 16))


def test_a_branch_on_a_value_is_refused():
    @njit
    def run(number):
        return branching(number)

    with pytest.raises((TypeError, TypingError), match="can't branch on a value: use `select` or `choose`"):
        run(1)


@formula
def of_one(x, y):
    return fma(x, 0.5, -y) + select(x < y, 2.0 - x, y * x)


@formula
def of_three(source, target):
    places = [source + 64 * i for i in range(3)]
    x = SideBySide(*(load(FLOAT32, place) for place in places))
    y = load(FLOAT32, source + 64 * 3)
    results = of_one(x, y)
    for i, (result, place) in enumerate(zip(results, places, strict=True)):
        store(FLOAT32, target + 64 * i, result)
        store(FLOAT32, target + 64 * (3 + i), of_one(load(FLOAT32, place), y))


@formula
def are_less(source):
    """Of two vectors side by side, compared with a third, and not."""
    both = SideBySide(load(FLOAT32, source), load(FLOAT32, source + 64))
    first, second = both < load(FLOAT32, source + 128)
    above, not_second = ~(load(FLOAT32, source + 128) > both)
    return any_lane(first), any_lane(second), any_lane(above), any_lane(not_second)


def test_vectors_side_by_side_go_through_the_same_steps():
    @njit
    def run(source, target):
        of_three(source, target)

    numbers = np.random.default_rng(0).normal(0, 1, 64).astype(np.float32)
    results = np.zeros((6, 16), np.float32)
    run(numbers.ctypes.data, results.ctypes.data)
    np.testing.assert_array_equal(results[:3], results[3:])
    assert len(np.unique(results[:3])) == 48


def test_comparisons_of_vectors_side_by_side():
    @njit
    def run(source):
        return are_less(source)

    numbers = np.repeat(np.float32([1.0, 3.0, 2.0]), 16)
    assert run(numbers.ctypes.data) == (True, False, False, True)
