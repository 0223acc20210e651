"""Steps in child processes: what they say, how they end, and that they end with their parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from agent.repository.reasons import Refused
from agent.updates import child
from tests.agent_process import ROOT
from tests.planted_step import Ask, Said


@pytest.fixture(autouse=True)
def planted(monkeypatch) -> None:
    monkeypatch.setattr(child, "MODULE", "tests.planted_step")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def run(do: str, text: str = "", timeout_s: float = 20, **kwargs: Any) -> Said:
    return child.run("planted", Ask(do, text), Said, timeout_s, **kwargs)


def refused(do: str, text: str = "", **kwargs: Any) -> Refused:
    with pytest.raises(Refused) as e:
        run(do, text, **kwargs)
    return e.value


def gone(pid: int) -> bool:
    """Whether a process has ended; a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def wait(done: Any, timeout: float = 10) -> None:
    until = time.monotonic() + timeout
    while not done():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_progress_and_the_reply_come_in_order() -> None:
    seen: list[int] = []
    assert run("progress", "ü" * 100_000, progress=seen.append).text == "ü" * 100_000
    assert seen == [1, 2, 3, 4, 5]


def test_what_libraries_print_is_no_reply() -> None:
    assert run("print", "told").text == "told"


def test_many_words_on_stderr_do_not_stop_it() -> None:
    assert run("shout", "told").text == "told"


def test_a_refusal_keeps_its_code_and_its_words() -> None:
    e = refused("refuse", "half a file")
    assert (e.code, str(e)) == ("truncated", "half a file")


@pytest.mark.parametrize(("do", "expected"), [("crash", "signal 11"), ("killed", "memory runs out"),
                                              ("exit", "exit status 3"), ("raise", "ValueError: why"),
                                              ("nonsense", "can't be understood")])  # fmt: skip
def test_an_end_without_a_reply_is_a_crash(do: str, expected: str) -> None:
    e = refused(do, "" if do != "raise" else "why")
    assert e.code == "crashed"
    assert expected in str(e)
    assert refused(do, died="disk").code == "disk"


@pytest.mark.parametrize("do", ["hang", "freeze"])
def test_one_that_does_not_end_is_ended(tmp_path: Path, do: str) -> None:
    e = refused(do, str(tmp_path / "pid"), timeout_s=2)
    assert e.code == "hung"
    assert "2 s" in str(e)
    assert gone(int((tmp_path / "pid").read_text()))


def test_one_that_lingers_after_its_reply_is_not_waited_for() -> None:
    assert run("linger", "told", timeout_s=0).text == "told"


def test_one_that_reads_no_ask_does_not_block(monkeypatch) -> None:
    monkeypatch.setattr(child, "MODULE", "json.tool_that_is_not_there")
    with pytest.raises(Refused, match="tool_that_is_not_there") as e:
        run("print", "x" * (1 << 20))
    assert e.value.code == "crashed"


def test_stopped_it_ends_at_once(tmp_path: Path) -> None:
    stop, pid, lives = threading.Event(), tmp_path / "pid", []

    def stop_it() -> None:
        wait(lambda: pid.exists() and pid.read_text())
        # A supervisor may have sent this to all processes: it is for the parent to act on.
        os.kill(int(pid.read_text()), signal.SIGTERM)
        time.sleep(0.2)
        lives.append(not gone(int(pid.read_text())))
        stop.set()

    thread = threading.Thread(target=stop_it)
    thread.start()
    assert refused("hang", str(pid), timeout_s=0, stop=stop).code == "interrupted"
    thread.join()
    assert lives == [True]
    assert gone(int(pid.read_text()))


def test_one_that_is_stopped_with_its_service_has_not_crashed() -> None:
    assert refused("stopped").code == "interrupted"


def test_a_progress_that_raises_ends_the_child() -> None:
    def full(done: int) -> None:
        raise OSError("no space")

    before = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="no space"):
        run("progress", progress=full)
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_nothing_is_left_behind() -> None:
    run("print")
    threads, files, children = threading.active_count(), len(os.listdir("/proc/self/fd")), _children()
    for do in ("print", "crash", "refuse"):
        try:
            run(do)
        except Refused:
            pass
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == (threads, files)
    assert _children() == children


def _children() -> set[str]:
    """Of this process, those that have ended and are not waited for, too."""
    tasks = Path("/proc/self/task").glob("*/children")
    return {pid for task in tasks for pid in task.read_text().split()}


def test_it_stands_back_and_leaves_no_core() -> None:
    core, nice, oom, privileges = run("limits").text.split()
    assert (core, oom, privileges) == ("0", "1000", "1")
    assert int(nice) == min(19, os.nice(0) + 10)


def test_what_lies_in_the_working_folder_is_not_imported(tmp_path: Path, monkeypatch) -> None:
    for name in ("msgspec", "agent", "tests"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(9)")
    monkeypatch.chdir(tmp_path)
    assert run("print", "told").text == "told"


PARENT = """
import sys
from agent.updates import child
from tests.planted_step import Ask, Said
child.MODULE = "tests.planted_step"
child.run("planted", Ask("freeze", sys.argv[1]), Said, 0)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_it_ends_with_its_parent(tmp_path: Path, number: int) -> None:
    pid = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(pid)])
    wait(lambda: pid.exists() and pid.read_text())
    assert not gone(int(pid.read_text()))
    parent.send_signal(number)
    parent.wait(10)
    wait(lambda: gone(int(pid.read_text())))


def test_one_whose_parent_ended_before_it_could_be_told_does_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.planted_step", "planted", "1"], input=json.dumps({"do": "print"}),
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
