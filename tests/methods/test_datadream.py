"""The DataDream maths of prompts, shots, schedules and accuracy: published values, by hand, laws, refusals."""

import itertools
import json
import math
import random
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tenfold.methods.datadream as room
from tenfold.methods.datadream.accuracy import per_class_accuracy
from tenfold.methods.datadream.prompts import TEMPLATES, class_prompts, generation_prompts, shard_range
from tenfold.methods.datadream.schedules import diffusion_warmup_cosine, warmup_cosine
from tenfold.methods.datadream.shots import natural_sort, pool_repeats, sample_k_shot
from tenfold.metrics.classification import topk_accuracy

GOLDEN = np.load(Path(__file__).parents[1] / "golden/datadream.npz")
UNHURRIED = settings(deadline=None)  # a busy machine is no failure
LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60)


def listed(name):
    return json.loads(str(GOLDEN[name]))


# --- values from outside ---


def test_templates_match_golden():
    assert list(TEMPLATES) == listed("templates")


def test_prompts_match_golden():
    domain_words = listed("domain_words")
    for case in listed("prompt_cases"):
        templates, word = TEMPLATES[: case["n_templates"]], domain_words[case["dataset"]]
        assert class_prompts(case["classes"], word, templates) == case["class_prompts"]
        generated = [generation_prompts(name, word, templates, case["n_images"]) for name in case["classes"]]
        assert generated == case["generation_prompts"]


def test_shards_match_golden():
    for case in listed("shard_cases"):
        ranges = [list(shard_range(case["n"], case["n_shards"], shard)) for shard in range(case["n_shards"])]
        assert ranges == case["ranges"]


def test_natural_order_matches_golden():
    assert natural_sort(listed("natural_in")) == listed("natural_out")


def test_shots_match_golden():
    for case in listed("few_shot_cases"):
        assert sample_k_shot(case["labels"], case["n_shot"], case["seed"]) == case["selected"]


def test_repeats_match_golden():
    for n_images, n_shot, repeats in GOLDEN["pool_repeats"].tolist():
        assert pool_repeats(n_images, n_shot) == repeats


def test_schedules_match_golden():
    for index, (base, final, *counts, start) in enumerate(GOLDEN["sched_configs"].tolist()):
        epochs, steps_per_epoch, warmup_epochs = (int(count) for count in counts)
        rates = warmup_cosine(base, final, epochs, steps_per_epoch, warmup_epochs, start)
        np.testing.assert_allclose(rates, GOLDEN[f"sched_{index}"], rtol=1e-10)
    for index, (base, warmup, total) in enumerate(GOLDEN["diff_sched_configs"].tolist()):
        rates = diffusion_warmup_cosine(base, int(warmup), int(total))
        np.testing.assert_allclose(rates, GOLDEN[f"diff_sched_{index}"], rtol=1e-10)


def test_accuracies_match_golden():
    logits, labels = torch.from_numpy(GOLDEN["loss_logits"]), torch.from_numpy(GOLDEN["loss_labels"])
    got = [topk_accuracy(logits, labels, k) for k in (1, 3)]
    np.testing.assert_allclose(got, GOLDEN["acc_top1_top3"], rtol=1e-5)  # computed there in float32
    np.testing.assert_allclose(per_class_accuracy(logits, labels), GOLDEN["acc_per_class"], rtol=1e-5)


# --- prompts and shards ---


def test_the_default_prompt_of_a_class():
    assert class_prompts(["Forest", "F-16A/B"], "satellite ", TEMPLATES[:1]) == [
        ["a satellite photo of a Forest"],
        ["a satellite photo of a F-16A/B"],
    ]
    assert generation_prompts("tench {", "", TEMPLATES[:2], 3) == [
        "a photo of a tench {",
        "a rendering of a tench {",
        "a photo of a tench {",
    ]


@given(n_items=st.integers(0, 300), n_shards=st.integers(1, 40))
@UNHURRIED
def test_shards_cover_each_item_once_and_in_order(n_items, n_shards):
    ranges = [range(*shard_range(n_items, n_shards, shard)) for shard in range(n_shards)]
    assert list(itertools.chain(*ranges)) == list(range(n_items))
    assert len({len(part) for part in ranges[:-1]}) <= 1
    assert all(len(part) <= len(ranges[-1]) for part in ranges)


def test_bad_prompts_are_refused():
    for templates in (["a photo of a {}"], ["{} {} {}"], ["{0}photo of {1}"], ["{}photo of {} {x}"], ["}{}{}"]):
        with pytest.raises(ValueError, match="a template must have exactly two slots"):
            class_prompts(["tench"], "", templates)
        with pytest.raises(ValueError, match="a template must have exactly two slots"):
            generation_prompts("tench", "", templates, 1)
    for names, templates in (([], TEMPLATES), ("tench", TEMPLATES), (["tench"], []), (["tench"], TEMPLATES[0])):
        with pytest.raises(ValueError, match="must be a list with at least one text"):
            class_prompts(names, "", templates)
    with pytest.raises(ValueError, match="templates must be a list with at least one text"):
        generation_prompts("tench", "", [], 1)
    with pytest.raises(ValueError, match="n_images must be at least 1, got 0"):
        generation_prompts("tench", "", TEMPLATES, 0)


def test_bad_shards_are_refused():
    for shard in (-1, 3):
        with pytest.raises(ValueError, match=rf"shard must lie in 0\.\.2, got {shard}"):
            shard_range(10, 3, shard)
    with pytest.raises(ValueError, match="n_shards must be at least 1, got 0"):
        shard_range(10, 0, 0)
    with pytest.raises(ValueError, match="n_items must be at least 0, got -1"):
        shard_range(-1, 1, 0)


# --- shots ---


@given(names=st.permutations(["img1.png", "img2.png", "img10.png", "img10b.png", "b", "10", "9"]))
@UNHURRIED
def test_natural_order_does_not_depend_on_the_order_given(names):
    assert natural_sort(names) == ["9", "10", "b", "img1.png", "img2.png", "img10.png", "img10b.png"]


def test_equal_numbers_keep_their_order():
    assert natural_sort(["a02", "a2", "a002", "a1"]) == ["a1", "a02", "a2", "a002"]


@given(labels=LABELS, n_shot=st.integers(1, 4), seed=st.integers(0, 99))
@UNHURRIED
def test_the_draw_has_n_different_shots_of_every_class(labels, n_shot, seed):
    order = list(dict.fromkeys(labels))
    if min(labels.count(label) for label in order) < n_shot:
        with pytest.raises(ValueError, match=f"every class needs at least {n_shot} samples"):
            sample_k_shot(labels, n_shot, seed)
        return
    selected = sample_k_shot(labels, n_shot, seed)
    assert len(set(selected)) == len(selected)
    assert [labels[index] for index in selected] == [label for label in order for _ in range(n_shot)]
    state = random.getstate()
    assert sample_k_shot(np.array(labels), n_shot, seed) == selected
    assert random.getstate() == state  # a generator of its own


def test_another_seed_draws_others():
    labels = [0, 1] * 50
    assert sample_k_shot(labels, 16, 1) != sample_k_shot(labels, 16, 5)


def test_bad_draws_are_refused():
    with pytest.raises(ValueError, match="3 shots, but class 7 has 2 and 1 more have too few"):
        sample_k_shot([5, 5, 5, 7, 7, 8], 3, 0)
    with pytest.raises(ValueError, match="n_shot must be at least 1, got 0"):
        sample_k_shot([0], 0, 0)
    with pytest.raises(ValueError, match="labels must hold at least one sample"):
        sample_k_shot([], 1, 0)


def test_a_pool_without_real_images_is_a_warning():
    with pytest.warns(UserWarning, match="3 synthetic images of a class are fewer than 4 shots"):
        assert pool_repeats(3, 4) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert pool_repeats(4, 4) == 1
    with pytest.raises(ValueError, match="n_shot must be at least 1, got 0"):
        pool_repeats(4, 0)
    with pytest.raises(ValueError, match="n_images must be at least 0, got -1"):
        pool_repeats(-1, 4)


# --- schedules ---


def test_ends_of_the_classifiers_schedule():
    rates = warmup_cosine(1e-3, 1e-5, epochs=5, steps_per_epoch=10, warmup_epochs=2, start=1e-6)
    assert rates.shape == (50,)
    assert rates[0] == 1e-6
    assert rates[19] == rates[20] == 1e-3  # the rise includes its end, the fall begins at it
    assert rates[35] == pytest.approx((1e-3 + 1e-5) / 2)  # half of the fall
    assert 1e-5 < rates[-1] < 2e-5
    assert (np.diff(rates[:20]) > 0).all()
    assert (np.diff(rates[20:]) < 0).all()


def test_training_may_be_all_warmup_or_none():
    np.testing.assert_allclose(warmup_cosine(4.0, 0.0, 2, 2, 2, 1.0), [1, 2, 3, 4])
    assert warmup_cosine(4.0, 0.0, 2, 2, 0, 1.0)[0] == 4


def test_ends_of_the_diffusion_models_schedule():
    rates = diffusion_warmup_cosine(2.0, warmup_steps=4, total_steps=12)
    np.testing.assert_allclose(rates[:5], [0, 0.5, 1, 1.5, 2])
    assert rates[8] == pytest.approx(1)
    assert rates[-1] == pytest.approx(1 + math.cos(math.pi * 7 / 8))
    assert diffusion_warmup_cosine(2.0, 0, 3)[0] == 2
    np.testing.assert_allclose(diffusion_warmup_cosine(2.0, 10, 4), [0, 0.2, 0.4, 0.6])  # cut off while it rises


@given(warmup=st.integers(0, 20), total=st.integers(1, 60), base=st.floats(0, 1))
@UNHURRIED
def test_rates_stay_between_0_and_the_highest(warmup, total, base):
    rates = diffusion_warmup_cosine(base, warmup, total)
    assert rates.shape == (total,)
    assert (rates >= 0).all()
    assert (rates <= base).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warmup_epochs": 6}, r"warmup_epochs must lie in 0\.\.5, the number of epochs, got 6"),
        ({"warmup_epochs": -1}, "warmup_epochs must lie in"),
        ({"epochs": 0}, "epochs and steps_per_epoch must be at least 1"),
        ({"steps_per_epoch": 0}, "epochs and steps_per_epoch must be at least 1"),
        ({"base": -1.0}, "base must be a finite rate of at least 0, got -1"),
        ({"final": math.inf}, "final must be a finite rate of at least 0, got inf"),
        ({"start": math.nan}, "start must be a finite rate of at least 0, got nan"),
    ],
)
def test_bad_schedules_are_refused(change, message):
    good = {"base": 1.0, "final": 0.0, "epochs": 5, "steps_per_epoch": 2, "warmup_epochs": 1, "start": 0.0}
    with pytest.raises(ValueError, match=message):
        warmup_cosine(**(good | change))


def test_bad_diffusion_schedules_are_refused():
    for warmup, total in ((-1, 5), (1, 0)):
        with pytest.raises(ValueError, match="warmup_steps must be at least 0 and total_steps at least 1"):
            diffusion_warmup_cosine(1.0, warmup, total)
    with pytest.raises(ValueError, match="base_lr must be a finite rate"):
        diffusion_warmup_cosine(-1.0, 1, 5)


# --- accuracy ---

SCORES = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [0.0, 5.0, 1.0]])


def test_accuracy_by_hand():
    labels = torch.tensor([0, 1, 0, 1])
    assert [topk_accuracy(SCORES, labels, k) for k in (1, 2, 3)] == [50.0, 75.0, 100.0]
    torch.testing.assert_close(per_class_accuracy(SCORES, labels), torch.tensor([50.0, 50.0, math.nan]), equal_nan=True)


@given(seed=st.integers(0, 999), num_classes=st.integers(1, 6))
@UNHURRIED
def test_accuracy_grows_with_k_and_averages_its_classes(seed, num_classes):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(20, num_classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(num_classes, (20,), generator=generator)
    accuracies = [topk_accuracy(logits, labels, k) for k in range(1, num_classes + 1)]
    assert accuracies == sorted(accuracies)
    assert accuracies[-1] == 100
    shares = labels.bincount(minlength=num_classes) / 20
    weighted = (per_class_accuracy(logits, labels).nan_to_num() * shares).sum().item()
    assert weighted == pytest.approx(accuracies[0])


def test_bad_accuracies_are_refused():
    labels = torch.tensor([0, 1, 0, 1])
    for k in (0, 4):
        with pytest.raises(ValueError, match=rf"k must lie in 1\.\.3, the number of classes, got {k}"):
            topk_accuracy(SCORES, labels, k)
    for measure in (per_class_accuracy, lambda logits, labels: topk_accuracy(logits, labels, 1)):
        with pytest.raises(ValueError, match="not empty"):
            measure(SCORES[:0], labels[:0])
        with pytest.raises(ValueError, match=r"labels must be integer \(4,\)"):
            measure(SCORES, labels[:3])
        with pytest.raises(ValueError, match=r"labels must be integer \(4,\), got torch.float32"):
            measure(SCORES, labels.float())
        with pytest.raises(ValueError, match=r"labels must lie in 0\.\.2, got 0\.\.3"):
            measure(SCORES, torch.tensor([0, 1, 0, 3]))


# --- the room ---


def test_the_nameplate_names_what_the_specification_asks_for():
    assert set(room.__all__) == {
        *("class_prompts", "generation_prompts", "shard_range", "natural_sort", "sample_k_shot", "pool_repeats"),
        *("warmup_cosine", "diffusion_warmup_cosine", "LoRALinear", "LoRAQKV", "LoRAMultiheadAttention"),
        *("text_prototypes", "clip_logits", "real_synth_cross_entropy", "mixup", "cutmix", "mix_by_domain"),
        *("add_noise", "velocity", "diffusion_loss", "guided", "ddim_step", "topk_accuracy", "per_class_accuracy"),
    }
    assert all(callable(getattr(room, name)) for name in room.__all__)


def test_the_maths_needs_no_machinery():
    code = (
        "import sys, tenfold.methods.datadream; "
        "print([name for name in ('ray', 'mlflow', 'hydra', 'diffusers', 'open_clip', 'peft') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_golden_vector_is_used():
    prefixes = {name.split("_")[0] for name in GOLDEN.files}
    here = {"meta", "templates", "domain", "prompt", "shard", "natural", "few", "pool", "sched", "acc"}
    training = {"head", "loss", "mix", "mixup", "cutmix", "diff", "alphas", "cfg", "ddim"}  # test_datadream_training.py
    adapters = {"lin", "qkv", "mha"}  # models/test_lora.py
    assert prefixes == here | training | adapters
