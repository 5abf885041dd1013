"""Pre-training: the shipped small CLIP and diffusion pipeline, and digit backbones."""
