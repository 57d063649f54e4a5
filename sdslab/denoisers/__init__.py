"""Models that predict the clean x̂_0 from a noisy x_t, and the noise schedule they share."""
