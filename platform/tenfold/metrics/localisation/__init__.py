"""How well a map says where something is: post-processing, pixel average precision, boxes, erasing."""
