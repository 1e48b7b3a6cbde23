"""Show versions, threads, CPU features and where the compiled kernels are kept."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import pkgutil
import platform
import sys
from pathlib import Path
from typing import Any

from fastswl.cli.console import facts

_PACKAGES = ("fastswl", "numba", "llvmlite", "numpy", "tbb")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the option of `fastswl info`."""
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Print what is known."""
    information = collect()
    if arguments.json:
        print(json.dumps(information, indent=2))
        return
    pairs = [("python", information["python"])]
    pairs += [
        (name, version or "not installed") for name, version in information["versions"].items()
    ]
    pairs += [
        ("threads", f"{information['threads']} of {information['cpus']} CPUs"),
        ("threading layer", information["threading_layer"]),
        ("CPU", information["cpu"]),
        ("SIMD", " ".join(information["simd"])),
    ]
    pairs += [("cache", place) for place in information["cache"]]
    pairs += [("setting", f"{name}={value}") for name, value in information["settings"].items()]
    print(facts(pairs))


def collect() -> dict[str, Any]:
    """Everything that `fastswl info` shows, ready for JSON."""
    import fastswl

    return {
        "python": f"{platform.python_version()} on {platform.platform()}",
        "versions": {name: _version(name) for name in _PACKAGES},
        "threads": fastswl.get_num_threads(),
        "cpus": usable_cpus(),
        "threading_layer": fastswl.threading_layer(),
        "cpu": _cpu_name(),
        "simd": _simd_features(),
        "cache": [str(directory) for directory in cache_directories()],
        "settings": {k: v for k, v in sorted(os.environ.items()) if k.startswith("NUMBA_")},
    }


def usable_cpus() -> int:
    """How many CPUs this process may use."""
    if sys.version_info >= (3, 13):
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cache_directories() -> list[Path]:
    """Where the compiled functions of the library keep their code, as they say themselves."""
    import fastswl

    for module in pkgutil.walk_packages(fastswl.__path__, "fastswl."):
        if not module.name.startswith("fastswl.cli"):
            importlib.import_module(module.name)
    directories = set()
    for name in [name for name in sys.modules if name.startswith("fastswl.")]:
        for value in vars(sys.modules[name]).values():
            # a Numba dispatcher; those that are not cached have no path
            path = getattr(getattr(value, "stats", None), "cache_path", None)
            if path:
                directories.add(Path(path))
    return sorted(directories)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _simd_features() -> list[str]:
    """Instruction sets of this CPU, as NumPy finds them."""
    import numpy as np

    simd = np.show_config(mode="dicts")["SIMD Extensions"]
    return [*simd["baseline"], *simd["found"]]
