"""EfficientNet-B0 against geffnet's `tf_efficientnet_b0_ns`, which has timm's layers and names."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from configs import default
from dns_jax.models.efficientnet import EfficientNet
from dns_jax.models.weights import from_timm, read_backbone, to_timm

torch = pytest.importorskip("torch", reason="needs PyTorch, see docs/fidelity.md")
geffnet = pytest.importorskip("geffnet", reason="needs geffnet, see docs/fidelity.md")

# An even and an odd side: SAME padding is asymmetric on one and symmetric on the other.
ROWS, MELS, FRAMES = 3, 96, 127


def draw_reference(channels=1):
    """Return B0 in float64 with random scales, biases and running statistics as well."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    network = geffnet.create_model("tf_efficientnet_b0_ns", pretrained=False, in_chans=channels)
    state = network.double().state_dict()
    for name, tensor in state.items():
        if tensor.ndim == 1:
            scale = name.endswith("running_var") or ("bn" in name and name.endswith(".weight"))
            drawn = rng.uniform(*((0.5, 1.5) if scale else (-0.2, 0.2)), tensor.shape)
            state[name] = torch.from_numpy(drawn)
    network.load_state_dict(state)
    return network


@pytest.fixture(scope="module")
def abstract():
    """Give our B0, shapes only."""
    config = default.get_config().serial_oe.backbone
    return nnx.eval_shape(lambda: EfficientNet(config, rngs=nnx.Rngs(0)))


@pytest.fixture
def reference(dtype):
    """Give B0 in PyTorch; not trained by a test before."""
    return draw_reference().to(torch.from_numpy(np.empty(0, dtype)).dtype)


@pytest.fixture
def spectra(dtype):
    """Numbers like mel magnitudes: f[rows, mels, frames]."""
    return np.random.default_rng(1).gamma(2.0, size=(ROWS, MELS, FRAMES)).astype(dtype)


def get_tensors(network):
    """{timm's name: array}, copies."""
    return {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}


@jax.jit
def run_forward(backbone, spectra):
    return backbone(spectra, train=False)


@jax.jit
def run_backward(backbone, spectra, cotangent):
    """Return features, the gradients of sum(features * cotangent) and the new statistics."""
    graph = nnx.graphdef(backbone)
    params, statistics = (
        nnx.to_pure_dict(nnx.state(backbone, kind)) for kind in (nnx.Param, nnx.BatchStat)
    )

    def objective(params):
        network = nnx.merge(graph, params, statistics)
        features = network(spectra, train=True)
        after = nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))
        return (features * cotangent).sum(), (features, after)

    gradients, (features, after) = jax.grad(objective, has_aux=True)(params)
    return features, nnx.merge(graph, gradients, after)


def channels_last(features):
    return features.detach().numpy().transpose(0, 2, 3, 1)


def test_features_with_running_statistics(dtype, compare, abstract, reference, spectra):
    expected = reference.eval().features(torch.from_numpy(spectra[:, None]))
    features = run_forward(from_timm(get_tensors(reference), abstract), spectra)
    compare("EfficientNet-B0, features, eval", features, channels_last(expected))


def test_features_gradients_and_statistics_of_a_training_step(
    dtype, compare, abstract, reference, spectra
):
    backbone = from_timm(get_tensors(reference), abstract)
    expected = reference.train().features(torch.from_numpy(spectra[:, None]))
    cotangent = np.random.default_rng(2).standard_normal(expected.shape).astype(dtype)
    (expected * torch.from_numpy(cotangent)).sum().backward()

    features, after = run_backward(backbone, spectra, cotangent.transpose(0, 2, 3, 1))
    compare("EfficientNet-B0, features, train", features, channels_last(expected))
    ours = to_timm(after)
    gradients = {
        name: parameter.grad.numpy()
        for name, parameter in reference.named_parameters()
        if not name.startswith("classifier")
    }
    running = {k: v for k, v in get_tensors(reference).items() if "running" in k}
    assert len(gradients) + len(running) == len(ours)
    part = partial("EfficientNet-B0, {}".format)
    compare(part("gradient of every parameter"), {k: ours[k] for k in gradients}, gradients)
    for kind in ("running_mean", "running_var"):
        expected = {k: v for k, v in running.items() if k.endswith(kind)}
        compare(part(f"{kind} after a step"), {k: ours[k] for k in expected}, expected)


def test_a_file_of_weights_for_three_channels_is_read_into_one(compare, abstract, tmp_path):
    reference = draw_reference(channels=3).float().eval()
    spectra = np.random.default_rng(1).gamma(2.0, size=(ROWS, MELS, FRAMES)).astype(np.float32)
    expected = reference.features(torch.from_numpy(spectra[:, None]).expand(-1, 3, -1, -1))
    save_file(get_tensors(reference), tmp_path / "weights.safetensors")
    backbone = read_backbone(tmp_path / "weights.safetensors", abstract)
    compare(
        "EfficientNet-B0, features, weights for three channels",
        run_forward(backbone, spectra),
        channels_last(expected),
    )


def test_our_weights_are_pytorchs_again(abstract):
    before, after = draw_reference(), draw_reference()
    ours = from_timm(get_tensors(before), abstract)
    with torch.no_grad():
        for tensor in after.parameters():
            tensor.zero_()
    state = {name: torch.from_numpy(np.array(array)) for name, array in to_timm(ours).items()}
    missing, unexpected = after.load_state_dict(state, strict=False)
    assert [k for k in missing if not k.endswith("_tracked")] == [
        "classifier.weight",
        "classifier.bias",
    ]
    assert unexpected == []
    for name, tensor in before.state_dict().items():
        if name not in missing:
            np.testing.assert_array_equal(after.state_dict()[name], np.float32(tensor))
