"""Adapters of diffusion pipelines: equality with peft, diffusers' file format, swapping, merging, refusals."""

import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import save_file

from tenfold.models.diffusion import DiffusionConfig, load_pipeline, prompt_embeddings, tokenize
from tenfold.models.diffusion_lora import (
    ADAPTER_FILE,
    Denoiser,
    adapter_tensors,
    add_adapter,
    load_adapter,
    merged_adapter,
    remove_adapter,
    reset_adapter,
    save_adapter,
)
from tenfold.models.sampling import generate
from tenfold.pretraining.tiny.diffusion_architecture import build_pipeline

PROMPTS = ["a photo of a three", "a photo of a seven"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("pipelines") / "pipeline"
    build_pipeline(vae_channels=(8, 8, 16), unet_channels=(16, 16)).save_pretrained(path)
    return path


@pytest.fixture
def pipeline(folder):
    return load_pipeline(DiffusionConfig(name=str(folder)))


def predict(pipeline):
    """Return the UNet's prediction for fixed inputs, which depends on all that an adapter changes."""
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    tokens = tokenize(pipeline, PROMPTS)
    with torch.no_grad():
        return Denoiser(pipeline)(latents, torch.tensor([10, 900]), tokens, torch.arange(2))


def train(parameters, seed=0):
    """Change the parameters, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def test_adapts_every_attention_projection_and_nothing_else(pipeline):
    parameters = add_adapter(pipeline, rank=4, alpha=4)
    tensors = adapter_tensors(pipeline)
    layers = {name.rsplit(".lora_", 1)[0] for name in tensors}
    expected = {
        f"{part}.{name}"
        for part, ends in (("unet", ("to_q", "to_k", "to_v", "to_out.0")), ("text_encoder", ("_proj",)))
        for name, module in getattr(load_plain(pipeline), part).named_modules()
        if isinstance(module, torch.nn.Linear) and name.endswith(ends)
    }
    assert layers == expected
    attentions = {layer.rsplit(".to_", 1)[0] for layer in layers if ".to_" in layer}
    assert any(name.endswith("attn1") for name in attentions)  # self-attention of the image
    assert any(name.endswith("attn2") for name in attentions)  # cross-attention to the text
    assert len([layer for layer in layers if layer.startswith("text_encoder")]) == 2 * 4
    trainable = [p for part in (pipeline.unet, pipeline.text_encoder, pipeline.vae) for p in part.parameters()]
    trainable = [parameter for parameter in trainable if parameter.requires_grad]
    assert {id(parameter) for parameter in trainable} == {id(parameter) for parameter in parameters}


def load_plain(pipeline):
    return load_pipeline(DiffusionConfig(name=pipeline.config._name_or_path))


def test_starts_as_the_pipeline_itself_with_normal_a_and_zero_b(pipeline):
    before = predict(pipeline)
    add_adapter(pipeline, rank=8, seed=3)
    assert torch.equal(predict(pipeline), before)
    tensors = adapter_tensors(pipeline)
    downs = torch.cat([tensor.flatten() for name, tensor in tensors.items() if ".lora_A." in name])
    assert downs.std().item() == pytest.approx(1 / 8, rel=0.05)  # some 5,000 numbers
    assert abs(downs.mean().item()) < 0.01
    assert all((tensor == 0).all() for name, tensor in tensors.items() if ".lora_B." in name)
    assert all(
        tensor.dtype == torch.float32 and tensor.shape[0 if ".lora_A." in name else 1] == 8
        for name, tensor in tensors.items()
    )


def test_the_update_is_alpha_over_rank_times_b_a(pipeline):
    layer = pipeline.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    weight = layer.weight.clone()
    train(add_adapter(pipeline, rank=4, alpha=8))
    tensors = adapter_tensors(pipeline)
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    update = 8 / 4 * tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
    features = torch.randn(3, weight.shape[1])
    adapted = pipeline.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    torch.testing.assert_close(adapted(features), features @ (weight + update).T, rtol=1e-4, atol=1e-5)


def test_the_same_seed_gives_the_same_start(pipeline):
    add_adapter(pipeline, rank=4, seed=3)
    first = adapter_tensors(pipeline)
    train(reset_adapter(pipeline, seed=4))
    assert any(not torch.equal(tensor, first[name]) for name, tensor in adapter_tensors(pipeline).items())
    torch.manual_seed(99)
    reset_adapter(pipeline, seed=3)
    assert all(torch.equal(tensor, first[name]) for name, tensor in adapter_tensors(pipeline).items())


@pytest.mark.parametrize("text_encoder", [True, False])
@pytest.mark.parametrize(("rank", "alpha"), [(4, 4), (4, 6)])
def test_diffusers_loads_what_was_saved(pipeline, folder, tmp_path, text_encoder, rank, alpha):
    plain = predict(pipeline)
    train(add_adapter(pipeline, rank=rank, alpha=alpha, text_encoder=text_encoder))
    save_adapter(pipeline, tmp_path / "adapter")
    assert [path.name for path in (tmp_path / "adapter").iterdir()] == [ADAPTER_FILE]
    fresh = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    fresh.load_lora_weights(tmp_path / "adapter")
    assert (predict(pipeline) - plain).abs().max() > 0.01
    assert torch.equal(predict(fresh), predict(pipeline))
    embeddings = prompt_embeddings(fresh, PROMPTS)
    assert torch.equal(embeddings, prompt_embeddings(pipeline, PROMPTS))
    assert torch.equal(embeddings, prompt_embeddings(load_plain(pipeline), PROMPTS)) == (not text_encoder)


def test_swapping_gives_what_loading_afresh_gives(pipeline, folder, tmp_path):
    parameters = add_adapter(pipeline, rank=4, alpha=6)
    for seed in (1, 2):
        reset_adapter(pipeline)
        train(parameters, seed)
        save_adapter(pipeline, tmp_path / str(seed))
    load_adapter(pipeline, tmp_path / "1")
    fresh = load_pipeline(DiffusionConfig(name=str(folder)))
    load_adapter(fresh, tmp_path / "1")
    first = predict(pipeline)
    assert torch.equal(first, predict(fresh))
    load_adapter(pipeline, tmp_path / "2")
    assert not torch.equal(predict(pipeline), first)
    load_adapter(pipeline, adapter_tensors(fresh))
    assert torch.equal(predict(pipeline), first)
    assert {id(parameter) for parameter in parameters} == {
        id(parameter) for parameter in pipeline.unet.parameters() if parameter.requires_grad
    } | {id(parameter) for parameter in pipeline.text_encoder.parameters() if parameter.requires_grad}


def test_merging_changes_nothing_but_the_cost_and_is_undone_exactly(pipeline):
    train(add_adapter(pipeline, rank=4))
    adapted = predict(pipeline)
    weights = {name: parameter.clone() for name, parameter in pipeline.unet.named_parameters()}
    drawn = generate(pipeline, PROMPTS, [0, 1], num_steps=3)
    for _ in range(3):
        with merged_adapter(pipeline):
            torch.testing.assert_close(predict(pipeline), adapted, rtol=1e-4, atol=1e-5)
            assert (generate(pipeline, PROMPTS, [0, 1], num_steps=3).int() - drawn.int()).abs().max() <= 1
        assert all(torch.equal(parameter, weights[name]) for name, parameter in pipeline.unet.named_parameters())
        assert torch.equal(predict(pipeline), adapted)


def test_an_error_while_merged_leaves_the_pipeline_whole(pipeline):
    train(add_adapter(pipeline, rank=4))
    adapted = predict(pipeline)
    with pytest.raises(ValueError, match="num_steps"), merged_adapter(pipeline):
        generate(pipeline, PROMPTS, [0, 1], num_steps=0)
    assert torch.equal(predict(pipeline), adapted)


@pytest.mark.slow  # a minute of compiling
def test_a_compiled_unet_takes_adapters_as_well(folder, pipeline):
    compiled = load_pipeline(DiffusionConfig(name=str(folder), compile=True))
    for each in (pipeline, compiled):
        train(add_adapter(each, rank=4))
    assert adapter_tensors(compiled).keys() == adapter_tensors(pipeline).keys()
    torch.testing.assert_close(predict(compiled), predict(pipeline), rtol=1e-3, atol=1e-4)
    with merged_adapter(pipeline), merged_adapter(compiled):
        torch.testing.assert_close(predict(compiled), predict(pipeline), rtol=1e-3, atol=1e-4)


def test_removing_gives_the_pipeline_back(pipeline):
    plain = predict(pipeline)
    train(add_adapter(pipeline, rank=4))
    remove_adapter(pipeline)
    assert torch.equal(predict(pipeline), plain)
    remove_adapter(pipeline)
    assert len(add_adapter(pipeline, rank=2)) > 0


def test_half_precision_weights_keep_the_adapter_in_single(folder):
    pipeline = load_pipeline(DiffusionConfig(name=str(folder), dtype="bf16"))
    parameters = add_adapter(pipeline, rank=4)
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    predicted = Denoiser(pipeline)(
        torch.randn(1, 4, 8, 8), torch.tensor([5]), tokenize(pipeline, PROMPTS[:1]), torch.tensor([0])
    )
    predicted.float().square().mean().backward()
    assert all(parameter.grad is not None for parameter in parameters)


def test_a_few_steps_lower_the_loss(pipeline):
    parameters = add_adapter(pipeline, rank=4)
    optimizer = torch.optim.AdamW(parameters, lr=3e-3)
    denoiser = Denoiser(pipeline)
    generator = torch.Generator().manual_seed(0)
    latents, target = torch.randn(2, 8, 4, 8, 8, generator=generator)
    tokens, rows = tokenize(pipeline, PROMPTS), torch.arange(8) % 2
    losses = []
    for _ in range(12):
        loss = (denoiser(latents, torch.full((8,), 500), tokens, rows) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.97 * losses[0]
    up = {name: tensor for name, tensor in adapter_tensors(pipeline).items() if ".lora_B." in name}
    assert all((tensor != 0).any() for tensor in up.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rank": 0}, "rank must be at least 1, got 0"), ({"alpha": 0}, "alpha must be positive, got 0")],
)
def test_bad_settings_are_refused(pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        add_adapter(pipeline, **options)


def test_a_missing_or_second_adapter_is_refused(pipeline):
    for call in (adapter_tensors, reset_adapter, lambda pipeline: merged_adapter(pipeline).__enter__()):
        with pytest.raises(ValueError, match="has no adapter"):
            call(pipeline)
    add_adapter(pipeline, rank=2)
    with pytest.raises(ValueError, match="has an adapter already"):
        add_adapter(pipeline)


def test_adapters_that_do_not_match_are_refused(pipeline, folder, tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        load_adapter(pipeline, tmp_path)
    add_adapter(pipeline, rank=4)
    save_adapter(pipeline, tmp_path / "four")
    before = predict(pipeline)

    def fresh(**options):
        other = load_pipeline(DiffusionConfig(name=str(folder)))
        add_adapter(other, **options)
        return other

    with pytest.raises(ValueError, match=r"must be \(2, 16\), got \(4, 16\)"):
        load_adapter(fresh(rank=2, alpha=16), tmp_path / "four")
    with pytest.raises(ValueError, match=r"must be 8 as in the pipeline, got 16\.0"):
        load_adapter(fresh(rank=4, alpha=8), tmp_path / "four")
    with pytest.raises(ValueError, match="both were made with, or both without, the text encoder"):
        load_adapter(pipeline, adapter_tensors(fresh(rank=4, text_encoder=False)))
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / ADAPTER_FILE).write_bytes((tmp_path / "four" / ADAPTER_FILE).read_bytes()[:-10])
    with pytest.raises(ValueError, match="damaged"):
        load_adapter(pipeline, damaged)
    save_file({"unet.x.lora.down.weight": torch.zeros(2, 2)}, damaged / ADAPTER_FILE)
    with pytest.raises(ValueError, match=r"must hold lora_A\.weight tensors of one rank"):
        load_adapter(pipeline, damaged)
    assert torch.equal(predict(pipeline), before)


def test_the_file_holds_rank_and_alpha(pipeline, tmp_path):
    add_adapter(pipeline, rank=4, alpha=6, text_encoder=False)
    save_adapter(pipeline, tmp_path)
    with safe_open(tmp_path / ADAPTER_FILE, framework="pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (settings["unet.r"], settings["unet.lora_alpha"]) == (4, 6)
