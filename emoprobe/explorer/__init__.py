"""The explorer: a local page that shows what probes read in a text, and what interventions do to one model.

The public names stand in `__init__.pyi`; they load what they need when they are first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
