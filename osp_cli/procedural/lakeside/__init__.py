"""The scene of the example picture: a boat on a mountain lake, made of noise and geometry."""
