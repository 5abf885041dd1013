"""Large Loss Matters in Weakly Supervised Multi-Label Classification.

Youngwook Kim, Jae Myung Kim, Zeynep Akata, Jungwoo Lee. CVPR 2022, arXiv 2206.03740.

Only a few labels of each image are observed; the rest are assumed negative, and some of these are false negatives. A
network fits clean labels first, so in mid-training a false negative has a large loss: reject it (LL-R), correct it for
this step (LL-Ct) or correct it permanently (LL-Cp).
"""

from tenfold.data.partial_labels import observe_labels, train_val_split
from tenfold.methods.large_loss.baselines import asymmetric_loss, spml_loss
from tenfold.methods.large_loss.loss import (
    apply_permanent_correction,
    large_loss_bce,
    large_loss_mask,
    large_loss_rate,
    num_large_losses,
)
from tenfold.metrics.average_precision import average_precision, group_mean_ap, mean_average_precision

__all__ = [
    "apply_permanent_correction",
    "asymmetric_loss",
    "average_precision",
    "group_mean_ap",
    "large_loss_bce",
    "large_loss_mask",
    "large_loss_rate",
    "mean_average_precision",
    "num_large_losses",
    "observe_labels",
    "spml_loss",
    "train_val_split",
]
