from . import _checkout as _checkout
