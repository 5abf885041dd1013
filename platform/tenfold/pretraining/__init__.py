"""What trains the weights that ship: the small CLIP, the small diffusion pipeline, digit backbones."""
