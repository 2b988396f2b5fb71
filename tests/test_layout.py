"""What lies where, and who may import whom."""

import ast
import importlib
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "mtrl": set(),
    "agents": {"mtrl"},
    "envs": {"mtrl"},
    "scripts": {"agents", "envs", "mtrl"},
}
SOURCES = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]
REQUIRED = {"pyproject.toml", "README.md", *MAY_IMPORT, "tests"}
ALLOWED = REQUIRED | {
    *("benchmarks", "docs", "Makefile", "constraints.txt", ".ci", ".gitignore"),
    *("LICENSE", "CHANGELOG.md", "CITATION.cff"),
}

each_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))


def absolute_imports(tree):
    """Yield the top-level name of every absolute import, wherever in the file it stands."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_is_this_repositorys_own(package):
    """Strangers of these names are on the package index."""
    module = importlib.import_module(package)
    assert Path(module.__file__) == ROOT / package / "__init__.py"


@each_source
def test_imports_run_one_way(path):
    package = path.relative_to(ROOT).parts[0]
    others = set(absolute_imports(ast.parse(path.read_text()))) & MAY_IMPORT.keys()
    # A file in scripts/ that is run as a program is not part of a package: no relative imports.
    is_program = package == "scripts" and '__name__ == "__main__"' in path.read_text()
    assert others <= MAY_IMPORT[package] | ({"scripts"} if is_program else set())


@each_source
def test_relative_imports_stay_inside_their_package(path):
    depth = len(path.relative_to(ROOT).parts) - 1
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level <= depth, ast.unparse(node)


@each_source
def test_nothing_is_unpickled(path):
    """Loading a pickle runs whatever code it carries."""
    tree = ast.parse(path.read_text())
    assert not set(absolute_imports(tree)) & {"pickle", "cloudpickle", "dill", "joblib", "shelve"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("torch.load", "torch.save", "np.load", "numpy.load"), called
            for keyword in node.keywords:
                allows = keyword.arg == "allow_pickle" and ast.unparse(keyword.value) != "False"
                assert not allows, ast.unparse(node)


def test_the_top_level_holds_what_a_project_needs_and_nothing_else():
    try:
        tracked = subprocess.run(
            ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    top = {name.partition("/")[0] for name in tracked}
    assert top <= ALLOWED
    assert {path.name for path in ROOT.iterdir()} >= REQUIRED
