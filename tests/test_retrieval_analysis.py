"""What is measured of a retrieval at once: each part as it is measured alone."""

import numpy as np
import pytest

from builders import code_set
from regiondh_d2.evaluation.bit_statistics import bit_statistics
from regiondh_d2.evaluation.curves import count_distances, precision_at, radius_curve
from regiondh_d2.evaluation.ranking_metrics import evaluate_ranking
from regiondh_d2.evaluation.retrieval_analysis import RANKED_BY, analyze_retrieval, extremes

BITS, TOPK = 9, 7


@pytest.fixture
def codes():
    rng = np.random.default_rng(3)
    labels = rng.random((40, 3)) < 0.4
    bits = labels @ rng.normal(size=(3, BITS)) + rng.normal(size=(40, BITS)) > 0.4
    return code_set(bits, labels=labels, class_names=["a"] * 3)


@pytest.mark.parametrize("exclude_self", [False, True])
def test_each_part_is_what_it_is_alone(codes, exclude_self):
    seen = []
    found = analyze_retrieval(
        codes,
        codes,
        TOPK,
        exclude_self=exclude_self,
        progress=lambda done, total: seen.append((done, total)),
    )
    itself = np.repeat(np.arange(40)[:, None], 2, axis=1) if exclude_self else None
    arguments = (codes.codes, codes.codes, codes.labels, codes.labels)
    alone = evaluate_ranking(*arguments, bits=BITS, topk=TOPK, exclude=itself)
    assert {name: found.result.metrics[name] for name in alone.metrics} == alone.metrics
    np.testing.assert_array_equal(found.score, alone.per_query[f"{RANKED_BY}@{TOPK}"])
    counts = count_distances(*arguments, bits=BITS, exclude=itself)
    np.testing.assert_array_equal(found.counts.items, counts.items)
    np.testing.assert_array_equal(found.radii.recall, radius_curve(counts).recall)
    np.testing.assert_array_equal(found.precision, precision_at(counts, TOPK))
    np.testing.assert_array_equal(found.bits.ones, bit_statistics(codes.codes, BITS).ones)
    assert (found.worst, found.best) == extremes(found.score, 10, 4)
    assert found.checked_answers == 10
    assert any("find themselves" in note for note in found.notes) == (not exclude_self)
    assert seen[-1] == (40, 40)


def test_the_lowest_and_the_highest_scores():
    score = np.array([0.5, np.nan, 0.2, 0.9, 0.2, 0.9, 0.1])
    assert extremes(score, 3, 2) == ([6, 2, 4], [3, 5])
    assert extremes(score, 5, 4) == ([6, 2, 4, 0, 3], [5])  # none is in both
    assert extremes(score[1:2], 3, 2) == ([], [])
