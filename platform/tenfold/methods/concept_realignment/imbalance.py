"""Weights of concepts that are seldom present.

Koh et al., "Concept Bottleneck Models", ICML 2020: the factor multiplies both terms of the concept's cross-entropy.
Shapes: N images, K concepts.
"""

from torch import Tensor


def concept_imbalance(c: Tensor) -> Tensor:
    """Return the factor N / n - 1 of each concept, n the number of images that have it.

    Args:
        c: Binary concepts ``(N, K)``.

    Returns:
        ``(K,)``, in the dtype of ``c``, or the default one if that holds no fractions.

    Raises:
        ValueError: Concepts that are not a binary matrix, or one that no image has.
    """
    if c.ndim != 2 or not len(c) or not ((c == 0) | (c == 1)).all():
        raise ValueError(f"c must be a binary matrix (N, K) with at least one row, got {tuple(c.shape)}")
    counts = (c if c.is_floating_point() else c.float()).sum(0)
    absent = (counts == 0).nonzero().flatten().tolist()
    if absent:
        raise ValueError(
            f"every concept must be present in at least one image, got none for {absent[:6]}; their factor is infinite"
        )
    return len(c) / counts - 1
