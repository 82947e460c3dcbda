"""Train sparse networks and measure their gradient flow.

The system of "Gradient Flow in Sparse Neural Networks and How Lottery Tickets
Win" (Evci, Ioannou, Keskin, Dauphin, AAAI 2022) as a library on PyTorch.

The public names are declared in ``__init__.pyi``, by submodule, and each is
imported on first use: ``import sparseflow`` alone does not import PyTorch.
"""

import lazy_loader as lazy

__version__ = "0.2.0.dev0"

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
