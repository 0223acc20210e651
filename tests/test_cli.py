"""Every command as a process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from agent.config.tables import Config
from tests.agent_process import DIGITS, PICTURES, ROOT, truth


def int8d(*args: object, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agent.cli", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, cwd=ROOT)


def test_demo_answers_forty_pictures_without_torch() -> None:
    done = int8d("demo", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["sent"], result["answered"]) == (40, 40)
    assert result["correct"] >= 38
    assert result["torch_imported"] is False
    assert result["isa"]
    assert result["broker"].startswith("amqtt")
    assert set(result["latency_us"]) == {"queue", "compute_input", "compute_infer", "compute_output", "total"}
    assert all(p["p50"] <= p["p99"] for p in result["latency_us"].values())


def test_demo_prints_prediction_truth_and_stages() -> None:
    done = int8d("demo")
    assert done.returncode == 0
    assert "40 of 40 answered" in done.stdout
    row = next(line for line in done.stdout.splitlines() if line.startswith("00.png"))
    assert row.split()[1:3] == [truth()[0], truth()[0]]


def test_infer_prints_classes_or_replies() -> None:
    files = [PICTURES / "00.png", PICTURES / "01.png"]
    done = int8d("infer", DIGITS, *files)
    assert done.returncode == 0
    assert [line.split(": ")[1].split()[0] for line in done.stdout.splitlines()] == truth()[:2]
    replies = [json.loads(line) for line in int8d("infer", DIGITS, *files, "--json").stdout.splitlines()]
    assert [r["classes"][0]["label"] for r in replies] == truth()[:2]


def test_infer_goes_on_after_a_bad_file_and_ends_with_2(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"nonsense")
    done = int8d("infer", DIGITS, tmp_path / "bad.png", tmp_path / "missing.png", PICTURES / "00.png")
    assert done.returncode == 2
    assert len(done.stdout.splitlines()) == 1
    assert "bad.png" in done.stderr
    assert "missing.png" in done.stderr
    assert "Traceback" not in done.stderr


def test_inspect_names_operators_shapes_and_kernels() -> None:
    document = json.loads(int8d("inspect", DIGITS, "--json").stdout)
    assert document["native_operators"] == f"{len(document['operators'])}/{len(document['operators'])}"
    assert {"conv2d", "linear", "add", "max_pool2d", "lut"} <= {o["operator"] for o in document["operators"]}
    assert document["macs"] > 0
    text = int8d("inspect", DIGITS).stdout
    assert "conv_u8s8" in text
    assert "1x8x8x32" in text


@pytest.mark.parametrize("threads", [1, 2])
def test_bench_measures(threads: int) -> None:
    done = int8d("bench", DIGITS, "--threads", threads, "--seconds", 0.2, "--json")
    result = json.loads(done.stdout)
    assert 0 < result["min_ms"] <= result["p50_ms"] <= result["p95_ms"]
    assert result["threads"] == threads


@pytest.mark.parametrize("protocol", ["5", "3.1.1", "auto"])
def test_send_is_answered_and_watch_shows_it(agent, broker, protocol: str) -> None:
    agent()
    files = [PICTURES / f"{i:02d}.png" for i in range(3)]
    options = ["--port", broker.port]
    done = int8d("send", *files, "--model", "digits", "--device", "box1", "--protocol", protocol, "--json", *options)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["classes"][0]["label"] for line in done.stdout.splitlines()] == truth()[:3]
    wait = ["--once", "--wait", 0.7]
    box = json.loads(int8d("watch", *wait, "--json", *options).stdout)["box1"]
    assert box["available"] == "online"
    assert box["stats"]["counters"]["answered"] == 3
    table = int8d("watch", *wait, *options).stdout.splitlines()
    assert table[1].split()[:3] == ["box1", "online", "digits"]
    assert table[2].split()[:3] == ["all", "1", "online"]
    assert table[2].split()[6:8] == ["3", "0"]


def test_send_pipelines_repeats_and_keeps_what_is_unanswered_for_the_next_run(agent, broker, tmp_path) -> None:
    files = [PICTURES / f"{i:02d}.png" for i in range(3)]
    options = ["--model", "digits", "--device", "box1", "--port", broker.port, "--spool", tmp_path / "spool.db"]
    pipelined = ["--window", 4, "--repeat", 2]
    done = int8d("send", *files, tmp_path / "missing.png", *options, *pipelined, "--timeout", 1)
    assert done.returncode == 2
    assert done.stdout == ""
    assert [line.count("does it run") for line in done.stderr.splitlines() if "missing" not in line] == [1] * 6
    agent()
    done = int8d("send", *options)
    assert done.returncode == 0, done.stderr
    assert [line.split(": ")[1].split()[0] for line in done.stdout.splitlines()] == truth()[:3] * 2
    done = int8d("send", *files, *options, *pipelined)
    assert done.returncode == 0, done.stderr
    assert [Path(line.split(": ")[0]) for line in done.stdout.splitlines()] == files * 2
    assert int8d("send", *options[:-2]).returncode == 2  # nothing to send


def test_send_to_nobody_ends_with_what_to_check(broker) -> None:
    options = ["--model", "digits", "--device", "nobody", "--port", broker.port, "--timeout", 0.5]
    done = int8d("send", PICTURES / "00.png", *options)
    assert done.returncode == 2
    assert "does it run" in done.stderr


@pytest.mark.parametrize(
    ("args", "status", "expected"),
    [
        ((), 2, "COMMAND"),
        (("fly",), 2, "invalid choice"),
        (("infer", "nowhere.safetensors", "x"), 2, "no such file"),
        (("inspect", str(ROOT / "pyproject.toml")), 2, "safetensors"),
        (("bench", str(DIGITS), "--threads", "0"), 2, "threads"),
        (("watch", "--once", "--port", "1"), 2, "no connection"),
        (("demo", "--zoo", "/nowhere"), 2, "nowhere"),
    ],
)
def test_bad_arguments_end_with_one_clear_line(args: tuple[str, ...], status: int, expected: str) -> None:
    done = int8d(*args)
    assert done.returncode == status
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


def test_bench_sweep_tries_combinations_and_names_the_best() -> None:
    done = int8d("bench", DIGITS, "--sweep", "--seconds", "0.05", "--max-batch", "2", "--json")
    assert done.returncode == 0, done.stderr
    *found, most, soonest = (json.loads(line) for line in done.stdout.splitlines())
    tried = {(s["replicas"], s["threads"], s["batch"]) for s in (m["setting"] for m in found)}
    assert tried >= {(1, 1, 1), (1, 1, 2)}
    cores = len(os.sched_getaffinity(0))
    assert all(replicas * threads <= cores for replicas, threads, _ in tried)
    assert all(m["per_second"] > 0 and 0 < m["p50_ms"] <= m["p99_ms"] for m in found)
    assert "replicas = 1" in soonest["lines"]
    model = "\n".join(['device = "d"', "[[model]]", 'name = "m"', 'path = "p"', *most["lines"]])
    assert msgspec.toml.decode(model, type=Config).model[0].max_batch in (1, 2)
    text = int8d("bench", DIGITS, "--sweep", "--seconds", "0.05", "--max-batch", "1").stdout
    assert "# for the most a second" in text
