"""The unit under a real systemd: one boot of a container takes it through ``tests/systemd/scenarios.py``."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import paho
import pytest

from tests.agent_process import ROOT
from tests.systemd.container import boot
from tests.systemd.inside import WATCHDOG_S
from tests.systemd.installed import install
from tests.systemd.probe import LINES
from tests.systemd.rootfs import PYTHON, Unavailable, rootfs
from tests.systemd.update import prepare

pytestmark = pytest.mark.timeout(600)  # building the container's root file system included
RUNNING = {"ActiveState": "active", "SubState": "running", "Result": "success"}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each scenario saw."""
    if f"{sys.version_info.major}.{sys.version_info.minor}" != PYTHON:
        pytest.skip(f"the container has Python {PYTHON}; the extension here is made for another")
    program, beside = tmp_path_factory.mktemp("program"), tmp_path_factory.mktemp("beside")
    results = tmp_path_factory.mktemp("systemd")
    try:
        base = rootfs()
        install(program, "/opt/int8d", PYTHON)
        shutil.copytree(paho.__path__[0], beside / "paho")
        for folder in ("tests", "systemd", "models/zoo"):
            (beside / folder).mkdir(parents=True)
        prepare(beside / "publisher")
        for folder in (program, beside):
            folder.chmod(0o755)
        facts = boot(base, program, beside, results)
    except Unavailable as e:
        pytest.skip(str(e))
    finally:
        shutil.rmtree(program)
        shutil.rmtree(beside)
    print(*(f"{name}: {f['seconds']} s" for name, f in facts.items()), sep="\n")
    return facts


@pytest.fixture
def facts(seen: dict[str, dict[str, Any]], request: pytest.FixtureRequest) -> dict[str, Any]:
    """Those of the scenario that the test is marked with."""
    marker = request.node.get_closest_marker("scenario")
    found = seen[marker.args[0]]
    assert "error" not in found, found["error"]
    return found


def _is(unit: dict[str, str], **wanted: str) -> None:
    assert {name: unit[name] for name in wanted} == wanted


def _nothing_lost(load: dict[str, Any]) -> None:
    assert load["sent"] > 0
    assert load["answered"] == load["sent"]
    assert load["unsteady"] == 0  # a picture always gets the same answer


@pytest.mark.scenario("first_start")
def test_it_is_active_before_a_broker_is_there_and_serves_once_there_is_one(facts) -> None:
    assert (facts["is_active"], facts["is_enabled"]) == ("active", "enabled")
    _is(facts["alone"], NRestarts="0", **RUNNING)
    assert facts["alone"]["StatusText"].startswith("no connection: broker 127.0.0.1:")
    _is(facts["connected"], NRestarts="0", MainPID=facts["alone"]["MainPID"], **RUNNING)
    assert facts["connected"]["StatusText"].startswith("connected over MQTT 5: broker 127.0.0.1:")
    _nothing_lost(facts["load"])
    assert facts["load"]["available"] == "online"


@pytest.mark.scenario("first_start")
def test_a_broker_that_goes_shows_in_the_status_and_does_not_hinder_a_stop(facts) -> None:
    _is(facts["left"], NRestarts="0", MainPID=facts["alone"]["MainPID"], **RUNNING)
    assert facts["left"]["StatusText"].startswith("no connection: ")
    _is(facts["stopped"], ActiveState="inactive", Result="success", ExecMainStatus="0")


@pytest.mark.scenario("first_start")
def test_systemd_finds_nothing_wrong_with_the_unit(facts) -> None:
    assert facts["verify"] == ""


@pytest.mark.scenario("first_start")
def test_the_daemons_own_lines_are_json_in_the_journal(facts) -> None:
    lines = [json.loads(line) for line in facts["journal"] if line.startswith("{")]
    assert {"serving digits", "connected over MQTT 5"} <= {line["message"] for line in lines}


@pytest.mark.scenario("state")
def test_what_the_tuner_found_outlives_a_restart_and_is_not_sought_again(facts) -> None:
    assert facts["before"]
    assert facts["after"] == facts["before"]
    assert not [line for line in facts["journal"] if "timing the choices" in line]


@pytest.mark.scenario("state")
def test_nobody_else_can_read_the_state(facts) -> None:
    assert facts["link"] == "private/int8d"
    assert facts["mode"].endswith("700")


@pytest.mark.scenario("stop")
def test_a_stop_under_load_loses_nothing_and_answers_nothing_twice(facts) -> None:
    stopped = facts["stopped"]
    _is(stopped["unit"], ActiveState="inactive", Result="success", ExecMainStatus="0", NRestarts="0")
    assert stopped["available"] == "offline"
    assert stopped["answered"] < facts["sent_before_start"]  # messages came while it was away
    _nothing_lost(facts["load"])
    assert facts["load"]["repeated"] == 0
    assert facts["load"]["available"] == "online"


@pytest.mark.scenario("slow_stop")
def test_the_watchdog_does_not_end_a_stop_that_waits_for_a_request(facts) -> None:
    assert facts["took_s"] > WATCHDOG_S
    _is(facts["unit"], ActiveState="inactive", Result="success", ExecMainStatus="0")
    assert facts["load"]["errors"] == {"invalid_input": 1}
    assert facts["load"]["available"] == "offline"


@pytest.mark.scenario("slow_start")
def test_models_that_load_slowly_get_more_time_to_start(facts) -> None:
    assert facts["started"]["took_s"] > 4  # TimeoutStartSec there
    assert facts["started"]["is_active"] == "active"
    _is(facts["unit"], NRestarts="0", **RUNNING)


@pytest.mark.scenario("no_network")
def test_a_network_that_is_not_there_does_not_fail_the_service(facts) -> None:
    assert facts["started"]["is_active"] == "active"
    _is(facts["unit"], NRestarts="0", **RUNNING)
    assert [line for line in facts["journal"] if "no connection to broker.invalid" in line]


@pytest.mark.scenario("credentials")
def test_a_credential_that_root_alone_can_read_opens_the_broker(facts) -> None:
    assert facts["right"]["connected"]
    assert facts["right"]["unit"]["StatusText"].startswith("connected")


@pytest.mark.scenario("credentials")
def test_a_wrong_password_is_said_and_tried_again_and_never_logged(facts) -> None:
    wrong = facts["wrong"]
    assert not wrong["connected"]
    _is(wrong["unit"], NRestarts="0", **RUNNING)
    assert re.search("not authori[sz]ed", "\n".join(wrong["journal"]), re.IGNORECASE)
    assert not [line for line in wrong["journal"] + facts["right"]["journal"] if "secret" in line]


@pytest.mark.scenario("bad_config")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a misspelt setting", "divice"),
        ("no model file", "none.safetensors"),
        ("no credential", "LoadCredential=none"),
        ("no such core", "4095"),
    ],
)
def test_what_a_start_can_not_mend_is_said_and_not_started_again(facts, name, said) -> None:
    case = facts[name]
    assert case["started"]["is_active"] == "failed"
    _is(case["unit"], ActiveState="failed", SubState="failed", NRestarts="0", ExecMainStatus="78")
    assert sum("status=78/CONFIG" in line for line in case["journal"]) == 1
    assert [line for line in case["journal"] if said in line]


@pytest.mark.scenario("sandbox")
def test_nothing_but_its_state_and_a_tmp_of_its_own_can_be_written(facts) -> None:
    assert facts["probe"]["writable"] == ["/tmp", "/var/lib/private/int8d", "/var/tmp"]


@pytest.mark.scenario("sandbox")
def test_every_attempt_out_of_the_sandbox_fails(facts) -> None:
    attempts = facts["probe"]["attempts"]
    assert len(attempts) > 15
    assert [name for name, result in attempts.items() if result == "done"] == []


@pytest.mark.scenario("sandbox")
def test_what_the_service_needs_works_in_the_sandbox(facts) -> None:
    needs = facts["probe"]["needs"]
    assert needs == dict.fromkeys(needs, "done")


@pytest.mark.scenario("sandbox")
def test_it_has_no_privileges_and_sees_no_other_process(facts) -> None:
    probe = facts["probe"]
    assert probe["uid"] > 1000
    assert probe["no_new_privileges"]
    assert {int(c, 16) for c in probe["capabilities"]} == {0}
    assert probe["processes seen"] == [probe["itself"]]
    assert (probe["open_files"], probe["core"]) == (4096, 0)


@pytest.mark.scenario("gpu")
def test_with_the_drop_in_for_a_gpu_it_runs_where_there_is_none(facts) -> None:
    assert facts["connected"]
    assert facts["verify"] == ""
    assert facts["shown"] == {"ProcSubset": "all", "PrivateDevices": "no"}


@pytest.mark.scenario("pinned")
def test_a_model_can_have_a_core_of_its_own(facts) -> None:
    assert facts["started"]["is_active"] == "active"
    _nothing_lost(facts["load"])
    assert [facts["core"]] in facts["threads"]


@pytest.mark.scenario("kill")
def test_killed_under_load_it_is_started_again_and_loses_nothing(facts) -> None:
    _is(facts["unit"], NRestarts="2", **RUNNING)
    _nothing_lost(facts["load"])


def _contained(facts: dict[str, Any], letter: str) -> None:
    """Two deaths, then the message that did it lies with the dead letters, and all others are answered."""
    assert facts["restarted"]
    _is(facts["unit"], **RUNNING)
    assert int(facts["unit"]["NRestarts"]) >= 2  # more where the machine itself stalls past the watchdog
    _nothing_lost(facts["load"])
    assert facts["load"]["errors"] == {"poisoned": 1}
    assert facts["load"]["dead"] == [letter]


@pytest.mark.scenario("crash")
def test_an_input_that_crashes_is_put_aside_at_its_second_strike(facts) -> None:
    _contained(facts, "PLANT crash")
    assert sum("status=11/SEGV" in line for line in facts["journal"]) == 2


@pytest.mark.parametrize("what", ["hang", "freeze"])
def test_the_watchdog_ends_what_hangs_and_the_input_is_put_aside(seen, what) -> None:
    facts = seen[what]
    assert "error" not in facts, facts["error"]
    _contained(facts, f"PLANT {what}")
    assert sum(f"Watchdog timeout (limit {WATCHDOG_S}s)!" in line for line in facts["journal"]) >= 2


@pytest.mark.scenario("memory")
def test_past_its_memory_limit_the_service_dies_and_nothing_else(facts) -> None:
    if not facts["limits"]["MemoryCurrent"].isdecimal():
        pytest.skip("the container has no memory controller here")
    _contained(facts, "PLANT allocate 1024")
    assert sum("status=9/KILL" in line for line in facts["journal"]) == 2
    assert int(facts["limits"]["MemoryCurrent"]) < int(facts["limits"]["MemoryMax"]) < 1024 << 20


@pytest.mark.scenario("rubbish")
def test_rubbish_is_answered_whole_and_logged_in_part(facts) -> None:
    assert facts["answered"] == facts["sent"]
    assert facts["lines"] < facts["sent"] / 10
    _is(facts["unit"], NRestarts="0", **RUNNING)


@pytest.mark.scenario("sandbox")
def test_the_log_takes_a_part_of_a_flood(facts) -> None:
    assert 0 < facts["lines"] < LINES / 2


@pytest.mark.scenario("update")
def test_an_encrypted_release_comes_in_under_the_sandbox_and_a_kill_in_its_probation_does_not_end_it(facts) -> None:
    assert facts["pending"]["serving"]["release"] == 1
    assert facts["version_killed"] == "1"
    assert (facts["killed"]["state"], facts["killed"]["starts"]) == ("pending", 2)
    assert (facts["committed"]["state"], facts["committed"]["serving"]["release"]) == ("committed", 1)


@pytest.mark.scenario("update")
def test_killed_once_too_often_in_its_probation_a_release_goes_back(facts) -> None:
    assert (facts["version_3"], facts["version_4"], facts["version_back"]) == ("2", "2", "1")
    assert facts["back"]["reason"]["code"] == "failed_starts"
    assert [line for line in facts["journal"] if "failed_starts" in line]


@pytest.mark.scenario("update")
def test_an_update_costs_no_restart_but_those_for_the_kills_and_no_message(facts) -> None:
    _is(facts["unit"], NRestarts="4", **RUNNING)
    assert not [line for line in facts["journal"] if "Watchdog timeout" in line]
    assert facts["load"]["answered"] == facts["load"]["sent"] > 0
    assert facts["load"]["errors"] == {}


@pytest.mark.scenario("update")
def test_what_fetches_is_as_confined_as_the_service_and_steps_back_behind_it(facts) -> None:
    child = facts["child"]
    assert child["child"] == child["service"]
    assert (child["child"]["NoNewPrivs"], child["child"]["Seccomp"]) == ("1", "2")
    assert (child["nice"], child["oom_score_adj"], child["open files"], child["core"]) == (10, "1000", "512", "0")


@pytest.mark.scenario("update")
def test_what_fetches_ends_with_the_service_and_the_next_start_goes_on(facts) -> None:
    assert facts["child_gone"]
    assert "the daemon has ended meanwhile" in facts["told"]
    assert facts["pending"]["step"] == "probation"


@pytest.mark.scenario("update")
def test_the_plaintext_of_an_encrypted_release_lies_in_no_file(facts) -> None:
    assert facts["seeker"] == ["/etc/int8d/digits.int8.safetensors"]  # the search finds what is there
    assert facts["plaintext"] == facts["plaintext_at_rest"] == []


@pytest.mark.scenario("update")
def test_root_sees_and_asks_for_updates_without_the_units_credentials(facts) -> None:
    assert facts["before"]["state"] == "idle"
    assert "fetching: fetch 0 %" in facts["told"]
    assert "the daemon has ended meanwhile" in facts["told"]
    assert facts["status_of_none"]["state"] == "rolled_back"
    assert "systemctl start int8d" in facts["install_of_none"]


@pytest.mark.scenario("slow_release")
def test_the_watchdog_does_not_end_the_service_while_a_release_loads(facts) -> None:
    assert facts["took_s"] > WATCHDOG_S
    assert facts["version"] == "2"
    _is(facts["unit"], NRestarts="0", **RUNNING)


@pytest.mark.scenario("greedy_release")
def test_a_release_that_takes_all_memory_in_its_test_is_ended_and_the_service_is_not(facts) -> None:
    if "status" not in facts:
        pytest.skip("the container has no memory controller here")
    assert facts["status"]["state"] == "rolled_back"
    assert facts["status"]["reason"]["code"] == "crashed"
    assert "signal 9" in facts["status"]["reason"]["message"]
    _is(facts["unit"], NRestarts="0", MainPID=facts["pid"], **RUNNING)
    assert facts["version"] == "1"


@pytest.mark.parametrize(("drop_ins", "most"), [((), 1.2), (("gpu.conf",), 1.5)])
def test_systemds_own_measure_of_exposure(tmp_path: Path, drop_ins: tuple[str, ...], most: float) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here: apt-get install systemd")
    units = tmp_path / "etc" / "systemd" / "system"
    (units / "int8d.service.d").mkdir(parents=True)
    shutil.copy(ROOT / "systemd" / "int8d.service", units)
    for name in drop_ins:
        shutil.copy(ROOT / "systemd" / name, units / "int8d.service.d")
    command = ["systemd-analyze", "security", "--no-pager", "--offline=true", f"--root={tmp_path}", "int8d.service"]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    level = re.search(r"Overall exposure level for int8d.service: ([\d.]+)", said)
    assert level is not None, said
    assert float(level[1]) <= most
    assert ("nvidia" in said) == bool(drop_ins)
