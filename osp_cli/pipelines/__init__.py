"""Order of operations: components come in, events go out."""
