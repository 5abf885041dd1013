"""Average precision: values of the published code, of scikit-learn on random inputs, and by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from tenfold.metrics import average_precision as module
from tenfold.metrics.average_precision import average_precision, group_mean_ap, mean_average_precision

GOLDEN = np.load(Path(__file__).parents[1] / "golden/large_loss.npz")
UNHURRIED = settings(deadline=None)  # a busy machine must not fail the test
TOLERANCE = {"rtol": 1e-9, "atol": 1e-9, "equal_nan": True}


def golden(name):
    return torch.from_numpy(GOLDEN[name])


def make_scores(seed, *, num_rows, num_classes, levels=None):
    """Draw random scores (with many ties if ``levels`` is given) and targets; some classes may have no positives."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(num_rows, num_classes))
    if levels is not None:
        scores = rng.integers(0, levels, size=scores.shape).astype(np.float64)
    targets = (rng.random(scores.shape) < rng.random(num_classes)).astype(np.int64)
    return torch.from_numpy(scores), torch.from_numpy(targets)


def by_scikit_learn(scores, targets):
    return torch.tensor(
        [
            average_precision_score(targets[:, i], scores[:, i]) if targets[:, i].any() else 0.0
            for i in range(scores.shape[1])
        ],
        dtype=torch.float64,
    )


def test_matches_golden():
    ap = average_precision(golden("ap_scores"), golden("ap_targets"))
    torch.testing.assert_close(100 * ap, golden("ap_values"), **TOLERANCE)
    assert mean_average_precision(golden("ap_scores"), golden("ap_targets")) == pytest.approx(
        float(GOLDEN["ap_map"]), rel=1e-9, abs=1e-9
    )


def test_matches_golden_where_partly_observed():
    scores, targets = golden("oi_scores"), golden("oi_targets")
    ap = average_precision(scores, targets, targets >= 0)
    torch.testing.assert_close(100 * ap, golden("oi_class_ap"), **TOLERANCE)
    value = mean_average_precision(scores, targets, targets >= 0)
    assert value == pytest.approx(float(GOLDEN["oi_map"]), rel=1e-9, abs=1e-9)
    groups = group_mean_ap(ap, golden("oi_train_counts"), int(GOLDEN["oi_num_groups"]))
    torch.testing.assert_close(groups, golden("oi_group_map"), **TOLERANCE)


@UNHURRIED
@given(
    seed=st.integers(0, 2**32 - 1),
    num_rows=st.integers(1, 60),
    num_classes=st.integers(1, 5),
    levels=st.sampled_from([None, 1, 2, 5, 30]),
)
def test_equals_scikit_learn(seed, num_rows, num_classes, levels):
    scores, targets = make_scores(seed, num_rows=num_rows, num_classes=num_classes, levels=levels)
    torch.testing.assert_close(average_precision(scores, targets), by_scikit_learn(scores, targets), **TOLERANCE)


@UNHURRIED
@given(seed=st.integers(0, 2**32 - 1), levels=st.sampled_from([None, 3]))
def test_observed_rows_alone_count(seed, levels):
    scores, targets = make_scores(seed, num_rows=30, num_classes=4, levels=levels)
    observed = torch.from_numpy(np.random.default_rng(seed + 1).random((30, 4)) < 0.5)
    expected = torch.full((4,), torch.nan, dtype=torch.float64)
    for i in range(4):
        rows = observed[:, i]
        if rows.any():
            expected[i] = average_precision(scores[rows, i : i + 1], targets[rows, i : i + 1]).item()
    coded = targets.masked_fill(~observed, -1)
    torch.testing.assert_close(average_precision(scores, coded, observed), expected, **TOLERANCE)


@UNHURRIED
@given(seed=st.integers(0, 2**32 - 1), levels=st.sampled_from([None, 4]))
def test_order_of_images_and_increasing_maps_change_nothing(seed, levels):
    scores, targets = make_scores(seed, num_rows=40, num_classes=3, levels=levels)
    expected = average_precision(scores, targets)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(40))
    torch.testing.assert_close(average_precision(scores[order], targets[order]), expected)
    torch.testing.assert_close(average_precision((0.5 * scores).tanh(), targets), expected)


@pytest.mark.parametrize(
    ("scores", "targets", "expected"),
    [
        ([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0], (1 / 1 + 2 / 3) / 2),
        ([0.5, 0.5, 0.5, 0.5], [1, 0, 0, 0], 1 / 4),  # a single threshold: precision is the share of positives
        ([0.9, 0.5, 0.5, 0.1], [0, 1, 0, 1], (1 / 3 + 2 / 4) / 2),
        ([0.1, 0.2, 0.3], [0, 0, 0], 0.0),
        ([0.1, 0.2, 0.3], [1, 1, 1], 1.0),
        ([0.3], [1], 1.0),
    ],
)
def test_by_hand(scores, targets, expected):
    ap = average_precision(torch.tensor(scores)[:, None], torch.tensor(targets)[:, None])
    assert ap.item() == pytest.approx(expected, abs=1e-12)


def test_no_positive_counts_as_zero_and_nobody_looked_is_left_out():
    scores = torch.tensor([[0.9, 0.2, 0.4], [0.1, 0.3, 0.5]])
    targets = torch.tensor([[1, 0, 1], [0, 0, 1]])
    observed = torch.tensor([[True, True, False], [True, True, False]])
    ap = average_precision(scores, targets, observed)
    assert ap[:2].tolist() == [1.0, 0.0]
    assert ap[2].isnan()
    assert mean_average_precision(scores, targets, observed) == pytest.approx(50.0)
    assert np.isnan(mean_average_precision(scores, targets, torch.zeros(2, 3, dtype=torch.bool)))


def test_no_images_at_all_is_nan():
    assert average_precision(torch.zeros(0, 2), torch.zeros(0, 2)).isnan().tolist() == [True, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64])
def test_result_is_float64_for_every_dtype(dtype):
    scores, targets = make_scores(5, num_rows=50, num_classes=3, levels=9)  # exact in all of them
    ap = average_precision(scores.to(dtype), targets.bool())
    assert ap.dtype == torch.float64
    torch.testing.assert_close(ap, average_precision(scores, targets), rtol=0, atol=0)


def test_chunks_of_classes_change_nothing(monkeypatch):
    scores, targets = make_scores(7, num_rows=20, num_classes=11, levels=6)
    observed = targets >= 0
    whole = average_precision(scores, targets, observed)
    monkeypatch.setattr(module, "_ENTRIES_AT_ONCE", 60)  # three classes at a time, the last chunk smaller
    torch.testing.assert_close(average_precision(scores, targets, observed), whole, rtol=0, atol=0)
    monkeypatch.setattr(module, "_ENTRIES_AT_ONCE", 1)
    torch.testing.assert_close(average_precision(scores, targets, observed), whole, rtol=0, atol=0)


def test_inputs_are_left_alone():
    scores, targets = make_scores(3, num_rows=9, num_classes=2)
    copies = scores.clone(), targets.clone()
    average_precision(scores, targets, targets == 0)
    assert torch.equal(scores, copies[0])
    assert torch.equal(targets, copies[1])


@pytest.mark.parametrize(
    ("scores", "targets", "observed", "message"),
    [
        (torch.zeros(3), torch.zeros(3), None, r"got \(3,\)"),
        (torch.zeros(3, 2), torch.zeros(3, 1), None, r"\(3, 2\) and \(3, 1\)"),
        (torch.zeros(3, 0), torch.zeros(3, 0), None, "K > 0"),
        (torch.zeros(3, 2), torch.zeros(3, 2), torch.ones(3, 1, dtype=torch.bool), "observed must be bool"),
        (torch.zeros(3, 2), torch.zeros(3, 2), torch.ones(3, 2), "observed must be bool"),
        (torch.full((3, 2), torch.nan), torch.zeros(3, 2), None, "finite"),
        (torch.full((3, 2), torch.inf), torch.zeros(3, 2), None, "finite"),
        (torch.zeros(3, 2), torch.full((3, 2), -1), None, "0 or 1 where observed"),
        (torch.zeros(3, 2), torch.full((3, 2), 0.5), None, "0 or 1 where observed"),
        (torch.zeros(3, 2), torch.full((3, 2), torch.nan), None, "0 or 1 where observed"),
    ],
)
def test_refuses(scores, targets, observed, message):
    for function in (average_precision, mean_average_precision):
        with pytest.raises(ValueError, match=message):
            function(scores, targets, observed)


def test_groups_by_hand():
    ap = torch.tensor([0.1, 0.2, 0.3, torch.nan, 0.5, torch.nan, 0.7])
    counts = torch.tensor(
        [5, 1, 5, 9, 2, 8, 3]
    )  # ascending: 1 (.2), 2 (.5), 3 (.7) | 5 (.1), 5 (.3) | 8, 9 (not observed)
    groups = group_mean_ap(ap, counts, 3)
    torch.testing.assert_close(groups[:2], torch.tensor([140 / 3, 20.0], dtype=torch.float64), rtol=1e-6, atol=0)
    assert groups[2].isnan()


def test_groups_of_equal_counts_keep_the_order_of_classes():
    ap = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=torch.float64)
    assert group_mean_ap(ap, torch.ones(4, dtype=torch.int64), 4).tolist() == [0.0, 100.0, 0.0, 100.0]


@pytest.mark.parametrize(
    ("ap", "counts", "num_groups", "message"),
    [
        (torch.zeros(3), torch.zeros(4), 2, r"\(3,\) and \(4,\)"),
        (torch.zeros(3, 1), torch.zeros(3, 1), 2, r"must both be \(K,\)"),
        (torch.zeros(3), torch.zeros(3), 0, "num_groups must be at least 1"),
        (torch.tensor([50.0]), torch.zeros(1), 1, "got 50.0 to 50.0; divide percentages by 100"),
        (torch.tensor([-0.1]), torch.zeros(1), 1, r"\[0, 1\]"),
    ],
)
def test_groups_refuse(ap, counts, num_groups, message):
    with pytest.raises(ValueError, match=message):
        group_mean_ap(ap, counts, num_groups)
