"""What the two networks learn from which recordings (section IV-A): their batches and losses."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dns_jax.data.batches import Plan, count_steps, draw_rows, draw_starts
from dns_jax.data.waveforms import Waveforms
from dns_jax.features import make_front_end, stack_frames
from dns_jax.feeding import open_feed, open_mel_feed
from dns_jax.models import autoencoder as ae
from dns_jax.models import serial_oe as oe
from dns_jax.models.spread import row_by_row
from dns_jax.one_cycle import one_cycle_adamw
from dns_jax.programs import Task
from dns_jax.training import Schedule

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
    front_end, cached = make_front_end(settings.front_end), settings.cached_mel

    def draw(first, count):
        rows = draw_rows(train, settings.batch, seed, _AE_ROWS, first, count)
        length = waveforms.lengths[rows]
        if cached:
            length, segment = map(front_end.count_frames, (length, samples))
        else:
            segment = samples
        return Plan(rows, draw_starts(length - segment + 1, seed, _AE_CROPS, first))

    def extract(model, segments):
        if cached:
            stack = row_by_row(lambda mels: stack_frames(mels, model.adjacent), model.spread)
            return stack(segments)
        return model.extract(segments)

    def loss(model, batch, key, progress):
        del key, progress
        vectors = extract(model, *batch)
        return ae.reconstruction_loss(vectors, model(vectors, train=True))

    def validation_loss(model, batch):
        vectors = extract(model, *batch)
        return jax.vmap(ae.reconstruction_loss)(vectors, model(vectors, train=False))

    def open_feeds(mesh):
        if not cached:
            return _open_feeds(config, settings, waveforms, train, validation, mesh)
        rows, budget = np.union1d(train, validation), _count_budget(config)
        return (open_mel_feed(waveforms, rows, front_end, samples, mesh, budget),) * 2

    task = Task(
        loss,
        validation_loss,
        settings.batch,
        draw,
        *_plan_validation(validation, settings.batch),
        open_feeds,
    )
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
    number = int(products.max()) + 1

    def label(rows):
        product = products[rows]
        one_hot = product[..., None] == np.arange(number)
        return (product >= 0).astype(np.float32), one_hot.astype(np.float32)

    def draw(first, count):
        rows = np.concatenate(
            [draw_rows(rows, n, seed, stream, first, count) for rows, n, stream in chains if n],
            axis=1,
        )
        room = waveforms.lengths[rows] - samples + 1
        return Plan(rows, draw_starts(room, seed, _OE_CROPS, first), label(rows))

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

    if len(validation[0]) and len(validation[1]):
        beside = draw_rows(validation[1], len(validation[0]), seed, _OE_VALIDATION, 0)[0]
        validated = np.concatenate([validation[0], beside])
    else:
        validated = validation[0][:0]
    plan, counted = _plan_validation(validated, settings.batch)
    task = Task(
        loss,
        validation_loss,
        settings.batch,
        draw,
        plan._replace(labels=label(plan.rows)),
        counted,
        lambda mesh: _open_feeds(
            config, settings, waveforms, np.concatenate(train), validated, mesh
        ),
        looped=jax.default_backend() != "cpu",  # convolutions in a loop are slow there
    )
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


def _plan_validation(rows: np.ndarray, batch: int) -> tuple[Plan, int]:
    """Cut `rows` into batches, the last filled up with its first row; and how many rows count."""
    filling = np.repeat(rows[len(rows) // batch * batch :][:1], -len(rows) % batch)
    plan = np.concatenate([rows, filling]).reshape(-1, batch)
    return Plan(plan, np.zeros_like(plan)), len(rows)


def _open_feeds(config, settings, waveforms, train, validation, mesh):
    """Open the ways to training and validation, of which the beginnings of recordings are used."""
    samples, budget = _segment_samples(config), _count_budget(config)
    size = {"samples": samples, "batch": settings.batch, "mesh": mesh}
    rows = np.unique(validation)
    beginnings = np.full(len(rows), samples)
    validation_feed = open_feed(waveforms, rows, beginnings, budget=budget, **size)
    rows, budget = np.unique(train), budget - validation_feed.size
    feed = open_feed(waveforms, rows, waveforms.lengths[rows], budget=budget, **size)
    return feed, validation_feed


def _count_budget(config):
    return config.data.device_gigabytes * 1e9
