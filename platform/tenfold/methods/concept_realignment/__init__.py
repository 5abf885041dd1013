"""Improving Intervention Efficacy via Concept Realignment in Concept Bottleneck Models.

Nishad Singhi, Jae Myung Kim, Karsten Roth, Zeynep Akata. ECCV 2024, arXiv 2405.01531.

A concept bottleneck predicts concepts, then the class from them; a person may correct concepts. Correcting one does not
change the others, so that many corrections are needed. A small network updates the concepts that nobody has corrected
yet after every correction, and a policy chooses the next one from the updated values.
"""

from tenfold.data.concepts import balanced_binary_concepts, concept_group_matrix
from tenfold.methods.concept_realignment.curves import curve_auc, intervention_curves, interventions_to_target
from tenfold.methods.concept_realignment.divergence import concept_flip_divergence
from tenfold.methods.concept_realignment.embeddings import ConceptEmbeddingHead, mix_concept_embeddings
from tenfold.methods.concept_realignment.imbalance import concept_imbalance
from tenfold.methods.concept_realignment.losses import joint_realignment_concept_loss, realignment_loss
from tenfold.methods.concept_realignment.policy import (
    coop_scores,
    expected_change_scores,
    group_scores,
    intervene,
    random_scores,
    uncertainty_scores,
)
from tenfold.methods.concept_realignment.realigner import ConceptRealigner
from tenfold.methods.concept_realignment.rollout import Rollout, intervention_rollout

__all__ = [
    "ConceptEmbeddingHead",
    "ConceptRealigner",
    "Rollout",
    "balanced_binary_concepts",
    "concept_flip_divergence",
    "concept_group_matrix",
    "concept_imbalance",
    "coop_scores",
    "curve_auc",
    "expected_change_scores",
    "group_scores",
    "intervene",
    "intervention_curves",
    "intervention_rollout",
    "interventions_to_target",
    "joint_realignment_concept_loss",
    "mix_concept_embeddings",
    "random_scores",
    "realignment_loss",
    "uncertainty_scores",
]
