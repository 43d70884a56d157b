"""Files → weights of a known family."""

from __future__ import annotations

from .inspect import Report, inspect
from .open import open_svd

__all__ = ["Report", "inspect", "open_svd"]
