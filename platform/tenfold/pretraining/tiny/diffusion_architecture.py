"""Architecture of the small diffusion pipeline: Stable Diffusion's parts, sized for 32x32 images."""

from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tenfold.data.embedded.handwriting.vocabulary import DIGIT_WORDS
from tenfold.models.diffusion import Pipeline

IMAGE_SIZE = 32
NUM_TOKENS = 24
_TEXT_WIDTH = 64
_START, _END = "<|startoftext|>", "<|endoftext|>"
_WORDS = (
    *DIGIT_WORDS,
    *("a", "an", "the", "of", "photo", "picture", "image", "scan", "drawing", "digit", "number", "letter", "character"),
    *("bold", "slanted", "sans", "serif", "typewriter", "printed", "handwritten", "white", "black", "on", "in", "with"),
)


def build_pipeline(
    *,
    seed: int = 0,
    vae_channels: tuple[int, ...] = (16, 32, 64),
    unet_channels: tuple[int, ...] = (48, 96),
    prediction_type: str = "v_prediction",
) -> Pipeline:
    """Build the pipeline with random weights.

    Args:
        seed: Seed of the weights.
        vae_channels: Width of each level of the VAE; every level but the last halves the side.
        unet_channels: Width of each level of the UNet; every level attends to the text.
        prediction_type: ``v_prediction`` or ``epsilon``.
    """
    tokenizer = build_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKL(
            sample_size=IMAGE_SIZE,
            latent_channels=4,
            block_out_channels=vae_channels,
            down_block_types=("DownEncoderBlock2D",) * len(vae_channels),
            up_block_types=("UpDecoderBlock2D",) * len(vae_channels),
            layers_per_block=1,
            norm_num_groups=8,
            mid_block_add_attention=False,
        )
        unet = UNet2DConditionModel(
            sample_size=IMAGE_SIZE // 2 ** (len(vae_channels) - 1),
            block_out_channels=unet_channels,
            down_block_types=("CrossAttnDownBlock2D",) * len(unet_channels),
            up_block_types=("CrossAttnUpBlock2D",) * len(unet_channels),
            layers_per_block=1,
            attention_head_dim=4,  # diffusers' name for the number of heads
            cross_attention_dim=_TEXT_WIDTH,
            norm_num_groups=8,
            use_linear_projection=True,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=_TEXT_WIDTH,
                intermediate_size=4 * _TEXT_WIDTH,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=NUM_TOKENS,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
        timestep_spacing="trailing",
    )
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build_tokenizer() -> CLIPTokenizer:
    """Build CLIP's byte-level BPE with its own vocabulary: words of captions; other words are split into letters.

    Each word is merged from the left, a letter at a time; where another word's pieces merge first, it keeps two tokens.
    """
    letters = list(_byte_letters())
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters)]
    merges: list[Any] = []  # pairs; transformers declares them as strings
    for word in _WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            pieces[:2] = ["".join(pair)]
            if pair not in merges:
                merges.append(pair)
                vocabulary.append(pieces[0])
    vocabulary = [*dict.fromkeys(vocabulary), _START, _END]
    return CLIPTokenizer(
        vocab={piece: number for number, piece in enumerate(vocabulary)},
        merges=merges,
        bos_token=_START,
        eos_token=_END,
        unk_token=_END,
        pad_token=_END,
        model_max_length=NUM_TOKENS,
    )


def _byte_letters() -> list[str]:
    """Return one printable character for each byte: itself if printable, else one from code point 256 on (as GPT-2)."""
    visible = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte) if byte in visible else chr(256 + hidden.index(byte)) for byte in range(256)]
