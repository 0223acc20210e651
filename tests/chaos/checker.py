"""What the files of a run say: each id that was sent, each reply that came, and when which fault held.

The sender writes, the checker reads, and neither believes the other: a verdict can be had again from the folder of a
run, and of a run that was cut off.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

SENT, REPLIES, FAULTS = "sent", "replies", "faults"


@dataclass
class Verdict:
    """Counts of ids, but for ``duplicates`` and ``wrong``, which count replies.

    refused: ids that got nothing but errors, by the last one's code. wrong: replies that are not what the model gives
    for the picture, or that answer no id. silence_s: the longest time without a reply. recovery_s: the longest time
    from the end of a fault to the first reply to a message that was sent after the fault had begun; a fault that
    another one follows before that counts as one with it.
    """

    sent: int = 0
    answered: int = 0
    duplicates: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    wrong: int = 0
    lost: int = 0
    silence_s: float = 0.0
    recovery_s: float = 0.0
    faults: dict[str, int] = field(default_factory=dict)
    evidence: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Nothing lost, nothing wrong, and each refusal one that the faults explain."""
        return not (self.lost or self.wrong or set(self.refused) - {"poisoned"})

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def check(folder: Path, expected: Sequence[dict[str, Any]]) -> Verdict:
    """expected: for each picture, the reply's ``outputs`` and ``classes``."""
    verdict = Verdict()
    sent: dict[str, tuple[int, int]] = {}  # id -> picture, when
    for line in _lines(folder / SENT):
        name, picture, when = line.split()
        sent[name.decode()] = (int(picture), int(when))
    good: Counter[str] = Counter()
    refused: dict[str, str] = {}
    arrivals: list[tuple[int, int]] = []  # when a reply came, when its message was sent
    for line in _lines(folder / REPLIES):
        when, name, payload = line.split(b" ", 2)
        known = sent.get(name.decode())
        code = _judge(payload, expected[known[0]]) if known else "an id that was never sent"
        if known is None or code == "wrong":
            verdict.wrong += 1
            verdict.evidence.append(f"wrong: {name.decode()}: {payload[:300].decode(errors='replace')}")
            continue
        arrivals.append((int(when), known[1]))
        if code:
            refused[name.decode()] = code
            verdict.evidence.append(f"refused: {name.decode()}: {payload[:300].decode(errors='replace')}")
        else:
            good[name.decode()] += 1
    verdict.sent, verdict.answered = len(sent), len(good)
    verdict.duplicates = good.total() - len(good)
    verdict.refused = dict(Counter(code for name, code in refused.items() if name not in good))
    lost = [name for name in sent if name not in good and name not in refused]
    verdict.lost = len(lost)
    first = min((when for _, when in sent.values()), default=0)
    faults = [json.loads(line) for line in _lines(folder / FAULTS)]
    verdict.evidence += [f"lost: {name}, sent at {(sent[name][1] - first) / 1e9:.3f} s" for name in lost]
    verdict.faults = dict(Counter(fault["what"] for fault in faults))
    if verdict.evidence:
        verdict.evidence += [
            f"fault: {f['what']} {(f['began'] - first) / 1e9:.3f} to {(f['ended'] - first) / 1e9:.3f} s" for f in faults
        ]
    times = [first, *(when for when, _ in arrivals)]
    verdict.silence_s = max((b - a for a, b in pairwise(times)), default=0) / 1e9
    verdict.recovery_s = _recovery(faults, arrivals)
    return verdict


def _judge(payload: bytes, expected: dict[str, Any]) -> str:
    """Empty where the reply is right, ``wrong``, or an error's code."""
    try:
        reply = json.loads(payload)
        if "error" in reply:
            return str(reply["error"]["code"])
        right = all(reply[key] == expected[key] for key in ("outputs", "classes"))
    except (ValueError, KeyError, TypeError):
        return "wrong"
    return "" if right else "wrong"


def _recovery(faults: Sequence[dict[str, Any]], arrivals: Sequence[tuple[int, int]]) -> float:
    longest, at = 0, 0
    for i, fault in enumerate(faults):
        until = faults[i + 1]["began"] if i + 1 < len(faults) else None
        while at < len(arrivals) and arrivals[at][0] < fault["ended"]:
            at += 1
        for when, sent in arrivals[at:]:
            if until is not None and when > until:
                break
            if sent >= fault["began"]:
                longest = max(longest, when - fault["ended"])
                break
    return longest / 1e9


def _lines(path: Path) -> list[bytes]:
    """Whole lines; a run that was cut off may have left a part of one."""
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []
