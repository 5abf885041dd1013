"""DataDream: Few-shot Guided Dataset Generation.

Jae Myung Kim, Jessica Bader, Stephan Alaniz, Cordelia Schmid, Zeynep Akata. ECCV 2024, arXiv 2407.10910.

A few real images of each class adapt a text-to-image diffusion model by LoRA (adapt); the adapted model generates a
training set (generate); CLIP, adapted by LoRA on the synthetic and the real images together, classifies (classify).
"""

from tenfold.methods.datadream.accuracy import per_class_accuracy
from tenfold.methods.datadream.losses import clip_logits, real_synth_cross_entropy, text_prototypes
from tenfold.methods.datadream.mixing import cutmix, mix_by_domain, mixup
from tenfold.methods.datadream.noise import add_noise, ddim_step, diffusion_loss, guided, velocity
from tenfold.methods.datadream.prompts import class_prompts, generation_prompts, shard_range
from tenfold.methods.datadream.schedules import diffusion_warmup_cosine, warmup_cosine
from tenfold.methods.datadream.shots import natural_sort, pool_repeats, sample_k_shot
from tenfold.metrics.classification import topk_accuracy
from tenfold.models.lora import LoRALinear, LoRAMultiheadAttention, LoRAQKV

__all__ = [
    "LoRALinear",
    "LoRAMultiheadAttention",
    "LoRAQKV",
    "add_noise",
    "class_prompts",
    "clip_logits",
    "cutmix",
    "ddim_step",
    "diffusion_loss",
    "diffusion_warmup_cosine",
    "generation_prompts",
    "guided",
    "mix_by_domain",
    "mixup",
    "natural_sort",
    "per_class_accuracy",
    "pool_repeats",
    "real_synth_cross_entropy",
    "sample_k_shot",
    "shard_range",
    "text_prototypes",
    "topk_accuracy",
    "velocity",
    "warmup_cosine",
]
