"""Sensors, from trees of files as the kernel shows them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agent.telemetry.metrics import page
from agent.telemetry.sensors import Sensors
from agent.telemetry.stats import Stats
from tests.test_telemetry import _ledger


def tree(root: Path, files: dict[str, object]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


RAPL = "class/powercap/intel-rapl:"
PC = {
    "class/thermal/thermal_zone0/type": "x86_pkg_temp", "class/thermal/thermal_zone0/temp": 45500,
    "class/thermal/thermal_zone1/type": "acpitz", "class/thermal/thermal_zone1/temp": -2000,
    "class/thermal/thermal_zone2/type": "broken", "class/thermal/thermal_zone2/temp": "",
    "class/hwmon/hwmon3/name": "coretemp", "class/hwmon/hwmon3/temp1_label": "Package id 0",
    "class/hwmon/hwmon3/temp1_input": 46000, "class/hwmon/hwmon3/temp2_input": 44000,
    "devices/system/cpu/cpufreq/policy0/scaling_cur_freq": 2_400_000,
    "devices/system/cpu/cpufreq/policy0/scaling_max_freq": 3_600_000,
    "devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq": 3_600_000,
    "devices/system/cpu/cpufreq/policy10/scaling_cur_freq": 1_200_000,
    "devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": 3,
    "devices/system/cpu/cpu0/thermal_throttle/package_throttle_count": 4,
    f"{RAPL}0/name": "package-0", f"{RAPL}0/energy_uj": 1_000_000, f"{RAPL}0/max_energy_range_uj": 9_999_999,
    f"{RAPL}0:0/name": "core", f"{RAPL}0:0/energy_uj": 500_000, f"{RAPL}0:0/max_energy_range_uj": 9_999_999,
    f"{RAPL}0:1/name": "dram", f"{RAPL}0:1/energy_uj": 0, f"{RAPL}0:1/max_energy_range_uj": 9_999_999,
    f"{RAPL}1/name": "psys", f"{RAPL}1/energy_uj": 0, f"{RAPL}1/max_energy_range_uj": 9_999_999,
    "class/powercap/intel-rapl-mmio:0/name": "package-0", "class/powercap/intel-rapl-mmio:0/energy_uj": 1,
    "class/powercap/intel-rapl-mmio:0/max_energy_range_uj": 9_999_999,
}  # fmt: skip


def test_a_pc(tmp_path: Path) -> None:
    sensors = Sensors(tree(tmp_path, PC))
    reading = sensors.read()
    assert reading.temperatures == {
        "x86_pkg_temp": 45.5, "acpitz": -2.0, "coretemp/Package id 0": 46.0, "coretemp/temp2": 44.0
    }  # fmt: skip
    assert reading.clocks == {"policy0": 2.4e9, "policy10": 1.2e9}
    assert reading.throttled is False
    assert reading.throttle_events == 7
    assert reading.joules == {"package-0": 0, "package-0/core": 0, "package-0/dram": 0}
    tree(tmp_path, {f"{RAPL}0/energy_uj": 3_000_000, f"{RAPL}0:0/energy_uj": 600_000, f"{RAPL}0:1/energy_uj": 250_000,
                    "devices/system/cpu/cpufreq/policy0/scaling_max_freq": 1_800_000})  # fmt: skip
    reading = sensors.read()
    assert reading.joules == pytest.approx({"package-0": 2.0, "package-0/core": 0.1, "package-0/dram": 0.25})
    assert reading.total_joules == pytest.approx(2.25)  # a package holds its cores, not its memory
    assert reading.throttled is True


def test_a_counter_of_energy_that_starts_again_goes_on(tmp_path: Path) -> None:
    sensors = Sensors(tree(tmp_path, PC))
    for raw, joules in ((9_000_000, 8.0), (500_000, 9.5), (9_999_999, 18.999999), (0, 19.0)):
        tree(tmp_path, {f"{RAPL}0/energy_uj": raw})
        assert sensors.read().joules["package-0"] == pytest.approx(joules)


JETSON = {
    "class/thermal/thermal_zone0/type": "cpu-thermal", "class/thermal/thermal_zone0/temp": 51234,
    "class/hwmon/hwmon1/name": "ina3221",
    "class/hwmon/hwmon1/in1_label": "VDD_IN", "class/hwmon/hwmon1/in1_input": 5000,
    "class/hwmon/hwmon1/curr1_input": 2000,
    "class/hwmon/hwmon1/in2_label": "VDD_CPU_GPU_CV", "class/hwmon/hwmon1/in2_input": 5000,
    "class/hwmon/hwmon1/curr2_input": 500,
}  # fmt: skip
OLD_JETSON = {
    "bus/i2c/drivers/ina3221x/0-0041/iio:device0/rail_name_0": "POM_5V_IN",
    "bus/i2c/drivers/ina3221x/0-0041/iio:device0/in_power0_input": 10_000,
    "bus/i2c/drivers/ina3221x/0-0041/iio:device0/rail_name_1": "POM_5V_CPU",
    "bus/i2c/drivers/ina3221x/0-0041/iio:device0/in_power1_input": 2500,
}  # fmt: skip


@pytest.mark.parametrize(("files", "whole", "part", "more"), [
    (JETSON, "ina3221/VDD_IN", "ina3221/VDD_CPU_GPU_CV", {"class/hwmon/hwmon1/curr1_input": 4000}),
    (OLD_JETSON, "ina3221x/POM_5V_IN", "ina3221x/POM_5V_CPU",
     {"bus/i2c/drivers/ina3221x/0-0041/iio:device0/in_power0_input": 20_000}),
])  # fmt: skip
def test_a_jetsons_power_is_integrated(tmp_path: Path, files: dict, whole: str, part: str, more: dict) -> None:
    clock = Clock()
    sensors = Sensors(tree(tmp_path, files), clock)
    assert sensors.read().watts == pytest.approx({whole: 10.0, part: 2.5})
    clock.now = 2.0
    tree(tmp_path, more)
    reading = sensors.read()
    assert reading.joules == pytest.approx({whole: 30.0, part: 5.0})
    assert reading.total_joules == pytest.approx(30.0)  # the rail that feeds the others


def test_where_the_kernel_shows_nothing_there_is_nothing(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "missing"):
        sensors = Sensors(root)
        reading = sensors.read()
        assert (reading.document(), reading.total_joules, reading.throttled) == ({}, None, None)
        stats = Stats({}, sensors)
        assert "sensors" not in json.loads(stats.document())
        text = page(stats, 0, False, {}).decode()
        assert not any(word in text for word in ("celsius", "joules", "hertz", "watts", "throttle"))


def test_what_may_not_be_read_is_absent(tmp_path: Path) -> None:
    files = {name: text for name, text in PC.items() if not name.endswith("energy_uj")}
    for name in (f"{RAPL}0/energy_uj", f"{RAPL}0:0/energy_uj"):
        (tmp_path / name).mkdir(parents=True)  # root reads all files, but no folder
    reading = Sensors(tree(tmp_path, files)).read()
    assert (reading.joules, reading.total_joules) == ({}, None)
    assert reading.temperatures["x86_pkg_temp"] == 45.5


def test_joules_of_an_inference_are_the_boxs_over_the_interval(tmp_path: Path) -> None:
    stats = Stats({}, Sensors(tree(tmp_path, PC)))
    assert "joules_per_inference" not in json.loads(stats.document())["sensors"]
    for _ in range(4):
        stats.answered("digits", _ledger(1000))
    tree(tmp_path, {f"{RAPL}0/energy_uj": 3_000_000})
    assert json.loads(stats.document())["sensors"]["joules_per_inference"] == 0.5
    stats.answered("digits", _ledger(1000))
    tree(tmp_path, {f"{RAPL}0/energy_uj": 3_250_000})
    document = json.loads(stats.document())["sensors"]
    assert document["joules_per_inference"] == 0.25
    assert document["temperature_c"]["x86_pkg_temp"] == 45.5
    assert 'int8d_temperature_celsius{sensor="coretemp/Package id 0"} 46' in page(stats, 0, False, {}).decode()


def test_hundreds_of_sensors_are_bounded(tmp_path: Path) -> None:
    files = {}
    for i in range(200):
        files |= {f"class/thermal/thermal_zone{i}/type": "same", f"class/thermal/thermal_zone{i}/temp": 1000 * i}
    found = Sensors(tree(tmp_path, files)).read().temperatures
    assert len(found) == 64
    assert (found["same"], found["same#2"], found["same#64"]) == (0.0, 1.0, 63.0)
