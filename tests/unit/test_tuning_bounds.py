"""What a search may say for sure: golden numbers of its bounds, how often they err, and the search on known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.support.simulated_tuning import CANDIDATES, Simulated, World, at_the_budget, confirmed, table
from vlmopt.tuning.bounds import fewest, loses_less, lower_bound, needed, reach, upper_bound
from vlmopt.tuning.outcome import chosen
from vlmopt.tuning.race import confirm, race, shortlist
from vlmopt.tuning.rules import Cost, Rules


def answers(lost: int, won: int, images: int) -> np.ndarray:
    return np.array([-1.0] * lost + [1.0] * won + [0.0] * (images - lost - won))


def test_equal_answers_are_not_certainty() -> None:
    assert reach(np.zeros(64), 0.95) == pytest.approx(0.01285, abs=5e-6)
    assert reach(np.zeros(1000), 0.95) == pytest.approx(0.00082, abs=5e-6)


@pytest.mark.parametrize(
    ("images", "lost", "exact"),
    [(1000, 0, 3.00), (1000, 1, 4.74), (1000, 4, 9.15), (1000, 5, 10.51), (1000, 20, 29.06), (200, 2, 6.30)],
)
def test_rare_losses_have_the_exact_bound(images: int, lost: int, exact: float) -> None:
    """Garwood's upper limit of a Poisson count, 95 %, as in any table of it."""
    bound = -images * lower_bound(answers(lost, 0, images), 0.95)
    assert bound == pytest.approx(exact, rel=0.03)


def test_many_differences_have_the_normal_bound() -> None:
    many = answers(400, 400, 4000)
    assert lower_bound(many, 0.95) == pytest.approx(-1.645 * math.sqrt(0.2 / 4000), rel=0.03)
    assert upper_bound(many, 0.95) == pytest.approx(1.645 * math.sqrt(0.2 / 4000), rel=0.001)


def test_the_samples_that_it_takes() -> None:
    for discordance, budget, images in ((0.05, 0.02, 773), (0.1, 0.02, 1546), (0.03, 0.01, 1855), (0.1, 0.01, 6183)):
        assert needed(discordance, budget, 0.95) == pytest.approx(images, abs=1)
    assert fewest(0.01, 0.95) == pytest.approx(math.log(0.05) / math.log(0.99), rel=0.05)
    assert needed(0.0, 0.02, 0.95) == fewest(0.02, 0.95)
    with pytest.raises(ValueError, match="above 0"):
        fewest(0.0, 0.95)


@pytest.mark.parametrize("images", [100, 300, 450, 1000, 2000])
@pytest.mark.parametrize("budget", [0.01, 0.02, 0.05])
@pytest.mark.parametrize("gain", [0.0, 0.002, 0.01, 0.05])
def test_a_loss_at_the_budget_is_confirmed_in_one_of_twenty_samples_at_most(
    images: int, budget: float, gain: float
) -> None:
    """Exactly, by adding up the probabilities of all samples that would pass; not by drawing some."""
    assert size(images, budget, gain) <= 0.05


def size(images: int, budget: float, gain: float) -> float:
    """The probability that a sample passes; up to how many losses pass beside so many wins is found by halving."""
    factorial = np.array([math.lgamma(n + 1) for n in range(images + 1)])
    total, reach_ = 0.0, 7 * math.sqrt(images * gain) + 8
    for wins in range(max(0, int(images * gain - reach_)), min(images, int(images * gain + reach_)) + 1 if gain else 1):
        low, high = -1, images - wins + 1  # low passes, high does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if loses_less(answers(middle, wins, images), budget, 0.95) else (low, middle)
        losses = np.arange(low + 1)
        rest = images - losses - wins
        chance = factorial[images] - factorial[losses] - factorial[wins] - factorial[rest]
        chance += losses * math.log(budget + gain) + rest * math.log(1 - budget - 2 * gain)
        total += float(np.exp(chance + (wins * math.log(gain) if wins else 0.0)).sum())
    return total


def test_questions_about_one_image_move_together() -> None:
    """Asking every question of an image twice says nothing new; the mean over its questions stays."""
    once = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], 300, p=[0.02, 0.97, 0.01])
    halves = np.random.default_rng(1).choice([-0.5, 0.0, 0.5], 300, p=[0.02, 0.97, 0.01])
    assert lower_bound(halves, 0.95) > lower_bound(once, 0.95)


@pytest.mark.parametrize(("budget", "confidence", "words"), [(1.1, 0.95, "0 to 100"), (0.1, 0.4, "confidence")])
def test_rules_out_of_range_are_refused(budget: float, confidence: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Rules(budget=budget, confidence=confidence)


def test_no_more_than_one_search_in_twenty_returns_a_policy_that_loses_more() -> None:
    """All candidates lose the budget exactly, where erring is easiest."""
    assert at_the_budget(0.02, 1000, 1000) <= 0.05


def test_a_budget_of_everything_returns_the_fastest_and_one_of_nothing_dense() -> None:
    world = World.drawn(np.random.default_rng(0))
    assert confirmed(world, Rules(budget=1.0), 300, np.random.default_rng(1)).time == world.times.min()
    same = World(world.times, np.zeros(CANDIDATES), np.zeros(CANDIDATES))
    assert confirmed(same, Rules(budget=0.0), 300, np.random.default_rng(1)).time is None


# Published with the rule, 300 runs a row: budget, images of the hold-out (None: the fastest with its mean within the
# budget, as people do), unsafe, nothing, time by that of the fastest safe one, answers.
TABLE = [
    (0.01, None, 0.67, 0.00, 0.92, 15_200), (0.02, None, 0.42, 0.00, 1.00, 16_600),
    (0.03, None, 0.33, 0.00, 1.00, 17_400),
    (0.01, 1000, 0.000, 0.20, 1.75, 17_700), (0.01, 2000, 0.003, 0.05, 1.66, 21_200),
    (0.02, 1000, 0.000, 0.00, 2.12, 20_200), (0.03, 2000, 0.003, 0.00, 1.62, 25_400),
]  # fmt: skip


@pytest.mark.parametrize(("budget", "holdout", "unsafe", "nothing", "time", "answers_"), TABLE)
def test_what_people_do_is_unsafe_and_the_search_is_not(
    budget: float, holdout: int | None, unsafe: float, nothing: float, time: float, answers_: int
) -> None:
    """Two numbers of the published simulation are not known; those here make its answers and its unsafe outcomes.

    The search finds something more often: it keeps the slow and safe that look dominated.
    """
    row = table(budget, holdout, 300 if holdout else 2000)
    assert row["unsafe"] == pytest.approx(unsafe, abs=0.03)
    assert row["nothing"] <= nothing + 0.03
    assert row["time"] == pytest.approx(time, abs=0.15)
    assert row["answers"] == pytest.approx(answers_, rel=0.05)


def test_harsher_ones_of_a_method_are_not_asked_when_a_gentle_one_is_lost() -> None:
    world = World(np.array([0.8, 0.6, 0.4]), np.array([0.0, 0.4, 0.6]), np.array([0.0, 0.4, 0.6]))
    ask = Simulated(world, 512, np.random.default_rng(0))
    found = race([["0", "1", "2"]], ask, Rules(budget=0.02), 512)
    assert ask.asked == {"0": 512, "1": 64}
    assert found.dropped == {
        "1": "surely loses more than the budget, on 64 images",
        "2": "1 is gentler, and surely loses more than the budget",
    }


def test_finalists_are_spread_from_slow_to_fast() -> None:
    losses = {"a": 0.0, "b": 0.001, "c": 0.002, "d": 0.003, "e": 0.004, "dominated": 0.004, "useless": 0.0}
    ratios = {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6, "e": 0.5, "dominated": 0.95, "useless": 1.0}
    costs = {name: Cost.exact(ratio) for name, ratio in ratios.items()}
    assert shortlist(losses, costs, Rules(budget=0.01)) == ["dominated", "b", "c", "e"]
    costs["d"] = Cost(0.6, 0.4, 0.75)  # cannot be told from c, which lost less
    assert shortlist(losses, costs, Rules(budget=0.01, finalists=9)) == ["dominated", "a", "b", "c", "e"]


def test_confirmation_stops_at_the_first_failure() -> None:
    marks = {"slow": answers(0, 0, 1000), "middle": answers(50, 0, 1000), "fast": answers(0, 0, 1000)}
    asked: list[str] = []

    def ask(names: list[str], count: int) -> dict[str, dict[str, np.ndarray]]:
        asked.extend(names)
        return {name: {"accuracy": marks[name]} for name in names}

    tested = confirm(["slow", "middle", "fast"], ask, Rules(budget=0.02), 1000)
    assert [(name, holds) for name, (_, holds) in tested.items()] == [("slow", True), ("middle", False)]
    assert asked == ["slow", "middle"]


def test_who_has_no_marks_is_not_confirmed() -> None:
    """It failed on sample after sample, or dense did."""
    tested = confirm(["a"], lambda names, count: {"a": {}}, Rules(budget=0.5), 1000)
    assert tested == {"a": ({}, False)}
    assert chosen(tested, best_effort=True) == ("dense", False)
    marks = {"accuracy": answers(50, 0, 100)}
    assert chosen({"slow": (marks, False)}, best_effort=True) == ("slow", False)
    assert chosen({"slow": (marks, False)}, best_effort=False) == ("dense", False)
    assert chosen({"slow": (marks, True), "fast": (marks, True), "faster": (marks, False)}, False) == ("fast", True)


def test_every_mark_has_to_hold() -> None:
    marks = {"chair_i": answers(0, 0, 1000), "chair_recall": answers(60, 0, 1000)}
    tested = confirm(["a"], lambda names, count: {"a": marks}, Rules(budget=0.02), 1000)
    assert not tested["a"][1]
