"""The 80 sentences by which CLIP's authors named the classes of ImageNet.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.
"""

from functools import cache


@cache
def imagenet_templates() -> tuple[str, ...]:
    """The sentences in their published order, "{}" for the class name, first letter large and no full stop at the end.

    The full stop is left to a prompt's suffix, as in prompts without a template.
    """
    # open_clip brings its whole model zoo along, and most modes need no template.
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    sentences = [template("{}").removesuffix(".") for template in OPENAI_IMAGENET_TEMPLATES]
    return tuple(sentence[:1].upper() + sentence[1:] for sentence in sentences)
