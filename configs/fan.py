"""fan of DCASE 2021 Task 2, as in the paper.

    python -m dns_jax.data.zenodo --dataset=dcase2021 --out=DIR
    python -m dns_jax.main --config=configs/fan.py --workdir=runs/fan \
        --config.data_dir=DIR

The first command downloads dev_data/ and eval_data/ of all seven machines (Zenodo records 4562016,
4660992, 4884786; 14 GB) and the evaluator's labels (record 5257674); the other six machines are the
pseudo-anomalous sounds.

Table I of the paper: SerialOE 2 clusters on Source data; Proposed K = 512 on Source;
Oracle K = 1,024 on Source. Table II, harmonic mean of AUC and pAUC over sections 3, 4, 5 in %:
SerialOE 80.78, AE 57.11, Proposed 73.22, Oracle 74.56. Runs of the official
autoencoder differ by about one point, so agreement within two is what to expect.

12,000 steps of B0 at 128 x 64,000 samples: for a GPU or TPU. Not yet run by us on the real data.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """Return the paper's configuration for fan."""
    config = default.get_config()
    config.machines = ("fan",)
    return config
