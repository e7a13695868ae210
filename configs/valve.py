"""valve of DCASE 2021 Task 2, as in the paper.

    python -m dns_jax.data.zenodo --dataset=dcase2021 --out=DIR
    python -m dns_jax.main --config=configs/valve.py --workdir=runs/valve \
        --config.data_dir=DIR

The first command downloads dev_data/ and eval_data/ of all seven machines (Zenodo records 4562016,
4660992, 4884786; 14 GB) and the evaluator's labels (record 5257674); the other six machines are the
pseudo-anomalous sounds.

Table I of the paper: SerialOE 2 clusters on All data; Proposed K = 128 on Source;
Oracle K = 1,024 on Source. Table II, harmonic mean of AUC and pAUC over sections 3, 4, 5 in %:
SerialOE 64.02, AE 51.27, Proposed 56.95, Oracle 73.28. Runs of the official
autoencoder differ by about one point, so agreement within two is what to expect.

12,000 steps of B0 at 128 x 64,000 samples: for a GPU or TPU. Not yet run by us on the real data.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """Return the paper's configuration for valve."""
    config = default.get_config()
    config.machines = ("valve",)
    return config
