"""The program as ``pip install`` puts it into a virtual environment, without building or downloading anything.

The extension and the dependencies are those of the environment that the tests run in; the Python sources are the
repository's. Only what the distribution and its extra ``crypto`` require is there, so a dependency that is not declared
is missed.
"""

from __future__ import annotations

import compileall
import importlib.metadata
import os
import re
import shutil
from pathlib import Path

import agent
import agent._kernels

_SKIP = shutil.ignore_patterns("__pycache__", "*.so", "*.cpp")


def install(folder: Path, at: str, python: str) -> None:
    """Makes ``folder`` the environment that will lie at ``at``, for the interpreter ``python`` (3.x of /usr/bin)."""
    site = folder / "lib" / f"python{python}" / "site-packages"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(f"/usr/bin/python{python}")
    (folder / "pyvenv.cfg").write_text(f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {python}\n")
    script = folder / "bin" / "int8d"
    script.write_text(f"#!{at}/bin/python\nimport sys\nfrom agent.cli import main\nsys.exit(main())\n")
    script.chmod(0o755)
    root = Path(agent.__file__).parents[1]
    for package in ("agent", "models"):
        shutil.copytree(root / package, site / package, ignore=_SKIP)
    extension = Path(agent._kernels.__file__)
    shutil.copy2(extension, site / "agent" / extension.name)
    compileall.compile_dir(site, quiet=2, stripdir=str(folder), prependdir=at)
    for distribution in _required("int8d"):
        _copy(distribution, site)


def _required(name: str) -> list[importlib.metadata.Distribution]:
    """What the distribution and its extra ``crypto`` require, and what that requires."""
    found: dict[str, importlib.metadata.Distribution] = {}
    todo = [name]
    while todo:
        for line in importlib.metadata.requires(todo.pop()) or []:
            requirement, _, marker = line.partition(";")
            match = re.match(r"[\w.-]+", requirement)
            assert match is not None, line
            wanted = "extra" not in marker or marker.strip() in ('extra == "crypto"', "extra == 'crypto'")
            if not wanted or match[0] in found:
                continue
            try:
                found[match[0]] = importlib.metadata.distribution(match[0])
            except importlib.metadata.PackageNotFoundError:
                if marker:  # for another platform or Python
                    continue
                raise
            todo.append(match[0])
    return list(found.values())


def _copy(distribution: importlib.metadata.Distribution, site: Path) -> None:
    for file in distribution.files or []:
        source, target = Path(str(file.locate())), site / file
        if ".." in file.parts or not source.exists():  # scripts
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source, target)
        except OSError:  # another file system
            shutil.copy2(source, target)
