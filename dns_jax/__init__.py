"""Discriminative neighbourhood smoothing for anomalous machine sound detection, in JAX.

Eq. 7 of the paper is `smooth`; the paper itself, stage by stage, is `dns_jax.experiment`.
"""

from dns_jax.smoothing import diffuse, diffuse_queries, smooth, smooth_queries, smooth_sweep

__version__ = "0.4.0"

__all__ = ["diffuse", "diffuse_queries", "smooth", "smooth_queries", "smooth_sweep"]
