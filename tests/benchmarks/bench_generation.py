"""Images and training steps per second on one device, against straightforward use of diffusers and peft, in one run.

Uses the architectures of Stable Diffusion 2.1 (512 pixels) and CLIP ViT-B/16 with random weights: nothing is
downloaded, and speed does not depend on the weights. Three parts, the stages of DataDream:

- generate: one adapter, guidance 2, 50 steps. Plain: the pipeline's own call with the adapter loaded beside the
  weights, ten images at a time. Ours: the adapter merged, large batches, channels last, compiled.
- adapt: LoRA on UNet and text encoder, batch 8. Plain: every step runs VAE and text encoder on the whole batch. Ours:
  latents cached, each distinct prompt encoded once, channels last, compiled, fused optimiser.
- classify: CLIP LoRA on both towers, batch 64, 100 classes. Plain: peft on open_clip. Ours: ``clip_lora``.

``python -m tests.benchmarks.bench_generation [--tiny] [--part generate] [--images 128] [--batch-size 64] ...``
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from tenfold.models.clip import ClipConfig, load_clip
from tenfold.models.clip_lora import adapt_clip
from tenfold.models.diffusion import (
    DiffusionConfig,
    Pipeline,
    alphas_cumprod,
    denoise,
    encode_latents,
    image_size,
    latent_shape,
    load_pipeline,
    tokenize,
)
from tenfold.models.diffusion_lora import Denoiser, add_adapter, merged_adapter, save_adapter
from tenfold.models.sampling import generate
from tenfold.pretraining.tiny.diffusion_architecture import build_pipeline, build_tokenizer

PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12, "4090": 165e12}
"""Dense bf16 operations per second as stated by the vendors, by a part of the device name; the first match counts."""
PROMPT = "a satellite photo of a three"


def write_stable_diffusion(folder: Path) -> None:
    """Save Stable Diffusion 2.1 at 512 pixels (v-prediction) with random weights in bf16."""
    torch.set_default_dtype(torch.bfloat16)
    tokenizer = build_tokenizer()
    tokenizer.model_max_length = 77
    pipeline: Pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL(
            sample_size=512,
            latent_channels=4,
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        ),
        unet=UNet2DConditionModel(
            sample_size=64,
            block_out_channels=(320, 640, 1280, 1280),
            attention_head_dim=(5, 10, 20, 20),
            cross_attention_dim=1024,
            use_linear_projection=True,
        ),
        text_encoder=CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=1024,
                intermediate_size=4096,
                num_hidden_layers=23,
                num_attention_heads=16,
                hidden_act="gelu",
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        ),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
            prediction_type="v_prediction",
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    torch.set_default_dtype(torch.float32)
    pipeline.save_pretrained(folder)


class Bench:
    """State shared by the parts: the pipeline on disk, the device, the timing."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options = options
        self.device = torch.device(options.device)
        self.compile = self.device.type == "cuda" and not options.no_compile
        self.folder = folder / "pipeline"
        self.adapter = folder / "adapter"
        if options.tiny:
            build_pipeline(vae_channels=(8, 8, 16), unet_channels=(16, 16)).save_pretrained(self.folder)
        else:
            write_stable_diffusion(self.folder)
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def ours(self) -> Pipeline:
        return load_pipeline(DiffusionConfig(name=str(self.folder), compile=self.compile), self.device)

    def plain(self) -> Pipeline:
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        pipeline = StableDiffusionPipeline.from_pretrained(self.folder, dtype=dtype, safety_checker=None)
        pipeline.to(self.device).set_progress_bar_config(disable=True)
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            part.requires_grad_(False).eval()
        return pipeline

    def seconds(self, work: Callable[[], object], calls: int = 1) -> float:
        """Return the mean time per call, after two warm-up calls (which compile)."""
        work()
        work()
        self._wait()
        start = time.perf_counter()
        for _ in range(calls):
            work()
        self._wait()
        return (time.perf_counter() - start) / calls

    def peak(self) -> tuple[float, str]:
        """Return the peak operations per second to compare with, and its source."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        for part, peak in PEAKS.items():
            if part in name:
                return peak, f"{name}: stated peak {peak / 1e12:.0f} TFLOP/s in bf16"
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        side = 8192 if self.device.type == "cuda" else 1024
        left = torch.randn(side, side, device=self.device, dtype=dtype)
        peak = 2 * side**3 / self.seconds(lambda: left @ left, calls=5)
        return peak, f"{name}: measured matrix product {peak / 1e12:.3g} TFLOP/s in {dtype}"

    def report(self, what: str, unit: str, plain: float, ours: float, operations: float) -> None:
        """Print rate and share of the peak of each variant, and the ratio."""
        peak, source = self.peak()
        print(f"\n{what}  ({source}; {operations / 1e12:.4g} TFLOP per {unit})")
        print(f"  plain  {plain:10.3f} {unit}/s  {plain * operations / peak:7.1%} of the peak")
        print(f"  ours   {ours:10.3f} {unit}/s  {ours * operations / peak:7.1%} of the peak")
        print(f"  ratio  {ours / plain:10.2f}")

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def operations_of(work: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def bench_generate(bench: Bench) -> None:
    plain_s, operations = seconds_of_plain_drawing(bench)
    options, pipeline = bench.options, bench.ours()
    add_adapter(pipeline)

    def our_way() -> None:
        with merged_adapter(pipeline):
            generate(
                pipeline,
                [PROMPT] * options.images,
                range(options.images),
                num_steps=options.steps,
                guidance_scale=2.0,
                batch_size=options.batch_size,
            )

    ours_s = bench.seconds(our_way)
    bench.report("generate", "image", options.images / plain_s, options.images / ours_s, operations)


def seconds_of_plain_drawing(bench: Bench) -> tuple[float, float]:
    """Return the time for all images and the operations of one; frees the pipeline's memory."""
    options, pipeline = bench.options, bench.plain()
    operations = image_operations(pipeline, options.steps)
    add_adapter(pipeline)
    save_adapter(pipeline, bench.adapter)
    pipeline.unload_lora_weights()
    pipeline.load_lora_weights(bench.adapter)
    settings = {"num_inference_steps": options.steps, "guidance_scale": 2.0, "output_type": "pt"}

    def the_plain_way() -> None:
        for start in range(0, options.images, options.plain_batch_size):
            pipeline([PROMPT] * min(options.plain_batch_size, options.images - start), **settings)

    return bench.seconds(the_plain_way), operations


def image_operations(pipeline: Pipeline, num_steps: int) -> float:
    """Count the operations of one image: two predictions per step, and the VAE once."""
    unet = pipeline.unet
    latent = torch.zeros(1, *latent_shape(pipeline), device=unet.device, dtype=unet.dtype)
    text = pipeline.text_encoder(tokenize(pipeline, [PROMPT]))[0].detach()
    with torch.no_grad():
        step = operations_of(lambda: denoise(pipeline, latent, torch.zeros((), device=unet.device), text))
        return 2 * num_steps * step + operations_of(lambda: pipeline.vae.decode(latent))


def bench_adapt(bench: Bench) -> None:
    batch, steps = 8, bench.options.train_steps
    pipeline = bench.plain()
    size, shape = image_size(pipeline), latent_shape(pipeline)
    images = torch.randint(256, (16, size, size, 3), dtype=torch.uint8)
    pixels = (images.permute(0, 3, 1, 2).float() / 127.5 - 1).to(bench.device, pipeline.vae.dtype)
    share = alphas_cumprod(pipeline).to(bench.device)
    rows = torch.arange(batch, device=bench.device)

    def noised(clean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        noise, times = torch.randn_like(clean), torch.randint(1000, (batch,), device=bench.device)
        signal, spread = (part[:, None, None, None] for part in (share[times].sqrt(), (1 - share[times]).sqrt()))
        return signal * clean + spread * noise, times, signal * noise - spread * clean

    def finish(
        denoiser: nn.Module, parts: tuple[Tensor, ...], tokens: Tensor, which: Tensor, optimizer: Any, parameters: Any
    ) -> None:
        noisy, times, target = parts
        with bench.autocast:
            prediction = denoiser(noisy, times, tokens, which)
        functional.mse_loss(prediction.float(), target).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    parameters = add_adapter(pipeline)
    denoiser, optimizer = Denoiser(pipeline), torch.optim.AdamW(parameters, lr=1e-4)

    def plain_step() -> None:
        with torch.no_grad():
            chosen = pixels[torch.randperm(16, device=bench.device)[:batch]]
            clean = pipeline.vae.encode(chosen).latent_dist.sample().float() * pipeline.vae.config.scaling_factor
        finish(denoiser, noised(clean), tokenize(pipeline, [PROMPT] * batch), rows, optimizer, parameters)

    plain_s = bench.seconds(plain_step, steps)
    del pipeline, denoiser, optimizer, parameters
    pipeline = bench.ours()
    mean, std = encode_latents(pipeline, images)
    parameters = add_adapter(pipeline)
    denoiser = Denoiser(pipeline)
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=bench.device.type == "cuda")
    tokens, same = tokenize(pipeline, [PROMPT]), torch.zeros_like(rows)

    def our_step() -> None:
        chosen = torch.randperm(16, device=bench.device)[:batch]
        clean = mean[chosen] + std[chosen] * torch.randn(batch, *shape, device=bench.device)
        finish(denoiser, noised(clean), tokens, same, optimizer, parameters)

    ours_s = bench.seconds(our_step, steps)
    reference = bench.plain()
    trained = add_adapter(reference)
    setup = (Denoiser(reference), noised(mean[:batch]), tokens, same, torch.optim.AdamW(trained), trained)
    operations = operations_of(lambda: finish(*setup))  # without the VAE: the minimum of a step
    bench.report("adapt: diffusion LoRA, batch 8", "step", 1 / plain_s, 1 / ours_s, operations)


def bench_classify(bench: Bench) -> None:
    batch, steps = (8, 2) if bench.options.tiny else (64, bench.options.train_steps)
    num_classes = 10 if bench.options.tiny else 100
    config = ClipConfig() if bench.options.tiny else ClipConfig(name="ViT-B-16", pretrained="random")
    names = [f"a photo of a thing number {number}" for number in range(num_classes)]
    clip = load_clip(config, bench.device)
    size = clip.preprocessing.image_size
    images = torch.randint(256, (batch, size, size, 3), dtype=torch.uint8, device=bench.device)
    labels = torch.arange(batch, device=bench.device) % num_classes
    tokens, pixels = clip.tokenize(names).to(bench.device), clip.normalise(images)

    def loss_of(image: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        logits = scale.exp() * functional.normalize(image, dim=-1) @ functional.normalize(text, dim=-1).T
        return functional.cross_entropy(logits.float(), labels)

    def step_with(images_of: Callable, texts_of: Callable, scale: Tensor, optimizer: Any) -> None:
        with bench.autocast:
            loss = loss_of(images_of(pixels), texts_of(tokens), scale)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    network = load_clip(config, bench.device).network
    targets = [name for name, module in network.named_modules() if isinstance(module, nn.MultiheadAttention)]
    peft = get_peft_model(network, LoraConfig(r=32, lora_alpha=64, lora_dropout=0.0, target_modules=targets))
    trained = [parameter for parameter in peft.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    peft.train()
    scale = clip.log_scale.detach()
    plain_s = bench.seconds(lambda: step_with(peft.encode_image, peft.encode_text, scale, optimizer), steps)
    adapt_clip(clip, rank=16, alpha=32, dropout=0.0)
    clip.train()
    trained = [parameter for parameter in clip.parameters() if parameter.requires_grad]
    ours = torch.optim.AdamW(trained, lr=1e-4, fused=bench.device.type == "cuda")
    operations = operations_of(lambda: step_with(clip.image_features, clip.text_features, scale, ours))
    if bench.compile:
        clip.network.get_submodule("visual").compile()
    ours_s = bench.seconds(lambda: step_with(clip.image_features, clip.text_features, scale, ours), steps)
    what = f"classify: CLIP LoRA, batch {batch}, {num_classes} prompts"
    bench.report(what, "step", 1 / plain_s, 1 / ours_s, operations)


PARTS = {"generate": bench_generate, "adapt": bench_adapt, "classify": bench_classify}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="small architectures, to run on any machine")
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--images", type=int, help="images to generate (default 64; tiny 12)")
    parser.add_argument("--batch-size", type=int, help="batch size of ours (default: all of --images)")
    parser.add_argument("--plain-batch-size", type=int, default=10, help="batch size of plain diffusers")
    parser.add_argument("--steps", type=int, help="sampler steps (default 50; tiny 5)")
    parser.add_argument("--train-steps", type=int, help="timed training steps (default 20; tiny 3)")
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    options.images = options.images or (12 if options.tiny else 64)
    options.steps = options.steps or (5 if options.tiny else 50)
    options.train_steps = options.train_steps or (3 if options.tiny else 20)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(options, Path(folder))
        for part in options.part or PARTS:
            PARTS[part](bench)


if __name__ == "__main__":
    main()
