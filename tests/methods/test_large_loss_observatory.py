"""The label-noise observatory: written files match the recorded steps, also after an interruption; curves by hand."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from matplotlib.figure import Figure

from tenfold.methods.large_loss import observatory
from tenfold.methods.large_loss.figures import figure_detection, figure_memorisation
from tenfold.methods.large_loss.noise_record import read_labels, read_treated, recorded_epochs, write_manifest
from tenfold.methods.large_loss.observatory import LabelNoiseRecorder, detection_curve, memorisation_curve
from tests.methods.partial_labels import read_losses

CLASSES = ("cat", "dog", "ship")
OBSERVED = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0], [0, 0, 1]], dtype=np.int8)
TRUE = np.array([[1, 1, 0], [0, 1, 0], [1, 0, 1], [0, 0, 1]], dtype=np.int8)  # 3 false negatives: (0,1), (2,0), (2,2)


def make_recorder(folder, **changes):
    arguments = {
        "rank": 0,
        "num_samples": 4,
        "classes": CLASSES,
        "observed": OBSERVED,
        "true": TRUE,
        "scheme": "LL-R",
        **changes,
    }
    return LabelNoiseRecorder(folder, **arguments)


def mask_of(*entries, rows):
    """Return bool (B, K) for a batch of ``rows``, True at (row, class)."""
    mask = torch.zeros(len(rows), len(CLASSES), dtype=torch.bool)
    for row, column in entries:
        mask[rows.index(row), column] = True
    return mask


def losses_of(rows, epoch=0):
    """Return a loss that encodes its entry: 0.1 * row + 0.01 * class + epoch."""
    return torch.tensor([[0.1 * row + 0.01 * column + epoch for column in range(3)] for row in rows])


def record(recorder, rows, *entries, epoch=0):
    recorder.record(torch.tensor(rows), losses_of(rows, epoch), mask_of(*entries, rows=rows))


def record_two_epochs(folder, **changes):
    """Record (2,0), (2,2) as treated in the first epoch; (2,2), (0,1) and, wrongly, (1,0) in the second."""
    recorder = make_recorder(folder, **changes)
    record(recorder, [3, 2], (2, 0), (2, 2), epoch=1)
    record(recorder, [0, 1], epoch=1)
    recorder.end_epoch(1)
    record(recorder, [1, 2], (2, 2), (1, 0), epoch=2)
    record(recorder, [3, 0], (0, 1), epoch=2)
    recorder.end_epoch(2)
    return folder


@pytest.fixture
def folder(tmp_path):
    """Record of two epochs of one worker."""
    return record_two_epochs(tmp_path)


def test_treated_entries_are_read_as_recorded(folder):
    frame = read_treated(folder)
    assert list(frame.columns) == ["epoch", "sample", "class", "class_name", "loss", "action", "true"]
    keys = frame[["epoch", "sample", "class"]].to_numpy().tolist()
    assert keys == [[1, 2, 0], [1, 2, 2], [2, 0, 1], [2, 1, 0], [2, 2, 2]]
    assert frame["class_name"].tolist() == ["cat", "ship", "dog", "cat", "ship"]
    assert frame["true"].tolist() == [1, 1, 1, 0, 1]
    assert set(frame["action"]) == {"rejected"}
    np.testing.assert_allclose(frame["loss"], [1.20, 1.22, 2.01, 2.10, 2.22], rtol=1e-6)


def test_losses_are_read_as_recorded(folder):
    frame = read_losses(folder)
    assert list(frame.columns) == list(CLASSES)
    assert frame.index.tolist() == [(epoch, sample) for epoch in (1, 2) for sample in range(4)]
    expected = torch.cat([losses_of(range(4), epoch) for epoch in (1, 2)])
    np.testing.assert_array_equal(frame.to_numpy(), expected.numpy())


def test_files_have_the_documented_schema(folder):
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "labels.parquet",
        "losses/epoch=001/rank=0.parquet",
        "losses/epoch=002/rank=0.parquet",
        "treated/epoch=001/rank=0.parquet",
        "treated/epoch=002/rank=0.parquet",
    ]
    losses = pq.read_schema(folder / "losses/epoch=001/rank=0.parquet")
    assert losses.field("sample").type == pa.int32()
    assert losses.field("loss").type == pa.list_(pa.float32(), 3)
    treated = pq.read_schema(folder / "treated/epoch=001/rank=0.parquet")
    types = [pa.int32(), pa.int16(), pa.dictionary(pa.int16(), pa.string()), pa.float32(), pa.string(), pa.int8()]
    assert treated.names == ["sample", "class", "class_name", "loss", "action", "true"]
    assert treated.types == types
    # Open to any reader of Parquet, by the usual naming of partitions.
    assert len(pd.read_parquet(folder / "treated")) == 5


def test_labels_travel_with_the_record(folder):
    observed, true = read_labels(folder)
    np.testing.assert_array_equal(observed, OBSERVED)
    np.testing.assert_array_equal(true, TRUE)
    assert observed.dtype == np.int8


@pytest.mark.parametrize(
    ("scheme", "action"), [("LL-R", "rejected"), ("LL-Ct", "corrected"), ("LL-Cp", "permanently corrected")]
)
def test_action_of_each_scheme(tmp_path, scheme, action):
    recorder = make_recorder(tmp_path, scheme=scheme)
    record(recorder, [0], (0, 1))
    recorder.end_epoch(1)
    assert read_treated(tmp_path)["action"].tolist() == [action]


def test_detection_by_hand(folder):
    frame = detection_curve(folder)
    expected = pd.DataFrame(
        {
            "epoch": [1, 2],
            "num_treated": [2, 3],
            "rejected_fn": [2, 2],
            "total_fn": [3, 3],
            "precision": [1.0, 2 / 3],
            "recall": [2 / 3, 2 / 3],
            "ever_num_treated": [2, 4],
            "ever_rejected_fn": [2, 3],
            "ever_precision": [1.0, 3 / 4],
            "ever_recall": [2 / 3, 1.0],
        }
    )
    pd.testing.assert_frame_equal(frame, expected)
    pd.testing.assert_frame_equal(detection_curve(folder, OBSERVED, TRUE), expected)
    # Another truth, in which nothing but (1, 0) was wrong.
    other = detection_curve(folder, OBSERVED, np.where(OBSERVED == 1, 1, [[0] * 3, [1, 0, 0], [0] * 3, [0] * 3]))
    assert other["rejected_fn"].tolist() == [0, 1]
    assert other["recall"].tolist() == [0.0, 1.0]


def test_memorisation_by_hand(folder):
    frame = memorisation_curve(folder)
    false_negatives = np.mean([0.01, 0.20, 0.22])
    true_negatives = np.mean([0.02, 0.10, 0.12, 0.21, 0.30, 0.31])
    positives = np.mean([0.00, 0.11, 0.32])
    for name, value in (
        ("false_negative_loss", false_negatives),
        ("true_negative_loss", true_negatives),
        ("observed_positive_loss", positives),
    ):
        np.testing.assert_allclose(frame[name], [1 + value, 2 + value], rtol=1e-6)
    assert frame["num_samples"].tolist() == [4, 4]


def test_an_epoch_without_treatment_is_a_row_of_zeros(tmp_path):
    recorder = make_recorder(tmp_path)
    record(recorder, [0, 1, 2, 3])
    recorder.end_epoch(1)
    frame = detection_curve(tmp_path)
    assert frame[["epoch", "num_treated", "rejected_fn", "recall"]].iloc[0].tolist() == [1, 0, 0, 0]
    assert np.isnan(frame["precision"].iloc[0])
    assert read_treated(tmp_path).empty


def test_mode_treated_writes_the_same_treated_entries_and_no_losses(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("treated")
    record_two_epochs(other, mode="treated")
    pd.testing.assert_frame_equal(read_treated(other), read_treated(folder))
    pd.testing.assert_frame_equal(detection_curve(other), detection_curve(folder))
    assert not (other / "losses").exists()
    with pytest.raises(FileNotFoundError, match="there is no label-noise record"):
        memorisation_curve(other)


def test_mode_off_leaves_nothing(tmp_path):
    recorder = make_recorder(tmp_path / "none", mode="off")
    record(recorder, [0, 1], (0, 1))
    recorder.end_epoch(1)
    assert not (tmp_path / "none").exists()
    with pytest.raises(FileNotFoundError, match="there is no label-noise record"):
        read_treated(tmp_path / "none")


@pytest.mark.parametrize("mode", ["all", "treated"])
def test_resuming_in_mid_epoch_gives_the_same_files(tmp_path, mode):
    whole, first, second = (
        make_recorder(tmp_path / name, mode=mode) for name in ("whole", "resumed", "resumed")
    )  # fmt: skip
    for recorder in (whole, first):
        record(recorder, [3, 2], (2, 0), (2, 2), epoch=1)
    state = first.state_dict()
    assert all(torch.is_tensor(value) for value in state.values())
    torch.save(state, tmp_path / "state.pt")
    record(first, [0, 1], (1, 2), epoch=1)  # lost with the first attempt
    record(second, [0], epoch=9)  # forgotten on loading
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for recorder in (whole, second):
        record(recorder, [1, 0], (0, 1), epoch=1)
        recorder.end_epoch(1)
    paths = [path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*.parquet")]
    assert len(paths) == (3 if mode == "all" else 2)
    for path in paths:
        assert pq.read_table(tmp_path / "whole" / path).equals(pq.read_table(tmp_path / "resumed" / path))


@pytest.mark.parametrize("mode", ["all", "treated"])
def test_a_state_between_epochs_is_empty_and_loads(tmp_path, mode):
    recorder = make_recorder(tmp_path, mode=mode)
    record(recorder, [0, 1], (0, 1))
    recorder.end_epoch(1)
    state = recorder.state_dict()
    assert all(len(value) == 0 for value in state.values())
    other = make_recorder(tmp_path, mode=mode)
    other.load_state_dict(state)
    record(other, [0, 1], (1, 2))
    other.end_epoch(2)
    assert detection_curve(tmp_path)["num_treated"].tolist() == [1, 1]


@pytest.mark.parametrize("mode", ["all", "treated"])
def test_many_steps_are_fetched_in_between(tmp_path, mode, monkeypatch):
    monkeypatch.setattr(observatory, "_STEPS_AT_ONCE", 2)
    recorder = make_recorder(tmp_path, mode=mode)
    for row in (2, 0, 3, 1, 2):  # the later of two steps on sample 2 counts
        record(recorder, [row], *([(2, 0)] if row == 2 else []), epoch=1)
    recorder.end_epoch(1)
    assert read_treated(tmp_path)[["sample", "class"]].to_numpy().tolist() == [[2, 0]]
    if mode == "all":
        np.testing.assert_array_equal(read_losses(tmp_path).to_numpy(), losses_of(range(4), 1).numpy())


def test_of_a_sample_seen_twice_the_later_step_counts(tmp_path):
    recorder = make_recorder(tmp_path)
    record(recorder, [2], (2, 0), epoch=1)
    record(recorder, [2], (2, 2), epoch=5)
    recorder.end_epoch(1)
    assert read_treated(tmp_path)["class"].tolist() == [2]
    np.testing.assert_array_equal(read_losses(tmp_path).to_numpy(), losses_of([2], 5).numpy())


def test_an_epoch_trained_again_is_replaced(folder):
    recorder = make_recorder(folder)
    record(recorder, [0, 1, 2, 3], (0, 2), epoch=7)
    recorder.end_epoch(2)
    assert recorded_epochs(folder, "treated") == [1, 2]
    assert detection_curve(folder)["num_treated"].tolist() == [2, 1]
    np.testing.assert_array_equal(read_losses(folder).loc[2].to_numpy(), losses_of(range(4), 7).numpy())


def test_workers_write_beside_each_other(folder, tmp_path_factory):
    shared = tmp_path_factory.mktemp("shared")
    workers = [make_recorder(shared, rank=rank) for rank in (0, 1)]
    for epoch, shards in (
        (1, [([3, 2], (2, 0), (2, 2)), ([0, 1, 3],)]),  # sample 3 pads the second worker's shard
        (2, [([1, 2], (2, 2), (1, 0)), ([3, 0], (0, 1))]),
    ):
        for worker, (rows, *entries) in zip(workers, shards, strict=True):
            record(worker, rows, *entries, epoch=epoch)
            worker.end_epoch(epoch)
    pd.testing.assert_frame_equal(read_treated(shared), read_treated(folder))
    pd.testing.assert_frame_equal(read_losses(shared), read_losses(folder))
    pd.testing.assert_frame_equal(memorisation_curve(shared), memorisation_curve(folder))


def test_unknown_truth_is_null_and_counts_in_no_rate(tmp_path):
    partly = TRUE.copy()
    partly[1, 0] = partly[2, 0] = -1  # nobody looked
    recorder = make_recorder(tmp_path, true=partly)
    record(recorder, [1, 2], (1, 0), (2, 2))
    recorder.end_epoch(1)
    assert read_treated(tmp_path)["true"].isna().tolist() == [True, False]
    row = detection_curve(tmp_path).iloc[0]
    assert (row["num_treated"], row["total_fn"], row["precision"], row["recall"]) == (2, 2, 1.0, 0.5)


def test_without_any_truth_a_curve_says_so(tmp_path):
    recorder = make_recorder(tmp_path, true=None)
    record(recorder, [0], (0, 1))
    recorder.end_epoch(1)
    assert read_treated(tmp_path)["true"].isna().all()
    assert read_labels(tmp_path)[1] is None
    with pytest.raises(ValueError, match="true labels must be known"):
        detection_curve(tmp_path)
    assert detection_curve(tmp_path, OBSERVED, TRUE)["rejected_fn"].tolist() == [1]
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(4, 2\)"):
        detection_curve(tmp_path, OBSERVED, TRUE[:, :2])


def test_recording_keeps_no_graph_and_survives_a_reused_index_buffer(tmp_path):
    recorder = make_recorder(tmp_path)
    logits = torch.zeros(2, 3, requires_grad=True)
    buffer = torch.tensor([0, 1])
    recorder.record(buffer, logits.exp().half(), torch.zeros(2, 3, dtype=torch.bool))
    buffer.fill_(3)
    assert not any(value.requires_grad for value in recorder.state_dict().values())
    recorder.end_epoch(1)
    frame = read_losses(tmp_path)
    assert frame.index.tolist() == [(1, 0), (1, 1)]
    assert (frame.dtypes == np.float32).all()


def test_a_failed_write_leaves_the_old_file_and_no_litter(folder, monkeypatch):
    before = read_treated(folder)

    def fail(*_args, **_kwargs):
        raise OSError("no space left on device")

    recorder = make_recorder(folder)
    record(recorder, [0], (0, 1))
    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="no space"):
        recorder.end_epoch(1)
    pd.testing.assert_frame_equal(read_treated(folder), before)
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")]


def test_manifest_names_the_run(tmp_path):
    facts = {
        "run_id": "0a1b",
        "seed": 3,
        "scheme": "LL-Ct",
        "delta_rel": 0.002,
        "config_digest": "c0ffee",
        "data_fingerprint": "beef",
    }
    write_manifest(tmp_path / "record", **facts)
    assert json.loads((tmp_path / "record" / "manifest.json").read_text()) == {"format": 1, **facts}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observed": OBSERVED[:3]}, r"observed must be \(N, K\) = \(4, 3\), got \(3, 3\)"),
        ({"true": TRUE.T}, r"true must be \(N, K\) = \(4, 3\), got \(3, 4\)"),
        ({"mode": "some"}, "mode must be all, treated or off, got 'some'"),
    ],
)
def test_recorder_refuses(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make_recorder(tmp_path, **changes)


def test_steps_that_make_no_sense_are_refused(tmp_path):
    recorder = make_recorder(tmp_path)
    with pytest.raises(ValueError, match=r"\(B, K\) = \(2, 3\), got \(2, 2\) and \(2, 3\)"):
        recorder.record(torch.tensor([0, 1]), torch.zeros(2, 2), torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="epoch must be at least 1, got 0"):
        recorder.end_epoch(0)
    record(recorder, [0], (0, 0))  # an observed positive
    with pytest.raises(ValueError, match="observed label recorded as treated"):
        recorder.end_epoch(1)
    beyond = make_recorder(tmp_path)
    record(beyond, [4], (4, 0))
    with pytest.raises(ValueError, match=r"index must lie in 0\.\.3, got 4 to 4"):
        beyond.end_epoch(1)
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_state_of_another_mode_is_refused(tmp_path):
    state = make_recorder(tmp_path).state_dict()
    with pytest.raises(ValueError, match="resume with the mode that the run began with"):
        make_recorder(tmp_path, mode="treated").load_state_dict(state)
    with pytest.raises(ValueError, match=r"must be \(n, 3\)"):
        make_recorder(tmp_path).load_state_dict({**state, "losses": torch.zeros(0, 5)})


def test_figures_show_the_numbers(folder, tmp_path):
    detection = figure_detection(detection_curve(folder))
    assert isinstance(detection, Figure)
    rates, counts = detection.axes
    lines = {line.get_label(): line for line in rates.get_lines()}
    np.testing.assert_allclose(lines["precision"].get_ydata(), [1.0, 2 / 3])
    np.testing.assert_allclose(lines["recall"].get_ydata(), [2 / 3, 2 / 3])
    assert [bar.get_height() for bar in counts.containers[0]] == [2, 2]
    assert [bar.get_height() for bar in counts.containers[1]] == [0, 1]
    memorisation = figure_memorisation(memorisation_curve(folder))
    curve = {line.get_label(): line for line in memorisation.axes[0].get_lines()}["false negatives"]
    np.testing.assert_allclose(curve.get_ydata(), 1 + np.mean([0.01, 0.20, 0.22]) + np.arange(2), rtol=1e-6)
    for name, figure in (("detection.png", detection), ("memorisation.png", memorisation)):
        figure.savefig(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 5000


def test_figures_of_nothing_treated_do_not_fail(tmp_path):
    recorder = make_recorder(tmp_path, scheme="an", true=np.where(OBSERVED == 1, 1, 0))
    record(recorder, [0, 1, 2, 3])
    recorder.end_epoch(1)
    figure_detection(detection_curve(tmp_path)).savefig(tmp_path / "detection.png")
    figure_memorisation(memorisation_curve(tmp_path)).savefig(tmp_path / "memorisation.png")
    assert memorisation_curve(tmp_path)["false_negative_loss"].isna().all()
