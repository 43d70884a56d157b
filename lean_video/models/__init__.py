"""The model families: what a loaded checkpoint is and does."""
