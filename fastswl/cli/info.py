"""Show versions, threads, CPU features and where the compiled kernels are kept."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

from fastswl.cli.console import facts, numba_settings

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
    pairs += [(name, version or "not installed") for name, version in information["versions"].items()]
    pairs += [
        ("threads", f"{information['threads']} of {information['cpus']} CPUs"),
        ("threading layer", information["threading_layer"]),
        ("CPU", information["cpu"]),
        ("SIMD", " ".join(information["simd"])),
        ("cache", information["cache"] or "none: no directory for it can be written to"),
    ]
    pairs += [("setting", f"{name}={value}") for name, value in information["settings"].items()]
    print(facts(pairs))


def collect() -> dict[str, Any]:
    """Everything that `fastswl info` shows, ready for JSON."""
    import fastswl
    from fastswl.cache import cache_directory

    cache = cache_directory()
    return {
        "python": f"{platform.python_version()} on {platform.platform()}",
        "versions": {name: _version(name) for name in _PACKAGES},
        "threads": fastswl.get_num_threads(),
        "cpus": os.cpu_count(),
        "threading_layer": fastswl.threading_layer(),
        "cpu": _cpu_name(),
        "simd": _simd_features(),
        "cache": None if cache is None else str(cache),
        "settings": numba_settings(),
    }


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
