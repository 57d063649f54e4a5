"""From a mesh, a material, a view and a light to a picture; gradients go to the material only."""
