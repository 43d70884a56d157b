"""Frames between frames: RIFE on the weights that people have, and optical flow where there are none.

- `rife.load(path)`: RIFE 4.0 to 4.26 (arXiv:2011.06294), the version told from the tensors
- `flow.OpticalFlow()`: the fallback without a network
- `interpolator.Interpolator`: what both are
"""
