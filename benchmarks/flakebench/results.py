"""Figures, ratios, floors: what was measured, and what it is held against.

Every step is measured in seconds for the same amount of work on each target, so a ratio is the baseline's seconds
divided by FlakeFS's, taken round by round (what ran next to each other) and then the median: 1.0 is as fast as the
baseline.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from statistics import median

MIB = 1 << 20
TARGETS = ("flakefs", "raw", "null", "pass", "local")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    name: str
    title: str
    amount: float
    """How much work one run is, in units."""
    unit: str
    """"s" when the seconds themselves are the figure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """At least *bound* times as fast as *base*; or, without a base, less than *bound* units."""

    step: str
    base: str = ""
    bound: float


FLOORS = (
    Floor(step="write", base="raw", bound=0.5),
    Floor(step="read", base="raw", bound=0.5),
    Floor(step="files", base="pass", bound=1.0),
    Floor(step="files", base="null", bound=0.25),
    Floor(step="unpack", base="pass", bound=1.0),
    Floor(step="unpack", base="null", bound=0.25),
    Floor(step="unpack", bound=6.0),
    Floor(step="find", bound=1.0),
    Floor(step="memory", bound=400.0),
)


@dataclass(slots=True)
class Results:
    steps: dict[str, Step] = field(default_factory=dict)
    seconds: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    peak_memory: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, step: Step, target: str, seconds: float) -> None:
        self.steps[step.name] = step
        self.seconds.setdefault(step.name, {}).setdefault(target, []).append(seconds)

    def figure(self, step: str, target: str) -> float | None:
        """The median in the step's unit."""
        values = self.seconds.get(step, {}).get(target)
        if not values:
            return None
        taken = median(values)
        return taken if self.steps[step].unit == "s" else self.steps[step].amount / taken

    def ratio(self, step: str, base: str) -> float | None:
        """How fast FlakeFS is, measured by *base*."""
        found = self.seconds.get(step, {})
        pairs = list(zip(found.get(base, []), found.get("flakefs", []), strict=False))
        return median(other / ours for other, ours in pairs) if pairs else None

    def measured(self, floor: Floor) -> float | None:
        if floor.base:
            return self.ratio(floor.step, floor.base)
        if floor.step == "memory":
            peak = self.peak_memory.get("flakefs")
            return peak / MIB if peak else None
        values = self.seconds.get(floor.step, {}).get("flakefs")
        return median(values) if values else None

    def met(self, floor: Floor) -> bool | None:
        value = self.measured(floor)
        if value is None:
            return None
        return value >= floor.bound if floor.base else value < floor.bound


def as_json(results: Results) -> dict[str, object]:
    return {
        "machine": {"system": platform.platform(), "python": platform.python_version()},
        "steps": {
            name: {
                "title": step.title,
                "unit": step.unit,
                "figures": {target: results.figure(name, target) for target in results.seconds[name]},
                "ratios": {base: results.ratio(name, base) for base in results.seconds[name] if base != "flakefs"},
                "seconds": results.seconds[name],
            }
            for name, step in results.steps.items()
        },
        "peak_memory_bytes": results.peak_memory,
        "floors": [
            {
                "step": floor.step,
                "base": floor.base or None,
                "bound": floor.bound,
                "measured": results.measured(floor),
                "met": results.met(floor),
            }
            for floor in FLOORS
        ],
        "notes": results.notes,
    }


def as_text(results: Results) -> str:
    lines = [f"{'':<26}{'unit':>8}" + "".join(f"{target:>11}" for target in TARGETS) + "   flakefs as a multiple of"]
    for name, step in results.steps.items():
        cells = "".join(f"{_number(results.figure(name, target)):>11}" for target in TARGETS)
        ratios = ", ".join(
            f"{base} {ratio:.2f}" for base in TARGETS[1:] if (ratio := results.ratio(name, base)) is not None
        )
        lines.append(f"{step.title:<26}{step.unit:>8}{cells}   {ratios}")
    memory = "".join(
        f"{_number(results.peak_memory[target] / MIB if target in results.peak_memory else None):>11}"
        for target in TARGETS
    )
    lines += [f"{'peak memory of the mount':<26}{'MiB':>8}{memory}", ""]
    lines += [_floor_line(results, floor) for floor in FLOORS if results.measured(floor) is not None]
    return "\n".join(lines + results.notes)


def _floor_line(results: Results, floor: Floor) -> str:
    value, verdict = results.measured(floor), "met" if results.met(floor) else "NOT MET"
    title = results.steps[floor.step].title if floor.step in results.steps else "peak memory of the mount"
    if floor.base:
        return f"floor  {title:<26} at least {floor.bound:.2f} of {floor.base:<5} measured {value:8.2f}   {verdict}"
    unit = "MiB" if floor.step == "memory" else "s"
    return f"floor  {title:<26} below {floor.bound:.0f} {unit:<11} measured {value:8.2f}   {verdict}"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"
