"""The machine code of the hot loops: packed arithmetic at the full width, no call for an exp.

The kernels of float32 are compiled in processes of their own, with an empty cache (code from the
cache has no assembly to read), for the native target, AVX2 and SSE2. A loop of exponentials is
known by its shift by 20 or 23, which makes the power of two; everything in it has to be packed,
and a table must be a permutation of registers, not of memory.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections import deque
from pathlib import Path
from typing import NamedTuple

import pytest

import fastswl

compiles = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="reads x86 assembly"),
]

#: kernels with loops of exponentials
KERNELS = {
    "tile": "fastswl.kernels.panel_walks:tile_walk",
    "panel": "fastswl.kernels.panel_walks:panel_walk",
    "batch": "fastswl.kernels.batch_walk:batch_walk",
    "row": "fastswl.kernels.row:row_walk",
    "long": "fastswl.kernels.row:long_walk",
    "short": "fastswl.kernels.short:short_walk",
}
#: and one whose exponentials are no loop
FEW = "fastswl.kernels.short:few_walk"
VARIANTS = ["plain", "with options"]
# NUMBA_CPU_NAME alone leaves the features of the host, AVX-512 among them.
TARGETS = {
    "native": {},
    "avx2": {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+f16c"},
    "sse2": {"NUMBA_CPU_NAME": "generic"},
}
COMPILE = """
import importlib, json, sys
from fastswl.compilation import compiled_address, kernel_signature
module, name = sys.argv[1].split(":")
kernel = getattr(importlib.import_module(module), name)
signature = kernel_signature("float32", "float64" if sys.argv[2] == "with options" else None)
compiled_address(kernel, signature)
library = kernel.overloads[signature.args].library
features = library.codegen.magic_tuple()[2].split(",")
print(json.dumps({"assembly": library.get_asm_str(), "features": features}))
"""

LABEL = re.compile(r"^(\.L\w+):")
FUNCTION = re.compile(r"^([\w.$\"]+):")
JUMP = re.compile(r"^\s*(j\w+)\s+(\.L\w+)")
END = re.compile(r"^\s*(jmp|ret|ud2|int3)")
#: of bits that become the exponent: 23 of them, and with a table of eighths 20
SHIFT = re.compile(r"^\s*(?:v?pslld\s+\$(?:20|23), %([xyz])mm|shll\s+\$(?:20|23))")
#: by the last three bits from a table that a register holds
LOOK_UP = re.compile(r"^\s*vperm(?:ps|d)\s.*%([xyz])mm\d+$")
PACKED = re.compile(r"^\s*v?(?:fn?m(?:add|sub)\d*|add|sub|mul|div|max|min)p[sd]\s.*%([xyz])mm\d+$")
SCALAR = re.compile(r"^\s*v?(?:fn?m(?:add|sub)\d*|add|sub|mul|div|max|min|sqrt)s[sd]\s")
MULTIPLY_ADD = re.compile(r"^\s*(?:vfn?m(?:add|sub)\d*|mul|vmul)ps\s")
REFERENCE = re.compile(r"(?:movabsq\s+\$|call\w*\s+|jmp\w*\s+)([A-Za-z_][\w.]*)(?:@PLT)?")
LIBRARY_CALL = re.compile(r"_?_?(?:exp|exp2|exp10|expm1|log|log2|log10|log1p|fma|pow|tanh)[fl]?(?:_finite)?")
#: P of degree 6 by Horner (by table of degree 4), and the reduction: at least so many multiplications in an exponential
MULTIPLICATIONS = 8
#: blocks in a loop of exponentials at most: two vectors, each with a branch for logits in two parts
LOOP_BLOCKS = 8


class Block(NamedTuple):
    """Instructions between two labels, and the labels where it may go on."""

    lines: list[str]
    next: list[str]


class Code(NamedTuple):
    assembly: str
    features: list[str]

    @property
    def full_width(self) -> str:
        """The letter of the widest registers of the target."""
        return "z" if "+avx512f" in self.features else "y" if "+avx2" in self.features else "x"


def compile_kernel(kernel: str, variant: str, target: dict, cache: Path) -> Code:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("NUMBA_")}
    root = Path(fastswl.__file__).parents[1]
    environment = {**kept, **target, "NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", COMPILE, KERNELS.get(kernel, kernel), variant]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return Code(**json.loads(run.stdout))


def blocks(assembly: str) -> dict[str, Block]:
    """The basic blocks of all functions by their labels; a block ends at a label or a jump."""
    found: dict[str, Block] = {}
    current: Block | None = None
    count = 0

    def start(label: str) -> Block:
        return found.setdefault(label, Block([], []))

    for line in assembly.splitlines():
        label = LABEL.match(line)
        if label:
            block = start(label.group(1))
            if current is not None:
                current.next.append(label.group(1))
            current = block
            continue
        if FUNCTION.match(line):
            count += 1
            current = start(f"function {count}")
            continue
        if current is None or not line.startswith("\t") or line.startswith("\t."):
            continue
        current.lines.append(line)
        jump = JUMP.match(line)
        if jump:
            current.next.append(jump.group(2))
        if END.match(line):
            current = None
        elif jump:
            count += 1
            follower = f"after jump {count}"
            current.next.append(follower)
            current = start(follower)
    return found


def shortest_loop(code: dict[str, Block], first: str) -> list[str]:
    """The labels of the shortest way from a block back to itself, empty if there is none."""
    came_from: dict[str, str] = {}
    queue = deque([first])
    while queue:
        label = queue.popleft()
        for follower in code[label].next:
            if follower == first:
                path = [label]
                while path[-1] != first:
                    path.append(came_from[path[-1]])
                return path[::-1]
            if follower in code and follower not in came_from:
                came_from[follower] = label
                queue.append(follower)
    return []


def exp_loops(assembly: str) -> list[list[str]]:
    """The instructions of each inner loop with a shift, which makes a power of two.

    A single exponential (of a target's logit) is no loop: its way back leads through all of a tile.
    """
    code = blocks(assembly)
    loops = []
    for label, block in code.items():
        if not any(SHIFT.match(line) for line in block.lines):
            continue
        path = shortest_loop(code, label)
        if path and len(path) <= LOOP_BLOCKS:
            lines = [line for part in path for line in code[part].lines]
            if not any("call" in line for line in lines):
                loops.append(lines)
    return loops


def widths(lines: list[str], pattern: re.Pattern) -> set[str]:
    return {match.group(1) for line in lines if (match := pattern.match(line))}


def check_loops(code: Code) -> None:
    """At least one loop of exponentials, every one packed at the full width, nothing scalar."""
    loops = exp_loops(code.assembly)
    assert loops, "no loop of packed exponentials"
    for lines in loops:
        check_packed(lines, code.full_width, "+fma" in code.features)


def check_packed(lines: list[str], full_width: str, by_table: bool) -> None:
    """Exponentials packed at the full width, nothing scalar; eighths of powers of two from a register, where there is a table."""
    text = "\n".join(lines)
    assert widths(lines, SHIFT) == {full_width}, text
    # sums in float64 and their companions may stand in the same loop, at the same width
    assert full_width in widths(lines, PACKED), text
    shifts = sum(bool(SHIFT.match(line)) for line in lines)
    multiplications = sum(bool(MULTIPLY_ADD.match(line)) for line in lines)
    assert multiplications >= MULTIPLICATIONS * shifts, text
    look_ups = sum(bool(LOOK_UP.match(line)) for line in lines)
    assert look_ups >= by_table * shifts, text
    scalar = [line for line in lines if SCALAR.match(line)]
    assert scalar == [], text


def marked(test):
    """A test that compiles kernels for x86."""
    for mark in compiles:
        test = mark(test)
    return test


def library_calls(assembly: str) -> set[str]:
    """Functions of libm that the code refers to."""
    return {name for name in REFERENCE.findall(assembly) if LIBRARY_CALL.fullmatch(name)}


@pytest.fixture(scope="module", params=TARGETS)
def target(request) -> str:
    return request.param


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request) -> str:
    return request.param


@pytest.fixture(scope="module", params=KERNELS)
def code(request, variant, target, tmp_path_factory) -> Code:
    return compile_kernel(request.param, variant, TARGETS[target], tmp_path_factory.mktemp("cache"))


@marked
def test_the_target_is_the_one_meant(code, target):
    expected = {"avx2": "y", "sse2": "x"}.get(target, code.full_width)
    assert code.full_width == expected
    assert ("zmm" in code.assembly) == (code.full_width == "z")


@marked
def test_exp_loops_are_packed_at_full_width(code):
    check_loops(code)


@marked
def test_no_library_function_is_called(code):
    assert library_calls(code.assembly) == set()


@marked
def test_what_rows_read_next_passes_by_the_second_level_cache(code, request):
    """(Of tiles, which are transposed from what lies there, it does not.)"""
    once = [line for lines in exp_loops(code.assembly) for line in lines if "prefetchnta" in line]
    assert bool(once) == (request.node.callspec.params["code"] not in ("tile", "panel"))


@marked
def test_rows_of_few_classes_are_packed_at_full_width(target, tmp_path):
    code = compile_kernel(FEW, "plain", TARGETS[target], tmp_path)
    pieces = [block.lines for block in blocks(code.assembly).values() if any(map(SHIFT.match, block.lines))]
    # of two classes and of three
    assert len(pieces) >= 2
    for lines in pieces:
        check_packed(lines, code.full_width, False)
    assert library_calls(code.assembly) == set()


LOOP = """
kernel:
\tje\t.LBB0_9
.LBB0_1:
\tvmovups\t(%rdi), %zmm0
\tvfmadd213ps\t%zmm1, %zmm2, %zmm0
\tvpermps\t%zmm5, %zmm0, %zmm6
\tvpslld\t$20, %zmm0, %zmm3
HORNER
\tvmovups\t%zmm4, (%rsi)
\tjne\t.LBB0_1
.LBB0_9:
\tretq
"""
HORNER = "\n".join(["\tvfmadd213ps\t%zmm1, %zmm2, %zmm4"] * 8)


def test_a_good_loop_is_accepted():
    check_loops(Code(LOOP.replace("HORNER", HORNER), ["+avx512f", "+fma"]))


@pytest.mark.parametrize(
    "horner",
    [
        HORNER.replace("%zmm", "%ymm") + "\n\tvpslld\t$23, %ymm0, %ymm3",
        HORNER.replace("ps", "ss").replace("%zmm", "%xmm"),
        HORNER + "\n\tvmulss\t%xmm1, %xmm2, %xmm4",
        HORNER + "\n\tshll\t$23, %eax",
        HORNER + "\n\tcallq\t*%rax",
        HORNER + HORNER + "\n\tvpslld\t$20, %zmm0, %zmm3",
        "",
    ],
    ids=["half width", "scalar polynomial", "one scalar", "a scalar shift", "a call", "no table", "no polynomial"],
)
def test_a_bad_loop_is_found(horner):
    with pytest.raises(AssertionError):
        check_loops(Code(LOOP.replace("HORNER", horner), ["+avx512f", "+fma"]))


@pytest.mark.parametrize("line", ["movabsq\t$expf, %rax", "callq\tlog1p@PLT", "callq\tfmaf", "movabsq\t$exp2, %rax"])
def test_a_library_call_is_found(line):
    assert len(library_calls(f"\t{line}\n")) == 1


def test_other_symbols_are_no_library_calls():
    assert library_calls("\tmovabsq\t$.LCPI0_1, %rax\n\tmovabsq\t$PyErr_Clear, %rax\n") == set()
