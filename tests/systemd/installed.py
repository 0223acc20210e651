"""The program as ``pip install`` puts it into a virtual environment, without building or downloading anything.

The extension and the dependencies are those of the environment that the tests run in; the Python sources are the
repository's. Only what pyproject.toml names for the program and those of its extras is there, so a
dependency that is not declared is missed.
"""

from __future__ import annotations

import compileall
import importlib.metadata
import os
import re
import shutil
import tomllib
from collections.abc import Sequence
from pathlib import Path

import agent._kernels
from tests.agent_process import ROOT

_SKIP = shutil.ignore_patterns("__pycache__", "*.so", "*.cpp")


def install(folder: Path, at: str, python: str, extras: Sequence[str] = ("crypto", "updates")) -> Path:
    """Makes ``folder`` the environment that will lie at ``at``, for the interpreter ``python`` (3.x of /usr/bin); gives
    its packages' folder.
    """
    site = folder / "lib" / f"python{python}" / "site-packages"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(f"/usr/bin/python{python}")
    (folder / "pyvenv.cfg").write_text(f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {python}\n")
    script = folder / "bin" / "int8d"
    script.write_text(f"#!{at}/bin/python\nimport sys\nfrom agent.cli import main\nsys.exit(main())\n")
    script.chmod(0o755)
    for package in ("agent", "models"):
        shutil.copytree(ROOT / package, site / package, ignore=_SKIP)
    extension = Path(agent._kernels.__file__)
    shutil.copy2(extension, site / "agent" / extension.name)
    compileall.compile_dir(site, quiet=2, stripdir=str(folder), prependdir=at)
    for distribution in _required(extras):
        _copy(distribution, site)
    return site


def _required(names: Sequence[str]) -> list[importlib.metadata.Distribution]:
    """What the program and its extras of these names require, and what that requires."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    todo = project["dependencies"] + [line for name in names for line in project["optional-dependencies"][name]]
    found: dict[str, importlib.metadata.Distribution] = {}
    seen: set[str] = set()
    while todo:
        line = todo.pop()
        if line in seen:
            continue
        seen.add(line)
        requirement, _, marker = line.partition(";")
        match = re.match(r"([\w.-]+)(?:\[([\w, -]+)\])?", requirement)
        assert match is not None, line
        try:
            found[match[1]] = distribution = importlib.metadata.distribution(match[1])
        except importlib.metadata.PackageNotFoundError:
            if marker:  # for another platform or Python
                continue
            raise
        extras = {name.strip() for name in (match[2] or "").split(",")}
        for further in distribution.requires or []:
            extra = re.search(r"""extra == ["']([\w-]+)""", further)
            if extra is None or extra[1] in extras:
                todo.append(further)
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
