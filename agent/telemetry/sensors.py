"""Temperature, clock, power and energy, as far as the kernel exposes them; what it does not is absent.

Read from sysfs, whose root is passed in, so that a test can hand in a tree of its own:

    thermal     class/thermal/thermal_zone*/{type,temp}, class/hwmon/*/temp*_{label,input}      thousandths of a degree
    clock       devices/system/cpu/cpufreq/policy*/scaling_cur_freq, …_max_freq                 kHz
    throttling  devices/system/cpu/cpu*/thermal_throttle/*_throttle_count (x86)                 events since boot
    energy      class/powercap/intel-rapl:*/energy_uj (Intel and AMD; root's to read)           microjoules, wrapping
    power       class/hwmon/*: power*_input (uW); in*_input, curr*_input of an INA3221 (mV, mA: Jetson),
                or, by its older driver, iio:device*/in_power*_input (mW)

Where there are counters of energy, they are used; else the power that was read is integrated over the time between
two readings, which is an estimate.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

_T = TypeVar("_T")
_MOST = 64  # of a kind; a server may have hundreds
_WHOLE_BOARD = ("VDD_IN", "POM_5V_IN", "VIN_SYS_5V0", "VDD_5V_IN")  # the rails of Jetson boards that feed all others


@dataclass
class Reading:
    """One look at all sensors. Temperatures in degrees Celsius, clocks in hertz, power in watts, energy in joules.

    clocks, limits: a clock domain's clock now, and the most that it may run at now; rated: the most that it is made
    for. joules: since the first reading, by domain; total_joules: of those that make up the whole, None where there is
    nothing to go by.
    """

    temperatures: dict[str, float] = field(default_factory=dict)
    clocks: dict[str, float] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    rated: dict[str, float] = field(default_factory=dict)
    throttle_events: int | None = None
    watts: dict[str, float] = field(default_factory=dict)
    joules: dict[str, float] = field(default_factory=dict)
    total_joules: float | None = None

    @property
    def throttled(self) -> bool | None:
        """Whether some clock may not run as fast as it is made for; None where the kernel does not tell."""
        known = [self.limits[name] < rated for name, rated in self.rated.items() if name in self.limits]
        return any(known) if known else None

    def document(self) -> dict[str, Any]:
        """For the ``stats`` topic: only what there is."""
        found: dict[str, Any] = {
            "temperature_c": self.temperatures,
            "clock_hz": self.clocks,
            "power_w": {name: round(watts, 3) for name, watts in self.watts.items()},
            "energy_j": {name: round(joules, 3) for name, joules in self.joules.items()},
        }
        found = {name: values for name, values in found.items() if values}
        if self.throttled is not None:
            found["throttled"] = self.throttled
        if self.throttle_events is not None:
            found["throttle_events"] = self.throttle_events
        return found


class Sensors:
    """Finds what there is once; ``read`` looks again at those. Safe to call from any thread."""

    def __init__(self, root: Path = Path("/sys"), clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._temperatures = dict(_most(_temperatures(root)))
        self._policies = dict(_most((p.name, p) for p in _sorted(root, "devices/system/cpu/cpufreq/policy*")))
        throttle = "thermal_throttle/{}_throttle_count"
        cpus = "devices/system/cpu/cpu[0-9]*"
        self._throttle = [p for _, p in _most(("", p) for kind in ("core", "package")
                                              for p in _sorted(root, f"{cpus}/{throttle.format(kind)}"))]  # fmt: skip
        self._rails = dict(_most(_rails(root)))
        self._meters: dict[str, _Meter] = {}
        for name, folder in _most(_rapl(root)):
            meter = _Meter(folder)
            if meter.usable:
                self._meters[name] = meter
        self._integrals = dict.fromkeys(() if self._meters else self._rails, 0.0)
        self._last: tuple[float, dict[str, float]] | None = None
        self.read()  # energy counts from here

    def read(self) -> Reading:
        """What the sensors say now. One that can't be read just now is absent."""
        with self._lock:
            reading = Reading(
                {n: v / 1e3 for n, v in _numbers(self._temperatures)},
                {n: v * 1e3 for n, v in _numbers({n: p / "scaling_cur_freq" for n, p in self._policies.items()})},
                {n: v * 1e3 for n, v in _numbers({n: p / "scaling_max_freq" for n, p in self._policies.items()})},
                {n: v * 1e3 for n, v in _numbers({n: p / "cpuinfo_max_freq" for n, p in self._policies.items()})},
            )
            events = [v for v in map(_number, self._throttle) if v is not None]
            reading.throttle_events = sum(events) if events else None
            for name, rail in self._rails.items():
                watts = rail()
                if watts is not None:
                    reading.watts[name] = watts
            self._energy(reading)
            return reading

    def _energy(self, reading: Reading) -> None:
        if self._meters:
            reading.joules = {name: meter.joules() for name, meter in self._meters.items()}
            # A package's own parts are within it; its memory is not.
            parts = [j for name, j in reading.joules.items() if "/" not in name or name.endswith("/dram")]
            reading.total_joules = sum(parts)
            return
        now = self._clock()
        if self._last is not None:
            then, before = self._last
            for name in self._integrals:
                if name in before and name in reading.watts:
                    self._integrals[name] += (before[name] + reading.watts[name]) / 2 * (now - then)
        self._last = (now, dict(reading.watts))
        reading.joules = dict(self._integrals)
        whole = [name for name in self._integrals if name.endswith(_WHOLE_BOARD)] or (
            list(self._integrals) if len(self._integrals) == 1 else []
        )
        reading.total_joules = sum(self._integrals[name] for name in whole) if whole else None


class _Meter:
    """A counter of microjoules that starts again at its range."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "energy_uj"
        self._range = _number(folder / "max_energy_range_uj")
        self._last = _number(self._file)
        self._sum = 0

    @property
    def usable(self) -> bool:
        return self._last is not None and self._range is not None

    def joules(self) -> float:
        """Since it was made; a reading at least must fall into each turn of the counter (an hour at 70 W)."""
        now = _number(self._file)
        if now is not None and self._last is not None and self._range is not None:
            step = now - self._last
            self._sum += step if step >= 0 else step + self._range + 1
            self._last = now
        return self._sum / 1e6


def _temperatures(root: Path) -> Iterator[tuple[str, Path]]:
    for zone in _sorted(root, "class/thermal/thermal_zone*"):
        yield _text(zone / "type") or zone.name, zone / "temp"
    for chip in _sorted(root, "class/hwmon/hwmon*"):
        name = _text(chip / "name") or chip.name
        for file in _sorted(chip, "temp*_input"):
            number = file.name.removesuffix("_input")
            yield f"{name}/{_text(chip / f'{number}_label') or number}", file


def _rails(root: Path) -> Iterator[tuple[str, Callable[[], float | None]]]:
    for chip in _sorted(root, "class/hwmon/hwmon*"):
        name = _text(chip / "name") or chip.name
        measured = _sorted(chip, "power*_input")
        for file in measured:
            number = file.name.removesuffix("_input")
            yield f"{name}/{_text(chip / f'{number}_label') or number}", _scaled(1e-6, file)
        if name == "ina3221" and not measured:
            for file in _sorted(chip, "curr[1-3]_input"):
                number = file.name[4]
                rail = _text(chip / f"in{number}_label") or f"in{number}"
                yield f"{name}/{rail}", _scaled(1e-6, file, chip / f"in{number}_input")
    for chip in _sorted(root, "bus/i2c/drivers/ina3221x/*/iio:device*"):
        for file in _sorted(chip, "in_power*_input"):
            number = re.sub(r"\D", "", file.name)
            yield f"ina3221x/{_text(chip / f'rail_name_{number}') or number}", _scaled(1e-3, file)


def _rapl(root: Path) -> Iterator[tuple[str, Path]]:
    """``package-0``, ``package-0/core`` and so on. The same packages by another way (intel-rapl-mmio) are left out."""
    for folder in _sorted(root, "class/powercap/intel-rapl:*"):
        name = _text(folder / "name")
        if name is None or name == "psys":  # the whole platform: holds the packages
            continue
        parts = folder.name.split(":")
        parent = _text(folder.parent / ":".join(parts[:2]) / "name")
        yield (name if len(parts) == 2 else f"{parent}/{name}"), folder


def _scaled(scale: float, *files: Path) -> Callable[[], float | None]:
    """Reads the product of the files."""

    def read() -> float | None:
        product = scale
        for file in files:
            number = _number(file)
            if number is None:
                return None
            product *= number
        return product

    return read


def _most(found: Iterator[tuple[str, _T]]) -> Iterator[tuple[str, _T]]:
    """The first of them, a second of the same name with its number behind it."""
    seen: dict[str, int] = {}
    for i, (name, what) in enumerate(found):
        if i == _MOST:
            return
        seen[name] = seen.get(name, 0) + 1
        yield (name if seen[name] == 1 else f"{name}#{seen[name]}"), what


def _sorted(folder: Path, pattern: str) -> list[Path]:
    """By the numbers in their names."""
    try:
        return sorted(folder.glob(pattern), key=lambda p: [int(n) for n in re.findall(r"\d+", str(p))])
    except OSError:
        return []


def _numbers(files: dict[str, Path]) -> Iterator[tuple[str, int]]:
    for name, file in files.items():
        number = _number(file)
        if number is not None:
            yield name, number


def _number(file: Path) -> int | None:
    try:
        return int(_text(file) or "")
    except ValueError:
        return None


def _text(file: Path) -> str | None:
    try:
        with open(file, encoding="ascii", errors="replace") as opened:
            return opened.read(4096).strip() or None
    except OSError:
        return None
