"""Compiled kernels on disk, under the package's own key and manners.

Numba's cache looks at the file of one function only, so it misses a change in a helper elsewhere and forgets everything at
each upgrade (it compares modification times); it raises where it cannot write. Here the key is a digest of the sources that
kernels are made of, and any trouble with the files costs at most a new compilation.
"""

import contextlib
import functools
import getpass
import hashlib
import os
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path

import llvmlite.binding as llvm
from numba import config
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator
from numba.core.runtime import rtsys
from numba.core.serialize import dumps

_PACKAGE = Path(__file__).parent


@functools.cache
def sources_digest() -> str:
    """Digest of all modules that a kernel's code can come from."""
    digest = hashlib.sha256()
    for path in sorted([*_PACKAGE.glob("*.py"), *_PACKAGE.glob("simd/*.py"), *_PACKAGE.glob("kernels/*.py")]):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _candidates() -> Iterator[Path]:
    if config.CACHE_DIR:
        yield Path(config.CACHE_DIR) / "fastswl"
        return
    yield _PACKAGE / "__pycache__"
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    yield Path(base) / "fastswl"
    with contextlib.suppress(Exception):
        yield Path(tempfile.gettempdir()) / f"fastswl-{getpass.getuser()}"


@functools.cache
def cache_directory() -> Path | None:
    """The first directory that can be written to, None if there is none (kernels are compiled anew in each process)."""
    for path in _candidates():
        try:
            path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path).close()
        except OSError:
            continue
        return path
    return None


class _Locator(_CacheLocator):
    def get_cache_path(self) -> str:
        return str(cache_directory() or "")

    def get_source_stamp(self) -> str:
        return sources_digest()

    def get_disambiguator(self) -> str:
        return "kernels"


class _SymbolMissing(Exception):
    """Compiled code calls a function that this process does not have yet."""


def _external_names(library):
    """The functions that the machine code of a library calls and does not hold."""
    functions = library._final_module.functions
    return [f.name for f in functions if f.is_declaration and not f.name.startswith("llvm.")]


class _KernelCacheImpl(CompileResultCacheImpl):
    def __init__(self, py_func):
        self._locator = _Locator()
        self._filename_base = self.get_filename_base(f"{py_func.__module__}.{py_func.__qualname__}", "")

    def reduce(self, data):
        content = dumps((_external_names(data.library), super().reduce(data)))
        return hashlib.sha256(content).hexdigest(), content

    def rebuild(self, target_context, reduced):
        digest, content = reduced
        if hashlib.sha256(content).hexdigest() != digest:
            return None
        names, reduced_result = pickle.loads(content)
        # LLVM would end the process
        if not all(llvm.address_of_symbol(name) for name in names):
            raise _SymbolMissing
        return super().rebuild(target_context, reduced_result)


class KernelCache(FunctionCache):
    """Numba's cache of one function with this package's key; it never raises."""

    _impl_class = _KernelCacheImpl

    def load_overload(self, sig, target_context):
        """Return the compiled kernel from disk, None if it is not there or not whole."""
        if cache_directory() is None:
            return None
        for load in (self._load_without_lowering, super().load_overload):
            try:
                return load(sig, target_context)
            except _SymbolMissing:
                continue
            except Exception:  # a damaged index or file: whatever unpickling makes of it
                with contextlib.suppress(Exception):
                    self.flush()
                return None
        return None

    def _load_without_lowering(self, sig, target_context):
        """As Numba's `load_overload`, but that it does not import first all that Numba could lower.

        That (and SciPy with it, where it is installed) takes two to three times as long as `import numba`, and finished machine
        code needs nothing of it but Numba's runtime.
        """
        rtsys.initialize(target_context)
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)

    def save_overload(self, sig, data):
        """Save a compiled kernel if that is possible."""
        if cache_directory() is None:
            return
        with contextlib.suppress(Exception):  # no space, no rights, a directory that is gone
            super().save_overload(sig, data)

    def _index_key(self, sig, codegen):
        options = (config.OPT.__str__(), config.LOOP_VECTORIZE, config.SLP_VECTORIZE)
        return (*super()._index_key(sig, codegen), options)
