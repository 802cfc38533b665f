"""Which channels of a CNN can go, what each costs, and the smaller network.

The public names are those of `__init__.pyi`; each is imported when it is first used.
"""

from importlib.metadata import version as _version

import lazy_loader as _lazy

__version__ = _version("jaxprune")
__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
