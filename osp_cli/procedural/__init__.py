"""Pictures, motions and styles made by torch alone: the data the embedded model learns from."""
