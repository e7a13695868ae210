"""One axis of devices, `data`: batches are spread over them, weights are the same on each.

The default way is a mesh: `jax.jit` sees whole batches, and XLA divides the work by where their
rows lie. The second is `pmap`: every device runs the program on its own rows, and says where it
needs those of the others (`dns_jax.models.spread`). Both compute what one device computes, up to
rounding. Of several hosts each reads its own rows of a batch.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dns_jax.data.refusals import ConfigError
from dns_jax.smoothing import smooth_queries_sweep

AXIS = "data"


def make_mesh(devices: int = 0) -> Mesh:
    """Line devices up along the axis `data`, those of a host side by side.

    Args:
      devices: how many, equally many of each host; 0: all there are.

    Raises:
      ConfigError: there are fewer, or the hosts cannot share them out.
    """
    hosts, there = jax.process_count(), jax.device_count()
    count = devices or there
    if count > there:
        kind = jax.devices()[0].device_kind
        raise ConfigError(f"--config.devices={count}: there are {there} ({kind})")
    if count % hosts:
        raise ConfigError(f"--config.devices={count}: it must be a multiple of the {hosts} hosts")
    chosen = [jax.local_devices(process_index=host)[: count // hosts] for host in range(hosts)]
    return Mesh(np.ravel(chosen), (AXIS,), axis_types=(AxisType.Auto,))


def check_batches(config, mesh: Mesh) -> None:
    """Check that every device gets equally many rows of the batches of both networks.

    Raises:
      ConfigError: naming the batch, the devices and how many would do.
    """
    batches = {name: config[name].batch for name in ("autoencoder", "serial_oe")}
    for name, batch in batches.items():
        if batch % mesh.size:
            fewer = [
                f", or --config.devices={n} to use fewer"
                for n in range(jax.process_count(), mesh.size, jax.process_count())
                if not any(b % n for b in batches.values())
            ]
            raise ConfigError(
                f"--config.{name}.batch={batch}: {mesh.size} devices do not divide it; give a "
                f"multiple of {mesh.size}" + "".join(fewer[-1:])
            )


def own_rows(mesh: Mesh, rows: int) -> slice:
    """Return which of the `rows` of a batch lie on the devices of this host."""
    share = rows // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def replicate(mesh: Mesh, tree: Any) -> Any:
    """Put a pytree, the same on every host, on every device."""
    return jax.device_put(tree, NamedSharding(mesh, P()))


def place(mesh: Mesh, arrays: Any) -> Any:
    """Put NumPy arrays, the same on every host, on every device: `replicate` compares them all."""
    sharding = NamedSharding(mesh, P())
    return jax.tree.map(
        lambda x: jax.make_array_from_callback(x.shape, sharding, lambda index: x[index]), arrays
    )


def spread(mesh: Mesh, rows: Any, axis: int = 0) -> Any:
    """Put the rows that this host has (`own_rows`) on its devices, as part of the whole batch."""
    sharding = NamedSharding(mesh, P(*[None] * axis, AXIS))
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), rows
    )


def spread_batches(mesh: Mesh, batches: Any, way: str) -> Any:
    """Put batches on the devices, for `compile_program`: [batches, rows of this host, ...]."""
    if way == "pmap":
        devices = len(mesh.local_devices)
        batches = jax.tree.map(
            lambda x: x.reshape(len(x), devices, x.shape[1] // devices, *x.shape[2:]), batches
        )
    return spread(mesh, batches, axis=1)


def compile_program(program: Callable, mesh: Mesh, way: str) -> Callable:
    """Compile ``(state, store, batches, *numbers) -> (state, more)``; the old state is given up.

    The numbers are whole. The store is `place`d, batches come from `spread_batches`.

    Args:
      program: for "mesh" a function of whole batches; for "pmap" one of a device's rows of them,
        the same on every device in what it returns.
      mesh: the devices.
      way: "mesh" or "pmap".
    """
    if way == "mesh":
        compiled = jax.jit(program, donate_argnums=0, out_shardings=NamedSharding(mesh, P()))
    else:
        compiled = jax.pmap(
            program,
            AXIS,
            in_axes=(None, None, 1, None, None),
            out_axes=None,
            devices=list(mesh.devices.flat),
            donate_argnums=0,
        )

    def run(state, store, batches, *numbers):
        results = compiled(state, store, batches, *map(np.int32, numbers))
        if way == "mesh" or jax.process_count() == 1:
            return results
        return multihost_utils.host_local_array_to_global_array(results, mesh, P())

    return run


def each_device(function: Callable, mesh: Mesh) -> Callable:
    """Let each device apply ``(same everywhere, rows) -> rows`` to its own rows of whole arrays."""
    return jax.shard_map(function, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=P(AXIS))


def compile_rows(function: Callable, mesh: Mesh) -> Callable:
    """Compile ``(*same everywhere, rows of this host) -> results of all rows``, on every device.

    Args:
      function: ``(*arrays, rows) -> pytree of [rows, ...]``, each row by itself.
      mesh: the devices.
    """

    @jax.jit
    def compiled(same, rows):
        results = each_device(lambda x, rows: function(*x, rows), mesh)(same, rows)
        return jax.lax.with_sharding_constraint(results, NamedSharding(mesh, P()))

    return lambda *arguments: compiled(arguments[:-1], spread(mesh, arguments[-1]))


def smooth_spread(mesh: Mesh, queries: tuple, pool: tuple, candidates, ks: tuple) -> np.ndarray:
    """Smooth queries (eq. 7) that are spread over the devices, each of which has the whole pool.

    Args:
      mesh: the devices.
      queries: scores f32[Q], features f32[Q, D] and groups i32[Q] or None, as for `smooth_queries`.
      pool: likewise, of P rows.
      candidates: bool[P].
      ks: the K.

    Returns:
      f32[len(ks), Q].
    """
    size = len(queries[0])
    padded = -(-size // mesh.size) * mesh.size
    share = own_rows(mesh, padded)
    rows = jax.tree.map(lambda x: np.resize(x, (padded, *x.shape[1:]))[share], queries)
    smoothed = _smooth(spread(mesh, rows), replicate(mesh, (pool, candidates)), mesh, ks)
    return jax.device_get(smoothed)[:, :size]


@partial(jax.jit, static_argnums=(2, 3))
def _smooth(queries, pool, mesh, ks):
    def smooth(queries, pool):
        (scores, features, groups), candidates = pool
        return smooth_queries_sweep(
            *queries[:2],
            scores,
            features,
            ks,
            candidates=candidates,
            query_groups=queries[2],
            pool_groups=groups,
        )

    spread_out = jax.shard_map(smooth, mesh=mesh, in_specs=(P(AXIS), P()), out_specs=P(None, AXIS))
    return jax.lax.with_sharding_constraint(spread_out(queries, pool), NamedSharding(mesh, P()))
