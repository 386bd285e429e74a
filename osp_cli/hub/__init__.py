"""Weights: fetched from where they are published, told apart, and installed where models look."""
