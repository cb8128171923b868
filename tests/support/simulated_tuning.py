"""A search without a model: candidates whose true loss is known, and answers drawn by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlmopt.tuning.race import Race, confirm, promising, race, shortlist
from vlmopt.tuning.rules import Cost, Marks, Rules, loss

CANDIDATES = 40
SEARCH = 512
# Loss of the harshest candidates, and the spread of quality: the two numbers that the published table leaves open. Its
# three unsafe shares, 67, 42 and 33 %, tell them: 0.12 and 0.75 would make 65, 42 and 27 %.
SCALE, SPREAD = 0.13, 0.70


@dataclass(frozen=True)
class World:
    """True facts of every candidate: time (share of dense), loss, and how many answers change."""

    times: np.ndarray
    losses: np.ndarray
    changes: np.ndarray

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> World:
        times = np.linspace(0.2, 0.95, CANDIDATES)
        losses = np.minimum(SCALE * (1 - times) ** 2.2 * np.exp(SPREAD * rng.standard_normal(CANDIDATES)), 0.9)
        return cls(times, losses, np.minimum(losses + 0.03 * (1 - times) + 0.005, 1.0))

    def fastest_safe(self, budget: float) -> float:
        safe = self.times[self.losses <= budget]
        return float(safe.min()) if len(safe) else 1.0


class Simulated:
    """Answers on one part of the data: the same ones however often they are asked for."""

    def __init__(self, world: World, images: int, rng: np.random.Generator) -> None:
        self.world, self.images, self.rng = world, images, rng
        self.drawn: dict[str, np.ndarray] = {}
        self.asked: dict[str, int] = {}

    def __call__(self, names: Sequence[str], count: int) -> Mapping[str, Marks]:
        for name in names:
            if name not in self.drawn:
                lost, changed = self.world.losses[int(name)], self.world.changes[int(name)]
                draw = self.rng.random(self.images)
                self.drawn[name] = np.where(draw < (changed + lost) / 2, -1.0, np.where(draw < changed, 1.0, 0.0))
            self.asked[name] = count
        return {name: {"accuracy": self.drawn[name][:count]} for name in names}


@dataclass(frozen=True)
class Found:
    """What a rule returned: the true time and loss of its policy (None: dense), and how many answers it took."""

    time: float | None
    loss: float
    answers: int


def searched(world: World, rules: Rules, rng: np.random.Generator) -> tuple[Simulated, Race]:
    ask = Simulated(world, SEARCH, rng)
    return ask, race([[str(number)] for number in range(len(world.times))], ask, rules, SEARCH)


def naive(world: World, rules: Rules, rng: np.random.Generator) -> Found:
    """The fastest candidate whose mean lies within the budget."""
    ask, ran = searched(world, rules, rng)
    within = [int(n) for n in ran.marks if n not in ran.dropped and loss(ran.marks[n]) <= rules.budget]
    best = min(within, default=None, key=lambda number: world.times[number])
    return found(world, best, sum(ask.asked.values()))


def confirmed(world: World, rules: Rules, holdout: int, rng: np.random.Generator) -> Found:
    """The search of the package."""
    ask, ran = searched(world, rules, rng)
    losses = {name: loss(ran.marks[name]) for name in promising(ran, rules)}
    costs = {name: Cost.exact(float(world.times[int(name)])) for name in losses}
    fresh = Simulated(world, holdout, rng)
    tested = confirm(shortlist(losses, costs, rules), fresh, rules, holdout)
    passed = [int(name) for name, (_, holds) in tested.items() if holds]
    return found(world, passed[-1] if passed else None, sum(ask.asked.values()) + sum(fresh.asked.values()))


def at_the_budget(budget: float, holdout: int, runs: int, seed: int = 7) -> float:
    """Return the share of searches that return a policy where all lose the budget, and a trace more: all are wrong."""
    times = np.linspace(0.2, 0.95, CANDIDATES)
    losses = np.full(CANDIDATES, budget + 1e-9)
    world = World(times, losses, losses + 0.03 * (1 - times) + 0.005)
    wrong = [
        confirmed(world, Rules(budget=budget), holdout, np.random.default_rng([seed, run])).time is not None
        for run in range(runs)
    ]
    return float(np.mean(wrong))


def found(world: World, number: int | None, answers: int) -> Found:
    if number is None:
        return Found(None, 0.0, answers)
    return Found(float(world.times[number]), float(world.losses[number]), answers)


def table(budget: float, holdout: int | None, runs: int, seed: int = 0) -> dict[str, float]:
    """Return a row of the table: shares of unsafe outcomes and of none, time by that of the fastest safe, answers."""
    rules = Rules(budget=budget)
    rows = []
    for run in range(runs):
        rng = np.random.default_rng([seed, run])
        world = World.drawn(rng)
        one = naive(world, rules, rng) if holdout is None else confirmed(world, rules, holdout, rng)
        rows.append((one, world.fastest_safe(budget)))
    some = [(one.time, best) for one, best in rows if one.time is not None]
    return {
        "unsafe": float(np.mean([one.loss > budget for one, _ in rows])),
        "nothing": float(np.mean([one.time is None for one, _ in rows])),
        "time": float(np.mean([time / best for time, best in some])) if some else float("nan"),
        "answers": float(np.mean([one.answers for one, _ in rows])),
    }
