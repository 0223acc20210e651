"""An input that crashes the process, and one that hangs it, in the midst of good ones.

Whoever supervises starts the daemon again; here that is the test. The bad one must be counted on disk before it is
touched, given up at its second strike, told to its sender and laid on the dead-letter topic; all others are answered,
the slow ones, too, that another worker has under way beside it at each death.
"""

from __future__ import annotations

import time
from typing import Any

from tests.agent_process import ROUTE, picture
from tests.fire.stage import Ledger, Planted, stage
from tests.fire.wire import USER, Wire, properties

_GOOD = 60
_REPLICAS = "replicas = 2\n"  # of the model
_SLOW = b"PLANT sleep 0.3"  # and then answered as what can't be understood
_PATIENCE_S = 60


def poison(what: str, hang_timeout_s: float = 2.0, bad: int = 1) -> dict[str, Any]:
    """``what``: ``crash``, ``hang`` or ``freeze``; ``bad`` of them, different ones, among the good."""
    top = f"[containment]\nhang_timeout_s = {hang_timeout_s}\n"
    with stage(Planted, rest=_REPLICAS + ROUTE, top=top) as (agent, broker):
        assert isinstance(agent, Planted)
        ledger, letters, codes = Ledger(), [], dict[str, str]()

        def message(topic: bytes, payload: bytes, found: dict[int, list[bytes]]) -> None:
            if topic.endswith(b"/dead-letter"):
                letters.append((payload, sorted(v.decode().replace("\0", "=") for v in found.get(USER, []))))
            else:
                taken = ledger.take(topic, payload, found)
                if taken is not None:
                    codes[taken[0].decode()] = taken[1]

        wire = Wire(broker.port, "fire", [b"predictions/#", b"int8d/box1/dead-letter"], message)
        at = {_GOOD * (n + 1) // (bad + 1): b"PLANT %s %d" % (what.encode(), n) for n in range(bad)}
        for i in range(_GOOD):
            slow = _SLOW if i in at else b""
            messages = ((b"good %d" % i, picture(i % 40)), (b"slow %d" % i, slow), (b"bad %d" % i, at.get(i, b"")))
            for name, payload in messages:
                if payload:
                    ledger.expect(name, time.monotonic())
                    wire.publish(b"cameras/%d/frame" % i, payload, properties(correlation=name))
        start, last = time.monotonic(), ""
        while (ledger.waiting or len(letters) < bad) and time.monotonic() < start + _PATIENCE_S:
            last = agent.log() if agent.process.poll() is not None else last
            agent.supervise()
            wire.pump(0.05)
        took = time.monotonic() - start
        # What was given up stays so: sent again, it is refused without being touched.
        deaths = agent.deaths
        ledger.expect(b"again", time.monotonic())
        wire.publish(b"cameras/9/frame", b"PLANT %s 0" % what.encode(), properties(correlation=b"again"))
        while ledger.waiting and time.monotonic() < start + took + 20:
            wire.pump(0.05)
            agent.supervise()
        wire.close()
        return {
            "what": what, "bad": bad, "sent": ledger.sent, "codes": dict(ledger.codes), "deaths": deaths,
            "deaths_after": agent.deaths - deaths, "bad_codes": {n: c for n, c in codes.items() if "good" not in n},
            "unanswered": [k.decode() for k in ledger.waiting], "repeated": ledger.repeated, "seconds": round(took, 1),
            "dead_letters": [(p.decode(errors="replace"), about) for p, about in letters], "log": last[-300:],
        }  # fmt: skip


def failures(figures: dict[str, Any]) -> list[str]:
    """What does not hold of what must."""
    bad, found = figures["bad"], []
    if figures["unanswered"]:
        found.append(f"unanswered: {figures['unanswered']}")
    if figures["codes"] != {"answered": _GOOD, "invalid_input": bad, "poisoned": bad + 1}:
        found.append(f"answers: {figures['codes']}")
    if figures["deaths"] > 2 * bad or figures["deaths_after"]:
        found.append(f"the process died {figures['deaths']} times, and {figures['deaths_after']} more")
    payloads = {payload for payload, _ in figures["dead_letters"]}
    if payloads != {f"PLANT {figures['what']} {n}" for n in range(bad)}:
        found.append(f"dead letters: {payloads}")
    for _, about in figures["dead_letters"]:
        if not {"reason", "strikes", "source_topic"} <= {a.split("=")[0] for a in about}:
            found.append(f"a dead letter says only {about}")
    return found
