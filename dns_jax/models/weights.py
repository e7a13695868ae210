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
_STEM = "conv_stem.weight"
_FLOATS = ("F16", "BF16", "F32", "F64")
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
      ValueError: naming the keys that are missing, unknown, of another shape, or whose numbers
        cannot be.
    """
    named = _name_arrays(backbone)
    _check_shapes({name: np.shape(tensor) for name, tensor in tensors.items()}, named)
    flat = {}
    for name, (path, ours) in named.items():
        tensor = np.asarray(tensors[name])
        if name == _STEM:
            tensor = tensor.sum(axis=1, keepdims=True)
        if not np.isfinite(tensor).all():
            raise ValueError(f"has {name} with numbers that are not finite")
        if name.endswith("running_var") and (tensor < 0).any():
            raise ValueError(f"has {name} with variances below 0")
        flat[path] = _from_torch(tensor, ours.ndim)
    return nnx.merge(nnx.graphdef(backbone), flax.traverse_util.unflatten_dict(flat))


def read_backbone(path: str | Path, backbone: EfficientNet) -> EfficientNet:
    """Read a safetensors file into the network, in float32.

    Raises:
      DataError: the file cannot be read, or does not fit the network.
    """
    try:
        if not Path(path).is_file():
            raise ValueError("is not a file" if Path(path).exists() else "is not there")
        named = _name_arrays(backbone)
        # Whatever the file holds, nothing is read from it before names and shapes are known to fit.
        with safetensors.safe_open(path, "numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}
            _check_shapes({name: tuple(s.get_shape()) for name, s in slices.items()}, named)
            for name in named:
                if (kind := slices[name].get_dtype()) not in _FLOATS:
                    raise ValueError(f"has {name} in {kind}, it may be in {', '.join(_FLOATS)}")
            with np.errstate(over="ignore"):
                tensors = {name: file.get_tensor(name).astype(np.float32) for name in named}
        return from_timm(tensors, backbone)
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        what = printable(str(error))[:400]
        raise DataError(f"--config.serial_oe.init_from: {printable(path)} {what}") from None


def _check_shapes(shapes, named):
    """Raise ValueError where a file of these shapes does not fit the network."""
    used = {
        name: shape
        for name, shape in shapes.items()
        if name not in _UNUSED and not name.endswith(".num_batches_tracked")
    }
    for what, keys in (("lacks", {*named} - {*used}), ("has unknown keys", {*used} - {*named})):
        if keys:
            raise ValueError(f"{what} {_list(keys)}")
    for name, (_, ours) in named.items():
        wanted = _to_torch(np.empty(ours.shape)).shape
        found = used[name]
        if name == _STEM and len(found) == 4 and found[1] > 1:
            found = (found[0], 1, *found[2:])
        if found != wanted:
            raise ValueError(f"has {name} of shape {used[name]}, it must be {wanted}")


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
    first = ", ".join(printable(key)[:80] for key in sorted(keys)[:5])
    return first + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
