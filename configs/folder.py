"""One machine, recordings of any names: learn from a folder of normal ones, rank another folder.

    python -m dns_jax.main --config=configs/folder.py --workdir=runs/mine \
        --config.data.normal=NORMAL --config.data.score=NEW --config.data.others=factory

prints the most suspicious recordings of NEW and writes `ranking.csv` and `report.html`. WAV or FLAC
of 16 kHz, mono, at least 4 s long (other rates: `--config.data.resample=True`), also in folders in
NORMAL and NEW. `others` are sounds that are not of this machine, which SerialOE learns to tell it
from: a folder of recordings of other machines is best; `factory` takes the synthetic machines of
the demo; `none` leaves SerialOE out: the autoencoder alone scores.

The networks of `configs/small.py`. Nothing is labelled, so K is the default, and the more
recordings are scored together the better they are smoothed.
"""

import ml_collections

from configs import small


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration for two folders of recordings."""
    config = small.get_config()
    config.validation_sections = ()
    config.evaluation_sections = (0,)
    return config
