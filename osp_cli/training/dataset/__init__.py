"""Clips to train on: found, checked, cut into windows, encoded once."""
