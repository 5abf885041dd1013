"""Export of a trained CLIP to the formats of peft and open_clip, as files of the bundle."""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from tenfold.models.clip import TINY_FOLDER, Clip, ClipConfig
from tenfold.models.clip_lora import merged_state_dict, save_peft

PEFT_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""Files that make the bundle's folder loadable by ``peft.PeftModel.from_pretrained(open_clip_network, folder)``."""
OPEN_CLIP_FILES = ("open_clip_config.json", "open_clip_model.safetensors")
"""Files that, with a tokenizer of its own if there is one, make it loadable by open_clip as ``local-dir:``."""
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")


def peft_files(clip: Clip, folder: Path) -> dict[str, Path]:
    """Write the adapters for peft; no file where only a convolutional image tower was trained.

    Args:
        clip: CLIP with adapters, not merged.
        folder: Folder to write to.

    Returns:
        File name to path.
    """
    if not any(name.endswith(".lora_A") for name, _ in clip.named_parameters()):
        return {}
    save_peft(clip, folder)
    return {name: folder / name for name in PEFT_FILES}


def open_clip_files(clip: Clip, config: ClipConfig, folder: Path) -> dict[str, Path]:
    """Write the whole network with merged adapters for open_clip; arguments and result as in ``peft_files``."""
    import open_clip
    from open_clip.transformer import QuickGELU

    folder.mkdir(parents=True, exist_ok=True)
    name = f"local-dir:{TINY_FOLDER}" if config.name == "tiny" else config.name
    if not name.startswith(("local-dir:", "hf-hub:")):
        name = name.replace("/", "-")  # ViT-B/16 is ViT-B-16
    network: Any = clip.network
    model_cfg = dict(open_clip.get_model_config(name))
    if any(isinstance(module, QuickGELU) for module in network.modules()):
        model_cfg["quick_gelu"] = True  # it may come from a pretrained tag of open_clip, not from the architecture
    about = {"model_cfg": model_cfg, "preprocess_cfg": network.visual.preprocess_cfg}
    (folder / OPEN_CLIP_FILES[0]).write_text(json.dumps(about, indent=2, default=list))
    save_file(merged_state_dict(clip), folder / OPEN_CLIP_FILES[1], metadata={"format": "pt"})
    files = {name: folder / name for name in OPEN_CLIP_FILES}
    if name.startswith("local-dir:"):
        source = Path(name.removeprefix("local-dir:"))
        files |= {each: source / each for each in _TOKENIZER if (source / each).is_file()}
    return files
