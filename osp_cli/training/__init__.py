"""Training: one loop, shared losses, recipes as data."""
