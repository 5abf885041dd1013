"""The 80 prompt templates of CLIP's authors for ImageNet.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.
"""

from functools import cache


@cache
def imagenet_templates() -> tuple[str, ...]:
    """Return the templates in their published order, with "{}" for the class name, capitalised, without full stop.

    The full stop comes from a prompt's suffix, as in prompts without a template.
    """
    # Imported here: open_clip imports its whole model zoo, and most modes need no template.
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    sentences = [template("{}").removesuffix(".") for template in OPENAI_IMAGENET_TEMPLATES]
    return tuple(sentence[:1].upper() + sentence[1:] for sentence in sentences)
