"""Training of the shipped CLIP: captions are true, only training fonts are used, and a seed reproduces the weights."""

import numpy as np
import pytest
import torch

from tenfold.data.embedded.handwriting.fonts import FONT_STYLES, FONTS, SPLIT_FONTS
from tenfold.data.embedded.handwriting.vocabulary import DIGIT_WORDS, LETTERS
from tenfold.models.clip import ClipConfig, load_clip
from tenfold.pretraining.tiny import clip_images, clip_training
from tenfold.pretraining.tiny.__main__ import main
from tenfold.pretraining.tiny.captions import (
    COLUMN,
    FACTS,
    INKS,
    SILENT,
    UNCLEAR,
    Writer,
    common_words,
    font_facts,
    truth,
)


@pytest.fixture
def artist() -> clip_images.Artist:
    return clip_images.Artist()


def test_every_caption_is_true_of_its_image_and_of_no_other_character(artist):
    facts = artist.draw(300, seed=1).facts
    writer = Writer(0)
    captions = [writer.caption(row) for row in facts.tolist()]
    true = truth(facts, np.array([caption.claims for caption in captions]))
    assert true.diagonal().all()
    characters = facts[:, COLUMN["character"]]
    assert not true[characters[:, None] != characters].any()
    assert true.sum() > len(facts)  # and some are true of other images of the same character


def test_what_a_caption_says_is_what_it_claims(artist):
    writer = Writer(0)
    facts = artist.draw(400, seed=2).facts
    for row in facts.tolist():
        caption = writer.caption(row)
        names = dict(zip(FACTS, caption.claims, strict=True))
        at = names["character"]
        named = {DIGIT_WORDS[at], str(at)} if at < 10 else {LETTERS[at - 10]}
        assert named & set(caption.text.replace(".", " ").replace(",", " ").split()), caption
        for fact in ("ink", "ground"):
            if names[fact] not in (SILENT, UNCLEAR):
                assert INKS[names[fact]] in caption.text


def test_captions_vary_and_the_same_seed_writes_the_same():
    facts = font_facts(0, 3).tolist()
    first, second, other = Writer(1), Writer(1), Writer(2)
    written = [first.caption(facts) for _ in range(200)]
    assert written == [second.caption(facts) for _ in range(200)]
    assert written != [other.caption(facts) for _ in range(200)]
    assert len({caption.text for caption in written}) > 120
    assert not {"three", "digit", "red"} & set(common_words())  # nonsense never names a character or a colour


def test_a_font_is_described_by_its_style():
    facts = dict(zip(FACTS, font_facts(FONTS.index("DejaVuSerif-BoldItalic"), 8).tolist(), strict=True))
    assert FONT_STYLES["DejaVuSerif-BoldItalic"] == "bold slanted serif"
    assert (facts["bold"], facts["slanted"], facts["family"]) == (1, 1, 1)
    assert (facts["loop"], facts["two_loops"], facts["straight"], facts["prime"]) == (1, 1, 0, 0)
    letter = dict(zip(FACTS, font_facts(0, 10).tolist(), strict=True))  # A
    assert (letter["loop"], letter["two_loops"], letter["straight"]) == (1, 0, 1)
    assert letter["prime"] == UNCLEAR


def test_a_claim_about_what_is_unclear_is_true_of_nothing():
    facts = np.array([[UNCLEAR], [0], [1]])
    assert truth(facts, np.array([[SILENT], [0], [1]])).tolist() == [
        [True, False, False],
        [True, True, False],
        [True, False, True],
    ]


def test_images_are_of_the_training_fonts_only(monkeypatch):
    whole = clip_images.glyphs().copy()
    plain = clip_images.Artist().draw(50, seed=3)
    others = [font for font in range(len(FONTS)) if font not in SPLIT_FONTS["train"]]
    whole[others] = 255 - whole[others]
    monkeypatch.setattr(clip_images, "glyphs", lambda: whole)
    again = clip_images.Artist().draw(50, seed=3)
    assert torch.equal(plain.images, again.images)
    whole[:] = 255 - whole
    assert not torch.equal(plain.images, clip_images.Artist().draw(50, seed=3).images)


def test_images_are_a_function_of_the_seed(artist):
    first, second = artist.draw(40, seed=5), artist.draw(40, seed=5)
    assert torch.equal(first.images, second.images)
    assert (first.facts == second.facts).all()
    assert first.images.shape == (40, 3, 32, 32)
    assert first.images.min() >= 0
    assert first.images.max() <= 1
    assert not torch.equal(first.images, artist.draw(40, seed=6).images)


@pytest.fixture
def short(monkeypatch):
    """A training of four steps."""
    for name, value in (
        ("STEPS_PER_EPOCH", 2),
        ("BATCH_SIZE", 4),
        ("EVALUATE_EVERY", 1),
        ("NUM_CAPTIONS_FOR_TOKENS", 500),
    ):
        monkeypatch.setattr(clip_training, name, value)
    measured: list[str] = []

    def accuracy(clip, split, prompt, **_):
        measured.append(split)
        return 0.0

    monkeypatch.setattr(clip_training, "zero_shot_accuracy", accuracy)
    return measured


def test_training_writes_a_folder_that_loads_and_the_same_seed_the_same_weights(tmp_path, short):
    prints = []
    for name in ("first", "second"):
        clip_training.train(tmp_path / name, seed=0, num_steps=4, run_folder=tmp_path / f"run-{name}")
        assert (tmp_path / name / "training.json").is_file()
        prints.append(load_clip(ClipConfig(name=f"local-dir:{tmp_path / name}")).fingerprint)
    assert prints[0] == prints[1]
    assert short[:2] == ["val", "val"]  # test fonts are evaluated only after the training


def test_the_command_line(tmp_path, short, monkeypatch, capsys):
    assert main(["clip", "--out", str(tmp_path / "out"), "--seed", "1", "--steps", "2"]) == 0
    assert (tmp_path / "out/open_clip_model.safetensors").is_file()
    assert "test fonts, letters: 0.0 %" in capsys.readouterr().out
    assert main(["clip", "--out", str(tmp_path / "out"), "--steps", "3"]) == 2
    assert "num_steps must be a multiple of 2, got 3" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["diffusion", "--out", str(tmp_path), "--steps", "3"])
