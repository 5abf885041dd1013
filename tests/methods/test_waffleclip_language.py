"""Prompts to a language model, cached answers, files that grow class by class; a GPT-2 of three thousand weights."""

import json
from pathlib import Path

import pytest
import torch

from tenfold.data.descriptors import read_descriptors
from tenfold.methods.waffleclip import language
from tenfold.methods.waffleclip.language import (
    CachedAnswers,
    TransformersModel,
    ask_concept,
    ask_descriptors,
    concept_prompt,
    descriptor_prompt,
    fill_concept,
    fill_descriptors,
)
from tenfold.methods.waffleclip.text_files import read_names


class Scripted:
    """Answers by the last words of the prompt, and counts."""

    name = "scripted"

    def __init__(self, answers: dict[str, str]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, float, int]] = []

    def complete(self, prompt: str, *, temperature: float, max_tokens: int) -> str:
        self.asked.append((prompt, temperature, max_tokens))
        return next(text for key, text in self.answers.items() if key in prompt.rsplit("\n\n", 1)[-1])


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal language model in the library's format, with random weights and a tokenizer of single bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("gpt2")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: at for at, token in enumerate(["<end>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=257, n_positions=2048, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_the_question_follows_two_worked_examples():
    prompt = descriptor_prompt("pig_pen")
    assert prompt.count("Question:") == 3
    assert prompt.endswith("in a photo can be told by:\n")
    assert "pig pen" in prompt.rsplit("Question:", 1)[1]
    assert "pig_pen" not in prompt
    assert all(line.startswith("- ") for line in prompt.split("told by:\n")[1].split("\n\n")[0].splitlines())


def test_the_concept_is_asked_of_at_most_25_names_and_always_the_same_ones():
    names = [f"item_{number}" for number in range(60)]
    prompt = concept_prompt(names)
    assert prompt.count("item ") == 25
    assert prompt == concept_prompt(names)
    assert prompt.endswith("They are all")


def test_descriptors_are_the_dash_list_before_the_model_goes_on_by_itself():
    model = Scripted({"fox": "- red fur\n- a bushy tail\n\nQuestion: By which?\nAnswer: a cat:\n- whiskers\n"})
    assert ask_descriptors(model, "fox") == ["red fur", "a bushy tail"]
    assert model.asked[0][1:] == (0.7, 100)


@pytest.mark.parametrize(
    ("answer", "concept"),
    [(" birds.\nQuestion: more", "bird"), (" Land uses", "land use"), ("", None), (" nothing.", None)],
)
def test_a_concept_is_a_word_or_nothing(answer, concept):
    model = Scripted({"names": answer})
    assert ask_concept(model, ["a", "b"]) == concept
    assert model.asked[0][1:] == (0.0, 300)


def test_kept_answers_are_not_asked_for_again_and_a_miss_without_a_model_is_refused(tmp_path):
    path = tmp_path / "answers.json"
    model = Scripted({"": "- yes"})
    answers = CachedAnswers(path, "m", model)
    for _ in range(2):
        assert answers.complete("who?", temperature=0.0, max_tokens=3) == "- yes"
    assert len(model.asked) == 1
    offline = CachedAnswers(path, "m")
    assert offline.complete("who?", temperature=0.0, max_tokens=3) == "- yes"
    with pytest.raises(ValueError, match=r"answers\.json must hold an answer of 'm' .*'what\?', got none"):
        offline.complete("what?", temperature=0.0, max_tokens=3)
    with pytest.raises(ValueError, match="must hold an answer of 'other'"):
        CachedAnswers(path, "other").complete("who?", temperature=0.0, max_tokens=3)
    path.write_text('{"m": ["who?"]}')
    with pytest.raises(ValueError, match=r"answers\.json must map prompts to texts under 'm'"):
        CachedAnswers(path, "m")


def test_a_descriptor_file_grows_class_by_class_and_is_gone_on_with(tmp_path):
    path = tmp_path / "out.json"
    first = Scripted({"ant": "- six legs", "bee": "no list", "cat": "- whiskers\n- a tail"})
    with pytest.raises(ValueError, match=r"scripted must answer with a list, got none for 1 of 3 classes, first 'bee'"):
        fill_descriptors(path, ["ant", "bee", "cat"], first)
    assert read_descriptors(path) == {"ant": ["six legs"], "cat": ["whiskers", "a tail"]}
    second = Scripted({"bee": "- wings"})
    found = fill_descriptors(path, ["ant", "bee", "cat"], second)
    assert len(second.asked) == 1
    assert list(read_descriptors(path)) == list(found) == ["ant", "bee", "cat"]  # label order, whatever came when
    assert found["bee"] == ["wings"]
    with pytest.raises(ValueError, match=r"out\.json must hold the given classes only, got 'ant'"):
        fill_descriptors(path, ["bee", "cat"], second)
    with pytest.raises(ValueError, match="none twice"):
        fill_descriptors(path, ["bee", "bee"], second)


def test_concepts_of_several_data_sets_share_a_file(tmp_path):
    path = tmp_path / "concepts.json"
    assert fill_concept(path, "pets", ["pug", "persian"], Scripted({"pug": " breeds"})) == "breed"
    assert fill_concept(path, "all", ["car", "rain"], Scripted({"car": " nothing"})) is None
    assert fill_concept(path, "pets", ["pug", "persian"], Scripted({})) == "breed"  # not asked again
    assert json.loads(path.read_text()) == {"pets": "breed", "all": None}


def test_a_local_model_answers_the_same_whatever_was_asked_before(gpt2):
    model = TransformersModel(str(gpt2), seed=1)
    before = torch.get_rng_state()
    drawn = model.complete("Question", temperature=0.7, max_tokens=12)
    assert torch.equal(torch.get_rng_state(), before)
    greedy = model.complete("Question", temperature=0.0, max_tokens=12)
    assert model.complete("Question", temperature=0.7, max_tokens=12) == drawn
    assert model.complete("Question", temperature=0.0, max_tokens=12) == greedy
    assert drawn
    assert not drawn.startswith("Question")
    assert len(greedy.encode(errors="replace")) <= 36  # twelve bytes, of which each may be shown as three
    assert TransformersModel(str(gpt2), seed=2).complete("Question", temperature=0.7, max_tokens=12) != drawn


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="must be a causal language model on the hub or in a local folder"):
        TransformersModel(str(tmp_path))


def test_the_command_names_what_got_no_list_and_asks_only_for_what_is_missing(gpt2, tmp_path, capsys, monkeypatch):
    classes, out = tmp_path / "classes.txt", tmp_path / "out.json"
    classes.write_text("ant\nbee\n")
    words = ["--classes", str(classes), "--model", str(gpt2), "--out", str(out)]
    assert language.main(words) == 2
    assert "got none for 2 of 2 classes, first 'ant'" in capsys.readouterr().err
    kept = json.loads((tmp_path / "out.answers.json").read_text())
    assert list(kept) == [f"{gpt2}#0"]
    assert len(kept[f"{gpt2}#0"]) == 2

    asked = []

    def complete(self: TransformersModel, prompt: str, *, temperature: float, max_tokens: int) -> str:
        asked.append(prompt)
        return " insects" if prompt.endswith("all") else "- six legs\n- wings"

    monkeypatch.setattr(TransformersModel, "complete", complete)
    out.write_text('{"bee": ["stripes"]}')
    more = ["--seed", "1", "--concepts", str(tmp_path / "concepts.json"), "--dataset", "insects"]
    assert language.main([*words, *more]) == 0
    assert len(asked) == 2  # the concept, and the ant
    assert read_descriptors(out) == {"ant": ["six legs", "wings"], "bee": ["stripes"]}
    assert json.loads((tmp_path / "concepts.json").read_text()) == {"insects": "insect"}
    assert "3 descriptors of 2 classes" in capsys.readouterr().out


def test_names_are_read_from_three_kinds_of_files(tmp_path):
    for name, text in (("a.txt", "one\n\n two \n"), ("a.json", '["one", "two"]'), ("b.json", '{"one": [], "two": []}')):
        (tmp_path / name).write_text(text)
        assert read_names(tmp_path / name) == ["one", "two"]
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"empty\.txt must hold texts"):
        read_names(tmp_path / "empty.txt")
    with pytest.raises(ValueError, match=r"cannot read .*gone\.txt"):
        read_names(tmp_path / "gone.txt")
