"""Bridging the Gap between Model Explanations in Partially Annotated Multi-label Classification.

Youngwook Kim, Jae Myung Kim, Jieun Jeong, Cordelia Schmid, Zeynep Akata, Jungwoo Lee. CVPR 2023, arXiv 2304.01804.

A network trained on partial labels, with unobserved labels assumed negative, highlights the same locations as one
trained on full labels, but with lower scores. BoostLU multiplies the positive scores of the class activation maps by a
factor inside the network, before they are averaged to logits; training uses the losses of Large Loss.
"""

from tenfold.methods.boostlu.boost import boostlu, class_activation_maps
from tenfold.methods.boostlu.evaluation import false_negative_detection
from tenfold.methods.boostlu.head import BoostedCAMHead
from tenfold.methods.large_loss.loss import large_loss_bce, large_loss_rate
from tenfold.metrics.map_agreement import cam_extreme_means, cam_rank_correlation, centre_gaussian
from tenfold.models.activation_maps import cam_logits

__all__ = [
    "BoostedCAMHead",
    "boostlu",
    "cam_extreme_means",
    "cam_logits",
    "cam_rank_correlation",
    "centre_gaussian",
    "class_activation_maps",
    "false_negative_detection",
    "large_loss_bce",
    "large_loss_rate",
]
