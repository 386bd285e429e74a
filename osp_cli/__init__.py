"""`osp`: turn a picture into a video from the command line (UniWorld-OSP2.0 / FlashI2V)."""

__version__ = "0.1.0"
