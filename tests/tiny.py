"""What several tests share: networks that compile in seconds, and recordings made of noise."""

import jax
import numpy as np
from flax import nnx

from configs import default
from dns_jax.data.waveforms import Waveforms
from dns_jax.hosts import Preemption
from dns_jax.parallel import make_mesh


def on_one_device(**more):
    """Arguments of `fit` and `score_segments` that say where they compute."""
    return {"mesh": make_mesh(1), "preemption": Preemption(), **more}


def make_config():
    """Return the paper's configuration with half-second segments at 4 kHz and small networks."""
    config = default.get_config()
    config.progress = False
    config.checkpoint_seconds = 1e9
    config.devices = 1
    config.report.write = False
    config.data.update({"rate": 4000, "segment_seconds": 0.5, "hop_seconds": 0.125})
    for network in (config.autoencoder, config.serial_oe):
        network.front_end.update({"mels": 16, "high_hz": 1900.0})
    config.autoencoder.update({"hidden": 16, "bottleneck": 4, "batch": 4, "epochs": 3})
    config.serial_oe.update({"feature": 8, "batch": 8, "epochs": 3})
    config.serial_oe.front_end.window_ms = 32.0
    config.serial_oe.backbone.update(
        {"stem": 8, "head": 16, "stages": ((1, 8, 1, 1, 3), (2, 16, 2, 2, 5))}
    )
    return config


def randomise(make, seed=0):
    """Build a module without running its initialisers; all its parameters are random.

    Other scales, biases and running statistics than 1 and 0 show what a fresh network hides.
    """
    rng = np.random.default_rng(seed)
    graph, state = nnx.split(nnx.eval_shape(make))

    def draw(path, array):
        name = path[-1].key
        if name in ("scale", "var"):
            drawn = rng.uniform(0.5, 2, array.shape)
        elif name == "kernel":
            drawn = rng.normal(size=array.shape) / np.sqrt(np.prod(array.shape[:-1]))
        else:
            drawn = 0.3 * rng.normal(size=array.shape)
        return jax.numpy.asarray(drawn, array.dtype)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(draw, nnx.to_pure_dict(state)))


def initialise(make):
    """Build a module with its initial weights, in one compilation."""
    graph = nnx.graphdef(nnx.eval_shape(make))
    return nnx.merge(graph, jax.jit(lambda: nnx.to_pure_dict(nnx.state(make())))())


class Recordings(Waveforms):
    """Recordings of noise that count as standardised, each a machine of its own."""

    def __init__(self, lengths, seed=0):
        rng = np.random.default_rng(seed)
        count = len(lengths)
        super().__init__(
            lengths=np.asarray(lengths),
            digests=np.full(count, ""),
            means=np.zeros(count),
            scales=np.ones(count),
            machines=np.arange(count),
            offsets=np.zeros(count, int),
            samples=tuple(rng.standard_normal(n).astype(np.float32) for n in lengths),
        )


def cut_batch(feed, plan, number=0):
    """Cut one batch of a plan through a feed: (segments, *labels)."""
    rows, starts = plan.rows[number], plan.starts[number]
    segments = jax.jit(feed.cut)(feed.store, feed.fetch(rows, starts))
    return segments, *(label[number] for label in plan.labels)
