"""pixelwise labels every pixel of an image with fully convolutional networks.

>>> import pixelwise as pw
>>> pw.models.UNet(in_channels=3, num_classes=5, width=8).geometry.stride
16
"""

import lazy_loader

__version__ = "0.1.0"

# PyTorch takes seconds to import, so the public names are fetched when they are first used; __init__.pyi lists them.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ = sorted([*__all__, "__version__"])
