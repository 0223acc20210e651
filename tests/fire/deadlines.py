"""A deadline behind a job that takes far longer: answered ``expired`` at its moment, not when the job is done."""

from __future__ import annotations

import time
from typing import Any

from tests.agent_process import picture
from tests.fire.stage import Ledger, Planted, drain, stage
from tests.fire.wire import Wire, properties

_ROUTES = """
[[route]]
subscribe = "slow/+"
model = "digits"
publish = "out/slow/{1}"
[[route]]
subscribe = "timed/+"
model = "digits"
publish = "out/timed/{1}"
deadline_ms = %d
[[route]]
subscribe = "patient/+"
model = "digits"
publish = "out/patient/{1}"
deadline_ms = 3600000
"""


def deadline(deadline_s: int, job_s: float) -> dict[str, Any]:
    """What was answered, and after how many seconds, by the way in which each said its deadline."""
    us = b"%d" % (deadline_s * 1_000_000)
    asked = {
        "route": (b"timed/route", picture(0), properties(correlation=b"route")),
        "expiry": (b"patient/1", picture(1), properties(correlation=b"expiry", expiry_s=deadline_s)),
        "property": (b"patient/2", picture(2), properties(correlation=b"property", user=[(b"timeout_us", us)])),
        "parameter": (b"patient/3", _request(deadline_s * 1_000_000), properties(correlation=b"parameter")),
        # The soonest holds.
        "soonest": (b"timed/soonest", picture(4), properties(correlation=b"soonest", expiry_s=10 * deadline_s,
                                                             user=[(b"timeout_us", b"999999999999")])),
    }  # fmt: skip
    settings = {"rest": _ROUTES % (deadline_s * 1000), "top": f"[containment]\nhang_timeout_s = {job_s + 60}\n"}
    with stage(Planted, **settings) as (_, broker):
        replies: dict[str, tuple[str, float]] = {}
        ledger = Ledger()

        def reply(topic: bytes, payload: bytes, found: dict[int, list[bytes]]) -> None:
            taken = ledger.take(topic, payload, found)
            if taken is not None:
                replies[taken[0].decode()] = (taken[1], round(taken[2], 3))

        wire = Wire(broker.port, "fire", [b"out/#"], reply)
        # Running when its deadline passes; the daemon goes on computing it, and nobody waits for it any more.
        ledger.expect(b"running", time.monotonic())
        wire.publish(b"timed/job", b"PLANT sleep %g" % job_s, properties(correlation=b"running"))
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            wire.pump(0.05)
        for name, (topic, payload, props) in asked.items():
            ledger.expect(name.encode(), time.monotonic())
            wire.publish(topic, payload, props)
        ledger.expect(b"behind", time.monotonic())
        wire.publish(b"slow/1", picture(5), properties(correlation=b"behind"))  # no deadline: served after the job
        drain(wire, ledger, job_s + 20)
        wire.close()
        return {"deadline_s": deadline_s, "job_s": job_s, "replies": replies,
                "unanswered": [key.decode() for key in ledger.waiting], "repeated": ledger.repeated}  # fmt: skip


def _request(timeout_us: int) -> bytes:
    data = ",".join(["0"] * 64)
    return (
        b'{"id":"p","parameters":{"timeout":%d},"inputs":[{"name":"x","shape":[1,8,8,1],"datatype":"UINT8","data":[%s]}]}'
        % (timeout_us, data.encode())
    )


def failures(figures: dict[str, Any], timed: bool = True) -> list[str]:
    """What does not hold of what must: ``expired`` before the job is done; ``timed``: within a quarter of a second."""
    if figures["unanswered"]:
        return [f"unanswered: {figures['unanswered']}"]
    found, deadline_s = [], figures["deadline_s"]
    latest = deadline_s + 0.25 if timed else figures["replies"]["behind"][1]
    for name, (code, seconds) in figures["replies"].items():
        if name == "behind":
            if code != "answered":
                found.append(f"{name}: {code}")
        elif code != "expired" or not deadline_s - 0.01 <= seconds < latest:
            found.append(f"{name}: {code} after {seconds} s")
    return found + (["answered twice"] if figures["repeated"] else [])
