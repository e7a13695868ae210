"""SerialOE without its backbone against PyTorch: f_D, both heads, equations 3 to 6, mix-up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs PyTorch, see docs/fidelity.md")

from flax import nnx  # noqa: E402
from twins import make_twin, take_reference_step, take_step  # noqa: E402

from configs import default  # noqa: E402
from dns_jax.models.serial_oe import SerialOE, mix_up, serial_oe_loss  # noqa: E402

ROWS, PRODUCTS = 24, 6
MAPS = (ROWS, 2, 3, 1280)  # segments, mels / 32, frames / 32, features


class Maps(nnx.Module):
    """Stands for the backbone: its feature maps are parameters, so they have a gradient."""

    def __init__(self):
        self.maps = nnx.Param(jnp.zeros(MAPS))

    def __call__(self, spectra, train):
        return self.maps[...]


class Reference(torch.nn.Module):
    """Dropout, linear, batch norm, PReLU, linear, and the two heads."""

    def __init__(self, machine_head):
        super().__init__()
        self.machine_head = machine_head
        self.backbone = torch.nn.ParameterDict({"maps": torch.zeros(MAPS)})
        self.dropout = torch.nn.Dropout(0.0)
        self.neck = torch.nn.Linear(1280, 128)
        self.neck_norm = torch.nn.BatchNorm1d(128)
        self.slope = torch.nn.Parameter(torch.zeros(()))
        self.embed = torch.nn.Linear(128, 128)
        self.machine = torch.nn.Linear(1 if machine_head == "squared_norm" else 128, 1)
        self.product = torch.nn.Linear(128, PRODUCTS, bias=False)

    def forward(self):
        pooled = torch.nn.functional.adaptive_avg_pool2d(self.backbone.maps.permute(0, 3, 1, 2), 1)
        hidden = self.neck_norm(self.neck(self.dropout(pooled.flatten(1))))
        features = self.embed(torch.nn.functional.prelu(hidden, self.slope))
        scalar = features
        if self.machine_head == "squared_norm":
            scalar = torch.linalg.vector_norm(features, dim=1, keepdim=True) ** 2 / 128
        return features, self.machine(scalar).squeeze(1), self.product(features)


@pytest.fixture(params=["linear", "squared_norm"])
def twins(request, dtype):
    config = default.get_config().serial_oe
    config.backbone.stages = ()  # `Maps` comes in its place
    config.dropout = 0.0
    config.machine_head = request.param

    def make():
        model = SerialOE(config, PRODUCTS, rngs=nnx.Rngs(0))
        model.backbone = Maps()
        return model

    reference = Reference(request.param)
    return make_twin(make, reference, dtype), reference


@pytest.fixture
def silence(dtype):
    """What the stand-in of the backbone does not hear."""
    return jnp.zeros((ROWS, 4096), dtype)


def test_features_and_logits_with_running_statistics(twins, silence, compare):
    ours, reference = twins

    @jax.jit
    def run():
        features = ours(silence, train=False)
        return features, ours.classify_machine(features), ours.classify_product(features)

    features, machine, product = run()
    f_d, g_mac, g_id = (tensor.detach() for tensor in reference.eval()())
    compare("f_D, running statistics", features, f_d)
    compare(f"g_mac, {reference.machine_head}", machine, g_mac)
    compare("g_id", product, g_id)


def test_a_training_step_with_soft_labels(twins, silence, dtype, compare):
    ours, reference = twins
    rng = np.random.default_rng(0)
    machine, product = (rng.random(shape).astype(dtype) for shape in (ROWS, (ROWS, PRODUCTS)))
    machine[:8], machine[8:16] = 1, 0
    product[:8], product[8:16] = np.eye(8, PRODUCTS), 0
    product_weight = default.get_config().serial_oe.product_weight

    def loss(model):
        features = model(silence, train=True, key=jax.random.key(0))
        return jnp.mean(serial_oe_loss(model, features, machine, product, product_weight))

    value, gradients, statistics = take_step(ours, loss)
    bce = torch.nn.BCEWithLogitsLoss()
    _, g_mac, g_id = reference()
    l_machine = bce(g_mac, torch.from_numpy(machine))
    l_id = bce(g_id, torch.from_numpy(product))
    expected = take_reference_step(reference, l_machine + 5 * l_id)
    part = f"eqs. 3 to 6, g_mac {reference.machine_head}"
    compare(part, value, expected[0])
    compare(f"{part}, gradients", gradients, expected[1])
    compare("f_D, statistics after a step", statistics, expected[2])


def test_mix_up_given_partners_and_weights(dtype, compare):
    rng = np.random.default_rng(1)
    shapes = {"waveforms": (ROWS, 64000), "t_mac": (ROWS,), "t_id": (ROWS, PRODUCTS)}
    batch = {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}
    partner, weight = rng.permutation(ROWS), rng.beta(0.2, 0.2, ROWS).astype(dtype)

    mixed = jax.jit(mix_up)(partner, weight, *batch.values())
    permutation, lambdas = torch.from_numpy(partner), torch.from_numpy(weight)
    for ours, (name, array) in zip(mixed, batch.items(), strict=True):
        x = torch.from_numpy(array)
        lam = lambdas.reshape(-1, *[1] * (x.ndim - 1))
        compare(f"mix-up, {name}", ours, lam * x + (1 - lam) * x[permutation])
