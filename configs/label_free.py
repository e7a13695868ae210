r"""No labels: the scores of both networks, calibrated, ranked and diffused, beside the paper.

    python -m dns_jax.main --config=configs/label_free.py --workdir=runs/mine \
        --config.data_dir=DIR --config.machines=MACHINE

The networks of `configs/small.py`. Table II has a row "Label-free", and one for each of its options
by itself. docs/beyond.md says what each is worth and how this was chosen. Nothing of it is chosen
by labels; where the recordings have some, `--config.validation_sections` and
`--config.evaluation_sections` put the paper's setting beside it.
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
    config.smoothing.method = "diffusion"
    return config
