"""Score distillation sampling, from the toy study to textured meshes."""

__version__ = "0.1.0"
