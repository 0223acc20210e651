"""Runs inside the container, as root: takes the unit through its life, and writes down what it saw.

    python -m tests.systemd.scenarios RESULTS [NAME …]

Each scenario returns facts; none judges. ``tests/test_systemd.py`` does, outside.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.agent_process import Peer
from tests.broker import Mosquitto
from tests.systemd.inside import CONFIG, PYTHON, STATE, Load, Service, journal, run, show, wait

Facts = dict[str, object]
RATE = 200.0  # messages a second


def first_start(broker: Mosquitto) -> Facts:
    """As the README says, with the sample configuration; the broker is not there yet."""
    since = time.time()
    sample = Path("/opt/tests/systemd/int8d.toml").read_text()
    CONFIG.write_text(sample.replace("#port = 1883", f"port = {broker.port}"))
    broker.kill()
    said = run("systemctl", "enable", "--now", "int8d")
    facts: Facts = {"said": said, "is_active": run("systemctl", "is-active", "int8d"),
                    "is_enabled": run("systemctl", "is-enabled", "int8d"), "alone": show()}  # fmt: skip
    broker.start()
    wait(lambda: show()["StatusText"].startswith("connected"))
    load = Load(broker.port)
    load.begin(RATE, 40)
    load.join()
    load.answered()
    facts |= {"connected": show(), "load": load.report(), "journal": journal(since)}
    load.close()
    return facts


def state(broker: Mosquitto) -> Facts:
    """What the tuner found outlives a restart, and is not sought again."""

    def kept() -> dict[str, list[object]]:
        return {
            str(f.relative_to(STATE)): [f.stat().st_mtime_ns, oct(f.stat().st_mode & 0o777)]
            for f in STATE.rglob("*.json")
        }

    service = Service(broker.port)
    before = kept()
    service.start()
    service.connected()
    return {"before": before, "after": kept(), "journal": service.journal(), "link": str(Path("/var/lib/int8d").readlink())}


def kill(broker: Mosquitto) -> Facts:
    """SIGKILL under load, twice."""
    service = Service(broker.port)
    service.start()
    load = Load(broker.port)
    load.begin(RATE)
    for times in (1, 2):
        time.sleep(0.5)
        run("systemctl", "kill", "-s", "KILL", "int8d")
        service.restarted(times)
    time.sleep(0.5)
    load.end()
    load.answered()
    facts: Facts = {"load": load.report(), "unit": show()}
    load.close()
    return facts


def _planted(broker: Mosquitto, what: str, drop_in: str, rest: str = "") -> Facts:
    """One bad message in the middle of good ones; it comes back after each death, until its second strike."""
    service = Service(broker.port, drop_in, planted=True, rest=rest)
    started = service.start()
    load = Load(broker.port)
    load.begin(RATE, 100)
    time.sleep(0.2)
    planted = time.monotonic()
    load.plant(what)
    restarted = service.restarted(1)
    first_s = time.monotonic() - planted
    load.join()
    load.answered(60)
    wait(lambda: load.dead)
    facts: Facts = {"started": started, "restarted": restarted, "first_s": round(first_s, 1), "unit": show(),
                    "load": load.report(), "journal": service.journal()}  # fmt: skip
    load.close()
    return facts


WATCHDOG_S = 3
_WATCHDOG = f"WatchdogSec={WATCHDOG_S}"
_PATIENT = "[containment]\nhang_timeout_s = 600"  # so that it is systemd that acts


def hang(broker: Mosquitto) -> Facts:
    """A request that never ends: nothing but the progress of inference shows it."""
    return _planted(broker, "hang", _WATCHDOG, _PATIENT)


def freeze(broker: Mosquitto) -> Facts:
    """A request that never ends and keeps the interpreter's lock."""
    return _planted(broker, "freeze", _WATCHDOG, _PATIENT)


def crash(broker: Mosquitto) -> Facts:
    """A kernel's fault."""
    return _planted(broker, "crash", "")


def memory(broker: Mosquitto) -> Facts:
    """A request that asks for more than MemoryMax."""
    print(run("sh", "-c", "cat /proc/self/cgroup; cat /proc/self/mountinfo | grep cgroup; ls /sys/fs/cgroup/memory /sys/fs/cgroup/memory/system.slice"))
    facts = _planted(broker, "allocate 1024", "")
    return facts | {"MemoryMax": show("MemoryMax,MemoryCurrent,OOMPolicy"), "system": run("systemctl", "is-active", "int8d-scenarios")}


def bad_config(broker: Mosquitto) -> Facts:
    """What starting again would not help."""
    facts: Facts = {}
    for name, service in (
        ("a misspelt setting", Service(broker.port, top="divice = 1")),
        ("no model file", Service(broker.port, model="/etc/int8d/none.safetensors")),
        ("no password file", Service(broker.port, broker='username = "box1"\npassword_file = "/etc/int8d/none"')),
    ):
        started = service.start()
        time.sleep(2.5)  # more than RestartSec and a start take
        facts[name] = {"started": started, "unit": show(), "journal": service.journal()}
    return facts


def stop(broker: Mosquitto) -> Facts:
    """``systemctl stop`` while messages arrive, and a start."""
    service = Service(broker.port)
    service.start()
    load = Load(broker.port)
    load.begin(RATE)
    time.sleep(1)
    began = time.monotonic()
    run("systemctl", "stop", "int8d")
    took = time.monotonic() - began
    wait(lambda: load.seen.get("int8d/box1/available") == "offline", 5)
    stopped = {"unit": show(), "available": load.seen.get("int8d/box1/available"), "answered": len(load.answers),
               "took_s": round(took, 2)}  # fmt: skip
    time.sleep(0.5)
    waiting = load.sent
    service.start()
    time.sleep(0.5)
    load.end()
    load.answered()
    facts: Facts = {"stopped": stopped, "sent_before_start": waiting, "load": load.report(), "unit": show()}
    load.close()
    return facts


def credentials(broker: Mosquitto) -> Facts:
    """A password that root alone can read, handed to the service by systemd; then a wrong one."""
    folder = Path("/var/lib/locked-broker")
    folder.mkdir()
    run("mosquitto_passwd", "-b", "-c", str(folder / "passwords"), "box1", "a secret")
    locked = Mosquitto(folder, f"password_file {folder}/passwords", anonymous=False)
    secret = Path("/etc/int8d/mqtt-password")
    facts: Facts = {}
    for name, text in (("right", "a secret"), ("wrong", "no secret")):
        secret.write_text(f"{text}\n")
        secret.chmod(0o600)
        service = Service(
            locked.port,
            f"LoadCredential=mqtt-password:{secret}",
            broker='username = "box1"\npassword_file = "/run/credentials/int8d.service/mqtt-password"',
        )
        started = service.start()
        connected = service.connected(30 if name == "right" else 2)
        facts[name] = {"started": started, "connected": connected, "unit": show(), "journal": service.journal()}
    locked.stop()
    return facts


def sandbox(broker: Mosquitto) -> Facts:
    """The probe in the place of the service."""
    service = Service(
        broker.port,
        f"Type=exec\nRestart=no\nWatchdogSec=0\nExecStart=\nExecStart={PYTHON} -m tests.systemd.probe\n"
        "Environment=PYTHONPATH=/opt/tests",
    )
    started = service.start()
    ended = wait(lambda: show()["ActiveState"] in ("inactive", "failed"))
    found = STATE / "probe.json"
    return {"started": started, "ended": ended, "unit": show(), "journal": service.journal(),
            "probe": json.loads(found.read_text()) if found.exists() else None}  # fmt: skip


def slow_start(broker: Mosquitto) -> Facts:
    """Models that take longer to load than a service may take to start."""
    service = Service(broker.port, "TimeoutStartSec=4\nEnvironment=PLANT_LOAD_S=6", planted=True)
    return {"started": service.start(), "unit": show(), "journal": service.journal()}


def journal_flood(broker: Mosquitto) -> Facts:
    """A sender of rubbish must not fill the box's log."""
    count = 10_000
    service = Service(broker.port)
    service.start()
    peer = Peer(broker.port, ["predictions/#"])
    for i in range(count):
        peer.client.publish(f"cameras/{i}/frame", b"rubbish", 1)
    wait(lambda: peer.messages.qsize() >= count, 60)
    lines = service.journal()
    facts: Facts = {"sent": count, "answered": peer.messages.qsize(), "lines": len(lines), "unit": show()}
    peer.close()
    return facts


SCENARIOS: tuple[Callable[[Mosquitto], Facts], ...] = (
    first_start, state, stop, kill, credentials, bad_config, sandbox, slow_start, crash, hang, freeze, memory,
    journal_flood,
)  # fmt: skip


def main() -> None:
    results = Path(sys.argv[1])
    folder = Path("/var/lib/broker")
    folder.mkdir()
    broker = Mosquitto(folder)
    seen: dict[str, Facts] = {}
    for scenario in SCENARIOS:
        if sys.argv[2:] and scenario.__name__ not in sys.argv[2:]:
            continue
        began = time.monotonic()
        try:
            facts = scenario(broker)
        except Exception:
            facts = {"error": traceback.format_exc()}
        seen[scenario.__name__] = facts | {"seconds": round(time.monotonic() - began, 1)}
    broker.stop()
    run("systemctl", "stop", "int8d")
    (results / "journal.txt").write_text(run("journalctl", "-o", "short-monotonic", "--no-pager"))
    (results / "facts.json").write_text(json.dumps(seen, indent=1))


if __name__ == "__main__":
    main()
