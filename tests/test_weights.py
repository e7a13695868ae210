"""Weights under timm's names: both ways, and every file that does not fit named."""

import os
import re

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import tiny
from flax import nnx
from safetensors.numpy import save_file

from configs import default
from dns_jax.data.refusals import DataError
from dns_jax.models import weights
from dns_jax.models.efficientnet import EfficientNet
from dns_jax.models.weights import from_timm, read_backbone, to_timm

# Blocks without and with expansion, one stage with two blocks.
CONFIG = tiny.make_config().serial_oe.backbone


def make():
    return EfficientNet(CONFIG, rngs=nnx.Rngs(0))


@pytest.fixture
def backbone():
    return tiny.randomise(make)


@pytest.fixture
def tensors(backbone):
    return to_timm(backbone)


def arrays(backbone):
    return nnx.to_pure_dict(nnx.state(backbone))


def refuse(tensors, tmp_path):
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(DataError) as caught:
        read_backbone(tmp_path / "w.safetensors", nnx.eval_shape(make))
    message = str(caught.value)
    assert message.startswith(f"--config.serial_oe.init_from: {tmp_path / 'w.safetensors'} ")
    assert message.isprintable()
    return message


def test_the_names_of_b0_are_timms():
    b0 = default.get_config().serial_oe.backbone
    backbone = nnx.eval_shape(lambda: EfficientNet(b0, rngs=nnx.Rngs(0)))
    names = {*weights._name_arrays(backbone)}
    assert len(names) == 2 * 5 + 14 + 15 * 19  # stem and head, the first block, the others
    assert names > {
        "conv_stem.weight",
        "bn1.running_var",
        "blocks.0.0.conv_pw.weight",
        "blocks.0.0.bn2.bias",
        "blocks.2.1.conv_pwl.weight",
        "blocks.5.3.bn3.running_mean",
        "blocks.6.0.se.conv_expand.bias",
        "conv_head.weight",
        "bn2.weight",
    }
    assert "blocks.0.0.conv_pwl.weight" not in names


def test_there_and_back_is_the_same_network(backbone, tensors, tmp_path):
    save_file(tensors, tmp_path / "w.safetensors")
    again = read_backbone(tmp_path / "w.safetensors", nnx.eval_shape(make))
    spectra = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 15)), jnp.float32)
    np.testing.assert_array_equal(backbone(spectra, train=False), again(spectra, train=False))


def test_axes_are_pytorchs(backbone, tensors):
    stem = tensors["conv_stem.weight"]
    assert stem.shape == (8, 1, 3, 3)
    np.testing.assert_array_equal(stem[5, 0], backbone.stem.kernel[..., 0, 5])
    depthwise = tensors["blocks.1.1.conv_dw.weight"]
    assert depthwise.shape == (32, 1, 5, 5)
    np.testing.assert_array_equal(depthwise[7, 0], backbone.blocks[2].depthwise.kernel[..., 7])


def test_the_kernels_of_three_channels_are_summed(tensors):
    rng = np.random.default_rng(0)
    rgb = rng.normal(size=(8, 3, 3, 3)).astype(np.float32)
    summed = from_timm(tensors | {"conv_stem.weight": rgb}, nnx.eval_shape(make)).stem.kernel
    np.testing.assert_allclose(summed[..., 0, :], rgb.sum(1).transpose(1, 2, 0), rtol=1e-6)


def test_classifier_and_batch_counters_are_passed_over(tensors, tmp_path):
    more = {
        "classifier.weight": np.zeros((1000, 16), np.float32),
        "classifier.bias": np.zeros(1000, np.float32),
        "bn1.num_batches_tracked": np.array(7),
    }
    save_file(tensors | more, tmp_path / "w.safetensors")
    read_backbone(tmp_path / "w.safetensors", nnx.eval_shape(make))


@pytest.mark.parametrize("kind", [np.float16, np.float64, jnp.bfloat16])
def test_other_floating_types_become_float32(tensors, kind, tmp_path):
    save_file({name: a.astype(kind) for name, a in tensors.items()}, tmp_path / "w.safetensors")
    state = arrays(read_backbone(tmp_path / "w.safetensors", nnx.eval_shape(make)))
    assert state["stem"]["kernel"].dtype == np.float32
    rounded = tensors["conv_head.weight"].astype(kind).astype(np.float32)
    np.testing.assert_array_equal(state["head"]["kernel"][0, 0].T, rounded[..., 0, 0])


def test_a_missing_key_is_named(tensors, tmp_path):
    del tensors["blocks.1.0.se.conv_reduce.bias"]
    assert "lacks blocks.1.0.se.conv_reduce.bias" in refuse(tensors, tmp_path)


def test_of_many_missing_keys_five_are_named(tensors, tmp_path):
    kept = {name: array for name, array in tensors.items() if not name.startswith("blocks")}
    count = len(tensors) - len(kept) - 5
    message = refuse(kept, tmp_path)
    assert "lacks blocks.0.0.bn1.bias, blocks.0.0.bn1.running_mean, " in message
    assert message.endswith(f"and {count} more")


def test_an_unknown_key_is_named(tensors, tmp_path):
    more = {"blocks.7.0.conv_pw.weight": np.zeros(3, np.float32)}
    assert "unknown keys blocks.7.0.conv_pw.weight" in refuse(tensors | more, tmp_path)


@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [
        ("bn1.weight", (9,), "(8,)"),
        ("conv_head.weight", (16, 17, 1, 1), "(16, 16, 1, 1)"),
        ("conv_stem.weight", (8, 9), "(8, 1, 3, 3)"),
        ("conv_stem.weight", (8, 0, 3, 3), "(8, 1, 3, 3)"),
        ("conv_stem.weight", (8, 3, 3, 4), "(8, 1, 3, 3)"),
        ("blocks.1.0.conv_dw.weight", (16, 16, 5, 5), "(16, 1, 5, 5)"),
        ("bn2.bias", (), "(16,)"),
    ],
)
def test_a_misshapen_key_is_named_with_both_shapes(tensors, name, shape, wanted, tmp_path):
    tensors[name] = np.zeros(shape, np.float32)
    expected = f"has {name} of shape {shape}, it must be {wanted}"
    assert expected in refuse(tensors, tmp_path)


def test_numbers_that_are_not_finite_are_named(tensors, tmp_path):
    tensors["bn2.running_var"] = np.full(16, np.nan, np.float32)
    assert "has bn2.running_var with numbers that are not finite" in refuse(tensors, tmp_path)


@pytest.mark.parametrize("kind", [np.int32, np.uint8, np.bool_, ml_dtypes.float8_e4m3fn])
def test_numbers_that_are_no_weights_are_named(tensors, kind, tmp_path):
    tensors["bn2.bias"] = tensors["bn2.bias"].astype(kind)
    expected = r"has bn2\.bias in \w+, it may be in F16, BF16, F32, F64$"
    assert re.search(expected, refuse(tensors, tmp_path))


def test_a_negative_variance_is_named(tensors, tmp_path):
    tensors["bn2.running_var"] = np.full(16, -1, np.float32)
    assert "has bn2.running_var with variances below 0" in refuse(tensors, tmp_path)


def test_numbers_beyond_float32_are_named(tensors, tmp_path):
    tensors["bn2.bias"] = np.full(16, 1e300)
    assert "has bn2.bias with numbers that are not finite" in refuse(tensors, tmp_path)


@pytest.mark.parametrize("name", ["evil_tracked", "a\nb\x1b[31m", "long " * 1000])
def test_a_name_of_any_kind_is_shown_on_one_short_line(tensors, name, tmp_path):
    message = refuse(tensors | {name: np.zeros(3, np.float32)}, tmp_path)
    assert "unknown keys" in message
    assert len(message) < 700


def test_a_large_file_is_refused_by_its_names_before_its_numbers_are_read(tmp_path):
    path = tmp_path / "w.safetensors"
    header = b'{"x":{"dtype":"F32","shape":[5000000000],"data_offsets":[0,20000000000]}}'
    with open(path, "wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 20_000_000_000)
    with pytest.raises(DataError, match="lacks blocks"):
        read_backbone(path, nnx.eval_shape(make))


@pytest.mark.parametrize("content", [b"", b"\x80\x02}q\x00.", b"\xff" * 64, b"PK\x03\x04" * 9])
def test_a_file_that_is_no_safetensors_is_named(content, tmp_path):
    path = tmp_path / "weights.bin"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"weights\.bin .*header"):
        read_backbone(path, nnx.eval_shape(make))


def test_what_is_no_file_is_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, says in (
        (tmp_path, "is not a file"),
        (tmp_path / "pipe", "is not a file"),
        (tmp_path / "none", "is not there"),
        (tmp_path / "loop", "is not there"),
        (tmp_path / "line\nbreak", "is not there"),
    ):
        with pytest.raises(DataError) as caught:
            read_backbone(path, nnx.eval_shape(make))
        assert str(caught.value).endswith(says)
        assert str(caught.value).isprintable()
