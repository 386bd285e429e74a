"""Limits of what a stylizer and an animator make."""

from __future__ import annotations

from dataclasses import dataclass

# Tried on the thirteen operators' pictures of a landscape and six drawn scenes, and on clips of
# three of them under slow, gentle and fast motions.


@dataclass(frozen=True, slots=True, kw_only=True)
class QualitySettings:
    """What a result must reach to be part of the dataset; all without weights.

    Attributes:
        min_change: least difference of a styled picture from its source, coarse RGB in 8-bit
            levels. Tried: operators 7.9 to 110; the picture itself blurred by a Gaussian of 3
            pixels up to 3.9, through JPEG at quality 30 up to 1.8.
        min_content: least correlation of its coarse edges with the source's. Tried: 91 styled
            pictures 0.23 to 0.98, with the sources of others up to 0.21.
        max_first_change: greatest difference of a clip's first frame from the styled picture,
            coarse RGB. Tried: drawn clips after coding up to 0.4, the built-in model's up to 1.1;
            unstyled pictures are 7.9 or more from styled ones.
        min_motion: least temporal information of a clip. Tried: the slowest drawn clips, in
            bricks, 0.65; others up to 20; a held picture 0.02.
        max_motion: greatest one.
        max_duplicates: greatest share of frames that repeat the one before.
        max_drift: greatest change of the mean colour from the first frame to the last four, in
            8-bit levels of the worst channel. Tried: true motions up to 4.2 in 25 frames.
    """

    min_change: float = 5.0
    min_content: float = 0.2
    max_first_change: float = 5.0
    min_motion: float = 0.3
    max_motion: float = 40.0
    max_duplicates: float = 0.3
    max_drift: float = 30.0
