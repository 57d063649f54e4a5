"""θ and the way from it to an image or a material's maps; one file per parameterization."""
