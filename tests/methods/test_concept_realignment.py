"""Maths of concept realignment: published values, values by hand, laws, gradients, refusals."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.autograd import gradcheck

import tenfold.methods.concept_realignment as room
from tenfold.methods.concept_realignment import (
    ConceptEmbeddingHead,
    ConceptRealigner,
    balanced_binary_concepts,
    concept_flip_divergence,
    concept_group_matrix,
    concept_imbalance,
    coop_scores,
    curve_auc,
    expected_change_scores,
    group_scores,
    intervene,
    intervention_curves,
    intervention_rollout,
    interventions_to_target,
    joint_realignment_concept_loss,
    mix_concept_embeddings,
    random_scores,
    realignment_loss,
    uncertainty_scores,
)
from tenfold.methods.concept_realignment.curves import cumulative_costs, stopping_curve
from tenfold.methods.concept_realignment.embeddings import embedding_curve_logits
from tenfold.methods.concept_realignment.policy import BLOCKED, information_scores, order_scores, skyline_scores

FILE = np.load(Path(__file__).parents[1] / "golden/concept_realignment.npz")
META = json.loads(str(FILE["meta"]))
UNHURRIED = settings(deadline=None, max_examples=25)  # a busy machine is no failure
SEEDS = st.integers(0, 2**32 - 1)
USED: set[str] = {"meta"}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def golden(name):
    USED.add(name)
    return torch.from_numpy(np.asarray(FILE[name]))


def golden_under(prefix):
    return {name.removeprefix(prefix): golden(name) for name in FILE.files if name.startswith(prefix)}


def assert_golden(found, name, tolerance=1e-9):
    """Compare with an array of the file, relative to its largest value; both sides are float64."""
    expected = golden(name)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * max(1e-3, float(expected.abs().max())))


def golden_groups():
    return concept_group_matrix(META["groups"], META["K"]).double()


def golden_mlp(prefix, input_format, weights=None):
    """Load weights of a fully connected realigner, in the order in which its layers are registered."""
    weights = golden_under(prefix) if weights is None else weights
    layers = 1 + max(int(name.split("/")[0]) for name in weights if name[0].isdigit())
    hidden, num_concepts = weights["0/weight"].shape
    dropout = 0.0 if prefix == "joint/" else 0.2
    realigner = ConceptRealigner(num_concepts, "mlp", hidden, layers, dropout, input_format).double().eval()
    linear = [module for module in realigner.modules() if isinstance(module, nn.Linear)]
    norms = [module for module in realigner.modules() if isinstance(module, nn.BatchNorm1d)]
    assert [len(linear), len(norms)] == [layers + 1, layers]
    with torch.no_grad():
        for number in range(layers):
            linear[number].weight.copy_(weights[f"{number}/weight"])
            linear[number].bias.copy_(weights[f"{number}/bias"])
            norms[number].weight.copy_(weights[f"{number}/bn_weight"])
            norms[number].bias.copy_(weights[f"{number}/bn_bias"])
            norms[number].running_mean.copy_(weights[f"{number}/bn_mean"])
            norms[number].running_var.copy_(weights[f"{number}/bn_var"])
        linear[-1].weight.copy_(weights["out_weight"])
        linear[-1].bias.copy_(weights["out_bias"])
    return realigner


def golden_recurrent(kind, input_format):
    weights = golden_under(f"realign/{kind}/")
    layers = sum(name.startswith("weight_ih") for name in weights)
    num_concepts, hidden = weights["out_weight"].shape
    realigner = ConceptRealigner(num_concepts, kind, hidden, layers, input_format=input_format).double().eval()
    network = next(module for module in realigner.modules() if isinstance(module, nn.RNNBase))
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.copy_(weights[name])
        realigner.output.weight.copy_(weights["out_weight"])
        realigner.output.bias.copy_(weights["out_bias"])
    return realigner


def golden_realigner(kind, input_format="original"):
    return golden_mlp("realign/mlp/", input_format) if kind == "mlp" else golden_recurrent(kind, input_format)


def golden_head():
    weight, bias = golden("head/weight"), golden("head/bias")
    head = nn.Linear(weight.shape[1], len(weight)).double()
    head.load_state_dict({"weight": weight, "bias": bias})
    return head


def check_groups():
    matrix = golden_groups()
    assert torch.equal(matrix, golden("groups/matrix"))
    assert torch.equal(matrix.argmax(0), golden("groups/index"))


def check_policies():
    c, on, off = golden("policy/c"), golden("policy/div_on"), golden("policy/div_off")
    for mask_name, suffix, groups in (("mask", "", golden_groups()), ("mask_single", "_single", None)):
        mask = golden(f"policy/{mask_name}")
        found = {"ucp": uncertainty_scores(c, mask), "ectp": expected_change_scores(c, mask, on, off)}
        for policy, scores in found.items():
            # The blocked value is the largest of the array, and exact; the others are compared without it.
            expected = golden(f"policy/{policy}_scores{suffix}")
            assert torch.equal(scores == BLOCKED, expected == BLOCKED)
            torch.testing.assert_close(scores, expected, rtol=1e-9, atol=0)
            tag = f"intervene/{policy}_{'single' if suffix else 'group'}"
            changed, new_mask, selected = intervene(c, golden("policy/c_true"), mask, scores, groups)
            assert_golden(changed, f"{tag}_c")
            assert torch.equal(new_mask, golden(f"{tag}_mask"))
            assert torch.equal(selected, golden(f"{tag}_selected"))


def check_maximum_over_groups():
    c, groups = golden("policy/ucp_max_c"), golden_groups()
    mask = torch.zeros_like(c)
    order = group_scores(uncertainty_scores(c, mask), groups, "max").argsort(1, descending=True)
    first_two = groups[order[:, :2]].sum(1)
    assert torch.equal(first_two, golden("policy/ucp_max_first2_mask"))
    for _ in range(2):
        # Scores that don't change: nothing is corrected.
        _, mask, _ = intervene(c, c, mask, uncertainty_scores(c, torch.zeros_like(c)), groups, "max")
    assert torch.equal(mask, first_two)


def check_realigners():
    inputs, mask, c_hat = golden("realign/inputs"), golden("realign/mask"), golden("realign/c_hat")
    for kind in ("mlp", "lstm", "gru", "rnn"):
        for input_format in ("original", "previous"):
            realigner = golden_realigner(kind, input_format)
            out, _ = realigner(inputs, mask, c_hat)
            assert_golden(out, f"realign/{kind}/out_{input_format}")
            state, steps = None, []
            for step in range(inputs.shape[1]):
                out, state = realigner(inputs[:, step], mask[:, step], c_hat, state)
                steps.append(out)
            assert_golden(torch.stack(steps, 1), f"realign/{kind}/out_{input_format}")


def check_rollouts():
    c_hat, c_true, groups = golden("rollout/c_hat"), golden("rollout/c_true"), golden_groups()
    mlp, lstm = golden_realigner("mlp"), golden_realigner("lstm", "previous")
    cases = {
        "mlp_group_coupled": (mlp, groups, True),
        "mlp_group_decoupled": (mlp, groups, False),
        "none_group": (None, groups, True),
        "mlp_single_coupled": (mlp, None, True),
        "lstm_single_previous": (lstm, None, True),
        "none_single": (None, None, True),
    }
    for tag, (realigner, asked, coupled) in cases.items():
        steps = FILE[f"rollout/{tag}/masks"].shape[1] - 1
        rolled = intervention_rollout(realigner, c_hat, c_true, "ucp", asked, steps, coupled)
        assert_golden(rolled.inputs, f"rollout/{tag}/inputs")
        assert torch.equal(rolled.masks, golden(f"rollout/{tag}/masks"))
        assert_golden(rolled.outputs, f"rollout/{tag}/outputs")


def check_losses():
    outputs, c_true = golden("rollout/mlp_group_coupled/outputs"), golden("rollout/c_true")
    assert_golden(realignment_loss(outputs, c_true), "loss/unweighted")
    assert_golden(realignment_loss(outputs, c_true, golden("loss/weight")), "loss/weighted")
    for row, arguments in enumerate(golden("joint/loss_args")):
        losses = [*arguments[:3], float(arguments[3]), int(arguments[4])]
        for form, compat in (("paper", False), ("code", True)):
            loss = joint_realignment_concept_loss(*losses, compat=compat)
            torch.testing.assert_close(loss, golden(f"joint/loss_{form}")[row], rtol=1e-9, atol=0)


def check_divergences():
    c_hat, head = golden("rollout/c_hat"), golden_head()
    for callable_head in (head, lambda concepts: head(concepts)):
        for form, compat in (("ref", True), ("exact", False)):
            on, off = concept_flip_divergence(callable_head, c_hat, compat=compat)
            assert_golden(on, f"div/{form}_on")
            assert_golden(off, f"div/{form}_off")
        entropy, importance = coop_scores(c_hat, callable_head)
        assert_golden(entropy, "coop/uncertainty")
        assert_golden(importance, "coop/importance")


def check_curves():
    c_true, labels, head = golden("rollout/c_true"), golden("metrics/y"), golden_head()
    for tag, rollout, weight in (
        ("mlp", "mlp_group_coupled", None),
        ("none", "none_group", None),
        ("mlp_weighted", "mlp_group_coupled", golden("loss/weight")),
    ):
        outputs = golden(f"rollout/{rollout}/outputs")
        curves = intervention_curves(outputs, c_true, head(outputs), labels, weight)
        assert_golden(curves["concept_loss"], f"metrics/{tag}/concept_loss")
        # The reference averages accuracies in float32.
        assert_golden(curves["class_accuracy"], f"metrics/{tag}/class_acc", 1e-6)
        area = curve_auc(curves["concept_loss"])
        assert area == pytest.approx(float(golden(f"metrics/{tag}/auc_concept_loss")), rel=1e-9)
        area = 100 * curve_auc(curves["class_accuracy"])
        assert area == pytest.approx(float(golden(f"metrics/{tag}/auc_class_acc_pct")), abs=1e-4)
        assert curves["concept_loss"][-1] == 0


def check_embeddings():
    pos, neg, c_seq = golden("embed/pos"), golden("embed/neg"), golden("embed/c_seq")
    assert_golden(mix_concept_embeddings(c_seq, pos, neg), "embed/mixed")
    for step in range(c_seq.shape[1]):
        found = mix_concept_embeddings(c_seq[:, step], pos, neg)
        torch.testing.assert_close(found, golden("embed/mixed")[:, step], rtol=1e-9, atol=1e-9)
    latent = golden("cem/latent")
    head = ConceptEmbeddingHead(latent.shape[1], META["K"], 5, pos.shape[2]).double()
    state = {name: golden(f"cem/{name}") for name in ("context_weight", "context_bias", "prob_weight", "prob_bias")} | {
        f"head.{name}": golden(f"cem/head_{name}") for name in ("weight", "bias")
    }
    head.load_state_dict(state)
    names = ("c_hat", "pos", "neg", "bottleneck", "logits")
    for name, found in zip(names, head(latent), strict=True):
        assert_golden(found, f"cem/{name}")
    *unchanged, bottleneck, logits = head(latent, golden("cem/mask"), golden("cem/c_true"))
    assert_golden(logits, "cem/logits_intervened")
    for name, found in zip(names, unchanged, strict=False):
        assert_golden(found, f"cem/{name}")
    assert not torch.equal(bottleneck, golden("cem/bottleneck"))


def check_joint_realigner():
    realigner = golden_mlp("joint/", "previous", golden_under("joint/"))
    fresh = ConceptRealigner(META["K"], "mlp", hidden=META["K"], layers=2, dropout=0, input_format="previous")
    assert [weight.shape for weight in fresh.parameters()] == [weight.shape for weight in realigner.parameters()]
    out, _ = realigner(golden("realign/inputs")[:, 0], golden("realign/mask")[:, 0], golden("realign/c_hat"))
    assert_golden(out, "joint/out")


def check_data():
    indices, class_index, num_classes = balanced_binary_concepts(golden("data/attr"), 5)
    assert torch.equal(indices, golden("data/selected"))
    assert torch.equal(class_index, golden("data/class_index"))
    assert num_classes == int(golden("data/n_classes"))
    assert_golden(concept_imbalance(golden("data/attr")[:, indices].double()), "data/imbalance")


GOLDEN_CHECKS = (
    check_groups,
    check_policies,
    check_maximum_over_groups,
    check_realigners,
    check_rollouts,
    check_losses,
    check_divergences,
    check_curves,
    check_embeddings,
    check_joint_realigner,
    check_data,
)


@pytest.mark.parametrize("check", GOLDEN_CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_golden(check):
    check()


def test_every_golden_vector_is_used():
    USED.clear()
    for check in GOLDEN_CHECKS:
        check()
    assert set(FILE.files) - USED == {"meta"}
    assert len(USED) == 167


GROUPS = concept_group_matrix({"a": [0, 3], "b": [1], "c": [2, 4, 5]}, 6).double()
COUPLED = ("ucp", "ectp", "skyline")
POLICIES = ("random", *COUPLED)


def make_batch(seed, *, batch=5, concepts=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    c_hat = torch.rand(batch, concepts, generator=generator, dtype=dtype)
    c_true = (torch.rand(batch, concepts, generator=generator, dtype=dtype) < 0.4).to(dtype)
    return c_hat, c_true


def make_realigner(seed, kind="mlp", input_format="original", concepts=6):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        realigner = ConceptRealigner(concepts, kind, input_format=input_format).double()
        # Statistics and biases other than the initial ones.
        realigner(*(torch.rand(40, 3, concepts, dtype=torch.float64).round() for _ in range(3)))
        for weight in realigner.parameters():
            weight.data.add_(0.3 * torch.randn_like(weight))
    return realigner.eval()


class Loop:
    """A realigner that is called step by step."""

    def __init__(self, realigner):
        self.realigner, self.calls = realigner, []

    def __call__(self, value, mask, c_hat, state=None):
        self.calls.append(value.shape)
        return self.realigner(value, mask, c_hat, state)


class Batched(Loop):
    """One that may be called for all steps at once."""

    reads_previous = False


def make_head(seed, concepts=6, classes=4):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(concepts, classes).double()


def roll(realigner, c_hat, c_true, policy, seed=0, **options):
    divergences = (c_true + 0.1, c_hat.flip(1)) if policy == "ectp" else None
    generator = torch.Generator().manual_seed(seed)
    return intervention_rollout(
        realigner, c_hat, c_true, policy, divergences=divergences, generator=generator, **options
    )


def assert_same_rollout(found, expected):
    assert torch.equal(found.selected, expected.selected)
    assert torch.equal(found.masks, expected.masks)
    torch.testing.assert_close(found.inputs, expected.inputs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.outputs, expected.outputs, rtol=1e-12, atol=1e-12)


def test_scores_by_hand():
    c, mask = torch.tensor([[0.5, 0.75, 0.1]]), torch.tensor([[0.0, 0.0, 1.0]])
    torch.testing.assert_close(uncertainty_scores(c, mask, 0.5), torch.tensor([[2.0, 4 / 3, BLOCKED]]))
    assert uncertainty_scores(c, mask)[0, 0] == pytest.approx(1e8)
    on, off = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[3.0, 6.0, 9.0]])
    torch.testing.assert_close(expected_change_scores(c, mask, on, off), torch.tensor([[2.0, 3.0, BLOCKED]]))
    skyline = skyline_scores(c, torch.tensor([[1.0, 1.0, 0.0]]), mask)
    torch.testing.assert_close(skyline, torch.tensor([[0.5, 0.25, BLOCKED]]))


def test_group_scores_by_hand():
    scores = torch.tensor([[1.0, 7.0, 2.0, 3.0, 4.0, 9.0]])
    assert group_scores(scores, GROUPS).tolist() == [[2.0, 7.0, 5.0]]
    assert group_scores(scores, GROUPS, "max").tolist() == [[3.0, 7.0, 9.0]]


def test_first_of_equal_scores_is_corrected_without_touching_the_arguments():
    c, truth, mask = torch.full((2, 3), 0.4), torch.ones(2, 3), torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    kept = c.clone(), mask.clone()
    changed, new_mask, selected = intervene(c, truth, mask, uncertainty_scores(c, mask))
    assert selected.tolist() == [0, 1]
    assert new_mask.tolist() == [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]
    torch.testing.assert_close(changed, torch.tensor([[1.0, 0.4, 0.4], [0.4, 1.0, 0.4]]))
    assert torch.equal(c, kept[0])
    assert torch.equal(mask, kept[1])


@UNHURRIED
@given(seed=SEEDS, grouped=st.booleans(), reduce=st.sampled_from(["mean", "max"]))
def test_never_selects_what_is_corrected_already(seed, grouped, reduce):
    c, truth = make_batch(seed)
    groups = GROUPS if grouped else None
    num_questions = 3 if grouped else 6
    mask, chosen = torch.zeros_like(c), []
    for _ in range(num_questions):
        # Scores that would choose corrected concepts, whatever they are.
        scores = torch.where(mask == 1, 1e30, c)
        c, mask, selected = intervene(c, truth, mask, scores, groups, reduce)
        chosen.append(selected)
    assert torch.equal(torch.stack(chosen, 1).sort(1).values, torch.arange(num_questions).expand(5, -1))
    assert torch.equal(c, truth)


@pytest.mark.parametrize("kind", ["mlp", "lstm", "gru", "rnn"])
@pytest.mark.parametrize("input_format", ["original", "previous"])
def test_realigner_pins_what_is_corrected(kind, input_format):
    realigner = make_realigner(0, kind, input_format)
    c_hat, truth = make_batch(1, batch=7)
    mask = (torch.rand(7, 4, 6, dtype=torch.float64) < 0.5).double()
    value = torch.where(mask == 1, truth[:, None], c_hat[:, None] / 2)
    for mode in (True, False):
        out, _ = realigner.train(mode)(value, mask, c_hat)
        assert torch.equal(out[mask == 1], value[mask == 1])
        assert ((out >= 0) & (out <= 1)).all()
        assert not torch.isclose(out[mask == 0], value[mask == 0]).all()
    if input_format == "original":
        realigner.eval()
        other = torch.where(mask == 1, value, 1 - value)
        assert torch.equal(realigner(other, mask, c_hat)[0], realigner(value, mask, c_hat)[0])


@pytest.mark.parametrize("kind", ["mlp", "lstm", "gru", "rnn"])
def test_realigner_keeps_the_state_of_a_recurrent_network_only(kind):
    realigner = make_realigner(2, kind)
    c_hat, _ = make_batch(3)
    zeros = torch.zeros_like(c_hat)
    _, state = realigner(c_hat, zeros, c_hat)
    assert (state is None) == (kind == "mlp")
    again, _ = realigner(c_hat, zeros, c_hat, state)
    both, _ = realigner(c_hat[:, None].expand(-1, 2, -1), zeros[:, None].expand(-1, 2, -1), c_hat)
    torch.testing.assert_close(again, both[:, 1])


def test_realigner_initialisation():
    realigner = ConceptRealigner(10, "lstm", hidden=7, layers=2)
    for name, weight in realigner.named_parameters():
        if "bias" in name:
            assert not weight.any()
        else:
            bound = (6 / sum(weight.shape)) ** 0.5  # Xavier-uniform
            assert 0.5 * bound < weight.abs().max() <= bound
    assert ConceptRealigner(10).output.in_features == 20


def test_state_dict_loads_back():
    realigner, other = make_realigner(0), make_realigner(1)
    other.load_state_dict(realigner.state_dict())
    c_hat, _ = make_batch(0)
    mask = torch.zeros_like(c_hat)
    assert torch.equal(other(c_hat, mask, c_hat)[0], realigner(c_hat, mask, c_hat)[0])


@UNHURRIED
@given(seed=SEEDS, policy=st.sampled_from(POLICIES), grouped=st.booleans(), coupled=st.booleans(), none=st.booleans())
def test_rollout_asks_every_question_once_and_ends_at_the_truth(seed, policy, grouped, coupled, none):
    c_hat, truth = make_batch(seed)
    groups = GROUPS if grouped else None
    realigner = None if none else make_realigner(0)
    rolled = roll(realigner, c_hat, truth, policy, groups=groups, coupled=coupled)
    num_questions = 3 if grouped else 6
    assert rolled.outputs.shape == (5, num_questions + 1, 6)
    assert torch.equal(rolled.selected.sort(1).values, torch.arange(num_questions).expand(5, -1))
    members = (GROUPS if grouped else torch.eye(6, dtype=torch.float64))[rolled.selected]
    assert torch.equal(rolled.masks.diff(dim=1), members)
    assert torch.equal(rolled.inputs[:, 0], c_hat)
    assert not rolled.masks[:, 0].any()
    assert torch.equal(rolled.outputs[:, -1], truth)
    for values in (rolled.inputs, rolled.outputs):
        assert torch.equal(values[rolled.masks == 1], truth[:, None].expand_as(values)[rolled.masks == 1])
    loss = intervention_curves(rolled.outputs, truth, rolled.outputs, truth[:, 0].long())["concept_loss"]
    assert loss[-1] == 0


@UNHURRIED
@given(
    seed=SEEDS,
    policy=st.sampled_from(POLICIES),
    grouped=st.booleans(),
    steps=st.integers(0, 3),
    apply_from=st.integers(0, 4),
    unanswered=st.booleans(),
    priced=st.booleans(),
    reduce=st.sampled_from(["mean", "max"]),
)
def test_one_call_for_all_steps_equals_the_loop(seed, policy, grouped, steps, apply_from, unanswered, priced, reduce):
    c_hat, truth = make_batch(seed)
    c_hat = c_hat.mul(8).round().div(8)  # ties
    groups = GROUPS if grouped else None
    given_values, _ = make_batch(seed + 1)
    options = {
        "groups": groups,
        "steps": steps,
        "coupled": False,
        "apply_from": apply_from,
        "reduce": reduce,
        "c_given": given_values,
        "answered": make_batch(seed + 2)[1] if unanswered else None,
        "costs": torch.linspace(0.5, 2, 3 if grouped else 6) if priced else None,
    }
    realigner = make_realigner(0)
    fast, slow = Batched(realigner), Loop(realigner)
    found = roll(fast, c_hat, truth, policy, **options)
    expected = roll(slow, c_hat, truth, policy, **options)
    assert len(fast.calls) == 1
    assert len(slow.calls) == steps + 1
    assert_same_rollout(found, expected)
    if policy != "random":
        # The choice itself, from scores at every step.
        named = {
            "ucp": uncertainty_scores,
            "ectp": lambda c, mask: expected_change_scores(c, mask, truth + 0.1, c_hat.flip(1)),
            "skyline": lambda c, mask: skyline_scores(c, truth, mask),
        }
        assert_same_rollout(roll(slow, c_hat, truth, named[policy], **options), expected)


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_realigned_needs_no_loop(policy):
    c_hat, truth = make_batch(4)

    def nothing(value, mask, c_hat, state=None):
        return value, None

    for groups in (None, GROUPS):
        found = roll(None, c_hat, truth, policy, groups=groups)
        assert_same_rollout(found, roll(nothing, c_hat, truth, policy, groups=groups))


@pytest.mark.parametrize("kind", ["mlp", "lstm"])
def test_one_call_also_of_a_recurrent_network(kind):
    c_hat, truth = make_batch(5)
    realigner = make_realigner(0, kind)
    found = roll(realigner, c_hat, truth, "ucp", coupled=False)
    assert_same_rollout(found, roll(Loop(realigner), c_hat, truth, "ucp", coupled=False))


def test_networks_that_read_their_output_or_train_are_called_step_by_step():
    c_hat, truth = make_batch(6)
    for realigner, mode in ((make_realigner(0, input_format="previous"), False), (make_realigner(0), True)):
        calls = []
        hook = realigner.register_forward_pre_hook(lambda module, inputs, calls=calls: calls.append(1))
        roll(realigner.train(mode), c_hat, truth, "ucp", coupled=False)
        hook.remove()
        assert len(calls) == 7


def test_rollout_trains_batch_statistics_step_by_step():
    c_hat, truth = make_batch(7)
    realigner, by_hand = make_realigner(0).train(), make_realigner(0).train()
    torch.manual_seed(0)
    rolled = roll(realigner, c_hat, truth, "random", steps=2)
    torch.manual_seed(0)
    for step in range(3):
        out, _ = by_hand(rolled.inputs[:, step], rolled.masks[:, step], c_hat)
        torch.testing.assert_close(out, rolled.outputs[:, step])
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(realigner.state_dict()[name], value)


def test_first_choice_reads_the_predictions():
    c_hat, truth = torch.tensor([[0.4, 0.1]]), torch.ones(1, 2)

    def realigner(value, mask, c_hat, state=None):
        return torch.where(mask == 1, value, torch.tensor([[0.9, 0.5]])), None

    rolled = intervention_rollout(realigner, c_hat, truth, "ucp")
    assert rolled.selected.tolist() == [[0, 1]]
    torch.testing.assert_close(rolled.inputs, torch.tensor([[[0.4, 0.1], [1.0, 0.1], [1.0, 1.0]]]))
    torch.testing.assert_close(rolled.outputs, torch.tensor([[[0.9, 0.5], [1.0, 0.5], [1.0, 1.0]]]))
    left_alone = intervention_rollout(realigner, c_hat, truth, "ucp", apply_from=1)
    torch.testing.assert_close(left_alone.outputs[:, 0], c_hat)
    assert torch.equal(left_alone.outputs[:, 1:], rolled.outputs[:, 1:])


@UNHURRIED
@given(seed=SEEDS, policy=st.sampled_from(COUPLED), order=st.permutations(range(6)))
def test_order_of_the_concepts_does_not_matter(seed, policy, order):
    c_hat, truth = make_batch(seed)
    order = torch.tensor(order)
    dense = torch.linspace(-1, 1, 36, dtype=torch.float64).view(6, 6)

    def realigner(weight):
        return lambda value, mask, c_hat, state=None: (
            torch.where(mask == 1, value, ((torch.where(mask == 1, value, c_hat) - 0.5) @ weight).sigmoid()),
            None,
        )

    plain = roll_with_divergences(realigner(dense), c_hat, truth, policy, GROUPS)
    moved = roll_with_divergences(
        realigner(dense[order][:, order]), c_hat[:, order], truth[:, order], policy, GROUPS[:, order]
    )
    torch.testing.assert_close(moved.outputs, plain.outputs[..., order])
    assert torch.equal(moved.masks, plain.masks[..., order])


def roll_with_divergences(realigner, c_hat, truth, policy, groups):
    return intervention_rollout(realigner, c_hat, truth, policy, groups, divergences=(truth + 0.1, c_hat**2))


def test_unanswered_questions_are_spent():
    c_hat, truth = make_batch(8, batch=3)
    answered = torch.ones_like(c_hat)
    answered[:, 2] = 0
    rolled = roll(make_realigner(0), c_hat, truth, "ucp", answered=answered)
    assert torch.equal(rolled.selected.sort(1).values, torch.arange(6).expand(3, -1))
    assert torch.equal(rolled.masks[:, -1], answered)
    assert torch.equal(rolled.outputs[:, -1][answered == 1], truth[answered == 1])
    assert ((rolled.outputs[:, -1, 2] > 0) & (rolled.outputs[:, -1, 2] < 1)).all()


def test_an_expert_may_err_or_be_unsure():
    c_hat, truth = make_batch(9)
    given_values = (0.7 * truth + 0.1).clamp(0, 1)
    rolled = roll(make_realigner(0), c_hat, truth, "skyline", c_given=given_values)
    assert torch.equal(rolled.outputs[:, -1], given_values)
    first = (c_hat - truth).abs().argmax(1)
    assert torch.equal(rolled.selected[:, 0], first)


def test_costs_divide_positive_scores_of_questions():
    c_hat, truth = torch.tensor([[0.45, 0.4, 0.1]]), torch.ones(1, 3)
    plain = intervention_rollout(None, c_hat, truth, "ucp")
    assert plain.selected.tolist() == [[0, 1, 2]]
    priced = intervention_rollout(None, c_hat, truth, "ucp", costs=torch.tensor([3.0, 1.0, 10.0]))
    assert priced.selected.tolist() == [[1, 0, 2]]
    torch.testing.assert_close(
        cumulative_costs(priced.selected, torch.tensor([3.0, 1.0, 10.0])), torch.tensor([0.0, 1.0, 4.0, 14.0])
    )
    negative = intervention_rollout(None, c_hat, truth, -c_hat, costs=torch.tensor([3.0, 1.0, 10.0]))
    assert negative.selected.tolist() == [[2, 1, 0]]


def test_constant_scores_ask_in_a_fixed_order():
    c_hat, truth = make_batch(10)
    order = torch.tensor([2, 0, 1])
    rolled = roll(make_realigner(0), c_hat, truth, order_scores(order, GROUPS), groups=GROUPS)
    assert torch.equal(rolled.selected, order.expand(5, -1))
    assert order_scores(torch.tensor([1, 0])).tolist() == [-1.0, 0.0]


def test_noise_changes_the_choice_and_is_seeded():
    c_hat, truth = make_batch(11, batch=40)
    plain = roll(None, c_hat, truth, "ectp")
    noisy = [roll(None, c_hat, truth, "ectp", seed=seed, noise=5.0) for seed in (0, 0, 1)]
    assert torch.equal(noisy[0].selected, noisy[1].selected)
    assert not torch.equal(noisy[0].selected, noisy[2].selected)
    assert not torch.equal(noisy[0].selected, plain.selected)
    assert torch.equal(noisy[0].selected.sort(1).values, torch.arange(6).expand(40, -1))
    assert torch.equal(roll(None, c_hat, truth, "ectp", noise=1e-9).selected, plain.selected)


@pytest.mark.parametrize("groups", [None, GROUPS])
def test_random_questions_are_seeded_and_drawn_from_all(groups):
    c_hat, truth = torch.full((600, 6), 0.3), torch.ones(600, 6)
    selected = [
        intervention_rollout(None, c_hat, truth, "random", groups, generator=torch.Generator().manual_seed(0)).selected
        for _ in range(2)
    ]
    assert torch.equal(*selected)
    if groups is None:
        counts = torch.stack([selected[0][:, step].bincount(minlength=6) for step in range(6)])
        assert ((counts - 100).abs() < 50).all()  # 5 standard deviations
    scores = random_scores(c_hat, torch.zeros_like(c_hat), torch.Generator().manual_seed(0))
    assert scores.min() >= 0
    assert scores.max() < 1


def test_random_groups_are_redrawn_at_every_step():
    # Means of unequal groups: after the pair, c comes second with the probability that a mean of three beats one.
    groups = concept_group_matrix({"a": [0, 3], "b": [1], "c": [2, 4, 5]}, 6)
    c_hat = torch.full((20000, 6), 0.3)
    generator = torch.Generator().manual_seed(0)
    selected = intervention_rollout(None, c_hat, c_hat.round(), "random", groups, generator=generator).selected
    second = selected[selected[:, 0] == 0][:, 1]
    drawn = torch.rand(200000, 4, generator=generator)
    expected = (drawn[:, :3].mean(1) > drawn[:, 3]).double().mean()
    assert float((second == 2).double().mean()) == pytest.approx(float(expected), abs=0.03)


def test_information_by_enumeration():
    c_hat, truth = make_batch(12, batch=3)
    head, realigner = make_head(0), make_realigner(1)
    mask = torch.zeros_like(c_hat)
    mask[:, 1] = 1
    value, _ = realigner(torch.where(mask == 1, truth, c_hat), mask, c_hat)

    def realign(value, mask, c_hat):
        return realigner(value, mask, c_hat)[0]

    seen = []

    def class_probs(concepts, rows):
        seen.append(len(rows))
        assert len(concepts) == len(rows)
        return (head(concepts) + rows[:, None] * torch.arange(4)).softmax(-1)

    def entropy(probs):
        return -(probs * probs.log()).sum(-1)

    expected = torch.full_like(value, BLOCKED)
    for row in range(3):
        rows = torch.tensor([row])
        for concept in (0, 2, 3, 4, 5):
            after = 0.0
            for answer, chance in ((1.0, value[row, concept]), (0.0, 1 - value[row, concept])):
                changed, changed_mask = value[[row]].clone(), mask[[row]].clone()
                changed[0, concept], changed_mask[0, concept] = answer, 1
                probs = class_probs(realign(changed, changed_mask, c_hat[[row]]), rows)
                after = after + chance * entropy(probs)
            expected[row, concept] = (entropy(class_probs(value[[row]], rows)) - after)[0]
    for chunk in (1, 4, 4096):
        seen.clear()
        found = information_scores(value, mask, c_hat, realign, class_probs, chunk)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        assert max(seen) <= max(chunk, 1)
    skip = torch.zeros_like(mask)
    skip[:, 4] = 1
    found = information_scores(value, mask, c_hat, realign, class_probs, skip=skip)
    assert (found[:, 4] == BLOCKED).all()
    kept = [0, 1, 2, 3, 5]
    torch.testing.assert_close(found[:, kept], expected[:, kept], rtol=1e-9, atol=1e-12)


def test_information_of_a_certain_or_unused_concept_is_nothing():
    head = make_head(0)
    head.weight.data[:, 2] = 0
    c_hat, _ = make_batch(13)
    c_hat[:, 0] = 1.0
    zeros = torch.zeros_like(c_hat)
    scores = information_scores(
        c_hat, zeros, c_hat, lambda value, mask, c_hat: value, lambda concepts, rows: head(concepts).softmax(-1)
    )
    torch.testing.assert_close(scores[:, [0, 2]], torch.zeros(5, 2, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("embedded", [False, True])
@pytest.mark.parametrize("classes", [1, 4])
def test_divergence_in_closed_form_equals_calls_of_the_head(embedded, classes):
    c_hat, _ = make_batch(14)
    pos, neg = (torch.randn(2, 5, 6, 3, dtype=torch.float64)) if embedded else (None, None)
    head = make_head(1, 18 if embedded else 6, classes)
    for compat in (False, True):
        closed = concept_flip_divergence(head, c_hat, pos, neg, compat)
        called = concept_flip_divergence(lambda mixed: head(mixed), c_hat, pos, neg, compat)
        for one, other in zip(closed, called, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    for one, other in zip(
        coop_scores(c_hat, head, pos, neg), coop_scores(c_hat, lambda mixed: head(mixed), pos, neg), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_divergence_is_that_of_torch_distributions():
    c_hat, _ = make_batch(15)
    head = make_head(2)
    for value, found in zip((1.0, 0.0), concept_flip_divergence(head, c_hat), strict=True):
        for concept in range(6):
            flipped = c_hat.clone()
            flipped[:, concept] = value
            after, before = (torch.distributions.Categorical(logits=head(each)) for each in (flipped, c_hat))
            torch.testing.assert_close(found[:, concept], torch.distributions.kl_divergence(after, before))


@UNHURRIED
@given(seed=SEEDS)
def test_divergence_is_positive_and_zero_for_an_unused_concept(seed):
    c_hat, truth = make_batch(seed)
    head = make_head(seed % 100)
    head.weight.data[:, 2] = 0
    on, off = concept_flip_divergence(head, c_hat)
    assert (on >= 0).all()
    assert (off >= 0).all()
    assert torch.equal(on[:, 2], torch.zeros(5, dtype=torch.float64))
    assert torch.equal(off[:, 2], torch.zeros(5, dtype=torch.float64))
    on, off = concept_flip_divergence(head, truth)  # a flip to what is there already
    torch.testing.assert_close(torch.where(truth == 1, on, off), torch.zeros_like(truth), rtol=0, atol=1e-12)


def test_coop_importance_by_hand():
    c_hat = torch.tensor([[0.25]], dtype=torch.float64)
    head = nn.Linear(1, 2).double()
    head.load_state_dict({"weight": torch.tensor([[0.0], [4.0]]), "bias": torch.zeros(2)})
    uncertainty, importance = (score.detach() for score in coop_scores(c_hat, head))
    probs = torch.tensor([0.25 * 4, 4.0, 0.0]).sigmoid()
    assert float(importance) == pytest.approx(abs(0.25 * float(probs[1]) + 0.75 * 0.5 - float(probs[0])))
    assert float(uncertainty) == pytest.approx(0.8112781, abs=1e-6)


def test_mixture_ends_at_the_embeddings():
    pos, neg = torch.randn(2, 5, 6, 3)
    assert torch.equal(mix_concept_embeddings(torch.ones(5, 6), pos, neg), pos)
    assert torch.equal(mix_concept_embeddings(torch.zeros(5, 6), pos, neg), neg)


def test_embedding_curve_equals_the_head_on_mixtures():
    pos, neg = torch.randn(2, 5, 6, 3, dtype=torch.float64)
    outputs, head = torch.rand(5, 4, 6, dtype=torch.float64), make_head(3, 18)
    expected = head(mix_concept_embeddings(outputs, pos, neg).flatten(2))
    torch.testing.assert_close(embedding_curve_logits(outputs, pos, neg, head), expected, rtol=1e-10, atol=1e-10)


def test_embedding_head_equals_one_layer_a_concept():
    head = ConceptEmbeddingHead(7, 6, 4, embedding_size=3).double()
    latent = torch.randn(5, 7, dtype=torch.float64)
    c_hat, pos, neg, _, _ = head(latent)
    for concept in range(6):
        layer = nn.functional.leaky_relu(latent @ head.context_weight[concept].T + head.context_bias[concept], 0.01)
        torch.testing.assert_close(torch.cat([pos[:, concept], neg[:, concept]], 1), layer)
        torch.testing.assert_close(c_hat[:, concept], (layer @ head.prob_weight[0] + head.prob_bias).sigmoid())


def test_loss_weighs_every_step_the_same():
    outputs, truth = torch.tensor([[[0.5, 0.9], [0.8, 1.0]]]), torch.tensor([[1.0, 1.0]])
    expected = -torch.tensor([0.5, 0.9, 0.8, 1.0]).log()
    torch.testing.assert_close(realignment_loss(outputs, truth), expected.mean())
    weighted = realignment_loss(outputs, truth, torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(weighted, 2 * expected[[0, 2]].sum() / 4)
    assert realignment_loss(torch.zeros(1, 2), truth) == 100


def test_joint_loss_without_corrections_is_the_mean():
    terms = torch.tensor([0.4, 0.2, 0.7])
    for compat in (False, True):
        assert float(joint_realignment_concept_loss(*terms, 1.1, 0, compat)) == pytest.approx(0.3)
    # gamma 1: all three corrections count as much as none.
    assert float(joint_realignment_concept_loss(*terms, 1.0, 3)) == pytest.approx(0.5 * (0.4 + 0.45))


def test_curves_by_hand():
    outputs = torch.tensor([[[0.9, 0.4], [1.0, 0.0]], [[0.5, 0.2], [1.0, 1.0]]])
    truth = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    logits = torch.tensor([[[0.0, 1.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]])
    curves = intervention_curves(outputs, truth, logits, torch.tensor([1, 1]))
    assert curves["concept_accuracy"].tolist() == [0.75, 1.0]
    assert curves["class_accuracy"].tolist() == [0.5, 1.0]
    expected = -torch.tensor([0.9, 0.6, 0.5, 0.2]).log().mean()
    torch.testing.assert_close(curves["concept_loss"], torch.stack([expected, torch.zeros(())]))
    one = intervention_curves(outputs, truth, logits[..., 1:] - 0.5, torch.tensor([1, 1]))
    assert one["class_accuracy"].tolist() == [0.5, 1.0]
    assert curve_auc(torch.tensor([1.0, 0.5, 0.0])) == 1.0
    assert curve_auc(torch.tensor([3.0])) == 0.0
    assert interventions_to_target(torch.tensor([1.0, 0.5, 0.6, 0.0]), 0.5) == 1
    assert interventions_to_target(torch.tensor([0.1, 0.5]), 0.5, "above") == 1
    assert interventions_to_target(torch.tensor([0.1, 0.5]), 0.6, "above") is None


def test_stop_rule_by_hand():
    # Probabilities of class 1 over two corrections; the first image is sure at once, the second only at the end.
    probs = torch.tensor([[0.95, 0.2, 0.99], [0.6, 0.3, 0.97]])
    logits = torch.stack([torch.zeros_like(probs), torch.logit(probs)], -1)
    questions, accuracy = stopping_curve(logits, torch.tensor([1, 1]), [0.5, 0.7, 0.9, 0.999])
    assert questions.tolist() == [0.0, 0.5, 1.0, 2.0]
    assert accuracy.tolist() == [1.0, 0.5, 1.0, 1.0]
    single = stopping_curve(torch.logit(probs)[..., None], torch.tensor([1, 1]), (0.5, 0.7, 0.9, 0.999))
    torch.testing.assert_close(torch.stack(single), torch.stack([questions, accuracy]))


@UNHURRIED
@given(seed=SEEDS)
def test_a_higher_threshold_never_asks_less(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(6, 5, 4, generator=generator)
    questions, _ = stopping_curve(logits, torch.zeros(6, dtype=torch.int64), torch.linspace(0, 1, 9))
    assert (questions.diff() >= 0).all()
    assert questions[0] == 0


def test_imbalance_by_hand():
    assert concept_imbalance(torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])).tolist() == [0.0, 3.0]


def test_gradients():
    c_hat, truth = make_batch(16, batch=3)
    realigner, head = make_realigner(0), make_head(0, 18)
    mask = make_batch(17, batch=3)[1]
    pos, neg = torch.randn(2, 3, 6, 3, dtype=torch.float64)
    outputs = torch.rand(3, 4, 6, dtype=torch.float64)
    leaf = c_hat.requires_grad_()
    assert gradcheck(lambda c: realigner(c, mask, c)[0], leaf)
    recurrent = make_realigner(0, "gru", "previous")
    sequence, masks = outputs.clone().requires_grad_(), mask[:, None].expand(-1, 4, -1)
    assert gradcheck(lambda value: recurrent(value, masks, c_hat)[0], sequence)
    assert gradcheck(mix_concept_embeddings, (leaf, pos.requires_grad_(), neg.requires_grad_()))
    assert gradcheck(lambda c: embedding_curve_logits(c, pos, neg, head), sequence)
    assert gradcheck(lambda c: realignment_loss(c, truth, torch.arange(6.0).double()), sequence)
    losses = torch.rand(3, 1, dtype=torch.float64, requires_grad=True).unbind()
    assert gradcheck(
        lambda *terms: joint_realignment_concept_loss(*terms, 1.1, 3),
        tuple(term.detach().requires_grad_() for term in losses),
    )
    assert gradcheck(lambda c: concept_flip_divergence(head, c, pos.detach(), neg.detach()), leaf)
    embedding = ConceptEmbeddingHead(7, 6, 4, embedding_size=3).double()
    latent = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda h: embedding(h, mask, truth), latent)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(dtype):
    c_hat, truth = make_batch(18, dtype=dtype)
    realigner = make_realigner(0).to(dtype)
    head = make_head(0).to(dtype)
    rolled = roll(realigner, c_hat, truth, "ucp", groups=GROUPS, noise=0.2)
    results = [rolled.inputs, rolled.masks, rolled.outputs, *concept_flip_divergence(head, c_hat)]
    results += [*coop_scores(c_hat, head), realignment_loss(rolled.outputs, truth), concept_imbalance(truth)]
    curves = intervention_curves(rolled.outputs, truth, head(rolled.outputs), truth[:, 0].long())
    assert {each.dtype for each in (*results, *curves.values())} == {dtype}


def refused(match, call, *arguments, **options):
    with pytest.raises(ValueError, match=match):
        call(*arguments, **options)


def test_scores_refuse():
    c, mask = torch.full((2, 3), 0.5), torch.zeros(2, 3)
    for call in (uncertainty_scores, lambda *both: expected_change_scores(*both, c, c), random_scores):
        refused(r"\(2, 3\), mask \(2, 2\)", call, c, mask[:, :2])
        refused("mask must be 0 or 1, got 0.5", call, c, mask + 0.5)
        refused(r"c must lie in \[0, 1\], got 1.5", call, c + 1, mask)
        refused(r"c must lie in \[0, 1\], got nan", call, c * torch.nan, mask)
    refused("div_off", expected_change_scores, c, mask, c, c[:1])
    refused("reduce must be one of mean, max, got 'sum'", group_scores, torch.zeros(1, 6), GROUPS, "sum")
    refused(r"K = 5", group_scores, torch.zeros(1, 5), GROUPS)
    refused("every concept once", group_scores, torch.zeros(1, 6), GROUPS[:2])
    refused("order must hold", order_scores, torch.tensor([0, 0]))


def test_groups_refuse():
    refused("at least one group", concept_group_matrix, {}, 3)
    refused("'a' must hold at least one", concept_group_matrix, {"a": []}, 3)
    refused(r"in 0\.\.2, got 3", concept_group_matrix, {"a": [0, 1, 2, 3]}, 3)
    refused("must not overlap; concept 1", concept_group_matrix, {"a": [0, 1], "b": [1, 2]}, 3)
    refused("must hold every concept", concept_group_matrix, {"a": [0, 1]}, 3)
    assert torch.equal(concept_group_matrix(None, 3), torch.eye(3))


def test_intervene_refuses():
    c, mask = torch.full((2, 6), 0.5), torch.zeros(2, 6)
    full = mask.clone()
    full[1] = 1
    refused("none in row 1", intervene, c, c, full, c)
    refused("none in row 1", intervene, c, c, full, c, GROUPS)
    part = mask.clone()
    part[0, 0] = 1
    refused("the same for all concepts of a group", intervene, c, c, part, c, GROUPS)
    refused("scores must be finite", intervene, c, c, mask, c * torch.nan)
    refused("one shape for all", intervene, c, c[:1], mask, c)
    refused(r"K = 6, got", intervene, c, c, mask, c, GROUPS[:, :5])


def test_realigner_refuses():
    refused("kind must be one of mlp, lstm, gru, rnn, got 'cnn'", ConceptRealigner, 3, "cnn")
    refused("input_format must be one of", ConceptRealigner, 3, input_format="next")
    refused("layers must be at least 1, got 0", ConceptRealigner, 3, layers=0)
    refused("dropout must lie in", ConceptRealigner, 3, dropout=1.0)
    realigner, c = ConceptRealigner(3).eval(), torch.zeros(2, 3)
    refused(r"K = 3, got \(2, 4\)", realigner, torch.zeros(2, 4), torch.zeros(2, 4), c)
    refused("mask must be like value", realigner, c, c[:, :2], c)
    refused("c_hat must be", realigner, c, c, c[:, :2])
    refused("c_hat must be", realigner, c[:, None], c[:, None], torch.zeros(2, 4, 3))


def test_rollout_refuses():
    c, truth = make_batch(19)
    refused(r"steps must lie in 0\.\.6, the number of questions, got 7", roll, None, c, truth, "ucp", steps=7)
    refused(r"0\.\.3.*got 4", roll, None, c, truth, "ucp", steps=4, groups=GROUPS)
    refused("got -1", roll, None, c, truth, "ucp", steps=-1)
    refused("policy must be one of ucp, random, ectp, skyline", roll, None, c, truth, "best")
    refused("needs divergences", intervention_rollout, None, c, truth, "ectp")
    refused("one shape for all", roll, None, c, truth[:, :5], "ucp")
    refused(r"c_hat must lie in \[0, 1\], got 2", roll, None, c + 2 - c, truth, "ucp")
    refused("apply_from must be", roll, None, c, truth, "ucp", apply_from=-1)
    refused("costs must be", roll, None, c, truth, "ucp", costs=torch.zeros(6))
    refused("reduce must be", roll, None, c, truth, "ucp", reduce="sum")
    refused("noise must be", roll, None, c, truth, "ucp", noise=-0.1)
    refused("answered must be 0 or 1", roll, None, c, truth, "ucp", answered=c)
    refused("c_given must lie", roll, None, c, truth, "ucp", c_given=c - 1)
    refused("must return scores", roll, None, c, truth, lambda current, mask: current[:, :1])
    refused("without NaN", roll, None, c, truth, lambda current, mask: current * torch.nan)
    refused("constant scores", roll, None, c, truth, c[:2])


def test_the_rest_refuses():
    c, truth = make_batch(20)
    head, pos = make_head(0), torch.zeros(5, 6, 3, dtype=torch.float64)
    refused("head must read 18 values", concept_flip_divergence, head, c, pos, pos)
    refused("head must read 5 values", concept_flip_divergence, head, c[:, :5])
    refused("given together", concept_flip_divergence, head, c, pos)
    refused("pos and neg must be", concept_flip_divergence, head, c, pos, pos[:, :5])
    refused("c_hat must lie", concept_flip_divergence, head, c * torch.nan)
    refused("concepts must be", mix_concept_embeddings, c[:, :5], pos, pos)
    refused("head read K E = 18", embedding_curve_logits, c[:, None], pos, pos, head)
    refused("got none for", concept_imbalance, torch.tensor([[1.0, 0.0]]))
    refused("binary matrix", concept_imbalance, c)
    refused("direction must be", interventions_to_target, c[0], 0.1, "left")
    refused("curve must be", curve_auc, c)
    refused("logits must be", intervention_curves, c[:, None], truth, torch.zeros(5, 2, 4), torch.zeros(5))
    refused("y \\(B,\\)", stopping_curve, torch.zeros(5, 2, 4), torch.zeros(4), [0.5])
    refused("selected must be", cumulative_costs, torch.zeros(3), torch.ones(3))
    refused("gamma must be positive", joint_realignment_concept_loss, *c[0, :3], 0.0, 1)
    refused("horizon must be at least 0", joint_realignment_concept_loss, *c[0, :3], 1.1, -1)
    refused("c_true", realignment_loss, c, truth[:, :2])
    refused("weight must be", realignment_loss, c, truth, c[0, :2])
    layer = ConceptEmbeddingHead(7, 6, 4)
    refused("D = 7", layer, torch.zeros(2, 6))
    refused("needs c_true", layer, torch.zeros(2, 7), torch.ones(2, 6))
    refused("mask and c_true must be", layer, torch.zeros(2, 7), torch.ones(2, 5), torch.ones(2, 5))
    refused("n_classes must be", ConceptEmbeddingHead, 7, 6, 0)


def test_nameplate():
    assert all(hasattr(room, name) for name in room.__all__)
    code = f"import sys, {room.__name__}; print(sorted({{'ray', 'mlflow', 'hydra'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
