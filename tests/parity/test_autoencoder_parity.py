"""The autoencoder against the same layers of PyTorch: forward, backward, statistics, eq. 2."""

from functools import partial
from itertools import pairwise

import jax
import librosa
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch, see docs/fidelity.md")

from flax import nnx  # noqa: E402
from twins import make_twin, take_reference_step, take_step  # noqa: E402

from configs import default  # noqa: E402
from dns_jax.models.autoencoder import (  # noqa: E402
    Autoencoder,
    reconstruction_loss,
    score_segments,
)

SIZES = (640, 128, 128, 128, 128, 8, 128, 128, 128, 128, 640)


class Reference(torch.nn.Module):
    """f_G with the batch norm of Keras's defaults."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(i, o) for i, o in pairwise(SIZES))
        self.norms = torch.nn.ModuleList(
            torch.nn.BatchNorm1d(o, eps=1e-3, momentum=0.01) for o in SIZES[1:-1]
        )

    def forward(self, x):
        for layer, norm in zip(self.layers[:-1], self.norms, strict=True):
            x = torch.relu(norm(layer(x)))
        return self.layers[-1](x)


@pytest.fixture
def twins(dtype):
    reference = Reference()
    config = default.get_config().autoencoder
    return make_twin(lambda: Autoencoder(config, rngs=nnx.Rngs(0)), reference, dtype), reference


@pytest.fixture
def vectors(dtype):
    """Vectors in dB, f[200, 640]."""
    return np.random.default_rng(0).normal(-10, 8, (200, 640)).astype(dtype)


def test_reconstruction_with_running_statistics(twins, vectors, compare):
    ours, reference = twins
    expected = reference.eval()(torch.from_numpy(vectors)).detach()
    got = jax.jit(partial(ours, train=False))(vectors)
    compare("f_G, running statistics", got, expected)


def test_a_training_step(twins, vectors, compare):
    ours, reference = twins

    def loss(model):
        return reconstruction_loss(vectors, model(vectors, train=True))

    value, gradients, statistics = take_step(ours, loss)
    x = torch.from_numpy(vectors)
    expected = take_reference_step(reference, torch.nn.functional.mse_loss(reference(x), x))
    compare("eq. 1", value, expected[0])
    compare("eq. 1, gradients", gradients, expected[1])
    compare("f_G, statistics after a step", statistics, expected[2])


def test_equation_2(twins, dtype, compare):
    ours, reference = twins
    segments = np.random.default_rng(1).standard_normal((2, 64000)).astype(np.float32)
    power = librosa.feature.melspectrogram(
        y=segments.astype(np.float64),
        sr=16000,
        n_fft=1024,
        hop_length=512,
        n_mels=128,
        fmin=50,
        fmax=7800,
        pad_mode="constant",
        dtype=np.float64,
    )
    frames = np.swapaxes(10 * np.log10(power), -1, -2)
    vectors = np.concatenate([frames[:, i : i + 122] for i in range(5)], axis=-1).astype(dtype)
    x = torch.from_numpy(vectors)
    squares = torch.square(x - reference.eval()(x.reshape(-1, 640)).reshape(x.shape))
    got = jax.jit(partial(score_segments, ours))(segments.astype(dtype))
    a_ae = torch.mean(torch.sum(squares, 2) / 640, 1)
    compare("eq. 2", got, a_ae.detach())
