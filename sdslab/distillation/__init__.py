"""Gradients that a denoiser gives to z, as the papers print them."""
