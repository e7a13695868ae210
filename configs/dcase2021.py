"""All seven machines of DCASE 2021 Task 2: the whole of Tables I and II.

    python -m dns_jax.data.zenodo --dataset=dcase2021 --out=DIR
    python -m dns_jax.main --config=configs/dcase2021.py --workdir=runs/dcase2021 \
        --config.data_dir=DIR

The first command downloads the data, as for `configs/fan.py`. Expected in the paper's Table II,
All-hmean in %: SerialOE 64.72, AE 56.38, Proposed 63.52, Oracle 69.89; the hyper-parameters are in
the seven configurations beside this one. Seven times the work of one machine: for a GPU or TPU. Not
yet run by us on the real data.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """Return the paper's configuration for the seven machines."""
    config = default.get_config()
    config.machines = ("fan", "gearbox", "pump", "slider", "ToyCar", "ToyTrain", "valve")
    return config
