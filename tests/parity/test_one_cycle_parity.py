"""OneCycleLR with momentum cycling, and AdamW under it, against PyTorch's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch, see docs/fidelity.md")

from flax import nnx  # noqa: E402
from twins import make_twin, name_arrays, name_tensors  # noqa: E402

from dns_jax.one_cycle import one_cycle_adamw  # noqa: E402
from dns_jax.training import init_state, make_train_step  # noqa: E402


def make_reference(parameters, peak, weight_decay, steps):
    optimizer = torch.optim.AdamW(parameters, lr=peak, weight_decay=weight_decay)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=steps)


def test_rate_and_beta1_of_every_step_of_1000(dtype, compare):
    ours = one_cycle_adamw(1e-3, 0.0, 1000)
    update = jax.jit(ours.update)
    weights = jnp.zeros(3, dtype)
    state = ours.init(weights)

    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer, scheduler = make_reference([parameter], 1e-3, 0.0, 1000)
    for _ in range(1000):
        _, state = update(weights, state, weights)
        (group,) = optimizer.param_groups
        rate, beta1 = dtype.type(group["lr"]), dtype.type(group["betas"][0])
        compare("OneCycleLR, learning rate", state.hyperparams["learning_rate"], rate, 1e-6)
        compare("OneCycleLR, beta1", state.hyperparams["b1"], beta1, 1e-6)
        optimizer.step()
        scheduler.step()


class Network(nnx.Module):
    """Two layers without batch norm."""

    def __init__(self):
        self.inner = nnx.Linear(6, 16, rngs=nnx.Rngs(0))
        self.outer = nnx.Linear(16, 3, rngs=nnx.Rngs(0))


class Reference(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = torch.nn.Linear(6, 16), torch.nn.Linear(16, 3)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [np.float64], indirect=True)
def test_50_steps_of_adamw_end_at_the_same_weights(weight_decay, dtype, compare):
    reference = Reference()
    model = make_twin(Network, reference, dtype)
    batches = np.random.default_rng(0).standard_normal((50, 32, 6))

    def loss(model, x, key, progress):
        return jnp.mean(jnp.square(model.outer(jnp.tanh(model.inner(x))) - x[:, :3]))

    ours = one_cycle_adamw(0.05, weight_decay, 50)
    step = jax.jit(make_train_step(model, ours, loss, seed=0, steps=50), donate_argnums=0)
    state = init_state(model, ours)
    optimizer, scheduler = make_reference(reference.parameters(), 0.05, weight_decay, 50)
    for i, batch in enumerate(batches):
        state = step(state, batch, i)
        x = torch.from_numpy(batch)
        optimizer.zero_grad()
        out = reference.outer(torch.tanh(reference.inner(x)))
        torch.nn.functional.mse_loss(out, x[:, :3]).backward()
        optimizer.step()
        scheduler.step()
    part = f"50 steps of AdamW, weight decay {weight_decay}"
    compare(part, name_arrays(state.params), name_tensors(reference.named_parameters()))
