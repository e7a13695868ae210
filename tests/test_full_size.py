"""The paper's own sizes on the CPU: B0 at 224 x 251, segments of 64,000 samples, batches of 8."""

import jax
import numpy as np
import pytest
import tiny
from flax import nnx

from configs import default
from dns_jax.config import check_config
from dns_jax.models.autoencoder import Autoencoder
from dns_jax.models.autoencoder import score_segments as score_by_autoencoder
from dns_jax.models.serial_oe import SerialOE
from dns_jax.parallel import make_mesh
from dns_jax.tasks import make_serial_oe_task
from dns_jax.training import init_state, make_train_step

pytestmark = pytest.mark.soak

STEPS = 20


def make_recordings():
    """Eight recordings of 10 s: four of a humming machine, four of another."""
    recordings = tiny.Recordings(np.full(8, 160_000))
    time = np.arange(160_000) / 16_000
    for row, noise in enumerate(recordings.samples):
        pitch = (120.0 if row < 4 else 310.0) * (1 + row / 50)
        noise[:] = np.sin(2 * np.pi * pitch * time) + 0.5 * noise
        noise /= noise.std()
    return recordings


def test_b0_learns_a_repeated_batch_and_scores_a_recording():
    config = default.get_config()
    config.serial_oe.batch = 8
    config.serial_oe.epochs = STEPS
    config = check_config(config)
    recordings, products = make_recordings(), np.array([0, 1, 2, 3, -1, -1, -1, -1])
    rows = np.arange(4), np.arange(4, 8)
    task, _, optimizer = make_serial_oe_task(
        config, recordings, products, np.zeros(8, bool), rows, rows, 0
    )
    model = SerialOE(config.serial_oe, 4, rngs=nnx.Rngs(0))
    step = jax.jit(make_train_step(model, optimizer, task.loss, 0, STEPS), donate_argnums=0)
    state = init_state(model, optimizer)
    batch, losses = tiny.cut_batch(task.open_feeds(make_mesh(1))[0], task.draw(0, 1)), []
    assert batch[0].shape == (8, 64_000)
    for number in range(STEPS):
        before = float(state.loss_sum)
        state = step(state, batch, number)
        losses.append(float(state.loss_sum) - before)
    print("losses:", np.round(losses, 3))
    assert np.all(np.isfinite(losses))
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])

    model = nnx.merge(nnx.graphdef(model), state.params, state.statistics)
    segments = recordings.crop(np.zeros(7, int), 16_000 * np.arange(7), 64_000)
    features = jax.jit(lambda x: model(x, train=False))(segments)
    autoencoder = Autoencoder(config.autoencoder, rngs=nnx.Rngs(0))
    scores = jax.jit(lambda x: score_by_autoencoder(autoencoder, x))(segments)
    assert features.shape == (7, 128)
    assert scores.shape == (7,)
    assert np.all(np.isfinite(features))
    assert np.all(np.isfinite(scores))
