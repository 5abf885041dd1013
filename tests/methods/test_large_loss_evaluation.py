"""Evaluation of multi-label models: logits of several workers, their mAP, and figures."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from sklearn.metrics import average_precision_score

from tenfold.data.images import ArrayImages
from tenfold.data.multilabel import MultiLabelData, MultiLabelSplit
from tenfold.engine.predict import predict_images
from tenfold.engine.run import PlainRun, Run
from tenfold.figures.history import figure_history
from tenfold.figures.labels import figure_predictions
from tenfold.methods.large_loss.evaluation import annotation_counts, model_metrics, multilabel_metrics

K = 6
CLASSES = tuple("abcdef")


def make_split(num: int = 20, unknown: bool = False) -> MultiLabelSplit:
    """Return a split whose images have their row number in every pixel."""
    generator = np.random.default_rng(0)
    full = generator.integers(0, 2, (num, K)).astype(np.int8)
    full[0] = 1
    if unknown:
        full[generator.random((num, K)) < 0.4] = -1
        full[:, 2] = -1  # a class that nobody looked at
    images = np.broadcast_to(np.arange(num, dtype=np.uint8)[:, None, None, None], (num, 2, 2, 3)).copy()
    return MultiLabelSplit(images=ArrayImages(images), full=full, observed=np.zeros_like(full))


def scores(images: torch.Tensor) -> torch.Tensor:
    """Compute logits that depend on the row only."""
    row = images[:, 0, 0, :1].double()
    return torch.sin((row + 1) * torch.arange(1, K + 1))


class Shard(PlainRun):
    """One of several workers, whose communication the test emulates."""

    def __init__(self, rank: int, world_size: int, parts: dict[int, Any], **options: Any) -> None:
        self.rank, self.world_size = rank, world_size
        super().__init__(**options)
        self._parts = parts

    def gather_rows(self, values: torch.Tensor, index: torch.Tensor, num_rows: int) -> torch.Tensor:
        self._parts[self.rank] = (values, index)
        return values


def expected_rows(num: int) -> torch.Tensor:
    return scores(torch.arange(num, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 2, 2, 3)).float()


@pytest.mark.parametrize("batch_size", [1, 7, 256])
def test_logits_are_in_the_order_of_the_split(tmp_path, batch_size):
    logits = predict_images(PlainRun(folder=tmp_path), scores, make_split().images, batch_size)
    assert logits.dtype == torch.float32
    assert not logits.is_inference()
    torch.testing.assert_close(logits, expected_rows(20), rtol=0, atol=0)


def test_shards_of_several_workers_make_the_whole(tmp_path):
    parts: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for rank in range(3):
        predict_images(Shard(rank, 3, parts, folder=tmp_path), scores, make_split().images, 4)
    assert {len(values) for values, _ in parts.values()} == {7}
    whole = torch.full((20, K), torch.nan)
    for values, index in parts.values():
        whole[index] = values
    torch.testing.assert_close(whole, expected_rows(20), rtol=0, atol=0)


def test_a_model_is_asked_without_gradients(tmp_path):
    model = torch.nn.Linear(1, K)
    logits = predict_images(
        PlainRun(folder=tmp_path), lambda images: model(images[:, 0, 0, :1].float()), make_split().images
    )
    assert not logits.requires_grad


def test_map_is_that_of_sklearn_in_percent(tmp_path):
    split = make_split()
    run: Run = PlainRun(folder=tmp_path)
    metrics = model_metrics(run, scores, split, "test")
    expected = 100 * average_precision_score(split.full, expected_rows(20).numpy(), average="macro")
    assert metrics == {"test/mAP": pytest.approx(expected)}


def test_entries_without_truth_are_left_out_class_by_class():
    split = make_split(40, unknown=True)
    logits = expected_rows(40)
    by_class = []
    for k in range(K):
        known = split.full[:, k] >= 0
        if known.any():
            by_class.append(100 * average_precision_score(split.full[known, k], logits[known, k].numpy()))
    assert multilabel_metrics(logits, split, "val") == {"val/mAP": pytest.approx(np.mean(by_class))}


def test_groups_are_of_rare_to_frequent_classes_in_training():
    split = make_split(40, unknown=True)
    logits = expected_rows(40)
    counts = np.array([5, 900, 1, 40, 300, 70])  # of the training set: class 2 is the rarest, class 1 the most frequent
    metrics = multilabel_metrics(logits, split, "test", train_counts=torch.from_numpy(counts))
    known = split.full[:, 1] >= 0
    most_frequent = 100 * average_precision_score(split.full[known, 1], logits[known, 1].numpy())
    assert metrics["test/mAP_G5"] == pytest.approx(most_frequent)
    assert np.isnan(metrics["test/mAP_G1"]) or 0 <= metrics["test/mAP_G1"] <= 100
    assert len(metrics) == 6
    few = MultiLabelSplit(images=split.images, full=split.full[:, :4], observed=split.observed[:, :4])
    metrics = multilabel_metrics(logits[:, :4], few, "test", train_counts=torch.from_numpy(counts[:4]))
    assert list(metrics) == ["test/mAP"]  # four classes make no five groups


def test_annotations_are_counted_where_data_are_born_partial():
    whole, partial = make_split(40), make_split(40, unknown=True)
    observed = partial.observed.copy()
    observed[:3, 1], observed[5, 1], observed[7, 4] = 1, -1, -1
    train = MultiLabelSplit(images=partial.images, full=partial.full, observed=observed)

    def counts(val: MultiLabelSplit) -> torch.Tensor | None:
        data = {"name": "x", "classes": CLASSES, "image_size": 2, "fingerprint": "f"}
        return annotation_counts(MultiLabelData(train=train, val=val, test=val, **data))

    assert counts(whole) is None
    assert counts(partial).tolist() == [0, 4, 0, 0, 1, 0]


def test_a_truth_that_can_not_be_written_is_read_without_a_warning(tmp_path):
    split = make_split()
    np.save(tmp_path / "full.npy", split.full)
    mapped = np.load(tmp_path / "full.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = multilabel_metrics(
            expected_rows(20), MultiLabelSplit(images=split.images, full=mapped, observed=split.observed), "val"
        )
    assert found == multilabel_metrics(expected_rows(20), split, "val")


@pytest.mark.parametrize(("num", "panels"), [(1, 6), (6, 6), (7, 12)])
def test_predictions_have_a_panel_for_every_image(num, panels):
    split = make_split(num)
    probs = np.tile(np.array([0.9, 0.1, 0.6, 0.2, 0.3, 0.4]), (num, 1))
    figure = figure_predictions(split.images.read(range(num)).numpy(), probs, split.full, CLASSES)
    assert isinstance(figure, Figure)
    assert len(figure.axes) == panels
    assert [bool(axis.images) for axis in figure.axes] == [True] * num + [False] * (panels - num)


def test_labels_are_coloured_by_whether_they_are_true():
    truth = np.array([[1, 0, 1, 0, -1, 0]], np.int8)
    probs = np.array([[0.9, 0.8, 0.2, 0.1, 0.7, 0.3]])
    figure = figure_predictions(np.zeros((1, 2, 2, 3), np.uint8), probs, truth, CLASSES)
    shown = {text.get_text(): text.get_color() for text in figure.axes[0].texts}
    assert shown["a 0.90"] == "tab:green"
    assert shown["b 0.80"] == "tab:red"
    assert shown["(c 0.20)"] == "tab:gray"
    assert shown["e 0.70"] == "tab:blue"  # nobody looked: neither right nor wrong
    assert len(shown) == 4
    none = figure_predictions(np.zeros((1, 2, 2, 3), np.uint8), np.zeros((1, K)), np.zeros((1, K)), CLASSES)
    assert [text.get_text() for text in none.axes[0].texts] == ["no label"]


def test_curves_have_a_panel_for_every_metric_there_is():
    history = [{"epoch": 1.0, "loss": 0.5}, {"epoch": 2.0, "loss": 0.4, "val/mAP": 30.0}]
    figure = figure_history(history, ["loss", "val/mAP", "never"], "title")
    assert [axis.get_title() for axis in figure.axes] == ["loss", "val/mAP"]
    (line,) = figure.axes[1].lines
    assert line.get_xydata().tolist() == [[2.0, 30.0]]
    assert len(figure_history([], ["loss"], "nothing").axes) == 1
