"""The one error that the engine raises for something the user can mend."""

from __future__ import annotations


class LeanVideoError(Exception):
    """One sentence for the person at the canvas: what was wrong, where, and what to do."""
