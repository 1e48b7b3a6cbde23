"""What a figure was measured on: the machine, and the versions of everything that took part."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

PACKAGES = (
    "fastswl",
    "numba",
    "llvmlite",
    "numpy",
    "tbb",
    "torch",
    "jax",
    "jaxlib",
    "optax",
    "onnxruntime",
    "scikit-learn",
    "scipy",
)


def cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def core_count() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cache_sizes() -> dict[str, str]:
    """Sizes of the first core's data caches by level, as the kernel says ("32K")."""
    found = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        if (index / "type").read_text().strip() != "Instruction":
            found["L" + (index / "level").read_text().strip()] = (index / "size").read_text().strip()
    return found


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe() -> dict:
    """All of it, for a JSON file."""
    try:
        import numba.core.cpu  # noqa: F401
        from llvmlite import binding

        target = binding.get_host_cpu_name()
    except ImportError:
        target = ""
    return {
        "cpu": cpu_model(),
        "target": target,
        "cores": core_count(),
        "caches": cache_sizes(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": versions(),
    }


def title(machine: dict) -> str:
    """One line for the head of a table or the foot of a picture."""
    caches = ", ".join(f"{level} {size}" for level, size in machine["caches"].items())
    return f"{machine['cpu']} ({machine['target']}), {machine['cores']} cores, {caches}"
