"""Check that an sdist and a wheel hold all files of the package, and nothing strange.

Usage: check_distribution.py CHECKOUT SDIST WHEEL
"""

import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

PACKAGE = "celery_admin_runner"
#: Beside the package, what an sdist needs to be built, tested and tried out.
ALSO_IN_SDIST = {
    "CHANGELOG.rst",
    "LICENSE",
    "README.rst",
    "example_project/manage.py",
    "example_project/config/settings.py",
    "example_project/shop/migrations/0001_create_the_shop.py",
    "pyproject.toml",
    "setup.cfg",
    "setup.py",
    "tests/settings.py",
}
#: Kinds of files that the package must have some of; the check would pass without them else.
EXPECTED_SUFFIXES = {".py", ".html", ".css", ".typed"}


def package_files(checkout: Path) -> set[str]:
    """Return the names of the package's files in a clean checkout."""
    files = {
        path.relative_to(checkout).as_posix()
        for path in (checkout / PACKAGE).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    suffixes = {PurePosixPath(name).suffix or PurePosixPath(name).name for name in files}
    lacking = EXPECTED_SUFFIXES - suffixes - {f"{PACKAGE}.typed"}
    if "py.typed" in {PurePosixPath(name).name for name in files}:
        lacking.discard(".typed")
    if lacking:
        raise SystemExit(f"The package has no files of these kinds: {sorted(lacking)}")
    return files


def missing_catalogues(files: set[str]) -> set[str]:
    """Return the compiled catalogues that should stand beside their sources."""
    wanted = {name[: -len(".po")] + ".mo" for name in files if name.endswith(".po")}
    return wanted - files


def sdist_files(path: Path) -> set[str]:
    """Return the names in an sdist, without its top folder."""
    with tarfile.open(path) as archive:
        names = [PurePosixPath(member.name) for member in archive if member.isfile()]
    return {"/".join(name.parts[1:]) for name in names}


def wheel_files(path: Path) -> set[str]:
    """Return the names in a wheel."""
    with zipfile.ZipFile(path) as archive:
        return set(archive.namelist())


def main(checkout: str, sdist: str, wheel: str) -> None:
    """Compare, and exit with a message if something is missing or too much."""
    files = package_files(Path(checkout))
    in_sdist = sdist_files(Path(sdist))
    in_wheel = wheel_files(Path(wheel))
    problems = {
        "compiled catalogues that are missing": missing_catalogues(files),
        "missing in the sdist": (files | ALSO_IN_SDIST) - in_sdist,
        "missing in the wheel": files - in_wheel,
        "strange in the wheel": {
            name
            for name in in_wheel - files
            if not name.startswith(f"{PACKAGE}-") or ".dist-info/" not in name
        },
        "strange in the sdist": {
            name for name in in_sdist if "/var/" in name or name.endswith(".pyc")
        },
    }
    found = {text: names for text, names in problems.items() if names}
    for text, names in found.items():
        print(f"{text}: {sorted(names)}")
    if found:
        raise SystemExit(1)
    print(f"{len(files)} files of the package are in the sdist and in the wheel")


if __name__ == "__main__":
    main(*sys.argv[1:])
