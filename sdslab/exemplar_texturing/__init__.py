"""A mesh textured like photographs: SDS with the exact denoiser of their patches.

`exemplars` reads the photographs, `pyramid` lays out the levels of optimisation from coarse to
fine, `guide` gives the gradient of a step and says which way is up on the surface, `mode_stage`
shows the photographs' own pixels in the end (`coherent_mode` says which, `surface_points` where),
`triplanar` projects a photograph without any optimisation and guesses bumps, and `measurement`
judges.
"""
