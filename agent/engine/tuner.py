"""Finds, on this box, the fastest way to compute each operator of a model.

In a round, every group of operators between which work can move (a convolution with the sum that takes it over, say)
tries one candidate, all in one program; its profile is compared with that of the default program, run in turns. What
wins its group clearly, and wins again beside the other winners, is kept. In the end the program of all that is kept
meets the default one, whole run against whole run: if it does not win, the default stays. So an answer is never slower
than none, as far as it can be measured.

    answer = tune(build, options, budget_s=3.0)
    program = build(answer.choices)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import quantiles
from typing import Protocol, TypeVar

import msgspec

from agent.engine.choice import Choice, Choices, Option

BUDGET_S = 3.0
MARGIN = 0.03  # by which a candidate must win: less is noise
_LEAST_NS = 200.0
_SLICE_S = 0.004  # of runs of one program before the other's turn, 3 runs at least, 50 at most
_BATCHES = 8
_AGREE = 3  # verdicts in a row that end the last comparison
_RESERVE = 0.25  # of the budget, for what the winners have to pass
_T = TypeVar("_T")


class Trial(Protocol):
    """A model, built with some choices and ready to run."""

    def run(self) -> object: ...

    def profile(self) -> Mapping[str, int]:
        """Runs once; nanoseconds by operator, 0 for one that runs within another."""
        ...

    def plan(self) -> Mapping[str, str]:
        """How each operator runs: equal texts mean the same."""
        ...


Build = Callable[[Choices], Trial]
Clock = Callable[[], float]


class Timed(msgspec.Struct, frozen=True):
    """Microseconds of an operator, with what could take it over: as by default, and as chosen.

    The lower quartile of the runs: the slow ones tell of other processes, not of kernels.
    """

    default_us: float
    chosen_us: float


class Answer(msgspec.Struct, frozen=True):
    """What ``tune`` found. choices: of the operators that shall not have the default.

    default_us, tuned_us: of a whole run, the median; 0 where no candidate got as far as the last comparison. complete:
    whether every candidate was tried within the budget.
    """

    choices: dict[str, Choice]
    operators: dict[str, Timed]
    default_us: float
    tuned_us: float
    complete: bool
    spent_s: float

    def __str__(self) -> str:
        if not self.choices:
            return "the default choices are the best"
        return (
            f"{len(self.choices)} operators run otherwise than by default, {self.default_us / 1e3:.3f} -> "
            f"{self.tuned_us / 1e3:.3f} ms a run"
        )


def tune(build: Build, options: Sequence[Option], budget_s: float, clock: Clock = time.perf_counter) -> Answer:
    """Times candidates for at most ``budget_s`` seconds by ``clock``; what can't be finished in time is not begun."""
    return _Tuner(build, options, budget_s, clock).run()


class _Tuner:
    def __init__(self, build: Build, options: Sequence[Option], budget_s: float, clock: Clock) -> None:
        self.clock, self.build = clock, build
        self.start = clock()
        self.end = self.start + budget_s
        self.groups: dict[str, list[Option]] = {}
        for option in options:
            self.groups.setdefault(option.taker or option.operator, []).append(option)
        self.default = build({})
        self.build_s = clock() - self.start
        self.usual = self.default.plan()
        self.default.run()
        before = clock()
        self.default.profile()
        self.run_s = clock() - before
        self.runs = max(3, min(50, round(_SLICE_S / max(self.run_s, 1e-6))))
        self.batch_s = 2 * (1 + self.runs) * self.run_s
        self.best: dict[str, tuple[Choice, Timed]] = {}
        self.usual_us: dict[str, float] = {}  # of a group

    def run(self) -> Answer:
        complete = self.rounds()
        choices, default_us, tuned_us = self.confirmed(), 0.0, 0.0
        if choices and self.affordable(self.end):
            won, default_us, tuned_us = self.duel(self.build(choices))
            choices = choices if won else {}
        else:
            choices = {}
        operators = {}
        for group, options in self.groups.items():
            for name in (o.operator for o in options):
                if name in choices:
                    operators[name] = self.best[name][1]
                elif group in self.usual_us:
                    operators[name] = Timed(self.usual_us[group], self.usual_us[group])
        return Answer(choices, operators, default_us, tuned_us, complete, self.clock() - self.start)

    def rounds(self) -> bool:
        """Whether all candidates were tried."""
        until = self.end - max(_RESERVE * (self.end - self.start), 2 * (self.build_s + self.batch_s))
        queues = {name: list(_candidates(group)) for name, group in self.groups.items()}
        while any(queues.values()):
            if not self.affordable(until):
                return False
            tried = {name: queue.pop(0) for name, queue in queues.items() if queue}
            trial = self.build(dict(tried.values()))
            plan = trial.plan()
            changed = [name for name in tried if any(plan[op] != self.usual[op] for op in self.members(name))]
            if not changed:  # no program can have these choices
                continue
            for name, times in self.compare_groups(trial, changed, until).items():
                operator, choice = tried[name]
                self.usual_us[name] = times.default_us
                if _wins(times) and (operator not in self.best or _gain(times) > _gain(self.best[operator][1])):
                    self.best[operator] = (choice, times)
        return True

    def affordable(self, until: float, comparisons: int = 1) -> bool:
        """Whether a program can be built and compared before ``until``."""
        return self.clock() + comparisons * (self.build_s + self.batch_s) <= until

    def members(self, group: str) -> list[str]:
        return list(dict.fromkeys([*(o.operator for o in self.groups[group]), group]))

    def compare_groups(self, trial: Trial, groups: list[str], until: float) -> dict[str, Timed]:
        """The times of groups, of as many runs as it takes for two batches in a row to agree on who wins."""
        samples: dict[str, tuple[list[int], list[int]]] = {name: ([], []) for name in groups}
        verdict: set[str] | None = None
        for _ in range(_BATCHES):
            for side, program in enumerate((self.default, trial)):
                for times in self.slice(program.profile):
                    for name in groups:
                        samples[name][side].append(sum(times[op] for op in self.members(name)))
            compared = {name: Timed(_quartile(a) / 1e3, _quartile(b) / 1e3) for name, (a, b) in samples.items()}
            last, verdict = verdict, {name for name, times in compared.items() if _wins(times)}
            if verdict == last or self.clock() + self.batch_s > until:
                break
        return compared

    def confirmed(self) -> dict[str, Choice]:
        """The winners that win again when all of them are there: luck does not strike twice."""
        if not self.best or not self.affordable(self.end, comparisons=2):
            return {}
        groups = [name for name, group in self.groups.items() if any(o.operator in self.best for o in group)]
        trial = self.build({operator: choice for operator, (choice, _) in self.best.items()})
        until = self.end - self.build_s - self.batch_s
        again = {name for name, times in self.compare_groups(trial, groups, until).items() if _wins(times)}
        winners = {o.operator for name in again for o in self.groups[name]}
        return {operator: choice for operator, (choice, _) in self.best.items() if operator in winners}

    def duel(self, tuned: Trial) -> tuple[bool, float, float]:
        """Whether the tuned program is faster both at the lower quartile and at the median, and the medians.

        Where the two disagree, it takes as many runs as there is time for.
        """
        samples: tuple[list[float], list[float]] = ([], [])
        verdicts: list[tuple[bool, bool]] = []
        while True:
            for side, program in enumerate((self.default, tuned)):
                samples[side].extend(self.slice(lambda program=program: self.timed(program)))  # type: ignore[misc]
            (low, middle, _), (tuned_low, tuned_middle, _) = (quantiles(s, n=4) for s in samples)
            verdicts.append((tuned_low < low, tuned_middle < middle))
            settled = verdicts[-_AGREE:] in ([(True, True)] * _AGREE, [(False, False)] * _AGREE)
            if settled or self.clock() + self.batch_s > self.end:
                return all(verdicts[-1]), middle * 1e6, tuned_middle * 1e6

    def timed(self, program: Trial) -> float:
        before = self.clock()
        program.run()
        return self.clock() - before

    def slice(self, run: Callable[[], _T]) -> list[_T]:
        run()  # after the other program's turn, caches hold the other program's weights
        return [run() for _ in range(self.runs)]


def _candidates(group: Sequence[Option]) -> Iterator[tuple[str, Choice]]:
    """One after the other, the most promising of each operator first."""
    for i in range(1, max(len(o.candidates) for o in group)):
        for option in group:
            if i < len(option.candidates):
                yield option.operator, option.candidates[i]


def _quartile(times: Sequence[int]) -> float:
    return quantiles(times, n=4)[0]


def _gain(times: Timed) -> float:
    return 1 - times.chosen_us / times.default_us if times.default_us else 0.0


def _wins(times: Timed) -> bool:
    return _gain(times) >= MARGIN and (times.default_us - times.chosen_us) * 1e3 >= _LEAST_NS
