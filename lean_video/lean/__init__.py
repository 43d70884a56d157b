"""Exact low-memory forwards over the diffusers modules."""
