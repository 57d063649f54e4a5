"""Meshes and their materials: reading, mending, unwrapping and writing them."""
