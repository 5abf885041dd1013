"""Keep CALM and Improve Visual Feature Attribution.

Jae Myung Kim, Junsuk Choe, Zeynep Akata, Seong Joon Oh. ICCV 2021, arXiv 2106.07861.

Class activation maps are post-processed only at test time, so their values have no meaning in the trained model. CALM
adds a latent variable to the last layer, the location of the cue, and trains with it: the attribution map of a class,
p(y,z|x), is a probability inside the network, and the class probability is its sum over locations.
"""

from tenfold.methods.calm.attribution import attribution_map, counterfactual_map
from tenfold.methods.calm.cues import attribute_parts, cue_mask, differing_parts, merge_parts
from tenfold.methods.calm.distributions import CalmDistributions, calm_distributions
from tenfold.methods.calm.gradients import input_gradient, integrated_gradient, smooth_gradient, variance_gradient
from tenfold.methods.calm.head import CalmHead
from tenfold.methods.calm.losses import calm_em_loss, calm_ml_loss, cam_loss
from tenfold.metrics.localisation.boxes import box_iou_inclusive, max_box_accuracy, resize_box, score_map_boxes
from tenfold.metrics.localisation.erasure import random_erase_mask, remove_and_classify_ratio, topk_erase_mask
from tenfold.metrics.localisation.maps import normalize_score_map, resize_score_map, score_thresholds
from tenfold.metrics.localisation.pixel_ap import PixelAveragePrecision

__all__ = [
    "CalmDistributions",
    "CalmHead",
    "PixelAveragePrecision",
    "attribute_parts",
    "attribution_map",
    "box_iou_inclusive",
    "calm_distributions",
    "calm_em_loss",
    "calm_ml_loss",
    "cam_loss",
    "counterfactual_map",
    "cue_mask",
    "differing_parts",
    "input_gradient",
    "integrated_gradient",
    "max_box_accuracy",
    "merge_parts",
    "normalize_score_map",
    "random_erase_mask",
    "remove_and_classify_ratio",
    "resize_box",
    "resize_score_map",
    "score_map_boxes",
    "score_thresholds",
    "smooth_gradient",
    "topk_erase_mask",
    "variance_gradient",
]
