"""ToyCar of DCASE 2021 Task 2, as in the paper.

    python -m dns_jax.data.zenodo --dataset=dcase2021 --out=DIR
    python -m dns_jax.main --config=configs/toycar.py --workdir=runs/toycar \
        --config.data_dir=DIR

The first command downloads dev_data/ and eval_data/ of all seven machines (Zenodo records 4562016,
4660992, 4884786; 14 GB) and the evaluator's labels (record 5257674); the other six machines are the
pseudo-anomalous sounds.

Table I of the paper: SerialOE 4 clusters on All data; Proposed K = 128 on Source;
Oracle K = 2,048 on All. Table II, harmonic mean of AUC and pAUC over sections 3, 4, 5 in %:
SerialOE 49.37, AE 58.61, Proposed 58.18, Oracle 63.09. Runs of the official
autoencoder differ by about one point, so agreement within two is what to expect.

Section 5 of ToyCar is where SerialOE ranks backwards in the paper (AUC 33.58, AE 72.87, Proposed
72.13, Oracle 77.29): the table calls it out.

12,000 steps of B0 at 128 x 64,000 samples: for a GPU or TPU. Not yet run by us on the real data.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
    """Return the paper's configuration for ToyCar."""
    config = default.get_config()
    config.machines = ("ToyCar",)
    return config
