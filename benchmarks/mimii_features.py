r"""Real features, end to end: both networks, SerialOE's mixtures and eq. 7 on MIMII at clip level.

python benchmarks/mimii_features.py DIR --machines fan slider --seeds 0 1 2 --figures=OUT

DIR/<machine>/<snr>_id_<id>_{normal,abnormal}.npy (snr6, snr0, snr_6; 00, 02, 04, 06) hold a row a
clip, whose first 128 numbers are the time mean of the orthonormal DCT of its natural-log mel
spectrum. The normal clips of all other machines in DIR are the pseudo-anomalous sounds.

For every id as many normal clips as there are abnormal ones are held out, the same row numbers at
each SNR; the test clips of one id are the pool of eq. 7. psi is the log-mel spectrum less the mean
of the machine's training clips. Losses, training loop, mixtures, smoothing and measures are those
of `dns_jax`; only the two networks are small: f_G is 128-128x4-8-128x4-128, f_D 128-256-256-128,
both with batch norm and ReLU. PCA-16 is the error of 16 principal components; GMM-NLL the negative
log-likelihood of 8 Gaussians on 32 components and of one isotropic Gaussian on the other 96.

A cell is the harmonic mean of AUC and pAUC over the four ids in %, mean (standard deviation) over
the seeds, and behind the stroke that of an independent measurement of the same methods on the same
clips, whose pseudo-anomalous sounds came from one machine more (pump). "cv2": n or K is chosen on
two ids and scored on the other two, both ways; "oracle": chosen on all four. That measurement
leaves open and this one sets: the clips held out, batches of 128 for f_G and 64 + 64 for f_D,
Flax's initial weights, no weight decay, the weights of the last epoch, negatives of the same SNR,
K = 1, 2, 4, ... 256 to choose from. Batch norm and ReLU follow f_D's last layer too: without them
SerialOE lay further from the reference on the slider (89.6 instead of 95.2 at 6 dB).

With --figures the first seed's Fig. 5 and curve of the anomaly rate are drawn for every machine and
SNR, and their numbers printed.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from flax import nnx
from scipy.fft import idct
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from dns_jax import smooth_sweep
from dns_jax.data.batches import Plan, count_steps, draw_rows
from dns_jax.data.refusals import DataError, printable
from dns_jax.evaluation.curves import measure_anomaly_rates, measure_pool_sizes
from dns_jax.evaluation.drawing import draw_anomaly_rates, draw_pool_sizes, save_figure
from dns_jax.evaluation.metrics import section_hmean
from dns_jax.evaluation.pools import stack_pools
from dns_jax.evaluation.selection import select
from dns_jax.evaluation.spectra import fit_spectra
from dns_jax.feeding import Feed
from dns_jax.hosts import Preemption
from dns_jax.inlier import fit_inlier, score_features
from dns_jax.models.autoencoder import reconstruction_loss
from dns_jax.models.batch_norm import BatchNorm
from dns_jax.models.serial_oe import draw_mixture, mix_up, serial_oe_loss
from dns_jax.one_cycle import one_cycle_adamw
from dns_jax.parallel import make_mesh
from dns_jax.programs import Task
from dns_jax.scoring import Segments
from dns_jax.training import Schedule, TrainingError, fit

SNRS = {"snr6": "6 dB", "snr0": "0 dB", "snr_6": "-6 dB"}
IDS = ("00", "02", "04", "06")
MELS = 128
EPOCHS = 100
BATCH = 128
CLUSTERS = (1, 2, 4, 8, 16, 32)
NEIGHBOURS = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # K; at most the clips of the pool
REFERENCE_MACHINES = ("fan", "slider")
REFERENCE = {  # each machine at 6, 0 and -6 dB
    "AE": "95.8 (0.6), 82.7 (0.9), 61.9 (1.0), 80.4 (1.8), 72.3 (0.4), 64.1 (0.8)",
    "PCA-16": "87.6 (0.7), 68.1 (0.1), 55.7 (0.4), 79.6 (1.2), 70.0 (1.0), 62.2 (0.9)",
    "GMM-NLL": "92.5 (1.1), 76.2 (0.1), 61.0 (0.5), 90.1 (1.6), 80.8 (1.4), 70.6 (0.6)",
    "SerialOE n=2": "98.8 (0.0), 92.4 (0.4), 78.8 (0.4), 97.3 (1.0), 90.4 (1.3), 82.8 (0.4)",
    "SerialOE cv2 n": "98.8 (0.0), 92.2 (0.6), 78.7 (0.3), 96.7 (0.8), 90.0 (1.4), 82.0 (1.0)",
    "SerialOE oracle n": "98.8 (0.0), 92.5 (0.3), 78.8 (0.4), 97.3 (1.0), 91.3 (1.2), 83.1 (0.8)",
    "Prop K=16": "99.1 (0.1), 91.5 (1.0), 68.8 (1.2), 95.9 (2.3), 84.3 (1.9), 70.2 (2.4)",
    "Prop K=32": "99.3 (0.1), 92.9 (0.9), 71.2 (1.5), 98.4 (1.1), 86.7 (1.1), 71.5 (2.7)",
    "Prop K=64": "99.5 (0.0), 94.1 (0.9), 75.4 (1.7), 99.7 (0.2), 90.2 (2.1), 71.9 (5.4)",
    "Prop cv2 K": "98.7 (0.3), 95.0 (1.0), 80.5 (1.9), 98.8 (1.3), 80.6 (7.2), 79.7 (6.6)",
    "Prop oracle K": "99.6 (0.0), 95.4 (0.7), 80.5 (1.9), 99.8 (0.1), 90.2 (2.1), 80.4 (5.7)",
}


class Cell(NamedTuple):
    """The clips of one machine at one SNR; psi is f32[clips, 128], less the mean f64[128]."""

    train: np.ndarray
    product: np.ndarray  # f32[training clips, 4], one-hot
    negatives: np.ndarray
    test: np.ndarray
    clips: pd.DataFrame  # of the test clips: section, domain, label
    mean: np.ndarray


class Perceptron(nnx.Module):
    """Dense layers, with batch norm and ReLU after every one but the last; f_G."""

    def __init__(self, *sizes: int, rngs: nnx.Rngs):
        self.layers = nnx.List(nnx.Linear(i, o, rngs=rngs) for i, o in pairwise(sizes))
        self.norms = nnx.List(BatchNorm(size) for size in sizes[1:-1])

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Map ``x: f32[rows, first size] -> f32[rows, last size]``."""
        for layer, norm in zip(self.layers[:-1], self.norms, strict=True):
            x = nnx.relu(norm(layer(x), train=train))
        return self.layers[-1](x)


class Discriminator(Perceptron):
    """f_D, normalised to its last layer, with the linear heads that `serial_oe_loss` asks for."""

    def __init__(self, *, rngs: nnx.Rngs):
        super().__init__(MELS, 256, 256, 128, rngs=rngs)
        self.norm = BatchNorm(128)
        self.machine = nnx.Linear(128, 1, rngs=rngs)
        self.product = nnx.Linear(128, len(IDS), rngs=rngs)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Compute f_D: ``f32[rows, 128] -> f32[rows, 128]``."""
        return nnx.relu(self.norm(super().__call__(x, train=train), train=train))

    def classify_machine(self, features: jax.Array) -> jax.Array:
        """Compute the logit g_mac, f32[rows]."""
        return self.machine(features)[:, 0]

    def classify_product(self, features: jax.Array) -> jax.Array:
        """Compute the logits g_id, f32[rows, 4]."""
        return self.product(features)


def read_log_mel(path: Path) -> np.ndarray:
    """Return the time-mean log-mel spectra of a file, f64[clips, 128]."""
    try:
        with open(path, "rb") as file:
            rows = np.lib.format.read_array(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise DataError(f"{printable(path)} cannot be read: {reason}") from error
    if rows.ndim != 2 or rows.shape[1] < MELS or not len(rows) or rows.dtype.kind != "f":
        found = f"{rows.dtype}{list(rows.shape)}"
        raise DataError(f"{printable(path)} must be float[clips, {MELS} or more]; it is {found}")
    if not np.isfinite(rows[:, :MELS]).all():
        raise DataError(f"{printable(path)} holds numbers that are not finite")
    return idct(rows[:, :MELS].astype(np.float64), type=2, norm="ortho", axis=1)


def read_cell(directory: Path, machine: str, snr: str, seed: int) -> Cell:
    """Read one machine at one SNR and hold out as many normal clips of each id as are abnormal."""
    train, train_ids, test, clips = [], [], [], []
    for number, product in enumerate(IDS):
        path = directory / machine / f"{snr}_id_{product}_normal.npy"
        normal = read_log_mel(path)
        abnormal = read_log_mel(path.with_name(f"{snr}_id_{product}_abnormal.npy"))
        held_out, least = len(abnormal), len(abnormal) + max(CLUSTERS)
        if len(normal) < least:
            raise DataError(
                f"{printable(path)} must hold {least} clips or more ({held_out} are held out, the "
                f"others have up to {max(CLUSTERS)} Gaussians); it holds {len(normal)}"
            )
        normal = np.random.default_rng((seed, number)).permutation(normal)
        train.append(normal[held_out:])
        train_ids += [number] * len(train[-1])
        test += [normal[:held_out], abnormal]
        clips += [(number, "source", label) for label in (0, 1) for _ in range(held_out)]
    others = sorted(p for p in directory.iterdir() if p.is_dir() and p.name != machine)
    if not others:
        raise DataError(f"{printable(directory)} must hold a second machine beside {machine}")
    negatives = [read_log_mel(p / f"{snr}_id_{i}_normal.npy") for p in others for i in IDS]
    mean = np.concatenate(train).mean(axis=0)
    train, negatives, test = (
        np.float32(np.concatenate(x) - mean) for x in (train, negatives, test)
    )
    one_hot = np.eye(len(IDS), dtype=np.float32)[train_ids]
    clips = pd.DataFrame(clips, columns=["section", "domain", "label"])
    return Cell(train, one_hot, negatives, test, clips, mean)


def train_network(
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
    loss: Callable,
    psi: np.ndarray,
    draw: Callable,
    steps_per_epoch: int,
    seed: int,
) -> nnx.Module:
    """Train on rows of `psi` by `dns_jax.training.fit` with nothing to validate on."""
    feed = Feed(jnp.asarray(psi), lambda rows, _: np.int32(rows), lambda psi, rows: psi[rows])
    nothing = np.zeros((0, BATCH), int)
    validation = Plan(nothing, nothing)
    task = Task(loss, None, BATCH, draw, validation, 0, lambda mesh: (feed, feed))
    with tempfile.TemporaryDirectory() as directory:
        return fit(
            model,
            optimizer,
            task,
            Schedule(EPOCHS, steps_per_epoch, validate_every=EPOCHS, checkpoint_seconds=np.inf),
            seed=seed,
            directory=Path(directory),
            name=type(model).__name__,
            progress=False,
            mesh=make_mesh(1),
            parallel="mesh",
            preemption=Preemption(),
        )


def train_autoencoder(cell: Cell, seed: int) -> Perceptron:
    """Train f_G on the normal clips of all ids (eq. 1)."""
    rows = np.arange(len(cell.train))

    def draw(first, count):
        drawn = draw_rows(rows, BATCH, seed, 0, first, count)
        return Plan(drawn, 0 * drawn)

    def loss(model, batch, key, progress):
        (psi,) = batch
        return reconstruction_loss(psi, model(psi, train=True))

    model = Perceptron(*(MELS,) * 5, 8, *(MELS,) * 5, rngs=nnx.Rngs(seed))
    epoch = count_steps(len(rows), BATCH)
    return train_network(model, optax.adam(1e-3), loss, cell.train, draw, epoch, seed)


def train_discriminator(cell: Cell, seed: int) -> Discriminator:
    """Train f_D on the normal clips of all ids and, 1:1, pseudo-anomalous ones (eq. 3)."""
    psi = np.concatenate([cell.train, cell.negatives])
    product = np.pad(cell.product, ((0, len(cell.negatives)), (0, 0)))
    positive, negative = np.split(np.arange(len(psi)), [len(cell.train)])
    half = BATCH // 2

    def draw(first, count):
        chains = (positive, 1), (negative, 2)
        rows = np.concatenate(
            [draw_rows(rows, half, seed, stream, first, count) for rows, stream in chains], axis=1
        )
        return Plan(rows, 0 * rows, (product[rows].sum(axis=2), product[rows]))

    def loss(model, batch, key, progress):
        psi, machine, product = mix_up(*draw_mixture(key, 0.2, 1.0, BATCH), *batch)
        return jnp.mean(serial_oe_loss(model, model(psi, train=True), machine, product, 5.0))

    epoch = count_steps(len(positive), half)
    optimizer = one_cycle_adamw(1e-3, weight_decay=0.0, steps=EPOCHS * epoch)
    return train_network(
        Discriminator(rngs=nnx.Rngs(seed)), optimizer, loss, psi, draw, epoch, seed
    )


def score_by_components(cell: Cell, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores PCA-16 and GMM-NLL of the test clips."""
    pca = PCA(16).fit(cell.train)
    error = np.square(cell.test - pca.inverse_transform(pca.transform(cell.test))).mean(axis=1)
    return error, fit_spectra(cell.train, seed)(cell.test)


def measure(cell: Cell, seed: int, figure: Path | None = None) -> dict[str, float]:
    """Train both networks and return the harmonic mean of every method in %.

    Args:
      cell: the clips.
      seed: of the networks.
      figure: what the names of the curves' figures begin with; None: they are not drawn.
    """
    f_g, f_d = train_autoencoder(cell, seed), train_discriminator(cell, seed)
    a_g = np.square(cell.test - f_g(cell.test, train=False)).mean(axis=1)
    train, test = (np.asarray(f_d(psi, train=False)) for psi in (cell.train, cell.test))
    # Candidates as `select` wants them; there is one domain.
    serial_oe = {(n, "source"): np.empty(len(test)) for n in CLUSTERS}
    smoothed = {(k, "source"): np.empty(len(test)) for k in NEIGHBOURS}
    for number in range(len(IDS)):
        rows = cell.clips["section"].to_numpy() == number
        for (n, _), scores in serial_oe.items():
            h = fit_inlier(train[cell.product[:, number] == 1], n, seed)
            scores[rows] = score_features(h, test[rows])
        ks = [min(k, int(rows.sum())) for k in NEIGHBOURS]
        sweep = smooth_sweep(a_g[rows], test[rows], ks)
        for scores, of_pool in zip(smoothed.values(), sweep, strict=True):
            scores[rows] = of_pool
    pca, gmm = score_by_components(cell, seed)
    methods = {"AE": a_g, "PCA-16": pca, "GMM-NLL": gmm, "SerialOE n=2": serial_oe[2, "source"]}
    methods |= {f"SerialOE {rule} n": x for rule, x in choose(serial_oe, cell.clips).items()}
    methods |= {f"Prop K={k}": smoothed[k, "source"] for k in (16, 32, 64, 128, 256)}
    methods |= {f"Prop {rule} K": x for rule, x in choose(smoothed, cell.clips).items()}
    ids = range(len(IDS))
    if figure:
        lines = {"ae": a_g, "serial_oe": serial_oe[2, "source"]}
        lines = {name: section_hmean(cell.clips, x, ids) for name, x in lines.items()}
        draw_curves(cell, a_g, test, lines, figure)
    return {name: 100 * section_hmean(cell.clips, x, ids) for name, x in methods.items()}


def draw_curves(cell: Cell, a_g, f_d, lines: Mapping[str, float], figure: Path) -> None:
    """Draw the metric against the size of the pool (Fig. 5) and against its rate of anomalies."""
    count = len(a_g)
    segments = Segments(
        clip=np.array([f"{number:06d}" for number in range(count)]),
        split=np.full(count, "test"),
        section=cell.clips["section"].to_numpy(np.int32),
        domain=np.full(count, "source"),
        label=cell.clips["label"].to_numpy(np.int32),
        start=np.zeros(count, np.float32),
        ae_score=np.float32(a_g),
        feature=np.float32(f_d),
        spectrum=np.empty((count, 0)),
        residual=np.empty((count, 0)),
    )
    pools = stack_pools(segments, range(len(IDS)), "segment", "section")
    sizes, rates = measure_pool_sizes(pools), measure_anomaly_rates(pools, (32, "all"))
    save_figure(draw_pool_sizes(sizes, lines), figure.with_name(f"{figure.name}_pool.png"))
    save_figure(draw_anomaly_rates(rates, lines), figure.with_name(f"{figure.name}_rate.png"))
    for curve in (sizes, rates):
        table = curve.assign(value=100 * curve["value"], std=100 * curve["std"])
        print(figure.name, table.round(2).to_string(index=False), sep="\n", flush=True)


def choose(candidates: Mapping, clips: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return the scores that each rule of choosing n or K arrives at."""
    first, second, every = (
        candidates[select(candidates, clips, ids)] for ids in ((0, 1), (2, 3), range(4))
    )
    return {"cv2": np.where(clips["section"] < 2, second, first), "oracle": every}


def format_table(columns: Mapping[tuple[str, str], pd.DataFrame]) -> str:
    """Return the Markdown table; a column is a machine and SNR, a row of its values a seed."""
    names = [f"{machine} {SNRS[snr]}" for machine, snr in columns]
    lines = [f"| method | {' | '.join(names)} |", "|" + " --- |" * (len(names) + 1)]
    measured = [(machine, snr) for machine in REFERENCE_MACHINES for snr in SNRS]
    for method in next(iter(columns.values())):
        reference = dict(zip(measured, REFERENCE.get(method, "").split(", "), strict=False))
        line = f"| {method} |"
        for column, runs in columns.items():
            spread = f" ({runs[method].std():.1f})" if len(runs) > 1 else ""
            line += f" {runs[method].mean():.1f}{spread} / {reference.get(column) or '-'} |"
        lines.append(line)
    return "\n".join(lines)


@threadpool_limits.wrap(limits=1)  # threads only slow down the mixtures' small matrices
def main() -> None:
    """Measure every machine, SNR and seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--machines", nargs="+", default=["fan", "slider"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--figures", type=Path, metavar="OUT")
    args = parser.parse_args()
    for folder in (args.directory, *(args.directory / machine for machine in args.machines)):
        if not folder.is_dir():
            parser.exit(2, f"mimii_features: there is no folder {printable(folder)}\n")
    if wrong := [seed for seed in args.seeds if not 0 <= seed < 2**32]:
        parser.exit(2, f"mimii_features: a seed may be from 0 to {2**32 - 1}; one was {wrong[0]}\n")
    try:
        cells = {
            (machine, snr): [read_cell(args.directory, machine, snr, seed) for seed in args.seeds]
            for machine in args.machines
            for snr in SNRS
        }
        columns = {}
        for column, runs in tqdm(cells.items(), unit="column", disable=None):
            figures = [args.figures and args.figures / "_".join(column), *[None] * len(runs)]
            columns[column] = pd.DataFrame(map(measure, runs, args.seeds, figures))
    except (DataError, TrainingError) as error:
        sys.exit(f"mimii_features: {error}")
    print(format_table(columns))


if __name__ == "__main__":
    main()
