"""Building a dataset of styled clips from videos, pictures or drawn scenes (paper, section 6)."""
