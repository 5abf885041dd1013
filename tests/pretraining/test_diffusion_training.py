"""Training of the small diffusion pipeline, for a few steps, and its training images and captions."""

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from tenfold.data.embedded.handwriting.fonts import SPLIT_FONTS
from tenfold.data.embedded.handwriting.vocabulary import DIGIT_WORDS
from tenfold.models.diffusion import DiffusionConfig, load_pipeline
from tenfold.models.sampling import generate
from tenfold.pretraining.tiny import diffusion_training
from tenfold.pretraining.tiny.diffusion_architecture import build_pipeline, build_tokenizer
from tenfold.pretraining.tiny.diffusion_images import Printer, captions_of


def small(**options):
    return build_pipeline(vae_channels=(8, 8, 16), unet_channels=(16, 16), **options)


@pytest.fixture
def short(monkeypatch):
    """The real script on small networks and few images."""
    grid = diffusion_training.sample_grid
    monkeypatch.setattr(diffusion_training, "build_pipeline", small)
    monkeypatch.setattr(diffusion_training, "_NUM_CHARACTERS", 1000)
    monkeypatch.setattr(diffusion_training, "sample_grid", lambda pipeline: grid(pipeline, num_rows=1))


def test_writes_a_folder_that_loads_and_is_the_same_for_the_same_seed(short, tmp_path, capsys):
    for name in ("first", "second"):
        diffusion_training.train(tmp_path / name, 3, vae_steps=2, denoiser_steps=2, log=name == "first")
    first, second = (
        sorted(path for path in (tmp_path / name).rglob("*") if path.is_file()) for name in ("first", "second")
    )
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert (tmp_path / "first" / "samples.png").is_file()
    assert not list(tmp_path.glob(".*"))
    pipeline = load_pipeline(DiffusionConfig(name=str(tmp_path / "first")))
    assert generate(pipeline, ["a three"], [0], num_steps=2).shape == (1, 32, 32, 3)
    assert (
        StableDiffusionPipeline.from_pretrained(tmp_path / "first", safety_checker=None).vae.config.scaling_factor > 0
    )
    stored = load_file(tmp_path / "first" / "unet/diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert "1000 characters encoded" in capsys.readouterr().out


def test_learning_lowers_the_error_of_the_vae_and_scales_its_latents(monkeypatch):
    pipeline = small()
    lines = []
    monkeypatch.setattr(diffusion_training, "_LOG_STEPS", 25)
    diffusion_training.train_vae(pipeline, 0, 50, lines.append)
    first, last = (float(line.split()[-1]) for line in lines)
    assert last < 0.5 * first
    images = diffusion_training._as_uint8(Printer(1).characters(200)[0])
    mean, std = diffusion_training.encode_latents(pipeline, images)
    assert (mean.var() + std.square().mean()).item() == pytest.approx(1, rel=0.1)


def test_a_folder_that_cannot_be_made_is_found_before_the_training(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        diffusion_training.train(tmp_path / "file")


def test_images_come_from_the_training_fonts_and_follow_the_seed():
    images, characters, fonts = Printer(0).characters(300)
    assert images.shape == (300, 1, 32, 32)
    assert 0 <= images.min() < 0.01
    assert 0.99 < images.max() <= 1
    assert set(fonts.tolist()) <= set(SPLIT_FONTS["train"])
    assert set(characters.tolist()) == set(range(20))
    assert (characters < 10).float().mean() > 0.75
    assert (images.amax(dim=(1, 2, 3)) > 0.3).all()  # none is blank
    again = Printer(0).characters(300)
    assert all(torch.equal(*pair) for pair in zip((images, characters, fonts), again, strict=True))
    assert not torch.equal(Printer(1).characters(300)[0], images)


def test_shapes_vary_more_than_characters():
    printer = Printer(0)
    shapes, characters = printer.shapes(300), printer.characters(300)[0]
    assert shapes.shape == (300, 1, 32, 32)
    assert 0 <= shapes.min() <= shapes.max() <= 1
    ink = [images.mean(dim=(1, 2, 3)).std() for images in (shapes, characters)]
    assert ink[0] > ink[1]


def test_captions_name_the_character_and_half_of_them_the_style():
    captions = captions_of(3, 9)  # DejaVuSerif-Bold
    assert "a photo of a three" in captions
    assert "a digit photo of a three" in captions
    assert "a photo of the digit three" in captions
    assert "a bold serif digit three" in captions
    assert all("three" in caption for caption in captions)
    assert all("letter B" in caption for caption in captions_of(11, 9))


def test_digits_are_one_token_and_any_text_has_tokens():
    tokenizer = build_tokenizer()
    for word in (*DIGIT_WORDS, "bold", "serif", "digit", "photo"):
        assert tokenizer.tokenize(word) == [f"{word}</w>"]
    longest = max((*captions_of(3, 7), *captions_of(11, 7)), key=len)
    assert len(tokenizer(longest).input_ids) <= tokenizer.model_max_length
    for text in ("Straße, 東京 & 🙂", "HerbaceousVegetation"):
        tokens = tokenizer(text).input_ids[1:-1]
        assert tokenizer.eos_token_id not in tokens
        assert tokenizer.decode(tokens).replace(" ", "") == text.lower().replace(" ", "")
