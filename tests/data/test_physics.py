"""Simulated trajectories and molecules: published values, laws of physics, seeds, layouts, refusals."""

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from tenfold.data.embedded.physics.lorenz import LorenzConfig, load_lorenz, lorenz_rhs, lorenz_windows, simulate_lorenz
from tenfold.data.embedded.physics.molecules import MoleculesConfig, atom_features, load_molecules, simulate_molecules
from tenfold.data.embedded.physics.nbody import (
    NBodyConfig,
    accelerations,
    energy,
    load_nbody,
    nbody_trajectories,
    simulate_nbody,
)
from tenfold.data.files.qm9 import Qm9Config, load_qm9
from tenfold.data.regression import PARTS

GOLDEN = np.load(Path(__file__).parents[1] / "golden/posterior_annealing.npz")
LORENZ = LorenzConfig(length=8, num_train=5, num_val=2, num_test=3)
TRAJECTORY = dataclasses.replace(LORENZ, source="trajectory", noise="constant", noise_scale=0.5)
BODIES = NBodyConfig(length=6, num_train=4, num_val=2, num_test=2)
MOLECULES = MoleculesConfig(num_train=200, num_val=20, num_test=50)


def golden(name):
    return torch.from_numpy(np.asarray(GOLDEN[name]))


def test_lorenz_matches_golden():
    torch.testing.assert_close(lorenz_rhs(golden("lorenz.rhs_state")), golden("lorenz.rhs"), rtol=1e-9, atol=1e-9)
    states = simulate_lorenz(golden("lorenz.x0"), golden("lorenz.times"))
    torch.testing.assert_close(states, golden("lorenz.states"), rtol=0, atol=1e-5)


def test_lorenz_by_hand_and_at_rest():
    assert lorenz_rhs(torch.tensor([1.0, 2.0, 3.0])).tolist() == [10, 23, -6]
    root = math.sqrt(72)
    still = torch.tensor([[0.0, 0.0, 0.0], [root, root, 27.0], [-root, -root, 27.0]], dtype=torch.float64)
    torch.testing.assert_close(lorenz_rhs(still), torch.zeros(3, 3, dtype=torch.float64), atol=1e-12, rtol=0)
    states = simulate_lorenz(still, torch.tensor([0.0, 0.1, 0.3]))
    assert states.shape == (3, 3, 3)
    torch.testing.assert_close(states, still.expand(3, 3, 3), atol=1e-10, rtol=0)


def test_lorenz_batches_times_and_dtypes():
    starts = torch.tensor([[[1.0, 1.0, 1.0]], [[2.0, -1.0, 20.0]]], dtype=torch.float64)
    times = torch.tensor([0.5, 0.6, 0.75], dtype=torch.float64)
    together = simulate_lorenz(starts, times)
    assert together.shape == (3, 2, 1, 3)
    assert torch.equal(together[0], starts)
    torch.testing.assert_close(together[:, 1, 0], simulate_lorenz(starts[1, 0], times + 3), rtol=1e-9, atol=1e-9)
    mirror = torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(simulate_lorenz(starts * mirror, times), together * mirror)
    assert simulate_lorenz(starts.float(), times).dtype == torch.float32
    assert simulate_lorenz(starts.half(), times.half()).dtype == torch.float32
    assert simulate_lorenz(starts, times[:1]).shape == (1, 2, 1, 3)
    leaf = starts.clone().requires_grad_()
    learnt = simulate_lorenz(leaf, times)
    torch.testing.assert_close(learnt.detach(), together)
    assert torch.autograd.grad(learnt[-1].sum(), leaf)[0].abs().min() > 0


@pytest.mark.parametrize(
    ("x0", "times", "message"),
    [
        (torch.zeros(2), torch.zeros(1), "x0 must be floating point (..., 3), got torch.float32 (2,)"),
        (torch.zeros(3, dtype=torch.int64), torch.zeros(1), "x0 must be floating point"),
        (torch.zeros(3), torch.zeros(0), "times must be (T,) with T at least 1"),
        (torch.zeros(3), torch.tensor([0.0, 0.0]), "times must be finite and strictly increasing"),
        (torch.zeros(3), torch.tensor([0.0, math.nan]), "times must be finite and strictly increasing"),
    ],
)
def test_lorenz_refuses(x0, times, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        simulate_lorenz(x0, times)
    with pytest.raises(ValueError, match="state must be floating point"):
        lorenz_rhs(torch.zeros(4))


def test_the_single_trajectory_is_cut_in_order():
    windows = np.concatenate([lorenz_windows(TRAJECTORY, part)[1] for part in ("test", "val", "train")])
    joined = np.concatenate(list(windows), axis=1).T
    times = torch.arange(24, dtype=torch.float64) * 0.05
    reference = simulate_lorenz(torch.ones(3, dtype=torch.float64), times)
    np.testing.assert_allclose(joined[:24], reference, atol=1e-3)
    assert len(windows) == 10


def test_lorenz_noise_has_the_size_it_should():
    config = dataclasses.replace(LORENZ, length=200, num_train=20)
    noisy, states = lorenz_windows(config, "train")
    scores = (noisy - states) / (2 * (0.5 + 1.5 * np.abs(states) / 20))
    assert scores.std() == pytest.approx(1, abs=0.03)
    constant = dataclasses.replace(config, noise="constant", noise_scale=0.5)
    noisy, states = lorenz_windows(constant, "train")
    assert (noisy - states).std() == pytest.approx(0.5, abs=0.02)
    assert np.abs(states).max() < 60  # on the attractor


LOADERS = [(load_lorenz, LORENZ), (load_lorenz, TRAJECTORY), (load_nbody, BODIES), (load_molecules, MOLECULES)]


@pytest.mark.parametrize(("load", "config"), LOADERS)
def test_a_seed_makes_the_data_and_parts_differ(load, config):
    data, again = load(config), load(config)
    other = load(dataclasses.replace(config, seed=1))
    assert data.fingerprint == again.fingerprint != other.fingerprint
    for part in PARTS:
        source = data.part(part)
        assert len(source) == config.counts[part]
        batch = source.read([0, 1])
        for name, tensor in again.part(part).read([0, 1]).items():
            assert torch.equal(batch[name], tensor)
        for schema in data.inputs:
            schema.check(batch[schema.name])
        assert batch["targets"].dtype == torch.float32
        assert batch["targets"].shape[1] == len(data.targets)
        name = data.inputs[0].name
        assert not torch.equal(other.part(part).read([0, 1])[name], batch[name])
    first = [data.part(part).read([0])["targets"] for part in PARTS]
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])


def test_more_examples_of_a_part_leave_the_other_parts_alone():
    for load, config in ((load_lorenz, LORENZ), (load_nbody, BODIES), (load_molecules, MOLECULES)):
        larger = dataclasses.replace(config, num_train=config.num_train + 3)
        one, two = (load(each).test.read([0, 1])["targets"] for each in (config, larger))
        assert torch.equal(one, two)


def test_two_bodies_circle_each_other():
    # Each at 1/2 from the middle: v^2 / (1/2) = 1 / 1, so v = sqrt(1/2) and a turn takes 2 pi / sqrt 2.
    positions = np.array([[0.5, 0.0], [-0.5, 0.0]])
    velocities = np.array([[0.0, 1.0], [0.0, -1.0]]) * math.sqrt(0.5)
    period = 2 * math.pi / math.sqrt(2)
    places, speeds = simulate_nbody(
        positions, velocities, np.ones(2), num_samples=9, interval=period / 8, softening=1e-9
    )
    np.testing.assert_allclose(places[8], positions, atol=0.01)
    np.testing.assert_allclose(places[4], -positions, atol=0.01)
    np.testing.assert_allclose(np.linalg.norm(places, axis=-1), 0.5, atol=0.01)
    assert speeds.shape == places.shape == (9, 2, 2)


def test_acceleration_is_minus_the_gradient_of_the_energy():
    random = np.random.default_rng(0)
    positions, masses = random.standard_normal((3, 3)), random.uniform(0.5, 1.5, 3)
    pull = accelerations(positions, masses, 0.3)
    for body in range(3):
        for axis in range(3):
            step = np.zeros((3, 3))
            step[body, axis] = 1e-6
            rise = energy(positions + step, 0 * step, masses, 0.3) - energy(positions - step, 0 * step, masses, 0.3)
            assert masses[body] * pull[body, axis] == pytest.approx(-rise / 2e-6, rel=1e-5, abs=1e-7)


def test_the_integrator_keeps_what_nature_keeps_and_runs_backwards():
    random = np.random.default_rng(1)
    positions, velocities = random.standard_normal((2, 5, 3, 3))
    masses = random.uniform(0.5, 1.5, (5, 3))
    options = {"num_samples": 30, "interval": 0.1, "softening": 0.2}
    places, speeds = simulate_nbody(positions, velocities, masses, **options)
    momentum = (masses[..., None] * speeds).sum(axis=-2)
    np.testing.assert_allclose(momentum, np.broadcast_to(momentum[0], momentum.shape), atol=1e-12)
    energies = energy(places, speeds, masses, 0.2)
    assert np.abs(energies - energies[0]).max() < 0.01
    back, slowed = simulate_nbody(places[-1], speeds[-1], masses, **{**options, "interval": -0.1})
    np.testing.assert_allclose(back[-1], positions, atol=1e-6)
    np.testing.assert_allclose(slowed[-1], velocities, atol=1e-6)


def test_bodies_stay_together():
    noisy, true = nbody_trajectories(dataclasses.replace(BODIES, length=100, num_train=50), "train")
    assert true.shape == noisy.shape == (50, 9, 100)
    assert np.median(np.abs(true[:, :, -1])) < 3
    scores = (noisy - true) / (0.1 * (0.5 + 1.5 * np.abs(true)))
    assert scores.std() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"velocities": np.zeros((3, 3))}, "positions, velocities and masses must be"),
        ({"masses": np.ones(3)}, "positions, velocities and masses must be"),
        ({"masses": np.array([1.0, 0.0])}, "softening and masses positive"),
        ({"softening": 0.0}, "softening and masses positive"),
        ({"num_samples": 0}, "num_samples must be at least 1"),
        ({"interval": 0.0}, "interval not 0"),
    ],
)
def test_nbody_refuses(change, message):
    given = {"positions": np.zeros((2, 3)), "velocities": np.zeros((2, 3)), "masses": np.ones(2)}
    options = {"num_samples": 2, "interval": 0.1, "softening": 0.1}
    with pytest.raises(ValueError, match=message):
        simulate_nbody(**{**given, **options, **change})


def test_atom_features_by_hand():
    features = atom_features(np.array([[1, 9, 0]]))
    assert features.shape == (1, 3, 15)
    np.testing.assert_allclose(features[0, 0, :3], [1, 1 / 9, 1 / 81], rtol=1e-6)
    assert features[0, 0, 3:].any() == 0
    assert features[0, 1].tolist() == [0] * 12 + [1, 1, 1]
    assert features[0, 2].any() == 0
    with pytest.raises(ValueError, match=re.escape("H, C, N, O, F (1, 6, 7, 8, 9), or 0 for padding; got [16]")):
        atom_features(np.array([16]))


def test_molecules_have_the_geometry_and_the_property_they_should():
    molecules, values = simulate_molecules(dataclasses.replace(MOLECULES, num_train=1500), "train")
    chi = {1: 2.2, 6: 2.55, 7: 3.04, 8: 3.44, 9: 3.98}
    residuals = {size: [] for size in range(3, 7)}
    for charges, places, n, value in zip(*molecules.values(), values, strict=True):
        assert not charges[n:].any()
        assert not places[n:].any()
        distances = np.linalg.norm(places[:n, None] - places[None, :n], axis=-1) + 9 * np.eye(n)
        assert distances.min() > 0.9
        for atom in range(1, n):
            assert ((distances[atom, :atom] > 0.999) & (distances[atom, :atom] < 1.601)).any()
        clean = sum(
            (chi[charges[i]] - chi[charges[j]]) ** 2 / max(distances[i, j], 0.5) for i in range(n) for j in range(i)
        )
        residuals[n].append(value - (clean - 0.3 * n))
    assert {len(each) > 250 for each in residuals.values()} == {True}
    for size, errors in residuals.items():
        assert np.std(errors) == pytest.approx(0.05 + 0.25 * (size - 3) / 3, rel=0.15)


@pytest.mark.parametrize(
    ("config", "settings", "message"),
    [
        (LorenzConfig, {"name": "rossler"}, "name must be 'lorenz', got 'rossler'"),
        (LorenzConfig, {"source": "files"}, "source must be windows or trajectory"),
        (LorenzConfig, {"length": 0}, "length must be at least 1, got 0"),
        (LorenzConfig, {"interval": 2.0}, "interval must lie in (0, 1], got 2.0"),
        (LorenzConfig, {"noise_scale": -1.0}, "noise_scale must not be negative"),
        (LorenzConfig, {"num_test": 0}, "num_test must be at least 1, got 0"),
        (LorenzConfig, {"seed": -1}, "seed must be at least 0"),
        (NBodyConfig, {"name": "bodies"}, "name must be 'nbody'"),
        (NBodyConfig, {"num_bodies": 1}, "num_bodies must be at least 2"),
        (NBodyConfig, {"softening": 0.0}, "softening must be positive"),
        (NBodyConfig, {"noise_scale": -0.1}, "noise_scale must not be negative"),
        (MoleculesConfig, {"name": "qm9"}, "name must be 'molecules'"),
        (MoleculesConfig, {"min_atoms": 5, "max_atoms": 5}, "2 <= min_atoms < max_atoms <= 12"),
        (Qm9Config, {"root": ".", "target": "energy"}, "target must be one of alpha, gap"),
        (Qm9Config, {"root": ".", "name": "qm8"}, "name must be 'qm9'"),
    ],
)
def test_settings_that_are_refused(config, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        config(**settings)


def write_qm9(root, **changes):
    for number, name in enumerate(("train", "valid", "test")):
        charges = np.zeros((4, 5), dtype=np.int64)
        charges[:, :3] = (6, 1, 9)
        arrays = {
            "num_atoms": np.full(4, 3),
            "charges": charges,
            "positions": np.random.default_rng(number).standard_normal((4, 5, 3)),
            "U0": np.arange(4.0) + number,
            "U0_thermo": np.full(4, 0.5),
            "mu": np.arange(4.0),
            **changes,
        }
        np.savez(root / f"{name}.npz", **{key: value for key, value in arrays.items() if value is not None})


def test_qm9_reads_its_layout(tmp_path):
    write_qm9(tmp_path)
    data = load_qm9(Qm9Config(root=str(tmp_path), target="U0"))
    assert data.network == "egnn"
    assert data.targets == ("U0",)
    batch = data.val.read([1, 3])
    assert batch["targets"].tolist() == [[1.5], [3.5]]  # less the thermochemical energy
    assert batch["features"].shape == (2, 5, 15)
    assert batch["n_atoms"].tolist() == [3, 3]
    for schema in data.inputs:
        schema.check(batch[schema.name])
    assert load_qm9(Qm9Config(root=str(tmp_path), target="mu")).train.read([2])["targets"].item() == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mu": None}, "train.npz must hold the arrays num_atoms, charges, positions, mu, but lacks mu"),
        ({"positions": np.zeros((4, 4, 3))}, "positions (N, A, 3)"),
        ({"num_atoms": np.full(4, 6)}, "num_atoms must lie in 1..5, got 6 to 6"),
        ({"charges": np.full((4, 5), 16)}, "train.npz: charges must be those of H, C, N, O, F"),
        ({"positions": np.full((4, 5, 3), math.nan)}, "train.npz: positions must be finite"),
        ({"mu": np.full(4, math.inf)}, "train.npz, mu: targets must be finite"),
    ],
)
def test_qm9_refuses(tmp_path, changes, message):
    write_qm9(tmp_path, **changes)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_qm9(Qm9Config(root=str(tmp_path), target="mu"))


def test_qm9_without_files(tmp_path):
    with pytest.raises(ValueError, match=re.escape("train.npz is missing or not a .npz file")):
        load_qm9(Qm9Config(root=str(tmp_path)))
    (tmp_path / "train.npz").write_text("no archive")
    with pytest.raises(ValueError, match=re.escape("train.npz is missing or not a .npz file")):
        load_qm9(Qm9Config(root=str(tmp_path)))
