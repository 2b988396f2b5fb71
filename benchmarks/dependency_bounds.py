"""Try the dependencies at their lower bounds, or at their newest: install, then run the tests.

    make bounds                                             # both, one after the other
    python benchmarks/dependency_bounds.py lowest --keep-torch

Each choice gets a virtual environment of its own. `--keep-torch` takes torch from
`constraints.txt`: newest torch is often to be had as a CUDA build of several gigabytes only.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def requirements() -> list[Requirement]:
    """Read what mtrl and its developers ask for on a machine like this."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["dev"]
    wanted = [Requirement(line) for line in lines]
    return [one for one in wanted if one.marker is None or one.marker.evaluate()]


def lowest(requirement: Requirement) -> str:
    """Turn `name>=1.2` into `name==1.2`, which also allows 1.2's own local builds."""
    (version,) = (part.version for part in requirement.specifier if part.operator in (">=", "=="))
    return f"{requirement.name}=={version}"


def pinned_torch() -> str:
    """Find torch's line in the constraints."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith("torch=="))


def install(choice: str, directory: Path, keep_torch: bool) -> Path:
    """Make a virtual environment with one choice of versions; return its Python."""
    venv.create(directory, with_pip=True)
    python = directory / "bin" / "python"
    wanted = requirements()
    lines = [lowest(one) if choice == "lowest" else str(one) for one in wanted]
    if keep_torch:
        lines = [pinned_torch()] + [line for line in lines if Requirement(line).name != "torch"]
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # Torch by itself first: another package would otherwise pull a build of its own liking.
    torch = [line for line in lines if Requirement(line).name == "torch"]
    subprocess.run([*command, *torch], check=True)
    subprocess.run([*command, "--upgrade", *lines], check=True)
    subprocess.run([*command, "--no-deps", "--editable", str(ROOT)], check=True)
    return python


def installed(python: Path) -> dict[str, str]:
    """Tell which versions were installed of what is asked for directly."""
    listing = subprocess.run(
        [python, "-m", "pip", "list", "--format", "json", "--disable-pip-version-check"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    versions = {row["name"].lower(): row["version"] for row in json.loads(listing)}
    return {one.name: versions[one.name.lower()] for one in requirements()}


def main() -> int:
    """Install and test each choice asked for; exit with 1 if any fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("choices", nargs="+", choices=["lowest", "newest"])
    parser.add_argument("--keep-torch", action="store_true", help="torch as in constraints.txt")
    parser.add_argument("--directory", type=Path, help="where environments go, to be kept")
    parser.add_argument("--pytest", nargs=argparse.REMAINDER, default=[], help="what pytest gets")
    options = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        for choice in options.choices:
            directory = (options.directory or Path(temporary)) / choice
            python = install(choice, directory, options.keep_torch)
            for name, version in installed(python).items():
                print(f"{choice:8} {name:12} {version}", flush=True)
            tests = subprocess.run(
                [python, "-m", "pytest", *(options.pytest or ["-m", "not slow"])],
                cwd=ROOT,
                env={"PYTHONPATH": str(ROOT), "PATH": f"{python.parent}:/usr/bin:/bin"},
                check=False,
            )
            print(f"{choice}: {'passed' if tests.returncode == 0 else 'FAILED'}", flush=True)
            failed |= tests.returncode != 0
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
