"""Weights on their way from a hub to this machine: listed, fetched, checked, placed."""
