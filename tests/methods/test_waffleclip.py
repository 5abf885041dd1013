"""WaffleCLIP texts: published values, prompts, vocabularies and concepts by hand, refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tenfold.methods.waffleclip as room
from tenfold.methods.waffleclip import (
    DescriptorShape,
    build_prompt,
    build_prompt_sets,
    build_vocabulary,
    character_pool,
    concept_prefix,
    concept_subset,
    descriptor_phrase,
    descriptor_shape,
    parse_concept,
    parse_descriptors,
)
from tenfold.methods.waffleclip.prompt_modes import MODES
from tenfold.methods.waffleclip.prompts import fill_template
from tenfold.methods.waffleclip.templates import imagenet_templates

# The descriptor lists in it belong to others, so it stands beside the repository and not inside.
GOLDEN_FILE = Path(__file__).parents[3] / "shared/golden/waffleclip.npz"
with_golden = pytest.mark.skipif(not GOLDEN_FILE.exists(), reason=f"the published values are not at {GOLDEN_FILE}")
FEW = settings(max_examples=30)
SEEDS = st.integers(0, 2**32 - 1)


def golden(key):
    with np.load(GOLDEN_FILE, allow_pickle=False) as arrays:
        array = arrays[key]
    return json.loads(str(array)) if array.dtype.kind == "U" else array


# Published values


def golden_cases():
    return golden("cases") if GOLDEN_FILE.exists() else []


@with_golden
def test_every_published_mode_is_among_the_golden_cases():
    assert {case["mode"] for case in golden_cases()} == set(MODES) - {"sentences"}


@with_golden
@pytest.mark.parametrize("case", golden_cases(), ids=lambda case: f"{case['key']}-{case['mode']}")
def test_prompt_sets_match_golden(case):
    dataset, mode, key = case["dataset"], case["mode"], case["key"]
    options = {name: value for name, value in case.items() if name not in ("dataset", "mode", "key")}
    prompts = build_prompt_sets(
        mode,
        golden("descriptors")[dataset],
        golden("word_list"),
        sort_case_insensitive=dataset == "pets",
        **options,
    )
    assert list(prompts.items()) == list(golden(key).items())


@with_golden
def test_vocabulary_pools_and_shapes_match_golden():
    descriptors = golden("descriptors")
    assert build_vocabulary(list(descriptors.values())) == golden("vocabulary")
    assert {name: character_pool(given) for name, given in descriptors.items()} == golden("character_pools")
    shapes = {name: descriptor_shape(list(given)) for name, given in descriptors.items()}
    assert shapes == {name: DescriptorShape(*numbers) for name, numbers in golden("shape_stats").items()}


@with_golden
def test_phrases_and_answers_match_golden():
    assert [descriptor_phrase(text) for text in golden("phrase_in")] == golden("phrase_out")
    assert [parse_concept(text) for text in golden("concept_raw")] == golden("concept_parsed")
    assert [parse_descriptors(text) for text in golden("completion_raw")] == golden("completion_parsed")
    seed = golden("meta")["seed"]
    subsets = {name: concept_subset(list(given), seed=seed) for name, given in golden("descriptors").items()}
    assert subsets == golden("concept_subset")


# Prompts by hand


@pytest.mark.parametrize(
    ("descriptor", "expected"),
    [
        ("a round shape", "which is a round shape"),
        ("annual rings", "which is annual rings"),
        ("has legs", "which has legs"),
        ("hasty", "which hasty"),
        ("often wet", "which often wet"),
        ("typically wet", "which typically wet"),
        ("may sting", "which may sting"),
        ("canine", "which canine"),
        ("used in pans", "which is used in pans"),
        ("A round shape", "which has A round shape"),
        ("", "which has "),
    ],
)
def test_descriptor_phrase(descriptor, expected):
    assert descriptor_phrase(descriptor) == expected


@pytest.mark.parametrize(
    ("descriptor", "options", "expected"),
    [
        (None, {}, "A photo of a red fox."),
        (None, {"pre": "Look: "}, "A photo of a red fox."),
        ("four legs", {}, "A photo of a red fox, which has four legs."),
        ("", {}, "A photo of a red fox, which has ."),
        ("four legs", {"pre": "Look: ", "separator": " - "}, "Look: A photo of a red fox - which has four legs."),
        ("four legs", {"suffix": "!"}, "A photo of a red fox, which has four legs!"),
        ("four legs", {"phrase": False}, "A photo of a red fox, four legs."),
        ("four legs", {"template": "Art of the {}"}, "Art of the red fox, which has four legs."),
        (None, {"template": "Art of the {}", "prefix": "not used "}, "Art of the red fox."),
    ],
)  # fmt: skip
def test_build_prompt(descriptor, options, expected):
    assert build_prompt("red_fox", descriptor, **options) == expected


def test_braces_in_a_class_name_are_no_slots():
    assert build_prompt("{} and {0}", None, template="Art of the {}") == "Art of the {} and {0}."


@pytest.mark.parametrize("template", ["no slot", "{} and {}", "a {name}"])
def test_template_without_one_slot_is_refused(template):
    with pytest.raises(ValueError, match=r"exactly one slot .*got '"):
        build_prompt("fox", "fur", template=template)


def test_imagenet_templates_are_the_published_ones_without_full_stop():
    templates = imagenet_templates()
    assert len(templates) == 80
    assert templates[0] == "A bad photo of a {}"
    assert templates[-1] == "A tattoo of the {}"
    assert "Itap of my {}" in templates
    for template in templates:
        assert fill_template(template, "fox").count("fox") == 1
        assert not template.endswith(".")
        assert template[0].isupper()


def test_concept_prefix():
    assert concept_prefix(None) == "A photo of a "
    assert concept_prefix("land use") == "A photo of a land use: a "
    # A language model that sees nothing in common answers with nothing.
    assert concept_prefix(parse_concept("?\n")) == concept_prefix(None)
    assert concept_prefix(parse_concept(" Birds.\n")) == "A photo of a bird: a "


def test_parsers():
    assert parse_concept("Types\nof glass?") == "typesof glas"
    assert parse_concept("") == ""
    assert parse_descriptors("Answer:\n- two wings\r\n-none\n - none\n- - a dash") == ["two wings", "- a dash"]


@given(st.lists(st.text(min_size=1), min_size=1, max_size=40, unique=True), st.integers(1, 40), SEEDS)
@FEW
def test_concept_subset_is_distinct_names_and_repeatable(names, limit, seed):
    subset = concept_subset(names, limit, seed)
    assert len(subset) == len(set(subset)) == min(limit, len(names))
    assert set(subset) <= set(names)
    assert subset == concept_subset(names, limit, seed)


@pytest.mark.parametrize(
    ("names", "limit", "message"), [([], 25, "class_names must hold"), (["a"], 0, "at least 1, got 0")]
)
def test_concept_subset_refuses(names, limit, message):
    with pytest.raises(ValueError, match=message):
        concept_subset(names, limit)


# Vocabulary and shapes by hand


def test_vocabulary_rule():
    trees = {"oak": ["Lobed leaves.", "acorns, (small)"], "elm": []}
    animals = {"fox": ['a "red"  coat', "leaves", "e.g. red-brown"]}
    # Two spaces in a row leave an empty word; "red" comes before "red-brown".
    expected = ["", "a", "acorns", "coat", "eg", "leaves", "lobed", "red", "red-brown", "small"]
    assert build_vocabulary([trees, animals]) == expected
    assert build_vocabulary([]) == build_vocabulary([{"oak": []}]) == []
    assert build_vocabulary([{"oak": [""]}]) == [""]


def test_character_pool():
    assert character_pool({"oak": ["Lobed, 3 cm."], "elm": []}) == "3Lbcdemo"
    assert character_pool({"oak": []}) == ""


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        # 1.5 words round to 2, 3.25 letters to 3; the raw keys hold no space and 5.5 characters, 6, and one more.
        (["oak", "rose_bay"], DescriptorShape(2, 3, 1, 7)),
        (["oak", "elm"], DescriptorShape(1, 3, 1, 4)),
        # 4.5 letters round to the even 4; longest parts of 5 and 6 make 6, the next multiple of two blocks above is 8.
        (["water lily", "flower bed"], DescriptorShape(2, 4, 2, 4)),
        (["a b c"], DescriptorShape(3, 1, 3, 1)),
    ],
)
def test_descriptor_shape(names, expected):
    assert descriptor_shape(names) == expected


@given(st.lists(st.text("ab _", min_size=1).filter(lambda name: name.strip(" _")), min_size=1, max_size=6))
@FEW
def test_descriptor_shape_leaves_room_for_something(names):
    shape = descriptor_shape(names)
    assert shape.n_words >= 1
    assert shape.groups >= 1
    longest = np.mean([max(len(part) for part in name.split(" ")) for name in names])
    assert longest < shape.groups * shape.group_len <= longest + 1 + shape.groups


@pytest.mark.parametrize(
    ("names", "message"), [([], "an empty list"), (["oak", ""], "got '' at index 1"), (["_"], "got '_' at index 0")]
)
def test_descriptor_shape_refuses(names, message):
    with pytest.raises(ValueError, match=message):
        descriptor_shape(names)


@pytest.mark.parametrize(
    "call",
    [
        lambda given: build_vocabulary([given]),
        character_pool,
        lambda given: build_prompt_sets("clip", given, [], seed=0),
    ],
)
def test_a_string_in_place_of_a_list_is_refused(call):
    with pytest.raises(ValueError, match="descriptors of class 'oak' must be a list of texts, got the string 'acorns'"):
        call({"elm": ["wings"], "oak": "acorns"})


# The nameplate


def test_nameplate_offers_the_public_functions():
    assert set(room.__all__) == {
        "DescriptorShape", "build_prompt", "build_prompt_sets", "build_vocabulary", "character_pool", "class_scores",
        "concept_prefix", "concept_subset", "descriptor_phrase", "descriptor_shape", "parse_concept",
        "parse_descriptors", "prototypes", "summarise", "topk_accuracy",
    }  # fmt: skip
