"""Who has a strike runs alone."""

from __future__ import annotations

import threading
import time

from agent.serving.quarantine import Quarantine


def test_who_has_a_strike_runs_while_nothing_else_does_and_all_others_together() -> None:
    quarantine, lock = Quarantine(), threading.Lock()
    running: list[bool] = []
    seen: list[tuple[bool, int]] = []

    def run(alone: bool) -> None:
        for _ in range(20):
            quarantine.enter(alone)
            with lock:
                running.append(alone)
                seen.append((any(running), len(running)))
            time.sleep(0.001)
            with lock:
                running.remove(alone)
            quarantine.leave(alone)

    threads = [threading.Thread(target=run, args=(i % 2 == 0,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(seen) == 120
    assert all(count == 1 for alone, count in seen if alone)
    assert max(count for alone, count in seen if not alone) > 1
