"""The maths of one denoising run: schedule, guidance, Fourier features, latent shifting."""
