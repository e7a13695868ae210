"""The embedded factory: synthesised machine sounds, both networks small; no download.

    python -m dns_jax.main --config=configs/demo.py --workdir=runs/demo

The sounds are synthetic and were not tuned to flatter the method; the tables show whatever comes
out. About two minutes on two cores.
"""

import ml_collections

from configs import small


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration of the demonstration."""
    config = small.get_config()
    config.data.synthetic = True
    config.machines = ("blower",)
    config.validation_sections = (0, 1)
    config.evaluation_sections = (2, 3)
    config.autoencoder.epochs = 48
    config.serial_oe.epochs = 24
    config.inlier.clusters = (1, 2, 4, 8)
    return config
