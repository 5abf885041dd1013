"""Diffusion pipelines: loading, their parts, and sampling compared with diffusers' own pipelines."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, EulerAncestralDiscreteScheduler, StableDiffusionImg2ImgPipeline

from tenfold.data.embedded.handwriting.sources import read_source
from tenfold.models.clip import ClipConfig, load_clip
from tenfold.models.diffusion import (
    TINY_FOLDER,
    DiffusionConfig,
    alphas_cumprod,
    denoise,
    encode_latents,
    image_size,
    latent_shape,
    load_pipeline,
    pipeline_fingerprint,
    prediction_type,
    prompt_embeddings,
    tokenize,
)
from tenfold.models.sampling import generate
from tenfold.pretraining.tiny.diffusion_architecture import build_pipeline

PROMPTS = ["a photo of a three", "a photo of a seven", "a photo of a three"]
SEEDS = [5, 6, 7]


def small(**options):
    return build_pipeline(vae_channels=(8, 8, 16), unet_channels=(16, 16), **options)


@pytest.fixture(scope="module", params=["v_prediction", "epsilon"])
def folder(request, tmp_path_factory):
    """A random pipeline on disk, as diffusers writes it."""
    path = tmp_path_factory.mktemp("pipelines") / request.param
    small(prediction_type=request.param).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pipeline(folder):
    return load_pipeline(DiffusionConfig(name=str(folder)))


def close(drawn, expected):
    """Assert that images agree up to float rounding: one level of 255."""
    assert drawn.shape == expected.shape
    assert (drawn.int() - expected.int()).abs().max() <= 1


# --- loading ---


def test_loads_frozen_in_evaluation_mode(folder, pipeline):
    assert prediction_type(pipeline) == folder.name
    assert image_size(pipeline) == 32
    assert latent_shape(pipeline) == (4, 8, 8)
    assert pipeline.safety_checker is None
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        assert not part.training
        assert not any(parameter.requires_grad for parameter in part.parameters())


def test_dtype_of_the_weights(folder):
    pipeline = load_pipeline(DiffusionConfig(name=str(folder), dtype="bf16"))
    assert pipeline.unet.dtype == pipeline.vae.dtype == pipeline.text_encoder.dtype == torch.bfloat16
    assert generate(pipeline, ["a three"], [0], num_steps=2).shape == (1, 32, 32, 3)


def test_the_noise_schedule_is_scaled_linear(pipeline):
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    torch.testing.assert_close(alphas_cumprod(pipeline).double(), (1 - betas).cumprod(0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "nowhere", "a/b/c"])
def test_a_missing_folder_is_named(name):
    with pytest.raises(ValueError, match=f"{name}: no such folder"):
        load_pipeline(DiffusionConfig(name=name))


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(ValueError, match=r"model_index\.json: no such file"):
        load_pipeline(DiffusionConfig(name=str(tmp_path)))


def edited(folder, tmp_path, file, **values):
    copied = tmp_path / "pipeline"
    shutil.copytree(folder, copied)
    settings = json.loads((copied / file).read_text()) | values
    (copied / file).write_text(json.dumps(settings))
    return DiffusionConfig(name=str(copied))


@pytest.mark.parametrize("kind", ["sample", "flow_prediction"])
def test_other_prediction_types_are_refused(folder, tmp_path, kind):
    config = edited(folder, tmp_path, "scheduler/scheduler_config.json", prediction_type=kind)
    with pytest.raises(ValueError, match=f"must be one of epsilon, v_prediction, got '{kind}'"):
        load_pipeline(config)


def test_a_pipeline_without_unet_is_refused(folder, tmp_path):
    config = edited(folder, tmp_path, "model_index.json", unet=[None, None], transformer=["diffusers", "X"])
    with pytest.raises(ValueError, match="without unet"):
        load_pipeline(config)


def test_further_conditions_are_refused(folder, tmp_path):
    config = edited(folder, tmp_path, "unet/config.json", addition_embed_type="text_time")
    with pytest.raises(ValueError, match="addition_embed_type 'text_time'"):
        load_pipeline(config)


@pytest.mark.parametrize("values", [{"in_channels": 9}, {"sample_size": [8, 16]}])
def test_pipelines_for_other_inputs_are_refused(folder, tmp_path, values):
    config = edited(folder, tmp_path, "unet/config.json", **values)
    with pytest.raises(ValueError, match="latents of the VAE alone, 4 channels on a square"):
        load_pipeline(config)


def test_a_hub_id_that_is_not_to_be_had_says_what_to_do(monkeypatch):
    def unreachable(name, **options):
        raise OSError("offline mode")

    monkeypatch.setattr(DiffusionPipeline, "download", unreachable)
    with pytest.raises(ValueError, match=r"nobody/nothing: neither a folder nor .*\(offline mode\).* local folder"):
        load_pipeline(DiffusionConfig(name="nobody/nothing"))


def test_a_hub_id_loads_what_the_hub_gave(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(
        DiffusionPipeline, "download", lambda name, **options: asked.append((name, options)) or str(folder)
    )
    config = DiffusionConfig(name="somebody/something", revision="v2", variant=None)
    assert prediction_type(load_pipeline(config)) == folder.name
    assert pipeline_fingerprint(config) == pipeline_fingerprint(DiffusionConfig(name=str(folder)))
    assert asked[0][0] == "somebody/something"
    assert asked[0][1]["revision"] == "v2"
    assert asked[0][1]["use_safetensors"]


def test_loading_is_quiet(folder, capfd):
    load_pipeline(DiffusionConfig(name=str(folder)))
    assert capfd.readouterr() == ("", "")


def test_damaged_files_are_named(folder, tmp_path):
    config = edited(folder, tmp_path, "model_index.json")
    weights = Path(config.name) / "unet/diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="must be a pipeline that diffusers can read from safetensors"):
        load_pipeline(config)
    weights.unlink()
    with pytest.raises(ValueError, match="must be a pipeline that diffusers can read from safetensors"):
        load_pipeline(config)
    weights.write_bytes(whole)
    text = Path(config.name) / "text_encoder/model.safetensors"
    text.write_bytes(text.read_bytes()[:1000])
    with pytest.raises(ValueError, match="must be a pipeline that diffusers can read from safetensors"):
        load_pipeline(config)
    (Path(config.name) / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match=r"model_index\.json: not JSON"):
        load_pipeline(config)


def test_configs_check_themselves():
    with pytest.raises(ValueError, match="got 'int8'"):
        DiffusionConfig(dtype="int8")
    with pytest.raises(ValueError, match="empty name"):
        DiffusionConfig(name="")


def test_the_fingerprint_follows_the_content(folder, tmp_path):
    config = edited(folder, tmp_path, "model_index.json")
    copied = Path(config.name)
    (copied / "model_index.json").write_bytes((folder / "model_index.json").read_bytes())
    before = pipeline_fingerprint(config)
    assert before == pipeline_fingerprint(DiffusionConfig(name=str(folder)))
    weights = copied / "unet/diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert pipeline_fingerprint(config) != before


# --- the parts ---


def test_embeddings_are_those_of_diffusers_and_each_prompt_is_encoded_once(pipeline, monkeypatch):
    expected, empty = pipeline.encode_prompt(PROMPTS, "cpu", 1, True)
    seen = []
    encode = pipeline.text_encoder.forward
    monkeypatch.setattr(
        pipeline.text_encoder, "forward", lambda tokens, **options: seen.extend(tokens) or encode(tokens, **options)
    )
    torch.testing.assert_close(prompt_embeddings(pipeline, PROMPTS), expected)
    assert len(seen) == 2
    torch.testing.assert_close(prompt_embeddings(pipeline, ["", PROMPTS[0]])[0], empty[0])
    with pytest.raises(ValueError, match="at least one text"):
        tokenize(pipeline, [])


def test_unknown_words_still_have_tokens_of_their_own(pipeline):
    tokens = tokenize(pipeline, ["a photo of a Forest", "a photo of a Straße", "a photo of a three"])
    assert len({tuple(row.tolist()) for row in tokens}) == 3
    assert tokens.shape == (3, 24)


def test_latents_have_the_distribution_that_the_vae_gives(pipeline):
    images = torch.randint(256, (3, 32, 32, 3), dtype=torch.uint8)
    mean, std = encode_latents(pipeline, images)
    pixels = pipeline.image_processor.preprocess([image.numpy() / 255 for image in images])
    latent = pipeline.vae.encode(pixels.float()).latent_dist
    scale = pipeline.vae.config.scaling_factor
    torch.testing.assert_close(mean, latent.mean * scale, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(std, latent.std * scale, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "images", [torch.zeros(1, 16, 16, 3, dtype=torch.uint8), torch.zeros(1, 32, 32, 3), torch.zeros(32, 32, 3)]
)
def test_images_of_another_shape_are_refused(pipeline, images):
    with pytest.raises(ValueError, match=r"images must be uint8 \(B, 32, 32, 3\), got"):
        encode_latents(pipeline, images)


def test_denoising_one_by_one_and_together_agree(pipeline):
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    times, text = torch.tensor([3, 500, 999]), prompt_embeddings(pipeline, PROMPTS)
    with torch.no_grad():
        together = denoise(pipeline, latents, times, text)
        alone = torch.cat([denoise(pipeline, latents[[i]], times[[i]], text[[i]]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


# --- sampling ---


def theirs(pipeline, prompts, seeds, **options):
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    images = pipeline(prompts, generator=generators, output_type="pt", **options).images
    return (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0, 7.5])
def test_generates_the_images_of_diffusers(pipeline, guidance_scale):
    drawn = generate(pipeline, PROMPTS, SEEDS, num_steps=4, guidance_scale=guidance_scale)
    assert drawn.dtype == torch.uint8
    close(drawn, theirs(pipeline, PROMPTS, SEEDS, num_inference_steps=4, guidance_scale=guidance_scale))


def test_guidance_takes_one_pass_for_both_predictions(pipeline, monkeypatch):
    sizes = []
    forward = pipeline.unet.forward
    monkeypatch.setattr(
        pipeline.unet,
        "forward",
        lambda latents, *rest, **options: sizes.append(len(latents)) or forward(latents, *rest, **options),
    )
    generate(pipeline, PROMPTS, SEEDS, num_steps=3, guidance_scale=2.0)
    assert sizes == [6, 6, 6]
    sizes.clear()
    generate(pipeline, PROMPTS, SEEDS, num_steps=3, guidance_scale=1.0)
    assert sizes == [3, 3, 3]


def test_an_image_does_not_depend_on_its_batch_nor_on_global_randomness(pipeline):
    together = generate(pipeline, PROMPTS, SEEDS, num_steps=3)
    torch.manual_seed(123)
    for row in (0, 2):
        close(generate(pipeline, [PROMPTS[row]], [SEEDS[row]], num_steps=3), together[[row]])
    close(generate(pipeline, PROMPTS, SEEDS, num_steps=3, batch_size=2), together)
    assert not torch.equal(together[0], together[2])  # same prompt, other seed
    assert torch.equal(generate(pipeline, PROMPTS, SEEDS, num_steps=3), together)


def test_stochastic_samplers_use_the_generator_of_each_image(folder):
    pipeline = load_pipeline(DiffusionConfig(name=str(folder)))
    pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(pipeline.scheduler.config)
    together = generate(pipeline, PROMPTS, SEEDS, num_steps=3)
    close(generate(pipeline, PROMPTS[2:], SEEDS[2:], num_steps=3), together[2:])
    close(together, theirs(pipeline, PROMPTS, SEEDS, num_inference_steps=3, guidance_scale=2.0))


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_initial_images_are_used_as_in_diffusers(pipeline, strength):
    images = torch.randint(256, (3, 32, 32, 3), dtype=torch.uint8)
    drawn = generate(pipeline, PROMPTS, SEEDS, num_steps=6, init_images=images, strength=strength)
    other = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    expected = theirs(
        other,
        PROMPTS,
        SEEDS,
        image=[image.numpy() / 255 for image in images],
        strength=strength,
        num_inference_steps=6,
        guidance_scale=2.0,
    )
    close(drawn, expected)


def test_less_strength_stays_closer_to_the_initial_image():
    pipeline = small(seed=1)
    pipeline.unet.requires_grad_(False)
    images = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    start = encode_latents(pipeline, images)[0]
    distances = []
    for strength in (0.1, 0.9):
        drawn = generate(
            pipeline, PROMPTS[:2], SEEDS[:2], num_steps=10, guidance_scale=1, init_images=images, strength=strength
        )
        distances.append((encode_latents(pipeline, drawn)[0] - start).square().mean().item())
    assert distances[0] < distances[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": [1]}, "lists of one length"),
        ({"prompts": []}, "lists of one length"),
        ({"prompts": "abc"}, "lists of one length"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"guidance_scale": 0.5}, "guidance_scale must be at least 1, got 0.5"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"strength": 0.5}, "must be given together"),
        ({"strength": 1.5, "init_images": torch.zeros(3, 32, 32, 3)}, r"strength must lie in \(0, 1\], got 1.5"),
        (
            {"strength": 0.5, "init_images": torch.zeros(2, 32, 32, 3)},
            "init_images must be as many as prompts, 3, got 2",
        ),
    ],
)
def test_bad_requests_are_refused_before_any_work(pipeline, options, message):
    request = {"prompts": PROMPTS, "seeds": SEEDS} | options
    with pytest.raises(ValueError, match=message):
        generate(pipeline, request.pop("prompts"), request.pop("seeds"), **request)


# --- the shipped pipeline ---


def test_the_shipped_pipeline_is_small_and_in_safetensors():
    files = [path for path in TINY_FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".png"}


def test_the_shipped_pipeline_generates_the_digit_of_the_prompt():
    pipeline = load_pipeline(DiffusionConfig())
    clip = load_clip(ClipConfig())
    words = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    prototypes = clip.embed_texts([f"a photo of a {word}" for word in words])
    drawn = generate(pipeline, [f"a digit photo of a {word}" for word in words], range(10), num_steps=12)
    named = (clip.embed_images(drawn) @ prototypes.T).argmax(dim=1)
    assert (named == torch.arange(10)).sum() >= 8


def test_the_shipped_vae_keeps_handwriting_readable_which_it_has_not_seen():
    pipeline = load_pipeline(DiffusionConfig())
    digits = read_source()[0][::250]  # (20, 28, 28), two of each class
    images = torch.from_numpy(digits).float()[..., None].expand(-1, -1, -1, 3)
    images = torch.nn.functional.pad(images, (0, 0, 2, 2, 2, 2)).to(torch.uint8)
    mean, _ = encode_latents(pipeline, images)
    with torch.no_grad():
        decoded = pipeline.vae.decode(mean / pipeline.vae.config.scaling_factor).sample
    shown = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    # Of a range of 1; the strokes themselves have an rms of 0.3.
    assert (shown - images / 255).square().mean().sqrt() < 0.06
