"""Prompts from templates with one slot for the domain word and one for the class name.

Kim et al., "DataDream", ECCV 2024. All three stages use the first template alone by default: "a satellite photo of a
Forest". A domain word ends with a space; a data set without one has the empty string.
"""

from collections.abc import Sequence

TEMPLATES = (
    "a {}photo of a {}",
    "a {}rendering of a {}",
    "a {}cropped photo of the {}",
    "the {}photo of a {}",
    "a {}photo of a clean {}",
    "a {}photo of a dirty {}",
    "a dark {}photo of the {}",
    "a {}photo of my {}",
    "a {}photo of the cool {}",
    "a close-up {}photo of a {}",
    "a bright {}photo of the {}",
    "a cropped {}photo of a {}",
    "a {}photo of the {}",
    "a good {}photo of the {}",
    "a {}photo of one {}",
    "a close-up {}photo of the {}",
    "a {}rendition of the {}",
    "a {}photo of the clean {}",
    "a {}rendition of a {}",
    "a {}photo of a nice {}",
    "a good {}photo of a {}",
    "a {}photo of the nice {}",
    "a {}photo of the small {}",
    "a {}photo of the weird {}",
    "a {}photo of the large {}",
    "a {}photo of a cool {}",
    "a {}photo of a small {}",
)
"""The 27 templates of the reference, in its order."""


def class_prompts(class_names: Sequence[str], domain_word: str, templates: Sequence[str]) -> list[list[str]]:
    """Fill every template for every class.

    Args:
        class_names: C names, used unchanged.
        domain_word: Word with a trailing space ("satellite "), or empty.
        templates: P texts with two slots ``{}``: domain word, class name.

    Returns:
        C lists of P prompts.

    Raises:
        ValueError: There are no classes or no templates, or a template does not have exactly two slots.
    """
    _check_list("class_names", class_names)
    _check_templates(templates)
    return [[template.format(domain_word, name) for template in templates] for name in class_names]


def generation_prompts(class_name: str, domain_word: str, templates: Sequence[str], n_images: int) -> list[str]:
    """Prompt of each image to generate for a class; image i takes template i mod P.

    Raises:
        ValueError: There are no templates, one does not have exactly two slots, or ``n_images`` is below 1.
    """
    _check_templates(templates)
    if n_images < 1:
        raise ValueError(f"n_images must be at least 1, got {n_images}")
    prompts = [template.format(domain_word, class_name) for template in templates]
    return [prompts[image % len(prompts)] for image in range(n_images)]


def shard_range(n_items: int, n_shards: int, shard: int) -> tuple[int, int]:
    """Range of items (classes) of a worker: equal shares, with the remainder in the last.

    Returns:
        Start, and stop (exclusive).

    Raises:
        ValueError: ``n_items`` is negative, ``n_shards`` below 1, or ``shard`` outside 0..n_shards-1.
    """
    if n_items < 0:
        raise ValueError(f"n_items must be at least 0, got {n_items}")
    if n_shards < 1:
        raise ValueError(f"n_shards must be at least 1, got {n_shards}")
    if not 0 <= shard < n_shards:
        raise ValueError(f"shard must lie in 0..{n_shards - 1}, got {shard}")
    size = n_items // n_shards
    return shard * size, n_items if shard == n_shards - 1 else (shard + 1) * size


def _check_templates(templates: Sequence[str]) -> None:
    _check_list("templates", templates)
    for template in templates:
        rest = template.replace("{}", "")
        if template.count("{}") != 2 or "{" in rest or "}" in rest:
            raise ValueError(
                f"a template must have exactly two slots {{}}, for the domain word and the class, got {template!r}"
            )


def _check_list(name: str, texts: Sequence[str]) -> None:
    if isinstance(texts, str) or len(texts) == 0:
        raise ValueError(f"{name} must be a list with at least one text, got {texts!r}")
