import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from mtrl.statistics import bootstrap_interval, iqm, mean, probability_of_improvement

REFERENCE = json.loads((Path(__file__).parent / "data" / "rliable.json").read_text())
X, Y = np.array(REFERENCE["x"]), np.array(REFERENCE["y"])
AGAINST_RLIABLE = pytest.mark.parametrize(
    ("statistic", "scores"),
    [(iqm, [X]), (mean, [X]), (probability_of_improvement, [X, Y])],
    ids=lambda value: getattr(value, "__name__", ""),
)

rates = st.integers(0, 50).map(lambda goals: goals / 50)  # success rates over 50 goals, with ties


@st.composite
def some_scores(draw, groups=1, min_runs=1):
    K = draw(st.integers(1, 12))
    return [
        draw(arrays(float, (draw(st.integers(min_runs, 6)), K), elements=rates))
        for _ in range(groups)
    ]


def interval_of(statistic, *scores, seed=0, **options):
    generator = np.random.default_rng(seed)
    return bootstrap_interval(statistic, *scores, generator=generator, **options)


@AGAINST_RLIABLE
def test_estimates_equal_rliables(statistic, scores):
    expected = REFERENCE["results"][statistic.__name__]["estimate"]
    assert statistic(*scores) == pytest.approx(expected, rel=1e-12)


@AGAINST_RLIABLE
@pytest.mark.parametrize("seed", range(3))
def test_intervals_agree_with_rliables(statistic, scores, seed):
    """Of n resamples the 2.5% quantile is uncertain by sqrt(p (1 - p) / n) over the density there.

    For a normal distribution with an interval of width 1, so with sigma = 1 / 3.92, that is
    0.68 / sqrt(n): 0.0030 for the 50,000 on either side, 0.0043 for their difference. Six times
    that, 0.026, is what may be seen; drawing whole runs instead changes widths by a third.
    """
    low, high = REFERENCE["results"][statistic.__name__]["interval"]
    tolerance = 0.026 * (high - low)
    found = interval_of(statistic, *scores, seed=seed, samples=REFERENCE["samples"])
    assert found == pytest.approx((low, high), abs=tolerance)


@given(some_scores())
def test_the_iqm_is_scipys_trimmed_mean_and_between_the_extremes(scores):
    (scores,) = scores
    assert iqm(scores) == pytest.approx(stats.trim_mean(scores, 0.25, axis=None), abs=1e-12)
    assert scores.min() - 1e-12 <= iqm(scores) <= scores.max() + 1e-12


@given(some_scores(groups=2))
def test_improvement_is_mann_whitneys_share_of_pairs(scores):
    one, other = scores
    per_task = [
        stats.mannwhitneyu(one[:, k], other[:, k]).statistic / (len(one) * len(other))
        for k in range(one.shape[1])
        if np.ptp(np.r_[one[:, k], other[:, k]]) > 0
    ]
    ties = [0.5] * (one.shape[1] - len(per_task))
    odds = probability_of_improvement(one, other)
    assert odds == pytest.approx(np.mean(per_task + ties), abs=1e-12)
    assert odds + probability_of_improvement(other, one) == pytest.approx(1, abs=1e-12)
    assert probability_of_improvement(one, one) == 0.5


@given(st.data())
def test_leading_axes_are_kept(data):
    scores = data.draw(arrays(float, (3, 4, 2, 5), elements=rates))
    for statistic in (iqm, mean):
        whole = statistic(scores)
        assert whole.shape == (3, 4)
        assert whole[2, 1] == pytest.approx(statistic(scores[2, 1]), abs=1e-12)
    odds = probability_of_improvement(scores, scores[::-1])
    assert odds[0, 3] == pytest.approx(probability_of_improvement(scores[0, 3], scores[2, 3]))


@given(some_scores(min_runs=2))
def test_an_interval_holds_the_estimate_and_lies_within_the_scores(scores):
    for statistic in (iqm, mean):
        low, high = interval_of(statistic, *scores, samples=200)
        assert low - 1e-12 <= statistic(*scores) <= high + 1e-12
        assert scores[0].min() - 1e-12 <= low <= high <= scores[0].max() + 1e-12


@given(some_scores(groups=2, min_runs=2), st.randoms(use_true_random=False))
def test_the_order_of_runs_changes_nothing(scores, random):
    shuffled = [group[random.sample(range(len(group)), len(group))] for group in scores]
    for statistic, count in ((iqm, 1), (mean, 1), (probability_of_improvement, 2)):
        one, other = scores[:count], shuffled[:count]
        assert statistic(*one) == pytest.approx(statistic(*other), abs=1e-12)
        assert interval_of(statistic, *one, samples=50) == interval_of(
            statistic, *other, samples=50
        )


def test_tasks_that_agree_among_runs_make_no_interval():
    """Strata: a task of zeros and a task of ones never mix, however they are drawn."""
    scores = np.tile([0.0, 1.0, 0.25], (4, 1))
    assert interval_of(mean, scores) == pytest.approx((scores.mean(), scores.mean()))


def test_one_run_has_no_interval():
    assert interval_of(iqm, X[:1]) is None
    assert interval_of(probability_of_improvement, X, Y[:1]) is None
    assert interval_of(probability_of_improvement, X[:1], Y) is None


def test_the_same_generator_gives_the_same_interval_in_any_number_of_blocks(monkeypatch):
    first = interval_of(iqm, X, samples=1_000)
    assert first == interval_of(iqm, X, samples=1_000)
    assert first != interval_of(iqm, X, samples=1_000, seed=1)
    monkeypatch.setattr("mtrl.statistics._BLOCK", 7 * X.size)
    assert first == interval_of(iqm, X, samples=1_000)


def test_more_runs_make_a_narrower_interval():
    widths = [np.ptp(interval_of(iqm, np.tile(X, (times, 1)))) for times in (1, 4, 16)]
    assert widths[0] > 1.6 * widths[1] > 1.6 * 1.6 * widths[2] > 0


def test_the_level_is_the_share_of_resamples_inside():
    wide, narrow = interval_of(mean, X, level=0.95), interval_of(mean, X, level=0.5)
    # A normal distribution's 95% are 1.96 sigma either side, its 50% are 0.674.
    assert np.ptp(wide) / np.ptp(narrow) == pytest.approx(1.96 / 0.674, rel=0.08)
