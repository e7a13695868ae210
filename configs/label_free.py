r"""No labels: the scores of both networks, calibrated, ranked and diffused, instead of eq. 7.

    python -m dns_jax.main --config=configs/label_free.py --workdir=runs/mine \
        --config.data_dir=DIR --config.machines=MACHINE

The networks of `configs/small.py`. Ranking and report go by these scores, which no label has
chosen; they are in <machine>/seed_<s>/scores/label_free/. Where the recordings have labels, Table
II has a row "Label-free" and one for each of its options by itself, beside the paper's setting.
docs/beyond.md says what each is worth and how this was chosen.
"""

import ml_collections

from configs import small


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration without labels."""
    config = small.get_config()
    config.smoothing.unit = "clip"  # as it was measured
    config.smoothing.generative = "ae+serial_oe"
    config.smoothing.score_transform = "calibrated"
    config.smoothing.domain_normalisation = "ranks"
    config.smoothing.space = "f_d+residual"
    config.smoothing.method = "diffusion"
    return config
