"""WaffleCLIP's scores: published values, values by hand, laws, gradients, refusals."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import top_k_accuracy_score
from torch.autograd import gradcheck
from torch.nn import functional

from tenfold.methods.waffleclip import class_scores, prototypes, summarise, topk_accuracy
from tenfold.methods.waffleclip.scoring import AGGREGATES

GOLDEN_FILE = Path(__file__).parents[3] / "shared/golden/waffleclip.npz"
with_golden = pytest.mark.skipif(not GOLDEN_FILE.exists(), reason=f"the published values are not at {GOLDEN_FILE}")
FEW = settings(max_examples=30)
SEEDS = st.integers(0, 2**32 - 1)
COUNTS = st.lists(st.integers(1, 5), min_size=1, max_size=5)


def golden(key):
    with np.load(GOLDEN_FILE, allow_pickle=False) as arrays:
        return torch.from_numpy(np.asarray(arrays[key]))


def unit_rows(seed, rows, dim=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(rows, dim, generator=generator, dtype=dtype), dim=1)


def made_up(seed, counts, num_images=4):
    return unit_rows(seed, num_images), unit_rows(seed + 1, sum(counts))


# Published values


@with_golden
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_scores_match_golden(aggregate):
    counts = golden("prompt_counts").tolist()
    scores = class_scores(golden("image_embeddings"), golden("prompt_embeddings"), counts, aggregate)
    torch.testing.assert_close(scores, golden(f"scores_{aggregate}"), rtol=0, atol=1e-6)


@with_golden
def test_accuracies_and_summary_match_golden():
    for k in (1, 3):
        accuracy = topk_accuracy(golden("scores_mean"), golden("labels"), k)
        assert accuracy == pytest.approx(float(golden(f"top{k}_accuracy")), abs=1e-6)
    summary = summarise(golden("summary_means").numpy(), golden("summary_stds").numpy())
    np.testing.assert_allclose(summary, golden("summary_out").numpy(), rtol=0, atol=1e-6)


@with_golden
def test_golden_file_is_that_of_this_method():
    with np.load(GOLDEN_FILE, allow_pickle=False) as arrays:
        assert json.loads(str(arrays["meta"]))["method"] == "waffleclip"


# Values by hand


def test_scores_by_hand():
    image = torch.tensor([[1.0, 0.0]])
    prompts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    expected = {"mean": [0.5, 0.6], "max": [1.0, 0.6], "sum": [1.0, 0.6], "merged": [math.sqrt(0.5), 0.6]}
    for aggregate, row in expected.items():
        torch.testing.assert_close(class_scores(image, prompts, [2, 1], aggregate), torch.tensor([row]))
    torch.testing.assert_close(prototypes(prompts, [2, 1]), torch.tensor([[0.5, 0.5], [0.6, 0.8]]))
    torch.testing.assert_close(
        prototypes(prompts, [2, 1], "merged"), torch.tensor([[math.sqrt(0.5), math.sqrt(0.5)], [0.6, 0.8]])
    )


def test_accuracy_by_hand():
    scores = torch.tensor([[0.3, 0.2, 0.1], [0.1, 0.3, 0.2], [0.2, 0.1, 0.3]])
    labels = torch.tensor([0, 2, 1])
    assert topk_accuracy(scores, labels, 1) == pytest.approx(100 / 3)
    assert topk_accuracy(scores, labels, 2) == pytest.approx(200 / 3)
    assert topk_accuracy(scores, labels, 3) == 100


def test_of_equal_scores_the_lower_class_comes_first():
    scores = torch.zeros(3, 3)
    labels = torch.arange(3)
    assert [topk_accuracy(scores, labels, k) for k in (1, 2, 3)] == pytest.approx([100 / 3, 200 / 3, 100])


def test_summary_rounds_before_it_averages():
    # 1.005 and 2.004 become 1.0 and 2.0 (1.005 lies below its decimal), 0.304 and 0.398 become 0.3 and 0.4.
    np.testing.assert_allclose(summarise([[1.005, 2.004]], [[0.304, 0.398]]), [[1.5, math.sqrt(0.125)]], atol=1e-12)
    assert summarise(np.ones((3, 8)), np.zeros((3, 8))).tolist() == [[1.0, 0.0]] * 3


# Laws


@given(COUNTS, st.integers(0, 1000))
@FEW
def test_mean_score_is_the_product_with_the_unnormalised_mean(counts, seed):
    images, prompts = made_up(seed, counts)
    singles = images @ prompts.T
    by_class = torch.stack([part.mean(1) for part in singles.split(counts, dim=1)], dim=1)
    torch.testing.assert_close(class_scores(images, prompts, counts), by_class)
    torch.testing.assert_close(images @ prototypes(prompts, counts).T, by_class)


@given(COUNTS, st.integers(0, 1000))
@FEW
def test_aggregates_belong_together(counts, seed):
    images, prompts = made_up(seed, counts)
    mean, largest, total, merged = (class_scores(images, prompts, counts, aggregate) for aggregate in AGGREGATES)
    parts = (images @ prompts.T).split(counts, dim=1)
    torch.testing.assert_close(largest, torch.stack([part.amax(1) for part in parts], dim=1))
    torch.testing.assert_close(total, mean * torch.tensor(counts))
    assert (largest >= mean - 1e-12).all()
    vectors = prototypes(prompts, counts)
    torch.testing.assert_close(merged * vectors.norm(dim=1), mean)
    torch.testing.assert_close(prototypes(prompts, counts, "merged").norm(dim=1), torch.ones(len(counts)).double())


@pytest.mark.parametrize("aggregate", AGGREGATES)
@given(COUNTS, st.integers(0, 1000), st.randoms(use_true_random=False))
@FEW
def test_order_of_classes_and_of_prompts_does_not_matter(aggregate, counts, seed, random):
    images, prompts = made_up(seed, counts)
    scores = class_scores(images, prompts, counts, aggregate)
    order = random.sample(range(len(counts)), len(counts))
    groups = prompts.split(counts)
    mixed = torch.cat([groups[i][random.sample(range(counts[i]), counts[i])] for i in order])
    again = class_scores(images, mixed, [counts[i] for i in order], aggregate)
    torch.testing.assert_close(again, scores[:, order])


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_one_prompt_each_is_plain_cosine(aggregate):
    images, prompts = made_up(0, [1] * 5)
    torch.testing.assert_close(class_scores(images, prompts, [1] * 5, aggregate), images @ prompts.T)


def test_repetitions_are_scored_together():
    sets = [(unit_rows(seed, 5), [2, 3]) for seed in (1, 2, 3)]
    images = unit_rows(0, 4)
    stacked = prototypes(torch.cat([prompts for prompts, _ in sets]), [count for _, counts in sets for count in counts])
    together = (images @ stacked.T).view(4, 3, 2)
    for i, (prompts, counts) in enumerate(sets):
        torch.testing.assert_close(together[:, i], class_scores(images, prompts, counts))


@given(st.integers(3, 6), st.integers(1, 30), SEEDS)
@FEW
def test_accuracy_agrees_with_scikit_learn(num_classes, num_images, seed):
    rs = np.random.RandomState(seed)
    scores, labels = rs.rand(num_images, num_classes), rs.randint(0, num_classes, num_images)
    for k in range(1, num_classes):
        share = top_k_accuracy_score(labels, scores, k=k, labels=range(num_classes))
        assert topk_accuracy(torch.from_numpy(scores), torch.from_numpy(labels), k) == pytest.approx(100 * share)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_scores_keep_their_dtype(dtype):
    images, prompts = (functional.normalize(rows, dim=1).to(dtype) for rows in made_up(0, [2, 3]))
    exact = class_scores(*made_up(0, [2, 3]), [2, 3])
    if dtype == torch.bfloat16:  # so coarse that rows leave the tolerance
        with pytest.raises(ValueError, match="normalise in float32"):
            class_scores(images, prompts, [2, 3])
        return
    scores = class_scores(images, prompts, [2, 3])
    assert scores.dtype == dtype
    torch.testing.assert_close(scores.double(), exact, rtol=0, atol=2e-3)


# Gradients


@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_gradient_of_scores(aggregate):
    images, prompts = (rows.requires_grad_() for rows in made_up(0, [2, 1, 3]))
    assert gradcheck(lambda x, t: class_scores(x, t, [2, 1, 3], aggregate), (images, prompts))


@pytest.mark.parametrize("aggregate", ["mean", "merged"])
def test_gradient_of_prototypes(aggregate):
    prompts = unit_rows(0, 6).requires_grad_()
    assert gradcheck(lambda t: prototypes(t, [2, 1, 3], aggregate), (prompts,))


# Refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"aggregate": "median"}, r"one of \('mean', 'max', 'sum', 'merged'\), got 'median'"),
        ({"prompt_counts": [2, 2]}, "sum to the 5 rows of prompt_embeddings, got 4"),
        ({"prompt_counts": [5, 0]}, "prompt_counts must be at least 1, got 0 for class 1"),
        ({"prompt_counts": []}, "one integer for each class"),
        ({"prompt_counts": [2.0, 3.0]}, "one integer for each class"),
        ({"image": torch.ones(6)}, r"image must be \(B, D\) with D = 6, got \(6,\)"),
        ({"image": unit_rows(0, 2, dim=5)}, r"with D = 6, got \(2, 5\)"),
        (
            {"image": 2 * unit_rows(0, 2)},
            "rows of image must be of unit length within 0.001, got 2 in row .; normalise",
        ),
        ({"prompt_embeddings": 1.002 * unit_rows(1, 5)}, "rows of prompt_embeddings must be of unit length"),
        ({"prompt_embeddings": torch.full((5, 6), torch.nan)}, "rows of prompt_embeddings .* got nan"),
        ({"prompt_embeddings": torch.ones(6)}, r"prompt_embeddings must be \(M, D\), got \(6,\)"),
    ],
)
def test_scores_refuse(change, message):
    good = {"image": unit_rows(0, 2), "prompt_embeddings": unit_rows(1, 5), "prompt_counts": [2, 3]}
    assert class_scores(**good).shape == (2, 2)
    with pytest.raises(ValueError, match=message):
        class_scores(**(good | change))


def test_rows_within_the_tolerance_are_taken():
    assert class_scores(1.0009 * unit_rows(0, 2), 0.9991 * unit_rows(1, 5), [2, 3]).shape == (2, 2)


@pytest.mark.parametrize("aggregate", ["max", "sum", "median"])
def test_prototypes_refuse_other_aggregates(aggregate):
    with pytest.raises(ValueError, match=f"aggregate must be .*got '{aggregate}'"):
        prototypes(unit_rows(1, 5), [2, 3], aggregate)


def test_prototypes_refuse_rows_that_are_not_unit():
    with pytest.raises(ValueError, match="got 3 in row 3; normalise"):
        prototypes(unit_rows(1, 5) * torch.tensor([1.0, 1, 1, 3, 1]).unsqueeze(1), [2, 3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, r"k must lie in 1\.\.3, the number of classes, got 0"),
        ({"k": 4}, "got 4"),
        ({"labels": torch.tensor([0])}, r"labels must be integer \(2,\), got torch.int64 \(1,\)"),
        ({"scores": torch.zeros(3)}, r"scores must be floating and \(N, C\)"),
        ({"scores": torch.zeros(0, 3), "labels": torch.zeros(0).long()}, "not empty"),
        ({"labels": torch.tensor([0, 3])}, r"labels must lie in 0\.\.2, got 0\.\.3"),
        ({"labels": torch.tensor([-1, 0])}, r"got -1\.\.0"),
        ({"labels": torch.tensor([0.0, 1.0])}, "labels must be integer"),
        ({"scores": torch.full((2, 3), torch.nan)}, "got NaN"),
    ],
)
def test_accuracy_refuses(change, message):
    good = {"scores": torch.rand(2, 3), "labels": torch.tensor([0, 2]), "k": 1}
    with pytest.raises(ValueError, match=message):
        topk_accuracy(**(good | change))


@pytest.mark.parametrize(
    ("means", "stds"), [(np.ones(8), np.ones(8)), (np.ones((2, 8)), np.ones((2, 7))), ([[]], [[]])]
)
def test_summary_refuses(means, stds):
    with pytest.raises(ValueError, match="two matrices"):
        summarise(means, stds)
