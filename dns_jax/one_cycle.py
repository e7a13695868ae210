"""OneCycle [19] and AdamW with it, to the step as PyTorch has them (section IV-A)."""

import jax.numpy as jnp
import optax


def one_cycle(low: float, peak: float, last: float, steps: int) -> optax.Schedule:
    """Build PyTorch's OneCycleLR (cosine, two phases): low -> peak -> last over `steps` steps [19].

    The peak lies at step ``0.3 * steps - 1`` and the end at ``steps - 1``; optax's own schedule
    peaks a step later.
    """
    top, end = 0.3 * steps - 1, steps - 1

    def value(step):
        rising = step <= top
        foot = jnp.where(rising, low, last)
        climbed = jnp.where(rising, step / top, (end - step) / (end - top))
        # Not (1 - cos) / 2, which float32 rounds to nothing near the foot.
        return foot + (peak - foot) * jnp.square(jnp.sin(jnp.pi / 2 * climbed))

    return value


def one_cycle_adamw(peak: float, weight_decay: float, steps: int) -> optax.GradientTransformation:
    """Build AdamW under OneCycleLR with PyTorch's defaults: beta1 cycles against the rate."""
    return optax.inject_hyperparams(optax.adamw)(
        learning_rate=one_cycle(peak / 25, peak, peak / 25 / 1e4, steps),
        b1=one_cycle(0.95, 0.85, 0.95, steps),
        weight_decay=weight_decay,
    )
