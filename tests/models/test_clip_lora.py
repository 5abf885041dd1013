"""CLIP with adapters: trainable tensors, merging, and exports that open_clip and peft compute the same from."""

import copy

import open_clip
import peft
import pytest
import torch
from open_clip import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from torch import nn

from tenfold.models.clip import Clip
from tenfold.models.clip_lora import (
    BlockAttention,
    adapt_clip,
    load_lora_tensors,
    lora_tensors,
    merge_lora,
    merged_state_dict,
    save_peft,
)
from tenfold.types import Preprocessing

# Float32 through four blocks; the two sides multiply in another order.
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
EMBED, WIDTH, LAYERS, CONTEXT, VOCABULARY = 12, 16, 2, 9, 50
SMALL = {"rank": 3, "alpha": 6.0}


def make_network(seed=0, *, kind=open_clip.CLIP, vision=None, text=None):
    torch.manual_seed(seed)
    vision = {"layers": LAYERS, "width": WIDTH, "head_width": 8, "patch_size": 4, "image_size": 8} | (vision or {})
    text = {"context_length": CONTEXT, "vocab_size": VOCABULARY, "width": WIDTH, "heads": 2, "layers": LAYERS} | (
        text or {}
    )
    network = kind(EMBED, CLIPVisionCfg(**vision), CLIPTextCfg(**text))
    for parameter in network.parameters():  # biases are initialised to 0, which would hide their loss
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=1.0, std=0.2)
    return network.eval()


def make_residual(seed=0):
    """Build a small version of RN50."""
    return make_network(seed, vision={"layers": (1, 1, 1, 1), "width": 8, "head_width": 64, "image_size": 32})


def make_clip(network):
    return Clip(network, open_clip.get_tokenizer("ViT-B-32"), Preprocessing(image_size=8), "made-in-a-test")


def make_pixels(seed=0, side=8):
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(seed))


def make_tokens(seed=0):
    """Return texts of 5 to 7 tokens; the end token has the highest id."""
    tokens = torch.randint(1, VOCABULARY - 2, (4, CONTEXT), generator=torch.Generator().manual_seed(seed))
    for row, length in zip(tokens, (5, 7, 6, 5), strict=True):
        row[length - 1], row[length:] = VOCABULARY - 1, 0
    return tokens


def outputs(network, side=8):
    with torch.no_grad():
        return network.encode_image(make_pixels(side=side)), network.encode_text(make_tokens())


def shift(clip, seed=1):
    """Change all trainable parameters, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in clip.network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def trainable(clip):
    return {name for name, parameter in clip.network.named_parameters() if parameter.requires_grad}


def test_an_untrained_adapter_changes_nothing():
    network = make_network()
    expected = outputs(network)
    clip = make_clip(network)
    adapt_clip(clip)
    for got, before in zip(outputs(clip.network), expected, strict=True):
        torch.testing.assert_close(got, before, **TOLERANCE)
    torch.testing.assert_close(clip.text_features(make_tokens()), expected[1], **TOLERANCE)
    assert not torch.equal(expected[0][0], expected[0][1])


def test_only_the_updates_train():
    clip = make_clip(make_network())
    adapt_clip(clip, **SMALL)
    names = trainable(clip)
    assert len(names) == 2 * 2 * LAYERS
    assert all(name.endswith((".attn.attention.qkv.lora_A", ".attn.attention.qkv.lora_B")) for name in names)
    before = copy.deepcopy(clip.network.state_dict())
    optimizer = torch.optim.SGD([part for part in clip.network.parameters() if part.requires_grad], lr=0.1)
    clip.train()
    for _ in range(2):  # in the first step B is 0, so that A has no gradient
        optimizer.zero_grad()
        images, texts = clip.image_features(make_pixels()), clip.text_features(make_tokens())
        (images.square().sum() + texts.square().sum()).backward()
        optimizer.step()
    changed = {name for name, tensor in clip.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == names


@pytest.mark.parametrize("tower", ["image", "text"])
def test_one_tower_alone(tower):
    clip = make_clip(make_network())
    before = outputs(clip.network)
    adapt_clip(clip, **SMALL, image_tower=tower == "image", text_tower=tower == "text")
    shift(clip)
    image, text = outputs(clip.network)
    assert torch.equal(image, before[0]) == (tower == "text")
    assert torch.equal(text, before[1]) == (tower == "image")


def test_modes_reach_the_adapters():
    clip = make_clip(make_network())
    adapt_clip(clip, **SMALL, dropout=0.5)
    shift(clip)
    assert torch.equal(clip.image_features(make_pixels()), clip.image_features(make_pixels()))
    clip.train()
    assert not torch.equal(clip.image_features(make_pixels()), clip.image_features(make_pixels()))


@pytest.mark.parametrize("kind", [open_clip.CLIP, CustomTextCLIP])
def test_plain_open_clip_loads_the_merged_state(kind):
    clip = make_clip(make_network(kind=kind))
    before = outputs(clip.network)
    adapt_clip(clip, **SMALL)
    shift(clip)
    plain = make_network(seed=5, kind=kind)
    plain.load_state_dict(merged_state_dict(clip))  # strict
    for got, expected, was in zip(outputs(plain), outputs(clip.network), before, strict=True):
        torch.testing.assert_close(got, expected, **TOLERANCE)
        assert not torch.allclose(got, was, atol=1e-2)


@pytest.mark.parametrize("kind", [open_clip.CLIP, CustomTextCLIP])
@pytest.mark.parametrize("towers", [(True, True), (True, False), (False, True)])
def test_peft_loads_the_adapters_onto_plain_open_clip(tmp_path, kind, towers):
    clip = make_clip(make_network(kind=kind))
    adapt_clip(clip, **SMALL, image_tower=towers[0], text_tower=towers[1])
    shift(clip)
    save_peft(clip, tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(make_network(kind=kind), tmp_path / "adapter")
    loaded.eval()
    for got, expected in zip(outputs(loaded.base_model.model), outputs(clip.network), strict=True):
        torch.testing.assert_close(got, expected, **TOLERANCE)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(dict(merged.state_dict()), merged_state_dict(clip), **TOLERANCE)
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir() if path.suffix != ".md") == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_merging_in_place_gives_a_plain_frozen_model():
    clip = make_clip(make_network())
    adapt_clip(clip, **SMALL)
    shift(clip)
    expected = outputs(clip.network)
    merge_lora(clip)
    assert not any(isinstance(module, BlockAttention) for module in clip.network.modules())
    assert clip.network.state_dict().keys() == make_network().state_dict().keys()
    assert not trainable(clip)
    assert not clip.network.training
    assert clip.fingerprint != "made-in-a-test"
    for got, before in zip(outputs(clip.network), expected, strict=True):
        torch.testing.assert_close(got, before, **TOLERANCE)


def test_fingerprints_of_merged_models_tell_adapters_apart():
    fingerprints = []
    for seed in (1, 1, 2):
        clip = make_clip(make_network())
        torch.manual_seed(0)
        adapt_clip(clip, **SMALL)
        shift(clip, seed)
        merge_lora(clip)
        fingerprints.append(clip.fingerprint)
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_tensors_move_to_another_adapted_model():
    first, second = make_clip(make_network()), make_clip(make_network())
    for clip in (first, second):
        adapt_clip(clip, **SMALL)
    shift(first)
    tensors = lora_tensors(first)
    assert set(tensors) == {
        f"{tower}transformer.resblocks.{layer}.attn.lora_{part}"
        for tower in ("visual.", "")
        for layer in range(LAYERS)
        for part in "AB"
    }
    load_lora_tensors(second, tensors)
    for got, expected in zip(outputs(second.network), outputs(first.network), strict=True):
        assert torch.equal(got, expected)
    for tensor in tensors.values():  # copies
        tensor.zero_()
    assert all(tensor.count_nonzero() for tensor in lora_tensors(first).values())


def test_cached_texts_follow_the_adapters():
    clip = Clip(
        make_network(text={"context_length": 77, "vocab_size": 49408}),
        open_clip.get_tokenizer("ViT-B-32"),
        Preprocessing(image_size=8),
        "made-in-a-test",
    )
    before = clip.embed_texts(["a photo of a tench"])
    adapt_clip(clip, **SMALL)
    shift(clip)
    after = clip.embed_texts(["a photo of a tench"])
    assert not torch.allclose(before, after, atol=1e-3)
    merge_lora(clip)
    torch.testing.assert_close(clip.embed_texts(["a photo of a tench"]), after, **TOLERANCE)


def test_the_causal_mask_is_recognised_and_a_bidirectional_tower_gets_none():
    causal, open_tower = (
        make_clip(make_network()),
        make_clip(make_network(kind=CustomTextCLIP, text={"no_causal_mask": True})),
    )
    for clip, expected in ((causal, {True}), (open_tower, {False})):
        before = outputs(clip.network)
        adapt_clip(clip, **SMALL)
        owner = getattr(clip.network, "text", clip.network)
        assert {block.attn.is_causal for block in owner.transformer.resblocks} == expected
        assert not any(block.attn.is_causal for block in clip.network.visual.transformer.resblocks)
        torch.testing.assert_close(outputs(clip.network), before, **TOLERANCE)


def test_a_text_tower_with_a_mask_of_its_own_keeps_it():
    # With a class token open_clip hides the padding from it: no causal mask, and one for each sequence.
    text = {"embed_cls": True, "pad_id": 0, "output_tokens": False, "context_length": CONTEXT}
    clip = make_clip(make_network(kind=CustomTextCLIP, text=text))
    before = outputs(clip.network)
    adapt_clip(clip, **SMALL)
    assert not any(block.attn.is_causal for block in clip.network.text.transformer.resblocks)
    torch.testing.assert_close(outputs(clip.network), before, **TOLERANCE)


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        clip = make_clip(make_network())
        torch.manual_seed(0)
        adapt_clip(clip, **SMALL, dropout=0.0)
        shift(clip)
        clip.network.set_grad_checkpointing(checkpointing)
        clip.train()
        clip.network.encode_text(make_tokens()).square().sum().backward()
        gradients.append([part.grad for part in clip.network.transformer.parameters() if part.requires_grad])
    torch.testing.assert_close(*gradients)


# --- a convolutional image tower ---


def test_a_residual_network_is_trained_whole():
    clip = make_clip(make_residual())
    adapt_clip(clip, **SMALL)
    names = trainable(clip)
    whole = {f"visual.{name}" for name, _ in clip.network.visual.named_parameters()}
    assert whole < names
    assert all(".lora_" in name for name in names - whole)
    clip.train()
    clip.image_features(make_pixels(side=32)).square().sum().backward()
    assert all(part.grad is not None for part in clip.network.visual.parameters())


def test_a_residual_network_moves_merges_and_saves_whole(tmp_path):
    clip, other = make_clip(make_residual()), make_clip(make_residual())
    for one in (clip, other):
        adapt_clip(one, **SMALL)
    shift(clip)
    clip.train()
    with torch.no_grad():
        clip.image_features(make_pixels(side=32))  # moves the running statistics
    clip.eval()
    expected = outputs(clip.network, side=32)
    load_lora_tensors(other, lora_tensors(clip))
    assert all(torch.equal(*pair) for pair in zip(outputs(other.network, side=32), expected, strict=True))
    plain = make_residual(seed=5)
    plain.load_state_dict(merged_state_dict(clip))
    torch.testing.assert_close(outputs(plain, side=32), expected, **TOLERANCE)
    save_peft(clip, tmp_path)
    loaded = peft.PeftModel.from_pretrained(make_residual(), tmp_path).eval()
    torch.testing.assert_close(outputs(loaded.base_model.model, side=32), expected, **TOLERANCE)


# --- refusals ---


def test_adapting_twice_or_nothing_is_refused():
    clip = make_clip(make_network())
    with pytest.raises(ValueError, match="image_tower or text_tower must be true"):
        adapt_clip(clip, image_tower=False, text_tower=False)
    adapt_clip(clip, **SMALL)
    with pytest.raises(ValueError, match="must be frozen and not adapted"):
        adapt_clip(clip, **SMALL)


@pytest.mark.parametrize("change", [{"rank": 0}, {"alpha": -1.0}, {"dropout": 1.0}])
def test_an_error_leaves_the_model_unchanged(change):
    clip = make_clip(make_network())
    with pytest.raises(ValueError, match=next(iter(change))):
        adapt_clip(clip, **(SMALL | change))
    assert clip.network.state_dict().keys() == make_network().state_dict().keys()


def test_towers_without_plain_blocks_are_refused():
    clip = make_clip(make_network(vision={"qk_norm": True}))
    with pytest.raises(ValueError, match=r"the image tower must be open_clip's transformer.*image_tower=False"):
        adapt_clip(clip, **SMALL)
    adapt_clip(clip, **SMALL, image_tower=False)
    clip = make_clip(make_network(text={"qk_norm": True}))
    with pytest.raises(ValueError, match=r"the text tower must be open_clip's transformer.*text_tower=False"):
        adapt_clip(clip, **SMALL)


def test_a_model_without_adapters_is_refused(tmp_path):
    clip = make_clip(make_network())
    for use in (lora_tensors, merged_state_dict, merge_lora):
        with pytest.raises(ValueError, match="the model is not adapted; call adapt_clip first"):
            use(clip)
    with pytest.raises(ValueError, match="the model is not adapted"):
        save_peft(clip, tmp_path)
    clip = make_clip(make_residual())
    adapt_clip(clip, **SMALL, text_tower=False)
    with pytest.raises(ValueError, match="the model has no adapter"):
        save_peft(clip, tmp_path)
    assert not list(tmp_path.iterdir())


def test_tensors_of_another_adaptation_are_refused():
    clip, ranked, text = (make_clip(make_network()) for _ in range(3))
    adapt_clip(clip, **SMALL)
    adapt_clip(ranked, rank=4, alpha=4)
    adapt_clip(text, **SMALL, image_tower=False)
    before = lora_tensors(clip)
    with pytest.raises(ValueError, match=r"lora_A must be \(6, 16\), got \(8, 16\); check the rank"):
        load_lora_tensors(clip, lora_tensors(ranked))
    with pytest.raises(ValueError, match=r"must have the 8 names of this adaptation, got 4; missing \['visual"):
        load_lora_tensors(clip, lora_tensors(text))
    assert all(torch.equal(tensor, before[name]) for name, tensor in lora_tensors(clip).items())


def test_cross_attention_is_refused():
    clip = make_clip(make_network())
    adapt_clip(clip, **SMALL)
    attention = clip.network.transformer.resblocks[0].attn
    tokens, others = torch.zeros(2, 1, 3, WIDTH)
    with pytest.raises(ValueError, match="must be one tensor"):
        attention(tokens, others, others)
    with pytest.raises(ValueError, match="need_weights False"):
        attention(tokens, tokens, tokens, need_weights=True)
