"""Any recordings in the DCASE layout on a two-core CPU: the paper's method with small networks.

The autoencoder is the paper's, trained for fewer epochs. SerialOE has a narrow, five-stage
EfficientNet on 64 mel bands and 126 frames instead of B0 on 224 and 251, and batches of 32.

    python -m dns_jax.main --config=configs/small.py --workdir=runs/mine --config.data_dir=DIR \
        --config.machines=MACHINE --config.validation_sections="(0,1)" \
        --config.evaluation_sections="(2,3)"

Four sections of 60 training and 56 test recordings take about seven minutes.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """Return the configuration for small machines."""
    config = default.get_config()
    config.autoencoder.epochs = 120
    config.serial_oe.epochs = 60
    config.serial_oe.batch = 32
    config.serial_oe.front_end.mels = 64
    config.serial_oe.front_end.hop_ms = 32.0
    config.serial_oe.backbone.width = 0.5
    config.serial_oe.backbone.head = 512
    config.serial_oe.backbone.stages = (
        (1, 16, 1, 1, 3),
        (4, 24, 1, 2, 3),
        (4, 40, 1, 2, 5),
        (4, 64, 1, 2, 3),
        (4, 96, 1, 2, 3),
    )
    return config
