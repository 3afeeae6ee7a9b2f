"""Labelled texts in one schema, wherever they come from: published corpora, the user's tables, generated
texts.

The public names stand in `__init__.pyi`; each loads what it needs when it is first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
