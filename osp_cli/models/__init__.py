"""The networks: video transformer, latent projection, adapters, and how their weights are read."""
