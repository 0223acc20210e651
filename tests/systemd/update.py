"""Encrypted releases under the unit: fetched from a web server, tested, served, killed in their probation.

``prepare`` makes the repository, outside of the container; the public functions below it are scenarios, see
scenarios.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

from tests.agent_process import Peer, picture
from tests.broker import Mosquitto
from tests.systemd.inside import CONFIG, MODEL, PYTHON, STATE, UNIT, WATCHDOG_S, Load, Service, run, show, wait
from tests.updates.web import Web

_PUBLISHER = Path("/opt/tests/publisher")
_INT8D = "/opt/int8d/bin/int8d"
_MARK = slice(20_000, 20_064)  # of a model file: weights


def prepare(folder: Path) -> None:
    """Makes ``folder``: a device's key, and a repository with releases 1 and 2, encrypted for it."""
    from agent.updates import identity
    from tests.repository import make
    from tests.variants import variant

    repo = make(folder)
    recipient = identity.create(str(folder / "box1.age"))
    for release in (1, 2):
        repo.publish(variant(folder, release), release, recipients=(recipient,))
    for path in folder.rglob("*"):
        if path.is_dir():
            path.chmod(0o755)
    repo.root.chmod(0o644)


def update(broker: Mosquitto) -> dict[str, object]:
    """Release 1, with a kill while it is fetched and one in its probation; then release 2, with one more kill than it
    may have.
    """
    web = Web(_PUBLISHER / "repository")
    # So that a child does not end by systemd's hand where the service alone is killed.
    service = _service(broker, web, f"WatchdogSec={WATCHDOG_S}\nKillMode=process")
    facts: dict[str, object] = {"started": service.start(), "connected": service.connected(), "before": _status()}
    load = Load(broker.port)
    load.begin(50)

    install = _Install(1)
    facts["child"] = child = _child(int(show()["MainPID"]))
    run("systemctl", "kill", "--kill-who=main", "-s", "KILL", UNIT)
    facts["child_gone"] = wait(lambda: not Path(f"/proc/{child['pid']}").exists(), 5)
    service.restarted(1)
    facts["told"] = install.said()

    facts["pending"] = wait(lambda: _status().get("step") == "probation") and _status()
    facts["plaintext"] = _plaintext()
    run("systemctl", "kill", "-s", "KILL", UNIT)
    service.restarted(2)
    facts |= {"killed": _status(), "version_killed": _version(broker)}
    wait(lambda: _status().get("state") == "committed")
    facts |= {"committed": _status(), "version": _version(broker)}

    install = _Install(2)
    for times in (3, 4):
        wait(lambda: _status().get("step") == "probation")
        facts[f"version_{times}"] = _version(broker)
        run("systemctl", "kill", "-s", "KILL", UNIT)
        service.restarted(times)
        install.said()
    wait(lambda: _status().get("state") == "rolled_back")
    facts |= {"back": _status(), "version_back": _version(broker), "unit": show()}
    load.end()
    load.answered()
    facts["load"] = load.report()
    load.close()
    run("systemctl", "stop", UNIT)
    facts |= {"stopped": show(), "status_of_none": _status(), "install_of_none": _command("install", "--release", "2"),
              "plaintext_at_rest": _plaintext(), "seeker": _holding(Path(MODEL).parent), "journal": service.journal(),
              "left": sorted(str(f.relative_to(STATE)) for f in STATE.rglob("*.part"))}  # fmt: skip
    web.close()
    return facts


def slow_release(broker: Mosquitto) -> dict[str, object]:
    """One that takes longer to load than the watchdog waits."""
    web = Web(_PUBLISHER / "repository")
    slow = WATCHDOG_S + 1
    service = _service(broker, web, f"WatchdogSec={WATCHDOG_S}\nEnvironment=PLANT_LOAD_S={slow}", planted=True)
    service.start()
    install = _Install(2)
    began = {}
    for step in ("load", "probation"):
        wait(lambda step=step: _status().get("step") == step)  # type: ignore[misc]
        began[step] = time.monotonic()
    facts = {"took_s": began["probation"] - began["load"], "version": _version(broker), "unit": show()}
    run("systemctl", "stop", UNIT)
    web.close()
    return facts | {"told": install.said(), "journal": service.journal()}


def greedy_release(broker: Mosquitto) -> dict[str, object]:
    """One whose test takes memory without end, of which the unit has 512 MiB."""
    web = Web(_PUBLISHER / "repository")
    service = _service(
        broker,
        web,
        f"ExecStart=\nExecStart={PYTHON} -m tests.planted_step run --config {CONFIG}\n"
        "Environment=PYTHONPATH=/opt/tests PLANT_STEP=allocate",
    )
    run("systemctl", "start", UNIT)
    service.connected()
    limits = show("MemoryMax,MemoryCurrent")
    if not limits["MemoryCurrent"].isdecimal():  # it would take the box's
        return {"limits": limits}
    facts = {"limits": limits, "pid": show()["MainPID"], "told": _command("install", "--release", "2")}
    facts |= {"status": _status(), "version": _version(broker), "unit": show(), "journal": service.journal()}
    web.close()
    return facts


def _service(broker: Mosquitto, web: Web, drop_in: str, planted: bool = False) -> Service:
    return Service(
        broker.port,
        f"LoadCredential=int8d-age:{_PUBLISHER}/box1.age\n{drop_in}",
        planted,
        rest=f"""[updates]
repository = "{web.url}"
root = "{_PUBLISHER}/keys/root.json"
interval = 0
key = "credential:int8d-age"
max_bytes_per_s = 20000
min_free_bytes = 1
shadow_s = 0.2
probation_s = 4
max_starts = 2
""",
    )


def _command(*arguments: str) -> str:
    return run(_INT8D, "update", *arguments, "--config", str(CONFIG))


def _status() -> dict[str, object]:
    """``int8d update status``, as root."""
    said = _command("status", "--json")
    with suppress(json.JSONDecodeError):
        return dict(json.loads(said)[0])
    return {"said": said}


class _Install:
    """``int8d update install`` in the background."""

    def __init__(self, release: int) -> None:
        self._said = ""
        self._thread = threading.Thread(target=self._run, args=(release,))
        self._thread.start()

    def _run(self, release: int) -> None:
        self._said = _command("install", "--release", str(release))

    def said(self) -> str:
        self._thread.join(30)
        return self._said


def _child(parent: int) -> dict[str, object]:
    """What holds for the service and for the process that fetches, as the kernel says."""
    found: list[int] = []

    def fetches() -> bool:
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and b"agent.updates.child\0fetch" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
                    return True
        return False

    if not wait(fetches, 20):
        return {"error": "none was seen"}
    wait(lambda: _limit(found[0], "Max open files") == "512", 5)  # it steps back first of all
    return {
        "pid": found[0],
        "service": _kept(parent),
        "child": _kept(found[0]),
        "nice": os.getpriority(os.PRIO_PROCESS, found[0]),
        "oom_score_adj": Path(f"/proc/{found[0]}/oom_score_adj").read_text().strip(),
        "open files": _limit(found[0], "Max open files"),
        "core": _limit(found[0], "Max core file size"),
    }


def _kept(pid: int) -> dict[str, str]:
    """What a child must not get rid of."""
    kept = ("Uid", "NoNewPrivs", "Seccomp", "CapEff", "CapPrm", "CapBnd")
    lines = (line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    facts = {name: value.strip() for name, value in lines if name in kept}
    return facts | {name: os.readlink(f"/proc/{pid}/ns/{name}") for name in ("mnt", "user", "ipc")}


def _limit(pid: int, name: str) -> str:
    for line in Path(f"/proc/{pid}/limits").read_text().splitlines():
        if line.startswith(name):
            return line.removeprefix(name).split()[0]
    return ""


def _plaintext() -> list[str]:
    """Files that hold the plaintext of a release."""
    return [name for top in ("/var/lib", "/tmp", "/var/tmp", "/dev/shm", "/run") for name in _holding(Path(top))]


def _holding(top: Path) -> list[str]:
    mark = Path(MODEL).read_bytes()[_MARK]
    found = subprocess.run(["find", str(top), "-type", "f", "-size", "-10M"], stdout=subprocess.PIPE, text=True).stdout
    held = []
    for name in found.splitlines() + [str(p) for p in top.glob("*") if p.is_symlink()]:
        with suppress(OSError):
            if mark in Path(name).read_bytes():
                held.append(name)
    return held


def _version(broker: Mosquitto) -> str:
    """Of the model that answers."""
    peer = Peer(broker.port, ["predictions/asked"])
    try:
        peer.send("cameras/asked/frame", picture(0))
        return str(peer.reply(20)["model_version"])
    finally:
        peer.close()
