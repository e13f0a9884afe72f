"""What is not one model's own: token decoding, diffusion samplers, latent ways."""
