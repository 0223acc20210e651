"""Runs inside the container, as root: takes the unit through its life, and writes down what it saw.

    python -m tests.systemd.scenarios RESULTS [NAME …]

Each scenario returns facts; none judges. ``tests/test_systemd.py`` does, outside.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.agent_process import Peer
from tests.broker import Mosquitto
from tests.systemd.inside import (
    CONFIG,
    DROP_INS,
    MODEL,
    PYTHON,
    STATE,
    UNIT,
    WATCHDOG_S,
    Load,
    Service,
    journal,
    run,
    show,
    wait,
)
from tests.systemd.update import greedy_release, slow_release, update

Facts = dict[str, object]
RATE = 200.0  # messages a second
_HERE = Path("/opt/tests/systemd")  # the repository's folder of that name


def first_start(broker: Mosquitto) -> Facts:
    """As README.md says, with the sample configuration, while no broker is there; then one comes, and goes."""
    since = time.time()
    sample = (_HERE / "int8d.toml").read_text()
    CONFIG.write_text(sample.replace("#port = 1883", f"port = {broker.port}"))
    broker.kill()
    said = run("systemctl", "enable", "--now", UNIT)
    facts: Facts = {"said": said, "is_active": run("systemctl", "is-active", UNIT),
                    "is_enabled": run("systemctl", "is-enabled", UNIT), "alone": show()}  # fmt: skip
    broker.start()
    wait(lambda: show()["StatusText"].startswith("connected"))
    load = Load(broker.port)
    load.begin(RATE, 40)
    load.join()
    load.answered()
    facts |= {"connected": show(), "load": load.report(), "verify": run("systemd-analyze", "verify", UNIT)}
    load.close()
    broker.kill()
    wait(lambda: show()["StatusText"].startswith("no connection"))
    facts |= {"left": show(), "journal": journal(since)}
    run("systemctl", "stop", UNIT)
    facts["stopped"] = show()
    broker.start()
    return facts


def state(broker: Mosquitto) -> Facts:
    """What the tuner found outlives a restart, and is not sought again."""

    def kept() -> dict[str, int]:
        return {str(f.relative_to(STATE)): f.stat().st_mtime_ns for f in STATE.glob("tuner/*.json")}

    service = Service(broker.port)
    before = kept()
    service.start()
    service.connected()
    return {"before": before, "after": kept(), "journal": service.journal(), "link": str(STATE.readlink()),
            "mode": oct(STATE.stat().st_mode)}  # fmt: skip


def stop(broker: Mosquitto) -> Facts:
    """``systemctl stop`` while messages arrive, and a start."""
    service = Service(broker.port)
    service.start()
    load = Load(broker.port)
    load.begin(RATE)
    time.sleep(1)
    run("systemctl", "stop", UNIT)
    wait(lambda: load.available == "offline", 5)
    stopped = {"unit": show(), "available": load.available, "answered": len(load.answers)}
    time.sleep(0.5)
    waiting = load.sent
    service.start()
    time.sleep(0.5)
    load.end()
    load.answered()
    facts: Facts = {"stopped": stopped, "sent_before_start": waiting, "load": load.report(), "unit": show()}
    load.close()
    return facts


def slow_stop(broker: Mosquitto) -> Facts:
    """A stop that waits for a request longer than the watchdog would."""
    service = Service(broker.port, f"WatchdogSec={WATCHDOG_S}", planted=True)
    service.start()
    service.connected()
    load = Load(broker.port)
    load.plant(f"sleep {WATCHDOG_S + 2}")
    time.sleep(0.3)
    began = time.monotonic()
    run("systemctl", "stop", UNIT)
    facts: Facts = {"took_s": round(time.monotonic() - began, 1), "unit": show()}
    wait(lambda: load.errors, 5)
    facts |= {"load": load.report(), "journal": service.journal()}
    load.close()
    return facts


def slow_start(broker: Mosquitto) -> Facts:
    """Models that take longer to load than a service may take to start."""
    service = Service(broker.port, "TimeoutStartSec=4\nEnvironment=PLANT_LOAD_S=6", planted=True)
    return {"started": service.start(), "unit": show(), "journal": service.journal()}


def no_network(broker: Mosquitto) -> Facts:
    """A broker whose name can't be resolved."""
    service = Service(broker.port, broker='host = "broker.invalid"')
    facts: Facts = {"started": service.start()}
    wait(lambda: any("no connection to broker.invalid" in line for line in service.journal()), 10)
    return facts | {"unit": show(), "journal": service.journal()}


def credentials(broker: Mosquitto) -> Facts:
    """A password that root alone can read, handed to the service by systemd; then a wrong one."""
    folder = Path("/var/lib/locked-broker")
    folder.mkdir()
    run("mosquitto_passwd", "-b", "-c", str(folder / "passwords"), "box1", "a secret")
    locked = Mosquitto(folder, f"password_file {folder}/passwords", anonymous=False)
    secret = CONFIG.parent / "mqtt-password"
    facts: Facts = {}
    for name, text in (("wrong", "no secret"), ("right", "a secret")):
        secret.write_text(f"{text}\n")
        secret.chmod(0o600)
        service = Service(
            locked.port,
            f"LoadCredential=mqtt-password:{secret}",
            broker='username = "box1"\npassword_file = "credential:mqtt-password"',
        )
        started = service.start()
        connected = service.connected(30 if name == "right" else 1)
        facts[name] = {"started": started, "connected": connected, "unit": show(), "journal": service.journal()}
    locked.stop()
    return facts


def bad_config(broker: Mosquitto) -> Facts:
    """What starting again would not help."""
    cases: dict[str, dict[str, str]] = {
        "a misspelt setting": {"top": "divice = 1"},
        "no model file": {"model": 'path = "/etc/int8d/none.safetensors"'},
        "no credential": {"broker": 'username = "box1"\npassword_file = "credential:none"'},
        "no such core": {"model": f'path = "{MODEL}"\ncores = [4095]'},
    }
    facts: Facts = {}
    for name, settings in cases.items():
        service = Service(broker.port, **settings)
        started = service.start()
        if not facts:
            time.sleep(2)  # more than RestartSec, for a loop that would not show in the unit's state
        facts[name] = {"started": started, "unit": show(), "journal": service.journal()}
    return facts


def sandbox(broker: Mosquitto) -> Facts:
    """The probe in the place of the service."""
    service = Service(
        broker.port,
        f"Type=exec\nRestart=no\nWatchdogSec=0\nExecStart=\nExecStart={PYTHON} -m tests.systemd.probe\n"
        "Environment=PYTHONPATH=/opt/tests",
    )
    started = service.start()
    wait(lambda: show()["ActiveState"] in ("inactive", "failed"))
    found = STATE / "probe.json"
    lines = [line for line in service.journal() if line.startswith("line ")]
    return {"started": started, "unit": show(), "lines": len(lines),
            "probe": json.loads(found.read_text()) if found.exists() else None}  # fmt: skip


def gpu(broker: Mosquitto) -> Facts:
    """With the drop-in for a GPU, on a box that has none."""
    drop_in = DROP_INS / "gpu.conf"
    shutil.copy(_HERE / "gpu.conf", drop_in)
    service = Service(broker.port)
    facts: Facts = {"started": service.start(), "connected": service.connected(), "unit": show(),
                    "verify": run("systemd-analyze", "verify", UNIT),
                    "shown": show("ProcSubset,PrivateDevices")}  # fmt: skip
    drop_in.unlink()
    return facts


def pinned(broker: Mosquitto) -> Facts:
    """A model that has a core of its own: the last of those that there are."""
    core = max(os.sched_getaffinity(0))
    service = Service(broker.port, model=f'path = "{MODEL}"\ncores = [{core}]')
    started = service.start()
    service.connected()
    load = Load(broker.port)
    load.begin(RATE, 20)
    load.join()
    load.answered()
    tasks = Path(f"/proc/{show()['MainPID']}/task").iterdir()
    facts: Facts = {"started": started, "unit": show(), "load": load.report(), "core": core,
                    "threads": [sorted(os.sched_getaffinity(int(task.name))) for task in tasks],
                    "journal": service.journal()}  # fmt: skip
    load.close()
    return facts


def kill(broker: Mosquitto) -> Facts:
    """SIGKILL under load, twice."""
    service = Service(broker.port)
    service.start()
    load = Load(broker.port)
    load.begin(RATE)
    for times in (1, 2):
        time.sleep(0.5)
        run("systemctl", "kill", "-s", "KILL", UNIT)
        service.restarted(times)
    time.sleep(0.5)
    load.end()
    load.answered()
    facts: Facts = {"load": load.report(), "unit": show()}
    load.close()
    return facts


def crash(broker: Mosquitto) -> Facts:
    """A fault in a kernel."""
    return _planted(broker, "crash", "")


def hang(broker: Mosquitto) -> Facts:
    """A request that never ends: nothing but the progress of inference shows it."""
    return _planted(broker, "hang", f"WatchdogSec={WATCHDOG_S}")


def freeze(broker: Mosquitto) -> Facts:
    """A request that never ends and keeps the interpreter's lock."""
    return _planted(broker, "freeze", f"WatchdogSec={WATCHDOG_S}")


def memory(broker: Mosquitto) -> Facts:
    """A request that asks for more than MemoryMax."""
    return _planted(broker, "allocate 1024", "") | {"limits": show("MemoryMax,MemoryCurrent")}


def _planted(broker: Mosquitto, what: str, drop_in: str) -> Facts:
    """One bad message in the middle of good ones; it comes back after each death, until its second strike.

    The daemon's own limit on a request lies far off, so that it is systemd that acts.
    """
    service = Service(broker.port, drop_in, planted=True, rest="[containment]\nhang_timeout_s = 600")
    service.start()
    load = Load(broker.port)
    load.begin(RATE, 100)
    time.sleep(0.2)
    planted = time.monotonic()
    load.plant(what)
    restarted = service.restarted(1)
    took = time.monotonic() - planted
    load.join()
    load.answered(60)
    wait(lambda: load.dead and load.errors)
    facts: Facts = {"restarted": restarted, "restarted_after_s": round(took, 1), "unit": show(), "load": load.report(),
                    "journal": service.journal()}  # fmt: skip
    load.close()
    return facts


def rubbish(broker: Mosquitto) -> Facts:
    """A sender of rubbish."""
    count = 5000
    service = Service(broker.port)
    service.start()
    peer = Peer(broker.port, ["predictions/#"])
    for i in range(count):
        peer.client.publish(f"cameras/{i}/frame", b"rubbish", 1)
    wait(lambda: peer.messages.qsize() >= count, 60)
    facts: Facts = {"sent": count, "answered": peer.messages.qsize(), "lines": len(service.journal()), "unit": show()}
    peer.close()
    return facts


SCENARIOS: tuple[Callable[[Mosquitto], Facts], ...] = (
    first_start, state, stop, slow_stop, slow_start, no_network, credentials, bad_config, sandbox, gpu, pinned, kill,
    crash, hang, freeze, memory, rubbish, update, greedy_release, slow_release,
)  # fmt: skip


def main() -> None:
    results = Path(sys.argv[1])
    folder = Path("/var/lib/broker")
    folder.mkdir()
    broker = Mosquitto(folder)
    seen: dict[str, Facts] = {}
    until = time.monotonic() + 260
    for scenario in SCENARIOS:
        if sys.argv[2:] and scenario.__name__ not in sys.argv[2:]:
            continue
        began = time.monotonic()
        try:
            if began > until:
                raise TimeoutError("no time left: an earlier scenario waited for what never came")
            facts = scenario(broker)
        except Exception:
            facts = {"error": traceback.format_exc()}
        seen[scenario.__name__] = facts | {"seconds": round(time.monotonic() - began, 1)}
    run("systemctl", "stop", UNIT)
    broker.stop()
    (results / "journal.txt").write_text(run("journalctl", "-o", "short-monotonic", "--no-pager"))
    (results / "facts.json").write_text(json.dumps(seen, indent=1))


if __name__ == "__main__":
    main()
