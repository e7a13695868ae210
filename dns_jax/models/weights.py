"""EfficientNet weights under timm's names: noisy-student weights [17] in, ours out, as safetensors.

SerialOE's code starts from timm's `tf_efficientnet_b0.ns_jft_in1k`. Its classifier has no place in
f_D, and its stem for three equal channels is the sum of its kernels for one.
"""

from collections.abc import Mapping
from pathlib import Path

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from dns_jax.data.refusals import DataError, printable
from dns_jax.models.efficientnet import EfficientNet

_BLOCK = {
    "expand": "conv_pw",
    "expand_norm": "bn1",
    "depthwise": "conv_dw",
    "depthwise_norm": "bn2",
    "project": "conv_pwl",
    "project_norm": "bn3",
}
_FIRST_BLOCK = {  # of the stage that does not expand
    "depthwise": "conv_dw",
    "depthwise_norm": "bn1",
    "project": "conv_pw",
    "project_norm": "bn2",
}
_SQUEEZE_EXCITE = {"reduce": "conv_reduce", "expand": "conv_expand"}
_ENDS = {"stem": "conv_stem", "stem_norm": "bn1", "head": "conv_head", "head_norm": "bn2"}
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_UNUSED = ("classifier.weight", "classifier.bias")


def to_timm(backbone: EfficientNet) -> dict[str, np.ndarray]:
    """Return weights and running statistics under timm's names, in PyTorch's axes.

    The stem has one input channel: `in_chans=1` of timm.
    """
    return {
        name: _to_torch(np.asarray(array)) for name, (_, array) in _name_arrays(backbone).items()
    }


def from_timm(tensors: Mapping[str, np.ndarray], backbone: EfficientNet) -> EfficientNet:
    """Return the network with other weights and running statistics.

    Args:
      tensors: by timm's names, of an EfficientNet with this network's stage table. The stem may
        have any number of input channels; they are summed.
      backbone: gives the shapes; keeps its own weights.

    Raises:
      ValueError: naming the keys that are missing, unknown, or of another shape.
    """
    named = _name_arrays(backbone)
    used = {k: v for k, v in tensors.items() if k not in _UNUSED and not k.endswith("_tracked")}
    for what, keys in (("lacks", {*named} - {*used}), ("has unknown keys", {*used} - {*named})):
        if keys:
            raise ValueError(f"{what} {_list(keys)}")
    flat = {}
    for name, (path, ours) in named.items():
        tensor = np.asarray(used[name])
        if name == "conv_stem.weight" and tensor.ndim == 4:
            tensor = tensor.sum(axis=1, keepdims=True)
        wanted = _to_torch(np.empty(ours.shape)).shape
        if tensor.shape != wanted:
            raise ValueError(f"has {name} of shape {used[name].shape}, it must be {wanted}")
        if not np.isfinite(tensor).all():
            raise ValueError(f"has {name} with numbers that are not finite")
        flat[path] = _from_torch(tensor, ours.ndim)
    return nnx.merge(nnx.graphdef(backbone), flax.traverse_util.unflatten_dict(flat))


def read_backbone(path: str | Path, backbone: EfficientNet) -> EfficientNet:
    """Read a safetensors file into the network, in float32.

    Raises:
      DataError: the file cannot be read, or does not fit the network.
    """
    try:
        tensors = safetensors.numpy.load_file(path)
        tensors = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
        return from_timm(tensors, backbone)
    except OSError as error:
        raise DataError(f"{printable(path)}: {error.strerror or error}") from None
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{printable(path)}: {error}") from None


def _name_arrays(backbone):
    """{timm's name: (our path, array)}."""
    state = flax.traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(backbone)))
    return {_name(path, backbone): (path, array) for path, array in state.items()}


def _name(path, backbone):
    *modules, leaf = path
    leaf = _LEAVES[leaf]
    if modules[0] != "blocks":
        return f"{_ENDS[modules[0]]}.{leaf}"
    _, number, *modules = modules
    ends = np.cumsum(backbone.repeats)
    stage = int(np.searchsorted(ends, number, side="right"))
    place = f"blocks.{stage}.{number - (ends[stage] - backbone.repeats[stage])}"
    if modules[0] == "squeeze_excite":
        return f"{place}.se.{_SQUEEZE_EXCITE[modules[1]]}.{leaf}"
    names = _BLOCK if backbone.blocks[number].expands else _FIRST_BLOCK
    return f"{place}.{names[modules[0]]}.{leaf}"


def _to_torch(array):
    """[k, k, in, out] -> [out, in, k, k], depthwise [k, k, channels] -> [channels, 1, k, k]."""
    if array.ndim == 3:
        array = array[:, :, None]
    # In C order: safetensors saves the memory of an array as it lies.
    return np.ascontiguousarray(array.transpose(3, 2, 0, 1)) if array.ndim == 4 else array


def _from_torch(tensor, axes):
    if tensor.ndim == 4:
        tensor = tensor.transpose(2, 3, 1, 0)
    return jnp.asarray(tensor[:, :, 0] if axes == 3 else tensor)


def _list(keys):
    first = ", ".join(sorted(keys)[:5])
    return first + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
