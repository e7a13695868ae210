"""What the two networks learn from which recordings (section IV-A): their batches and losses."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dns_jax.data.batches import count_steps, crop_randomly, draw_rows
from dns_jax.data.waveforms import Waveforms
from dns_jax.models import autoencoder as ae
from dns_jax.models import serial_oe as oe
from dns_jax.one_cycle import one_cycle_adamw
from dns_jax.training import Schedule, Task

# Independent chains of random numbers of one seed.
(
    _AE_ROWS,
    _AE_CROPS,
    _POSITIVE_ROWS,
    _NEGATIVE_ROWS,
    _OE_CROPS,
    _OE_VALIDATION,
    _TARGET_DOMAIN_ROWS,
) = range(7)


def make_autoencoder_task(
    config, waveforms: Waveforms, train: np.ndarray, validation: np.ndarray, seed: int
) -> tuple[Task, Schedule, optax.GradientTransformation]:
    """Describe the training of f_G (section II-A).

    Args:
      config: the whole configuration.
      waveforms: recordings.
      train: i64[n], rows of the target machine's recordings to learn from.
      validation: i64[m], rows to choose the weights by.
      seed: of the run.
    """
    settings, samples = config.autoencoder, _segment_samples(config)

    def draw_batch(step, part=slice(None)):
        rows = draw_rows(train, settings.batch, seed, _AE_ROWS, step)
        return crop_randomly(waveforms, rows, samples, seed, _AE_CROPS, step, part)

    def loss(model, segments, key, progress):
        del key, progress
        vectors = model.extract(segments)
        return ae.reconstruction_loss(vectors, model(vectors, train=True))

    def validation_batches(part=slice(None)):
        for rows, count in _chunks(validation, settings.batch):
            yield waveforms.crop(rows[part], np.zeros_like(rows[part]), samples), count

    task = Task(loss, ae.score_segments, settings.batch, draw_batch, validation_batches)
    schedule = _schedule(config, settings, train, settings.batch)
    return task, schedule, optax.adam(settings.learning_rate)


def make_serial_oe_task(
    config,
    waveforms: Waveforms,
    products: np.ndarray,
    target_domain: np.ndarray,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray],
    seed: int,
) -> tuple[Task, Schedule, optax.GradientTransformation]:
    """Describe the training of f_D (section II-B).

    Args:
      config: the whole configuration.
      waveforms: recordings of all machines.
      products: i64[clips], product ID from 0 of the target machine's rows, -1 of all others.
      target_domain: bool[clips], recordings of the changed factory.
      train: rows of the target machine and pseudo-anomalous rows to learn from.
      validation: likewise, to choose the weights by.
      seed: of the run.
    """
    settings, samples = config.serial_oe, _segment_samples(config)
    half, quota = settings.batch // 2, settings.target_per_batch
    positives, negatives = train
    chains = [(positives, half, _POSITIVE_ROWS)]
    if quota >= 0:
        shifted = target_domain[positives]
        chains = [
            (positives[~shifted], half - quota, _POSITIVE_ROWS),
            (positives[shifted], quota, _TARGET_DOMAIN_ROWS),
        ]
    schedule = _schedule(config, settings, *chains[0][:2])
    chains.append((negatives, half, _NEGATIVE_ROWS))
    count = int(products.max()) + 1

    def label(rows):
        product = products[rows]
        one_hot = product[:, None] == np.arange(count)
        return (product >= 0).astype(np.float32), one_hot.astype(np.float32)

    def draw_batch(step, part=slice(None)):
        rows = np.concatenate(
            [draw_rows(rows, n, seed, stream, step) for rows, n, stream in chains if n]
        )
        segments = crop_randomly(waveforms, rows, samples, seed, _OE_CROPS, step, part)
        return segments, *label(rows[part])

    def loss(model, batch, key, progress):
        mix_key, dropout_key = jax.random.split(key)
        share = oe.mix_up_share(settings.mixup_schedule, progress)
        mixture = oe.draw_mixture(mix_key, settings.mixup_alpha, share, 2 * half)
        segments, machine, product = oe.mix_up(*mixture, *batch, spread=model.spread)
        features = model(segments, train=True, key=dropout_key)
        return jnp.mean(
            oe.serial_oe_loss(model, features, machine, product, settings.product_weight)
        )

    def validation_loss(model, batch):
        segments, machine, product = batch
        features = model(segments, train=False)
        return oe.serial_oe_loss(model, features, machine, product, settings.product_weight)

    def validation_batches(part=slice(None)):
        positives, negatives = validation
        if not len(positives) or not len(negatives):
            return
        negatives = draw_rows(negatives, len(positives), seed, _OE_VALIDATION, 0)
        for rows, size in _chunks(np.concatenate([positives, negatives]), settings.batch):
            rows = rows[part]
            yield (waveforms.crop(rows, np.zeros_like(rows), samples), *label(rows)), size

    task = Task(loss, validation_loss, settings.batch, draw_batch, validation_batches)
    steps = schedule.epochs * schedule.steps_per_epoch
    return task, schedule, one_cycle_adamw(settings.learning_rate, settings.weight_decay, steps)


def _segment_samples(config):
    return round(config.data.rate * config.data.segment_seconds)


def _schedule(config, settings, rows, batch):
    return Schedule(
        epochs=settings.epochs,
        steps_per_epoch=count_steps(len(rows), batch),
        validate_every=settings.validate_every,
        checkpoint_seconds=config.checkpoint_seconds,
    )


def _chunks(rows: np.ndarray, size: int) -> Iterator[tuple[np.ndarray, int]]:
    """Cut `rows` into pieces of one size, the last filled up with its first row."""
    for start in range(0, len(rows), size):
        piece = rows[start : start + size]
        yield np.concatenate([piece, np.full(size - len(piece), piece[0])]), len(piece)
