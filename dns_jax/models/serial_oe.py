"""The discriminative model: SerialOE's feature extractor f_D, heads and loss (section II-B).

The layout of the head is that of SerialOE's code (Kuroyanagi et al. [10]).
"""

import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from dns_jax.features import make_front_end, mel_magnitude
from dns_jax.models.batch_norm import BatchNorm
from dns_jax.models.efficientnet import EfficientNet
from dns_jax.models.precision import round_activations
from dns_jax.models.spread import gather_rows, row_by_row, take_own_rows


def _linear(inputs, outputs, rngs, *, bias=True):
    bound = 1 / math.sqrt(inputs)

    def uniform(key, shape, dtype):  # PyTorch's initial weights and biases
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nnx.Linear(
        inputs, outputs, use_bias=bias, kernel_init=uniform, bias_init=uniform, rngs=rngs
    )


class SerialOE(nnx.Module):
    """f_D with the two heads g_mac (target machine or not) and g_id (which product ID)."""

    def __init__(self, config, products: int, *, rngs: nnx.Rngs):
        """Build the network.

        Args:
          config: `config.serial_oe`: front_end, backbone, feature, dropout, machine_head,
            precision (of the backbone's activations).
          products: C, the number of product IDs (sections) of the target machine.
          rngs: source of the initial weights.
        """
        self.front_end = make_front_end(config.front_end)
        self.machine_head = config.machine_head
        self.precision = config.precision
        self.spread = None
        self.backbone = EfficientNet(config.backbone, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout)
        self.neck = _linear(self.backbone.features, config.feature, rngs)
        self.neck_norm = BatchNorm(config.feature)
        self.slope = nnx.Param(jnp.full((), 0.25, jnp.float32))
        self.embed = _linear(config.feature, config.feature, rngs)
        inputs = 1 if config.machine_head == "squared_norm" else config.feature
        self.machine = _linear(inputs, 1, rngs)
        self.product = _linear(config.feature, products, rngs, bias=False)

    def __call__(self, segments: jax.Array, *, train: bool, key: jax.Array | None = None):
        """Compute f_D.

        Args:
          segments: f32[batch, samples], standardised waveforms.
          train: batch statistics and dropout instead of running statistics.
          key: random key of the dropout; needed where `train` is true.

        Returns:
          f32[batch, feature], 128 numbers a segment in the paper, not normalised.
        """
        extract = row_by_row(partial(mel_magnitude, front_end=self.front_end), self.spread)
        spectra = round_activations(extract(segments), self.precision)
        maps = self.backbone(spectra, train=train)
        pooled = jnp.mean(maps.astype(segments.dtype), (1, 2))
        if train:  # one mask for the whole batch, however it is spread
            whole = self.dropout(gather_rows(pooled, self.spread), deterministic=False, rngs=key)
            pooled = take_own_rows(whole, self.spread)
        hidden = self.neck_norm(self.neck(pooled), train=train)
        hidden = jnp.where(hidden > 0, hidden, self.slope[...] * hidden)  # PReLU
        return self.embed(hidden)

    def classify_machine(self, features: jax.Array) -> jax.Array:
        """Compute the logit g_mac: ``f32[batch, feature] -> f32[batch]``."""
        if self.machine_head == "squared_norm":
            features = jnp.mean(jnp.square(features), axis=-1, keepdims=True)
        return self.machine(features)[..., 0]

    def classify_product(self, features: jax.Array) -> jax.Array:
        """Compute the logits g_id: ``f32[batch, feature] -> f32[batch, C]``."""
        return self.product(features)


def serial_oe_loss(
    model: SerialOE,
    features: jax.Array,
    machine: jax.Array,
    product: jax.Array,
    product_weight: float,
) -> jax.Array:
    """Return L_SerialOE of eq. 3 = L_machine (eq. 4) + lambda_id L_id (eq. 6) of every row.

    The binary cross-entropy has the minus sign that eq. 5 lacks.

    Args:
      model: the heads g_mac and g_id.
      features: f32[batch, feature], f_D of the mini-batch.
      machine: f32[batch], t_mac in [0, 1]: 1 for the target machine, 0 for pseudo-anomalous sounds.
      product: f32[batch, C], t_id in [0, 1]: one-hot, all zero for pseudo-anomalous sounds.
      product_weight: lambda_id, 5 in the paper.

    Returns:
      f32[batch]; the loss of the mini-batch is its mean.
    """
    bce = optax.sigmoid_binary_cross_entropy
    machine_logit, product_logits = (
        model.classify_machine(features),
        model.classify_product(features),
    )
    chex.assert_equal_shape([machine_logit, machine])  # [batch] and [batch, 1] would broadcast
    chex.assert_equal_shape([product_logits, product])
    machine_loss = bce(machine_logit, machine)
    product_loss = jnp.mean(bce(product_logits, product), axis=-1)
    return machine_loss + product_weight * product_loss


def draw_mixture(
    key: jax.Array, alpha: float, share: jax.Array | float, rows: int
) -> tuple[jax.Array, jax.Array]:
    """Draw how a batch is mixed up [20].

    Args:
      key: random key.
      alpha: each row's weight is drawn from Beta(alpha, alpha).
      share: probability that this batch is mixed at all; otherwise all weights are 1.
      rows: size of the batch.

    Returns:
      partner: i32[rows], a permutation of the rows.
      weight: f32[rows] in [0, 1].
    """
    key_pairs, key_weights, key_share = jax.random.split(key, 3)
    partner = jax.random.permutation(key_pairs, rows)
    weight = jax.random.beta(key_weights, alpha, alpha, (rows,))
    return partner, jnp.where(jax.random.uniform(key_share) < share, weight, 1.0)


def mix_up(
    partner: jax.Array, weight: jax.Array, *arrays: jax.Array, spread: Mesh | str | None = None
) -> tuple[jax.Array, ...]:
    """Mix every row of a batch with another row of it, waveforms and labels alike [20].

    Args:
      partner: i32[rows], the other row.
      weight: f32[rows], of the row itself.
      *arrays: f32[rows, ...], waveforms, or labels in [0, 1].
      spread: how the rows of `arrays` lie on devices, as in `dns_jax.models.spread`.

    Returns:
      The mixed arrays, shaped as they came.
    """
    partner, weight = take_own_rows(partner, spread), take_own_rows(weight, spread)

    def mix(x):
        w = weight.reshape(weight.shape + (1,) * (x.ndim - 1))
        return w * x + (1 - w) * gather_rows(x, spread)[partner]

    return tuple(mix(x) for x in arrays)


def mix_up_share(schedule: str, progress: jax.Array) -> jax.Array | float:
    """Return the probability that a batch is mixed.

    Args:
      schedule: "always" (the paper names no schedule), or the ramps of the two published recipes:
        "ramp_up" (0 to 1 over the first half, then 1) and "ramp_down" (1 to 0).
      progress: f32 in [0, 1], the part of the training that is done.

    Raises:
      ValueError: for another schedule.
    """
    if schedule == "always":
        return 1.0
    if schedule == "ramp_up":
        return 0.5 * (1 - jnp.cos(jnp.minimum(2 * progress, 1.0) * jnp.pi))
    if schedule == "ramp_down":
        return jnp.cos(progress * jnp.pi / 2)
    raise ValueError(f"mix-up schedule {schedule!r}: it may be always, ramp_up or ramp_down")
