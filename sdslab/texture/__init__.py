"""Texturing meshes by score distillation: ``python -m sdslab.texture``."""
