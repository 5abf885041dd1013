"""Localisation metrics of score maps: post-processing, pixel average precision, boxes, erasing."""
