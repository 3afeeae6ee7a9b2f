"""Find functional emotions in language models: probes with controls, valuation attention, steering, reports.

The public names stand in `__init__.pyi`; each loads what it needs (torch, transformers, …) when it is first used.
"""

from . import _checkout as _checkout

# isort: split

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
