"""Training objective: labels and loss of every scheme, and the changes of the label matrix."""

from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tenfold.data.images import ArrayImages
from tenfold.data.multilabel import MultiLabelSplit
from tenfold.data.partial_labels import observe_labels
from tenfold.engine.fit import Clock
from tenfold.engine.run import PlainRun
from tenfold.methods.large_loss.baselines import spml_loss
from tenfold.methods.large_loss.loss import large_loss_bce, large_loss_rate
from tenfold.methods.large_loss.objective import TrainingLabels, WithLabelEstimator, check_labels, role_model
from tenfold.methods.large_loss.settings import LARGE_LOSS_SCHEMES, Config, Scheme

N, K, SIZE = 24, 6, 4
SCHEMES = get_args(Scheme)
NUM_EPOCHS = 10


def make_split(num_neg: int = 0) -> MultiLabelSplit:
    """Return images whose pixels encode their labels; one positive per image is observed."""
    generator = np.random.default_rng(0)
    full = (generator.random((N, K)) < 0.4).astype(np.int8)
    full[np.arange(N), np.arange(N) % K] = 1
    images = generator.integers(0, 60, (N, SIZE, SIZE, 3), dtype=np.uint8)
    images.reshape(N, -1)[:, :K] += full.view(np.uint8) * 180
    return MultiLabelSplit(images=ArrayImages(images), full=full, observed=observe_labels(full, 1, num_neg, 1200))


class Linear(nn.Module):
    """A linear classifier on the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(SIZE * SIZE * 3, K)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1).float() / 255)


class Noted:
    """A recorder that keeps its calls."""

    def __init__(self) -> None:
        self.steps: list[tuple[Tensor, Tensor, Tensor]] = []
        self.epochs: list[int] = []

    def record(self, index: Tensor, losses: Tensor, mask: Tensor) -> None:
        self.steps.append((index, losses, mask))

    def end_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def state_dict(self) -> dict[str, Tensor]:
        return {"epochs": torch.tensor(self.epochs)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.epochs = state["epochs"].tolist()


class Bench:
    """A scheme with its labels, model and run."""

    def __init__(self, folder: Any, scheme: str, recorder: Any = None, mirror: bool = False, **settings: Any) -> None:
        defaults = {"delta_rel_percent": 10.0, "warmup_epochs": 1, "apl_warmup_epochs": 1}
        self.config = Config(**{"scheme": scheme, **defaults, **settings})
        self.split = make_split(num_neg=2 if scheme == "iu" else 0)
        self.run = PlainRun(folder=folder, seed=0, progress=False)
        self.labels = TrainingLabels(self.config, self.split, self.run, mirror=mirror, recorder=recorder)
        torch.manual_seed(0)
        self.model: nn.Module = Linear()
        if scheme == "role":
            self.model = role_model(self.model, self.split, seed=0)

    def batch(self, rows: np.ndarray | None = None) -> dict[str, Tensor]:
        rows = np.arange(N) if rows is None else rows
        return {**self.labels.read(rows), "index": torch.from_numpy(rows)}

    def loss(self, epoch: int = 3, rows: np.ndarray | None = None) -> Tensor:
        return self.labels.objective().loss(self.model, self.batch(rows), clock(epoch))

    def train(self, num_steps: int, epoch: int = 3) -> list[float]:
        optimizer = torch.optim.Adam(self.model.parameters(), lr=0.02)
        values = []
        for _ in range(num_steps):
            loss = self.loss(epoch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            self.labels.after_step(self.batch(), clock(epoch))
            values.append(loss.item())
        return values


def clock(epoch: int) -> Clock:
    return Clock(epoch=epoch, num_epochs=NUM_EPOCHS, step=0, total_steps=100)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_is_finite_differentiable_and_learns(tmp_path, scheme):
    bench = Bench(tmp_path, scheme)
    check_labels(bench.config, bench.split)
    loss = bench.loss()
    loss.backward()
    assert loss.shape == ()
    assert loss.isfinite()
    for name, parameter in bench.model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0, name
    # LL-Cp and the other Large Loss schemes redefine their target in every step: judge them without treatment.
    values = bench.train(30, epoch=1)
    assert values[-1] < values[0]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_same_seed_gives_the_same_losses(tmp_path, scheme):
    assert Bench(tmp_path, scheme).train(3) == Bench(tmp_path, scheme).train(3)


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme not in ("LL-Cp", "em_apl")])
def test_observed_labels_never_change(tmp_path, scheme):
    bench = Bench(tmp_path, scheme)
    before = bench.split.observed.copy()
    bench.train(4)
    bench.labels.after_epoch(bench.model, clock(3))
    np.testing.assert_array_equal(bench.labels.labels.numpy(), before)
    np.testing.assert_array_equal(bench.split.observed, before)


@pytest.mark.parametrize("scheme", LARGE_LOSS_SCHEMES)
@pytest.mark.parametrize("epoch", [1, 2, 5])
def test_the_loss_is_that_of_the_paper(tmp_path, scheme, epoch):
    bench = Bench(tmp_path, scheme)
    rows = np.array([3, 20, 7, 11, 0])
    batch = bench.batch(rows)
    rate = large_loss_rate(epoch, 0.1, scheme)
    expected, mask = large_loss_bce(bench.model(batch["images"]), batch["labels"], scheme, rate)
    noted = Noted()
    bench.labels._recorder = noted
    torch.testing.assert_close(bench.loss(epoch, rows), expected, rtol=0, atol=0)
    (index, losses, treated) = noted.steps[0]
    assert index.tolist() == rows.tolist()
    assert not losses.requires_grad
    torch.testing.assert_close(treated, mask)
    assert int(mask.sum()) == (0 if epoch == 1 else int(np.ceil(rate * 5 * K - 1e-9)))


@pytest.mark.parametrize("scheme", LARGE_LOSS_SCHEMES)
def test_nothing_is_treated_while_warming_up(tmp_path, scheme):
    noted = Noted()
    bench = Bench(tmp_path, scheme, noted, warmup_epochs=2)
    plain = Bench(tmp_path, "an")
    for epoch in (1, 2):
        torch.testing.assert_close(bench.loss(epoch), plain.loss(epoch), rtol=0, atol=0)
        bench.labels.after_step(bench.batch(), clock(epoch))
    assert not any(mask.any() for _, _, mask in noted.steps)
    np.testing.assert_array_equal(bench.labels.labels.numpy(), bench.split.observed)
    bench.loss(3)
    assert noted.steps[-1][2].any()


@pytest.mark.parametrize(
    ("scheme", "true"),
    [("bce", True), ("bce_ls", True), ("an", False), ("an_ls", False), ("wan", False), ("pr", False)],
)
def test_baselines_are_those_of_their_papers(tmp_path, scheme, true):
    bench = Bench(tmp_path, scheme)
    probs = bench.model(bench.batch()["images"]).sigmoid()
    labels = torch.from_numpy(bench.split.full if true else bench.split.observed)
    # The project's own "an" has no allowance inside the logarithm; the published baselines have 1e-5.
    torch.testing.assert_close(bench.loss(), spml_loss(scheme, probs, labels), rtol=1e-3, atol=0)


def test_only_schemes_that_are_told_the_truth_see_it(tmp_path):
    seeing = {scheme for scheme in SCHEMES if "true" in Bench(tmp_path, scheme).batch()}
    assert seeing == {"full", "bce", "bce_ls", "iun"}


# -- LL-Cp


def test_permanent_correction_flips_exactly_what_was_treated_and_keeps_it(tmp_path):
    noted = Noted()
    bench = Bench(tmp_path, "LL-Cp", noted)
    observed = bench.split.observed.copy()
    rows = np.array([5, 2, 9])
    bench.loss(2, rows)
    np.testing.assert_array_equal(bench.labels.labels.numpy(), observed)  # not before the optimiser has stepped
    bench.labels.after_step(bench.batch(rows), clock(2))
    mask = noted.steps[0][2].numpy()
    assert mask.sum() == 2  # a tenth of 18 entries
    expected = observed.copy()
    expected[rows] = np.where(mask, 1, expected[rows])
    np.testing.assert_array_equal(bench.labels.labels.numpy(), expected)
    np.testing.assert_array_equal(bench.split.observed, observed)  # the data set itself is left alone
    np.testing.assert_array_equal(bench.batch(rows)["labels"].numpy(), expected[rows])
    assert bench.labels.after_epoch(bench.model, clock(2)) == {"train/corrected_labels": 2.0}
    bench.labels.after_step(bench.batch(rows), clock(3))  # nothing was treated since
    np.testing.assert_array_equal(bench.labels.labels.numpy(), expected)
    assert noted.epochs == [2]


def test_all_forward_passes_of_a_step_count(tmp_path):
    noted = Noted()
    bench = Bench(tmp_path, "LL-Cp", noted)
    for rows in (np.arange(4), np.arange(4, 8)):  # accumulated
        bench.loss(2, rows)
    bench.labels.after_step(bench.batch(np.arange(4, 8)), clock(2))
    flipped = (bench.labels.labels.numpy() != bench.split.observed).sum()
    assert flipped == sum(int(mask.sum()) for _, _, mask in noted.steps) == 6


def test_workers_bring_their_corrections_together(tmp_path, monkeypatch):
    bench = Bench(tmp_path, "LL-Cp")
    bench.loss(2, np.arange(4))
    bench.labels.after_step(bench.batch(np.arange(4)), clock(2))
    mine = (bench.labels.labels.numpy() != bench.split.observed).sum()
    row, column = np.argwhere(bench.split.observed[12:] == 0)[0]
    monkeypatch.setattr(bench.run, "share_all", lambda value: [value, torch.tensor([[int(row) + 12, int(column)]])])
    assert bench.labels.after_epoch(bench.model, clock(2)) == {"train/corrected_labels": mine + 1.0}
    assert bench.labels.labels[row + 12, column] == 1


def test_the_state_of_corrections_survives_a_checkpoint(tmp_path):
    bench = Bench(tmp_path, "LL-Cp", Noted())
    bench.loss(2, np.arange(8))
    bench.labels.after_step(bench.batch(np.arange(8)), clock(2))
    torch.save(bench.labels.state_dict(), tmp_path / "state.pt")
    again = Bench(tmp_path, "LL-Cp", Noted())
    again.labels.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.testing.assert_close(again.labels.labels, bench.labels.labels)
    again.model.load_state_dict(bench.model.state_dict())
    for each in (bench, again):  # flips of the epoch so far are known after it, too
        assert each.labels.after_epoch(each.model, clock(2))["train/corrected_labels"] == 5.0
    rest = [each.train(2, epoch=3) for each in (bench, again)]
    assert rest[0] == rest[1]


@pytest.mark.parametrize("scheme", ["LL-R", "an", "full", "asl"])
def test_labels_that_can_not_change_are_not_in_a_checkpoint(tmp_path, scheme):
    assert Bench(tmp_path, scheme).labels.state_dict()["labels"] is None


# -- the other schemes with state


def test_em_apl_pseudo_labels_from_its_epoch_on(tmp_path):
    bench = Bench(tmp_path, "em_apl", apl_warmup_epochs=2)
    before = bench.labels.labels.clone()
    bench.model.train()
    bench.labels.after_epoch(bench.model, clock(1))
    torch.testing.assert_close(bench.labels.labels, before)
    bench.labels.after_epoch(bench.model, clock(2))
    changed = bench.labels.labels != before
    assert changed.any()
    assert (before[changed] == 0).all()  # the observed positives stay
    assert ((bench.labels.labels[changed] < 0) & (bench.labels.labels[changed] > -1)).all()
    assert bench.model.training
    assert bench.loss(3).isfinite()
    torch.save(bench.labels.state_dict(), tmp_path / "state.pt")
    again = Bench(tmp_path, "em_apl", apl_warmup_epochs=2)
    again.labels.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    torch.testing.assert_close(again.labels.labels, bench.labels.labels)


def test_role_trains_its_estimator_where_images_are_seen(tmp_path):
    bench = Bench(tmp_path, "role")
    assert isinstance(bench.model, WithLabelEstimator)
    assert bench.model.label_logits.shape == (N, K)
    observed = torch.from_numpy(bench.split.observed)
    assert (bench.model.label_logits[observed == 1].sigmoid() > 0.99).all()
    before = bench.model.label_logits.detach().clone()
    loss = bench.loss(1, np.array([1, 4]))
    loss.backward()
    touched = bench.model.label_logits.grad.abs().sum(1) > 0
    assert touched.nonzero().flatten().tolist() == [1, 4]
    bench.train(5)
    assert (bench.model.label_logits - before).abs().sum() > 0
    logits = role_model(Linear(), bench.split, seed=0).label_logits
    torch.testing.assert_close(logits, role_model(Linear(), bench.split, seed=0).label_logits)
    assert not torch.equal(logits, role_model(Linear(), bench.split, seed=1).label_logits)


@pytest.mark.parametrize("scheme", ["epr", "role"])
def test_the_expected_number_of_positives_is_measured_unless_given(tmp_path, scheme):
    mean = float((make_split().full == 1).sum(1).mean())
    measured, given, other = (
        Bench(tmp_path, scheme, expected_num_pos=number).loss() for number in (None, mean, mean + 1)
    )
    assert measured == given
    assert measured != other


# -- images


def test_images_are_mirrored_only_where_asked_and_allowed(tmp_path):
    def seen(**options: Any) -> Tensor:
        bench = Bench(tmp_path, "an", **options)
        shown: list[Tensor] = []
        bench.model.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0]))
        bench.loss()
        return shown[0]

    original = Bench(tmp_path, "an").batch()["images"]
    torch.testing.assert_close(seen(mirror=False), original)
    torch.testing.assert_close(seen(mirror=True, horizontal_flip=False), original)
    mirrored = seen(mirror=True)
    flipped = [torch.equal(image, before.flip(1)) for image, before in zip(mirrored, original, strict=True)]
    kept = [torch.equal(image, before) for image, before in zip(mirrored, original, strict=True)]
    assert all(one or other for one, other in zip(flipped, kept, strict=True))  # left to right, or not at all
    assert any(flipped)
    assert any(kept)


# -- refusals


def changed(**matrices: np.ndarray) -> MultiLabelSplit:
    split = make_split()
    full, observed = matrices.get("full", split.full), matrices.get("observed", split.observed)
    return MultiLabelSplit(images=split.images, full=full, observed=observed)


def with_entry(matrix: np.ndarray, value: int) -> np.ndarray:
    matrix = matrix.copy()
    matrix[tuple(np.argwhere(matrix == 0)[0])] = value
    return matrix


@pytest.mark.parametrize("scheme", SCHEMES)
def test_labels_outside_the_coding_are_refused(scheme):
    split = changed(observed=with_entry(make_split().observed, 2))
    with pytest.raises(ValueError, match=r"must be -1, 0 or 1, got .*2"):
        check_labels(Config(scheme=scheme), split)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_training_set_without_a_positive_is_refused(scheme):
    with pytest.raises(ValueError, match=r"observed labels must have a positive.*data\.num_pos=1"):
        check_labels(Config(scheme=scheme), changed(observed=np.zeros((N, K), np.int8)))


def test_iu_needs_observed_negatives():
    with pytest.raises(ValueError, match=r"must have negatives for scheme iu, .*data\.num_neg"):
        check_labels(Config(scheme="iu"), make_split())
    check_labels(Config(scheme="iu"), make_split(num_neg=1))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_only_some_schemes_know_observed_negatives(scheme):
    if scheme in ("an_ls", "wan", "pr", "epr", "role", "em", "em_apl"):
        with pytest.raises(ValueError, match=rf"scheme {scheme} is not defined for observed negatives"):
            check_labels(Config(scheme=scheme), make_split(num_neg=1))
    else:
        check_labels(Config(scheme=scheme), make_split(num_neg=1))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_schemes_that_need_the_whole_truth_say_so(scheme):
    split = changed(full=with_entry(make_split().full, -1))
    split = MultiLabelSplit(
        images=split.images, full=split.full, observed=make_split(1 if scheme == "iu" else 0).observed
    )
    if scheme in ("full", "bce", "bce_ls", "iun"):
        with pytest.raises(ValueError, match=rf"scheme {scheme} needs full labels"):
            check_labels(Config(scheme=scheme), split)
    else:
        check_labels(Config(scheme=scheme), split)


def test_a_label_map_on_disk_is_not_read_into_memory(tmp_path):
    split = make_split()
    np.save(tmp_path / "observed.npy", split.observed)
    mapped = np.load(tmp_path / "observed.npy", mmap_mode="r")
    run = PlainRun(folder=tmp_path)
    with_map = MultiLabelSplit(images=split.images, full=split.full, observed=mapped)
    labels = TrainingLabels(Config(scheme="LL-R"), with_map, run, mirror=False, recorder=None)
    assert labels.labels.data_ptr() == mapped.ctypes.data
    copied = TrainingLabels(Config(scheme="LL-Cp"), with_map, run, mirror=False, recorder=None)
    assert copied.labels.data_ptr() != mapped.ctypes.data  # it will be written to
