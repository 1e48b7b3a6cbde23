"""Instructions retired by a call: a figure that no other process on the machine can change.

By the processor's counter where the system gives it (`perf_event_open`), else by valgrind's
cachegrind, which knows no AVX-512: there the kernels are compiled for AVX2, so the two kinds of
figures can't be compared with each other.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

_SYSCALL = {"x86_64": 298, "aarch64": 241}
_ENABLE, _DISABLE, _RESET = 0x2400, 0x2401, 0x2403
_INSTRUCTIONS, _HARDWARE = 1, 0
_DISABLED, _NO_KERNEL, _NO_HYPERVISOR = 1 << 0, 1 << 5, 1 << 6
_ATTRIBUTE_BYTES = 128
#: calls that are counted; by cachegrind, so many that what differs between two processes is little
CALLS = 10
SIMULATED_CALLS = 1000
AVX2 = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+f16c"}

_PROGRAM = """
import sys
from benchmarks.suite import ready
call = ready(sys.argv[1], sys.argv[2], threads=1)
for _ in range(int(sys.argv[3])):
    call()
"""


def _open_counter() -> int:
    """A file descriptor of this thread's counter; OSError where there is none."""
    number = _SYSCALL.get(platform.machine())
    if sys.platform != "linux" or number is None:
        raise OSError("no perf_event_open")
    flags = _DISABLED | _NO_KERNEL | _NO_HYPERVISOR
    head = struct.pack("=IIQQQQQ", _HARDWARE, _ATTRIBUTE_BYTES, _INSTRUCTIONS, 0, 0, 0, flags)
    attribute = ctypes.create_string_buffer(head, _ATTRIBUTE_BYTES)
    call = ctypes.CDLL(None, use_errno=True).syscall
    descriptor = call(number, attribute, 0, -1, -1, 0)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "perf_event_open")
    return descriptor


def counted(call: Callable[[], object]) -> float:
    """Instructions of a call in this thread, by the processor's counter."""
    descriptor = _open_counter()
    try:
        fcntl.ioctl(descriptor, _RESET, 0)
        fcntl.ioctl(descriptor, _ENABLE, 0)
        for _ in range(CALLS):
            call()
        fcntl.ioctl(descriptor, _DISABLE, 0)
        (total,) = struct.unpack("=Q", os.read(descriptor, 8))
    finally:
        os.close(descriptor)
    return total / CALLS


def _cachegrind(operation: str, shape: str, calls: int, environment: dict) -> int:
    command = [
        "valgrind",
        "--tool=cachegrind",
        "--cache-sim=no",
        "--cachegrind-out-file=/dev/null",
        sys.executable,
        "-c",
        _PROGRAM,
        operation,
        shape,
        str(calls),
    ]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found = re.search(r"I\s+refs:\s+([\d,]+)", run.stderr)
    if found is None:
        raise RuntimeError(run.stderr[-1000:])
    return int(found.group(1).replace(",", ""))


def simulated(operation: str, shape: str) -> float:
    """Instructions of a call by cachegrind: what a thousand calls more cost a process."""
    import fastswl

    # first the package that is measured: the folder of the benchmarks holds one, too
    path = (str(Path(module).parents[1]) for module in (fastswl.__file__, __file__))
    with tempfile.TemporaryDirectory() as cache:
        environment = {
            **os.environ,
            **AVX2,
            "NUMBA_CACHE_DIR": cache,
            "PYTHONHASHSEED": "0",
            "PYTHONPATH": os.pathsep.join(path),
        }
        # compiled outside of the simulation, which would take minutes for it
        program = [sys.executable, "-c", _PROGRAM, operation, shape, "0"]
        subprocess.run(program, env=environment, check=True)
        few = _cachegrind(operation, shape, 0, environment)
        many = _cachegrind(operation, shape, SIMULATED_CALLS, environment)
    return (many - few) / SIMULATED_CALLS


def per_call(operation: str, shape: str) -> float:
    """By what there is; NotImplementedError (asv skips the benchmark) where there is nothing."""
    from benchmarks.suite import ready

    try:
        return counted(ready(operation, shape, threads=1))
    except OSError:
        if shutil.which("valgrind") is None:
            raise NotImplementedError("no counter of instructions, and no valgrind") from None
    return simulated(operation, shape)
