"""Score distillation sampling, from the toy study to textured meshes.

The names that a program of one's own begins with are here; each is imported when it is first used.
"""

import lazy_loader

__version__ = "0.1.0"

# The list stands once, in __init__.pyi.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
