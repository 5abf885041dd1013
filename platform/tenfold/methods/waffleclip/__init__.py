"""Waffling around for Performance: Visual Classification with Random Words and Broad Concepts.

Karsten Roth, Jae Myung Kim, A. Sophia Koepke, Oriol Vinyals, Cordelia Schmid, Zeynep Akata. ICCV 2023,
arXiv 2306.07282.

Zero-shot classification with CLIP improves when each class is described by several prompts whose scores are averaged.
Descriptors from a language model gain little over random words and characters shared by all classes; the language model
is better asked once per data set, for the concept that its classes have in common.
"""

from tenfold.methods.waffleclip.concepts import concept_prefix, concept_subset, parse_concept, parse_descriptors
from tenfold.methods.waffleclip.prompt_sets import build_prompt_sets
from tenfold.methods.waffleclip.prompts import build_prompt, descriptor_phrase
from tenfold.methods.waffleclip.scoring import class_scores, prototypes, summarise
from tenfold.methods.waffleclip.vocabulary import DescriptorShape, build_vocabulary, character_pool, descriptor_shape
from tenfold.metrics.classification import topk_accuracy

__all__ = [
    "DescriptorShape",
    "build_prompt",
    "build_prompt_sets",
    "build_vocabulary",
    "character_pool",
    "class_scores",
    "concept_prefix",
    "concept_subset",
    "descriptor_phrase",
    "descriptor_shape",
    "parse_concept",
    "parse_descriptors",
    "prototypes",
    "summarise",
    "topk_accuracy",
]
