"""Two networks of the same weights: ours, and one of PyTorch whose parts have the same names."""

import jax
import numpy as np
import tiny
import torch
from flax import nnx, traverse_util


def make_twin(make, reference, dtype):
    """Build our network with random weights and statistics, and copy them into PyTorch's."""
    graph, state = nnx.split(tiny.randomise(make))
    ours = nnx.merge(graph, jax.tree.map(lambda x: x.astype(dtype), state))
    arrays = name_arrays(nnx.to_pure_dict(nnx.state(ours)))
    theirs = _rename(reference.to(getattr(torch, dtype.name)).state_dict().items())
    assert arrays.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert _swap(arrays[name]).shape == tensor.shape, name
        tensor.copy_(torch.tensor(_swap(arrays[name])))
    return ours


def name_arrays(tree):
    """Turn nested dictionaries of ours into {name: array}."""
    flat = traverse_util.flatten_dict(tree)
    return {".".join(map(str, path)): np.asarray(array) for path, array in flat.items()}


def name_tensors(named):
    """Turn PyTorch's pairs (name, tensor) into {our name: array}, with our order of axes."""
    return {name: _swap(tensor.detach().numpy()) for name, tensor in _rename(named).items()}


def take_step(model, loss):
    """Return `loss(model)`, its {name: gradient} and the {name: statistic} that it leaves."""
    graph = nnx.graphdef(model)
    params, statistics = (
        nnx.to_pure_dict(nnx.state(model, kind)) for kind in (nnx.Param, nnx.BatchStat)
    )

    def objective(params):
        model = nnx.merge(graph, params, statistics)
        return loss(model), nnx.to_pure_dict(nnx.state(model, nnx.BatchStat))

    step = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (value, after), gradients = step(params)
    return value, name_arrays(gradients), name_arrays(after)


def take_reference_step(model, value):
    """Return the same of PyTorch's network, whose loss is `value`."""
    value.backward()
    gradients = ((name, parameter.grad) for name, parameter in model.named_parameters())
    return value.detach(), name_tensors(gradients), name_tensors(model.named_buffers())


def _rename(named):
    renamed = {}
    for name, tensor in named:
        weight = "kernel" if tensor.ndim == 2 else "scale"
        if not name.endswith("num_batches_tracked"):
            renamed[name.replace("running_", "").replace("weight", weight)] = tensor
    return renamed


def _swap(array):
    """[inputs, outputs] <-> [outputs, inputs]."""
    return array.T if array.ndim == 2 else array
