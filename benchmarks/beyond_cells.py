r"""Train the networks whose scores and features `beyond.py` smooths: a file a machine, SNR, seed.

python benchmarks/beyond_cells.py DIR --out=CELLS --seeds 0 1 2 3 4

DIR is as for `mimii_features.py`, and so are the networks, the clips held out and the seeds. A file
CELLS/<machine>_<snr>_<seed>.npz holds what networks trained at that SNR make of the test clips of
the same SNR and, for networks trained at 6 dB, of the other two (the shift), and of their training
clips: a_G of the autoencoder, GMM-NLL, the score of SerialOE (two Gaussians an id), f_D, and the
residual of the autoencoder. Files that are there are left.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from mimii_features import IDS, SNRS, Cell, read_cell, train_autoencoder, train_discriminator
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from dns_jax.data.refusals import DataError
from dns_jax.evaluation.spectra import fit_spectra
from dns_jax.files import write_file
from dns_jax.inlier import fit_inlier, score_features

SHIFTED = "snr6"  # trained at this, tested at all


def score_cells(cells: dict[str, Cell], snr: str, seed: int) -> dict[str, np.ndarray]:
    """Train at one SNR; return the arrays of a file, named <array>_<"train" or tested SNR>."""
    cell = cells[snr]
    f_g, f_d = train_autoencoder(cell, seed), train_discriminator(cell, seed)
    ids = cell.product.argmax(axis=1)
    features = np.asarray(f_d(cell.train, train=False))
    inliers = [fit_inlier(features[ids == number], 2, seed) for number in range(len(IDS))]
    score_spectra = fit_spectra(cell.train, seed)
    arrays = {"section_train": ids}
    tested = list(cells) if snr == SHIFTED else [snr]
    psis = {"train": cell.train}
    psis |= {t: np.float32(cells[t].test + (cells[t].mean - cell.mean)) for t in tested}
    for name, psi in psis.items():
        residual = psi - np.asarray(f_g(psi, train=False))
        feature = np.asarray(f_d(psi, train=False))
        of_ids = np.stack([score_features(h, feature) for h in inliers])
        section = ids if name == "train" else cells[name].clips["section"].to_numpy()
        arrays |= {
            f"ae_{name}": np.square(residual).mean(axis=1),
            f"gmm_{name}": score_spectra(psi),
            f"serial_oe_{name}": of_ids[section, np.arange(len(section))],
            f"feature_{name}": feature,
            f"residual_{name}": residual,
        }
    clips = cell.clips  # the same rows at every SNR
    return arrays | {"section": clips["section"].to_numpy(), "label": clips["label"].to_numpy()}


@threadpool_limits.wrap(limits=1)  # threads only slow down the mixtures' small matrices
def main() -> None:
    """Write every file that is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="CELLS")
    parser.add_argument("--machines", nargs="+", default=["fan", "slider"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    todo = [(m, snr, seed) for seed in args.seeds for m in args.machines for snr in SNRS]
    for machine, snr, seed in tqdm(todo, unit="file", disable=None):
        path = args.out / f"{machine}_{snr}_{seed}.npz"
        if path.exists():
            continue
        try:
            tested = SNRS if snr == SHIFTED else [snr]
            cells = {name: read_cell(args.directory, machine, name, seed) for name in tested}
        except DataError as error:
            sys.exit(f"beyond_cells: {error}")
        arrays = score_cells(cells, snr, seed)
        write_file(path, lambda file, arrays=arrays: np.savez(file, **arrays))


if __name__ == "__main__":
    main()
