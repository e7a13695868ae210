"""Time the two mel front ends beside librosa and PyTorch.

    python benchmarks/frontend.py --out=docs/frontend_speed

Segments of 4 s at 16 kHz, float32, the paper's windows and filters. librosa gets the whole batch in
one call (a call a segment takes twice as long), PyTorch `torch.stft`, one product with the filter
bank and operations in place. All results are compared with ours before they are timed.
"""

import argparse
from functools import partial
from pathlib import Path

import jax
import librosa
import numpy as np
import pandas as pd
import torch
from rivals import LogMel, MelMagnitude
from side_by_side import OURS, THREADS, check_equal, report, time_in_turn

from configs import default
from dns_jax.features import POWER_FLOOR, FrontEnd, log_mel, make_front_end, mel_magnitude
from dns_jax.memory import keep_freed_memory

BATCHES = (16, 128)


def log_mel_by_librosa(segments: np.ndarray, front_end: FrontEnd) -> np.ndarray:
    """Compute `log_mel`."""
    power = _mel_by_librosa(segments, front_end, power=2.0, pad_mode="constant")
    return 10 * np.log10(np.maximum(power, POWER_FLOOR))


def mel_magnitude_by_librosa(segments: np.ndarray, front_end: FrontEnd) -> np.ndarray:
    """Compute `mel_magnitude`."""
    more = {"power": 1.0, "pad_mode": "reflect", "htk": True, "norm": None}
    return _mel_by_librosa(segments, front_end, **more) / np.sqrt(0.375 * front_end.window)


def _mel_by_librosa(segments, front_end, **more):
    return librosa.feature.melspectrogram(
        y=segments,
        sr=front_end.rate,
        n_fft=front_end.window,
        hop_length=front_end.hop,
        n_mels=front_end.mels,
        fmin=front_end.low,
        fmax=front_end.high,
        **more,
    )


FRONT_ENDS = {
    "log_mel": ("autoencoder", log_mel, LogMel, log_mel_by_librosa),
    "mel_magnitude": ("serial_oe", mel_magnitude, MelMagnitude, mel_magnitude_by_librosa),
}


def measure(name: str, batch: int, turns: int) -> dict[str, float]:
    """Return the median seconds of every method."""
    network, ours, rival, by_librosa = FRONT_ENDS[name]
    front_end = make_front_end(default.get_config()[network].front_end)
    segments = np.random.default_rng(0).standard_normal((batch, 64000)).astype(np.float32)
    compiled = jax.jit(partial(ours, front_end=front_end))
    by_torch = rival(front_end)
    tensor, array = torch.tensor(segments), jax.numpy.asarray(segments)
    methods = {
        OURS: lambda: compiled(array).block_until_ready(),
        "torch": lambda: by_torch(tensor),
        "librosa": lambda: by_librosa(segments, front_end),
    }
    with torch.inference_mode():
        expected = methods[OURS]()
        for rival in ("torch", "librosa"):
            check_equal(f"{name}: {rival}", methods[rival](), expected)
        return time_in_turn(methods, turns)


def main() -> None:
    """Measure both front ends."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True, help="table and figure, no ending")
    args = parser.parse_args()
    keep_freed_memory()  # as a run does, and for all of them
    torch.set_num_threads(THREADS)
    records = [
        {"front end": name, "segments": batch, **measure(name, batch, args.turns)}
        for name in FRONT_ENDS
        for batch in args.batches
    ]
    packages = ("jax", "torch", "librosa")
    report(pd.DataFrame(records), ["front end", "segments"], packages, args.out)


if __name__ == "__main__":
    main()
