"""Label draws and splits against the published ones, and invariants of every draw."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.data.partial_labels import observe_labels, subsample, train_val_split

GOLDEN = np.load(Path(__file__).parents[1] / "golden/large_loss.npz")
UNHURRIED = settings(deadline=None)  # a busy machine is no failure


@pytest.mark.parametrize("case", ["p1n0", "p2n3", "palln1"])
def test_draw_matches_golden(case):
    num_pos, num_neg, seed = GOLDEN[f"obs_{case}_args"].tolist()
    observed = observe_labels(GOLDEN["obs_full"], num_pos, num_neg, seed)
    assert observed.dtype == np.int8
    np.testing.assert_array_equal(observed, GOLDEN[f"obs_{case}"])


@pytest.mark.parametrize("case", [0, 1])
def test_split_matches_golden(case):
    n, val_frac, seed = GOLDEN[f"split_{case}_args"].tolist()
    train, val = train_val_split(int(n), val_frac, int(seed))
    np.testing.assert_array_equal(train, GOLDEN[f"split_{case}_train"])
    np.testing.assert_array_equal(val, GOLDEN[f"split_{case}_val"])


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int64, np.float32, np.float64])
def test_draw_does_not_depend_on_the_dtype(dtype):
    full = GOLDEN["obs_full"]
    np.testing.assert_array_equal(observe_labels(full.astype(dtype)), GOLDEN["obs_p1n0"])


@UNHURRIED
@given(
    seed=st.integers(0, 2**32 - 1),
    num_pos=st.integers(-1, 7),
    num_neg=st.integers(-1, 7),
    share=st.sampled_from([0.1, 0.5, 0.9]),
)
def test_shown_labels_are_true_and_as_many_as_asked(seed, num_pos, num_neg, share):
    full = (np.random.default_rng(seed).random((12, 6)) < share).astype(np.int8)
    full[0, :2] = 0, 1
    observed = observe_labels(full, num_pos, num_neg, seed)
    assert np.all(full[observed == 1] == 1)
    assert np.all(full[observed == -1] == 0)
    for value, wanted, available in ((1, num_pos, full.sum(1)), (-1, num_neg, (1 - full).sum(1))):
        expected = available if wanted == -1 else np.minimum(wanted, available)
        np.testing.assert_array_equal((observed == value).sum(1), expected)


def test_every_positive_is_as_likely():
    full = np.tile(np.array([[1, 0, 1, 1, 0]]), (6000, 1))
    shares = (observe_labels(full, 1, 1) != 0).mean(0)
    # Standard deviation of a share: sqrt(1/3 * 2/3 / 6000) = 0.006.
    np.testing.assert_allclose(shares, [1 / 3, 1 / 2, 1 / 3, 1 / 3, 1 / 2], atol=0.03)


def test_hiding_negatives_moves_the_generator_all_the_same():
    full = GOLDEN["obs_full"]
    np.testing.assert_array_equal(observe_labels(full, 1, 0) == 1, observe_labels(full, 1, -1) == 1)


def test_the_draw_leaves_its_input_and_numpys_global_state_alone():
    full = GOLDEN["obs_full"].copy()
    np.random.seed(3)
    expected = np.random.RandomState(3).random_sample()
    observe_labels(full)
    train_val_split(10)
    np.testing.assert_array_equal(full, GOLDEN["obs_full"])
    assert np.random.random_sample() == expected


@pytest.mark.parametrize(
    ("full", "counts", "message"),
    [
        (np.array([[0, 2], [1, 0]]), (1, 0), "must be 0 or 1"),
        (np.array([[0, -1], [1, 0]]), (1, 0), "must be 0 or 1"),
        (np.array([[0.0, np.nan], [1, 0]]), (1, 0), "must be 0 or 1"),
        (np.zeros((3, 2)), (1, 0), "fewer than two distinct"),
        (np.ones((3, 2)), (1, 0), "fewer than two distinct"),
        (np.zeros((0, 2)), (1, 0), "fewer than two distinct"),
        (np.array([0, 1]), (1, 0), r"\(N, K\), got shape \(2,\)"),
        (np.eye(3), (-2, 0), "num_pos must be .* got -2"),
        (np.eye(3), (1, -3), "num_neg must be .* got -3"),
    ],
)
def test_draw_refuses(full, counts, message):
    with pytest.raises(ValueError, match=message):
        observe_labels(full, *counts)


@UNHURRIED
@given(n=st.integers(2, 300), val_frac=st.floats(0.01, 0.99), seed=st.integers(0, 2**32 - 1))
def test_split_is_a_partition(n, val_frac, seed):
    train, val = train_val_split(n, val_frac, seed)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, val])), np.arange(n))
    assert len(val) == round(val_frac * n)
    assert np.all(np.diff(train) > 0)
    assert np.all(np.diff(val) > 0)


def test_half_an_image_is_rounded_to_the_even_count():
    assert [len(train_val_split(n, 0.5)[1]) for n in (3, 5, 7)] == [2, 2, 4]


def test_a_share_that_rounds_to_nothing_gives_an_empty_part():
    train, val = train_val_split(2, 0.2)
    assert (len(train), len(val)) == (2, 0)


@pytest.mark.parametrize(("n", "val_frac"), [(1, 0.2), (0, 0.2), (10, 0.0), (10, 1.0), (10, -0.1), (10, float("nan"))])
def test_split_refuses(n, val_frac):
    with pytest.raises(ValueError, match=r"n must be at least 2, got|strictly between"):
        train_val_split(n, val_frac)


def test_subsample_draws_training_first_from_one_generator():
    train, val = np.arange(100, 120), np.arange(200, 210)
    rng = np.random.RandomState(999)
    expected_train = train[np.sort(rng.permutation(20)[:5])]
    expected_val = val[np.sort(rng.permutation(10)[:3])]
    kept_train, kept_val = subsample(train, val, 0.25, 0.3)
    np.testing.assert_array_equal(kept_train, expected_train)
    np.testing.assert_array_equal(kept_val, expected_val)


def test_subsample_keeps_all_by_default():
    train, val = train_val_split(50)
    for kept, given_ in zip(subsample(train, val), (train, val), strict=True):
        np.testing.assert_array_equal(kept, given_)


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5, float("nan")])
def test_subsample_refuses_a_share(fraction):
    with pytest.raises(ValueError, match=r"\(0, 1\]"):
        subsample(np.arange(4), np.arange(4), val_fraction=fraction)


def test_subsample_refuses_a_matrix():
    with pytest.raises(ValueError, match="one-dimensional"):
        subsample(np.eye(3), np.arange(4))
