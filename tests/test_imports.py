"""Imports between packages, which point one way."""

import ast
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent / "jaxspec"
# Packages from the lowest up; a package may import those in its entry.
BASE = {"errors", "typing"}
NETWORKS = BASE | {"config", "core", "nn"}
FILES_AND_MODELS = NETWORKS | {"io", "models", "tokenizers", "drafters", "speculative"}
FILES_AND_MODELS |= {"next_scale", "mar", "masked", "watermark"}
ALLOWED = {
    "errors": set(),
    "typing": set(),
    "io": BASE,
    "config": BASE,
    "core": BASE,
    "speculative": BASE | {"core"},
    "sharding": BASE | {"core"},
    "nn": NETWORKS,
    "tokenizers": NETWORKS,
    "models": NETWORKS | {"speculative"},
    "drafters": NETWORKS | {"speculative", "models"},
    "next_scale": NETWORKS | {"speculative", "models", "tokenizers"},
    "mar": NETWORKS | {"models"},
    "masked": NETWORKS | {"models"},
    "watermark": BASE | {"core", "io"},
    "testing": BASE | {"core", "speculative", "drafters"},
    "checkpoint": FILES_AND_MODELS,
    "convert": FILES_AND_MODELS | {"checkpoint", "sharding"},
    "data": FILES_AND_MODELS | {"checkpoint"},
    "pipeline": FILES_AND_MODELS | {"checkpoint", "sharding"},
    "evaluate": FILES_AND_MODELS
    | {"checkpoint", "sharding", "data", "pipeline", "testing"},
}
ALLOWED["demo"] = BASE | {"config", "core", "pipeline", "speculative"}
ALLOWED["train"] = ALLOWED["evaluate"] | {"evaluate"}
ALLOWED["bench"] = ALLOWED["train"] | {"train", "convert"}
ALLOWED["cli"] = ALLOWED["bench"] | {"bench", "demo"}
# External packages that only some packages may import.
RESERVED = {
    "orbax": set(),
    "tensorstore": {"checkpoint"},
    "scipy": {"convert", "evaluate"},
    "huggingface_hub": {"io"},
    "tokenizers": {"pipeline", "train", "convert"},
    "tensorflow_datasets": {"data"},
    "optax": {"train"},
    "flax": {"nn", "models", "tokenizers", "drafters"},
    "torch": {"bench"},
    "aiohttp": {"demo"},
    "rustworkx": {"watermark"},
    "transformers": set(),
}


def imports(file):
    """(module, at module level) of every import in a file."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names = [node.module]
            if node.module == "jaxspec":
                names = [f"jaxspec.{alias.name}" for alias in node.names]
        for name in names:
            yield name, node in tree.body


def package(file):
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


FILES = sorted(ROOT.rglob("*.py"))


def test_every_package_has_an_entry():
    assert {package(f) for f in FILES} - {"__init__", "__main__"} == set(ALLOWED)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_imports_point_one_way(file):
    here = package(file)
    for name, _ in imports(file):
        first, *rest = name.split(".")
        if first == "jaxspec" and rest and here in ALLOWED and rest[0] in ALLOWED:
            assert rest[0] in ALLOWED[here] | {here}, f"{here} imports {name}"
        if first in RESERVED:
            assert here in RESERVED[first], f"{here} imports {name}"


def test_pytorch_is_imported_by_baselines_only():
    """Also, no module imports those of `bench.baselines` at module level."""
    for file in FILES:
        baseline = file.relative_to(ROOT).as_posix().startswith("bench/baselines/")
        for name, at_once in imports(file):
            if name.split(".")[0] in ("torch", "transformers"):
                assert baseline, f"{file} imports {name}"
            if name.startswith("jaxspec.bench.baselines.") and not baseline:
                assert not at_once, f"{file} imports {name}"


def test_importing_jaxspec_loads_no_array_library():
    """It imports neither JAX nor other large packages before they are needed."""
    code = (
        "import sys, jaxspec, jaxspec.cli;"
        "heavy = {'jax', 'flax', 'numpy', 'orbax', 'tensorflow_datasets', 'torch'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (out.stdout.strip(), out.stderr) == ("[]", "")


def test_names_of_namespaces_are_not_hidden_by_modules_of_the_same_name():
    """Importing a submodule binds its name in the package."""
    import jaxspec
    import jaxspec.drafters.registry  # imports all drafters

    for namespace in ("drafters", "verify", "trees", "models", "tokenizers"):
        room = getattr(jaxspec, namespace)
        assert room.__all__, namespace
        for name in room.__all__:
            assert not isinstance(getattr(room, name), ModuleType), name
    assert jaxspec.drafters.registry.DRAFTERS


def test_public_names_resolve():
    import jaxspec

    for name in jaxspec.__all__:
        assert getattr(jaxspec, name) is not None
    assert set(jaxspec.__all__) <= set(dir(jaxspec))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = jaxspec.no_such_name


def imported_test_modules(source):
    """Full names of test modules, or of their members, that a file imports."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = "." * node.level + (node.module or "")
            names = [f"{above}.{alias.name}" for alias in node.names]
        for name in names:
            if any(part.startswith("test_") for part in name.split(".")):
                yield name


def test_no_test_module_is_imported():
    """Shared code of tests is in modules without tests."""
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        found = list(imported_test_modules(file.read_text("utf-8")))
        assert not found, f"{file} imports {', '.join(found)}"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import tests.core.test_tree", ["tests.core.test_tree"]),
        ("import numpy, tests.core.test_tree as t", ["tests.core.test_tree"]),
        ("from tests.core import noises, test_tree", ["tests.core.test_tree"]),
        ("from tests.core.test_tree import trees", ["tests.core.test_tree.trees"]),
        ("from . import test_tree as t", ["..test_tree"]),
        ("from .test_tree import trees", [".test_tree.trees"]),
        ("def f():\n    import tests.test_style", ["tests.test_style"]),
        ("from tests.core.random_trees import trees", []),
        ("# import tests.core.test_tree\nimport jaxspec.testing.toy", []),
    ],
)
def test_an_import_of_a_test_module_is_detected(line, found):
    assert list(imported_test_modules(line)) == found
