"""WaffleCLIP's prompt sets: the random stream, laws of the modes, refusals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.methods.waffleclip import (
    DescriptorShape,
    build_prompt,
    build_prompt_sets,
    character_pool,
    concept_prefix,
    descriptor_shape,
)
from tenfold.methods.waffleclip.prompt_modes import MODES
from tenfold.methods.waffleclip.prompt_sets import distinct_prompts
from tenfold.methods.waffleclip.prompts import fill_template
from tenfold.methods.waffleclip.random_text import RandomText, first_of_permutations, skip_permutations
from tenfold.methods.waffleclip.templates import imagenet_templates
from tests.benchmarks.bench_prompt_sets import NUM_PAIRS, made_up_data, straightforward_waffle

FEW = settings(max_examples=30)
SEEDS = st.integers(0, 2**32 - 1)

PLANTS = {
    "red_rose": ["a thorny stem", "has red petals", "grows in hedges"],
    "oak": ["acorns", "lobed leaves"],
    "water lily": [],
}
WORDS = ["", "moss", "stone", "river-bed", "cloud", "amber", "lantern"]
SHARED = ("waffle", "waffle_characters", "shared_random_descriptions", "shared_random_description_words")


def build(mode, descriptors=PLANTS, *, seed=0, n_pairs=4, **options):
    if mode == "context_prompt_ensemble":
        options.setdefault("prefix", concept_prefix("plant"))
    if mode == "sentences":
        descriptors = {name: own or ["A lily."] for name, own in descriptors.items()}
    return build_prompt_sets(mode, descriptors, WORDS, seed=seed, n_pairs=n_pairs, **options)


# The random stream


def state_of(rs):
    _, key, position, *_ = rs.get_state()
    return key.tobytes(), position


@given(st.one_of(st.integers(1, 70), st.integers(250, 270), st.just(4330)), st.integers(0, 40), SEEDS)
@FEW
def test_index_draws_are_those_of_choice(length, count, seed):
    plain, ours, skipped = (np.random.RandomState(seed) for _ in range(3))
    expected = [plain.choice(length, 1, replace=False)[0] for _ in range(count)]
    assert first_of_permutations(ours, length, count).tolist() == expected
    skip_permutations(skipped, length, count)
    assert state_of(plain) == state_of(ours) == state_of(skipped)


@pytest.mark.parametrize(("mode", "words"), [("waffle", True), ("waffle_characters", False)])
@pytest.mark.parametrize("seed", [0, 1, 6])
def test_waffle_is_the_straightforward_way(mode, words, seed):
    descriptors, vocabulary = made_up_data(7, num_words=300)
    expected = straightforward_waffle(descriptors, vocabulary, seed, words=words, prefix="An image of a ")
    prompts = build_prompt_sets(mode, descriptors, vocabulary, seed=seed, n_pairs=NUM_PAIRS, prefix="An image of a ")
    assert list(prompts.items()) == list(expected.items())


@given(SEEDS, st.integers(1, 5), st.integers(1, 3), st.booleans())
@FEW
def test_shared_list_is_one_of_those_drawn_for_every_class(seed, num_classes, count, words):
    shape = DescriptorShape(n_words=2, word_len=4, groups=2, group_len=3)
    plain, ours = np.random.RandomState(seed), np.random.RandomState(seed)
    text = RandomText(plain, WORDS, "abcxyz", shape)
    lists = [text.descriptors(count, words=words) for _ in range(num_classes)]
    expected = lists[plain.choice(num_classes)]
    for _ in range(2):  # the second time it is remembered
        ours.seed(seed)
        assert RandomText(ours, WORDS, "abcxyz", shape).shared_descriptors(num_classes, count, words=words) == expected
        assert state_of(ours) == state_of(plain)


@pytest.mark.parametrize("mode", MODES)
def test_same_seed_same_prompts(mode):
    first = build(mode, seed=3)
    build(mode, seed=4)
    assert build(mode, seed=3) == first


@pytest.mark.parametrize("mode", sorted(set(MODES) - {"clip", "gpt_descriptions", "sentences", "swapped_descriptions"}))
def test_other_seed_other_prompts(mode):
    assert build(mode, seed=3) != build(mode, seed=4)


def test_prompts_do_not_touch_numpys_global_stream():
    before = state_of(np.random.mtrand._rand)
    build("waffle_and_gpt")
    assert state_of(np.random.mtrand._rand) == before


# Laws of the modes

# Six descriptors with the empty one, three classes: two on average.
COUNTS = {
    "clip": 1,
    "waffle": 8,
    "waffle_characters": 4,
    "adaptive_randomness": 8,
    "adaptive_random_characters": 4,
    "waffle_and_gpt": 6,  # two pairs of each kind, three quarters of eight
    "adaptive_randomness_and_gpt_descriptions": 6,
    "random_descriptions": 6,
    "shared_random_descriptions": 6,
    "random_description_words": 6,
    "shared_random_description_words": 6,
    "prompt_ensemble": 8,
    "context_prompt_ensemble": 8,
    "gpt_descriptions_and_prompt_ensemble": 8,
    "waffle_and_prompt_ensemble": 8,
}


@pytest.mark.parametrize("mode", COUNTS)
def test_number_of_prompts(mode):
    prompts = build(mode, budget=3)
    assert list(prompts) == list(PLANTS)
    assert {len(own) for own in prompts.values()} == {COUNTS[mode]}


def test_a_budget_beyond_the_pool():
    # Without replacement no class can get more than the pool holds, with it a shared list can.
    assert {len(own) for own in build("random_descriptions", budget=9).values()} == {6}
    assert {len(own) for own in build("shared_random_descriptions", budget=9).values()} == {18}


def after_name(prompts, prefix="A photo of a "):
    """Text after the class name of each prompt."""
    tails = {}
    for name, own in prompts.items():
        head = prefix + name.replace("_", " ")
        assert all(prompt.startswith(head) for prompt in own)
        tails[name] = [prompt.removeprefix(head) for prompt in own]
    return tails


def descriptors_of(prompts):
    """The descriptors of prompts that were built without a phrase."""
    tails = after_name(prompts)
    return {name: [tail.removeprefix(", ").removesuffix(".") for tail in own] for name, own in tails.items()}


@pytest.mark.parametrize("mode", SHARED)
@given(SEEDS)
@FEW
def test_shared_lists_differ_in_the_class_name_only(mode, seed):
    lists = list(after_name(build(mode, seed=seed)).values())
    assert lists[0] == lists[1] == lists[2]


@pytest.mark.parametrize("mode", ["adaptive_randomness", "adaptive_random_characters"])
def test_adaptive_lists_differ_between_classes(mode):
    first, second, third = after_name(build(mode)).values()
    assert set(first).isdisjoint(second)
    assert set(second).isdisjoint(third)


def test_words_and_characters_take_turns():
    shape = descriptor_shape(list(PLANTS))
    pool = {word[: shape.word_len] for word in WORDS}
    letters = set(character_pool(PLANTS))
    texts = descriptors_of(build("waffle", phrase=False))["oak"]
    for words, characters in zip(texts[::2], texts[1::2], strict=True):
        assert len(words.split(" ")) == shape.n_words
        assert set(words.split(" ")) <= pool
        blocks = characters.split(", ")
        assert [len(block) for block in blocks] == [shape.group_len] * shape.groups
        assert set("".join(blocks)) <= letters


@pytest.mark.parametrize("mode", [*SHARED, "waffle_and_gpt", "adaptive_randomness"])
def test_a_class_name_elsewhere_in_the_prompt_stays(mode):
    """The names are words of prefix, concept and vocabulary: text replaced in finished prompts would change those."""
    descriptors = {"photo": ["a photo"], "bird": ["a bird"], "a": ["a thing"]}
    words = ["photo", "bird", "a"]
    prefix = concept_prefix("bird")
    for seed in range(5):
        prompts = build_prompt_sets(mode, descriptors, words, seed=seed, n_pairs=3, prefix=prefix)
        tails = after_name(prompts, prefix)
        assert all(tail.startswith(", which ") for own in tails.values() for tail in own)
        if mode in SHARED:
            assert tails["photo"] == tails["bird"] == tails["a"]


def test_a_prompt_is_built_from_its_descriptor():
    prompts = build("gpt_descriptions", pre="See: ", separator=" - ", suffix="!")
    for name, own in PLANTS.items():
        expected = [build_prompt(name, text, pre="See: ", separator=" - ", suffix="!") for text in own or [""]]
        assert prompts[name] == expected


def test_swapped_descriptions_are_a_permutation_of_lists():
    lists = {tuple(own) for own in after_name(build("gpt_descriptions")).values()}
    swapped = [tuple(own) for own in after_name(build("swapped_descriptions")).values()]
    assert set(swapped) == lists
    assert len(swapped) == len(set(swapped))


def test_scrambled_descriptions_keep_words_and_lengths():
    texts = descriptors_of(
        build("scrambled_descriptions", {"oak": ["a. b", "c", "a d e"], "elm": ["x y"]}, phrase=False)
    )
    texts = {name: [text.split(" ") for text in own] for name, own in texts.items()}
    assert [len(words) for words in texts["oak"]] == [2, 1, 3]
    assert {word for words in texts["oak"] for word in words} <= set("abcde")
    assert {word for words in texts["elm"] for word in words} <= set("xy")


def test_mixed_modes_draw_from_own_and_random_descriptors():
    own = set(after_name(build("gpt_descriptions"))["oak"])
    for mode in ("waffle_and_gpt", "adaptive_randomness_and_gpt_descriptions"):
        tails = after_name(build(mode, n_pairs=15))["oak"]
        # Of ten pairs of each kind three quarters are drawn: at least ten of either kind.
        assert len(tails) == 30
        assert sum(tail in own for tail in tails) >= 10
        assert sum(tail not in own for tail in tails) >= 10


def test_template_modes_use_the_same_sorted_templates_for_all_classes():
    prompts = build("prompt_ensemble")
    templates = [text.replace("oak.", "{}") for text in prompts["oak"]]
    places = [imagenet_templates().index(template) for template in templates]
    assert places == sorted(places)
    assert prompts["red_rose"] == [fill_template(template, "red rose") + "." for template in templates]
    in_context = build("context_prompt_ensemble", prefix="A photo of a garden plant: a ")
    assert in_context["oak"] == [fill_template(template, "garden plant: a oak") + "." for template in templates]


def test_sentences_are_used_as_they_are():
    given = {"red_fox": ["A fox!", "Red_fox in snow"], "oak": ["An oak."]}
    assert build_prompt_sets("sentences", given, [], seed=0, prefix="not used", suffix="?") == given


@pytest.mark.parametrize("mode", ["clip", "gpt_descriptions"])
def test_order_of_classes_changes_no_prompt_of_modes_without_randomness(mode):
    backwards = dict(reversed(PLANTS.items()))
    assert build(mode, backwards) == build(mode)
    assert list(build(mode, backwards)) == list(backwards)


@pytest.mark.parametrize("mode", MODES)
def test_case_insensitive_order_is_applied_to_finished_prompts(mode):
    descriptors = {"Zebra": ["stripes", "hooves"], "ant": ["six legs"], "Bee": ["two wings", "a sting"]}
    plain = build(mode, descriptors)
    ordered = build(mode, descriptors, sort_case_insensitive=True)
    assert list(plain) == ["Zebra", "ant", "Bee"]
    assert list(ordered) == ["ant", "Bee", "Zebra"]
    assert ordered == plain


@given(SEEDS)
@FEW
def test_distinct_prompts_keep_every_prompt(seed):
    sets = [build("shared_random_descriptions", seed=seed, budget=3), build("clip"), build("clip", seed=1)]
    texts, rows, counts = distinct_prompts(sets)
    assert len(texts) == len(set(texts))
    lists = [own for prompts in sets for own in prompts.values()]
    assert counts == [len(own) for own in lists]
    assert [texts[row] for row in rows] == [text for own in lists for text in own]


# Refusals


@pytest.mark.parametrize(
    ("mode", "descriptors", "options", "message"),
    [
        ("waffles", PLANTS, {}, "mode must be one of clip, .*got 'waffles'"),
        ("shared_random_characters", PLANTS, {}, "mode must be one of"),
        ("clip", {}, {}, "at least one class, got none"),
        ("clip", {"oak": [], "": []}, {}, "class names must not be blank, got ''"),
        ("waffle", PLANTS, {"n_pairs": 0}, "n_pairs must be at least 1 .*, got 0"),
        ("waffle_and_gpt", PLANTS, {"n_pairs": 1}, "n_pairs must be at least 2 with mode 'waffle_and_gpt', got 1"),
        ("adaptive_randomness_and_gpt_descriptions", PLANTS, {"n_pairs": 1}, "n_pairs must be at least 2"),
        ("random_descriptions", PLANTS, {"budget": 0}, "budget must be at least 1, got 0"),
        ("waffle", PLANTS, {"seed": -1}, "seed must be at least 0, got -1"),
        ("waffle", {"oak": []}, {}, "descriptors must hold some characters"),
        ("sentences", PLANTS, {}, "at least one sentence .*got none for 'water lily'"),
        ("context_prompt_ensemble", PLANTS, {}, "prefix must hold a concept.*got 'A photo of a '"),
        ("context_prompt_ensemble", PLANTS, {"prefix": "A photo of a : a "}, "prefix must hold a concept"),
        ("context_prompt_ensemble", PLANTS, {"prefix": "A bird: a "}, "prefix must hold a concept"),
    ],
)
def test_prompt_sets_refuse(mode, descriptors, options, message):
    with pytest.raises(ValueError, match=message):
        build_prompt_sets(mode, descriptors, WORDS, **{"seed": 0, **options})


@pytest.mark.parametrize("mode", ["waffle", "adaptive_randomness", "waffle_and_gpt", "waffle_and_prompt_ensemble"])
def test_random_words_need_a_vocabulary(mode):
    with pytest.raises(ValueError, match="vocabulary must hold words to draw from, got an empty list"):
        build_prompt_sets(mode, PLANTS, [], seed=0)
