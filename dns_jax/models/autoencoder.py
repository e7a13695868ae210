"""The generative model: a ten-layer dense autoencoder f_G and its score a_G (section II-A)."""

from itertools import pairwise

import chex
import jax
import jax.numpy as jnp
from flax import nnx

from dns_jax.features import log_mel, make_front_end, stack_frames
from dns_jax.models.batch_norm import BatchNorm
from dns_jax.models.precision import follow_input, round_activations
from dns_jax.models.spread import row_by_row


class Autoencoder(nnx.Module):
    """640-128x4-8-128x4-640: batch norm and ReLU after every layer but the last."""

    def __init__(self, config, *, rngs: nnx.Rngs):
        """Build f_G.

        Args:
          config: `config.autoencoder`: front_end, adjacent_frames, hidden, depth, bottleneck,
            precision.
          rngs: source of the initial weights (Glorot, as in the official baseline).
        """
        self.front_end = make_front_end(config.front_end)
        self.spread = None
        self.precision = config.precision
        self.adjacent = config.adjacent_frames
        vector = self.adjacent * self.front_end.mels
        half = (config.hidden,) * config.depth
        sizes = (vector, *half, config.bottleneck, *half, vector)
        self.layers = nnx.List(
            nnx.Linear(
                i,
                o,
                kernel_init=nnx.initializers.glorot_uniform(),
                promote_dtype=follow_input,
                rngs=rngs,
            )
            for i, o in pairwise(sizes)
        )
        # Keras's defaults, which the official baseline uses.
        self.norms = nnx.List(
            BatchNorm(o, momentum=0.01, epsilon=1e-3, activation=nnx.relu) for o in sizes[1:-1]
        )

    def extract(self, segments: jax.Array) -> jax.Array:
        """Compute psi: ``f32[batch, samples] -> f32[batch, vectors, D]`` in dB, D = 640."""

        def extract(segments):
            return stack_frames(log_mel(segments, self.front_end), self.adjacent)

        return row_by_row(extract, self.spread)(segments)

    def __call__(self, vectors: jax.Array, *, train: bool) -> jax.Array:
        """Reconstruct ``vectors: f32[..., D]``."""
        # One row axis: XLA's matrix products on the CPU are slower with two.
        hidden = round_activations(vectors, self.precision).reshape(-1, vectors.shape[-1])
        for layer, norm in zip(self.layers[:-1], self.norms, strict=True):
            hidden = norm(layer(hidden), train=train)
        return self.layers[-1](hidden).astype(vectors.dtype).reshape(vectors.shape)


def reconstruction_loss(vectors: jax.Array, reconstructed: jax.Array) -> jax.Array:
    """Return L_AE of eq. 1: the mean over the M vectors of the mini-batch and their D numbers."""
    chex.assert_equal_shape([vectors, reconstructed])
    return jnp.mean(jnp.square(vectors - reconstructed))


def score_segments(autoencoder: Autoencoder, segments: jax.Array) -> jax.Array:
    """Compute a_AE of eq. 2, averaged over the vectors of each segment.

    Args:
      autoencoder: f_G.
      segments: f32[batch, samples], standardised waveforms.

    Returns:
      f32[batch], in dB^2; high means anomalous.
    """
    return describe_segments(autoencoder, segments)[0]


def describe_segments(
    autoencoder: Autoencoder, segments: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compute `score_segments`, and what it is made of, by mel band.

    Args:
      autoencoder: f_G.
      segments: f32[batch, samples], standardised waveforms.

    Returns:
      a_AE, f32[batch] in dB^2; the spectrum, f32[batch, mels] in dB, psi averaged over its vectors
      and their adjacent frames; the residual, likewise, of psi less its reconstruction.
    """
    vectors = autoencoder.extract(segments)
    residual = vectors - autoencoder(vectors, train=False)

    def average(x):
        x = x.mean(axis=1)
        return x.reshape(x.shape[0], autoencoder.adjacent, -1).mean(axis=1)

    return jnp.mean(jnp.square(residual), axis=(-2, -1)), average(vectors), average(residual)
