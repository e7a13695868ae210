"""A pool in shards, one a device: the neighbours of the whole pool, which nothing gathers."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eq7 import oracle_queries
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from dns_jax import smooth_queries
from dns_jax.smoothing import _search, smooth_queries_sharded

DEVICES, ROWS, QUERIES = 8, 96, 20
FORMS = {"ranking": _search.sum_by_rank, "counting": _search.sum_by_count}


@pytest.fixture(autouse=True, params=FORMS)
def form(request, monkeypatch):
    monkeypatch.setitem(_search.FORMS, "cpu", FORMS[request.param])
    return request.param


@pytest.fixture
def arrays():
    """Queries and a pool of small integers, full of ties within and across the shards."""
    rng = np.random.default_rng(0)
    return {
        "query_scores": rng.standard_normal(QUERIES).astype(np.float32),
        "query_features": rng.integers(-2, 3, (QUERIES, 3)).astype(np.float32),
        "pool_scores": rng.standard_normal(ROWS).astype(np.float32),
        "pool_features": rng.integers(-2, 3, (ROWS, 3)).astype(np.float32),
        "candidates": rng.random(ROWS) < 0.7,
        "query_groups": rng.integers(0, 9, QUERIES),
        "pool_groups": rng.integers(0, 9, ROWS),
    }


def smooth_shards(arrays, k, devices=DEVICES):
    mesh = jax.make_mesh((devices,), ("pool",), axis_types=(AxisType.Auto,))
    specs = {name: P() if name.startswith("query") else P("pool") for name in arrays}
    return jax.jit(
        jax.shard_map(
            lambda arrays: smooth_queries_sharded("pool", **arrays, k=k),
            mesh=mesh,
            in_specs=(specs,),
            out_specs=P(),
        )
    )


@pytest.mark.parametrize("k", [1, 2, 5, 30, ROWS + 1])
@pytest.mark.parametrize("restricted", [False, True])
def test_shards_give_the_neighbours_of_the_whole_pool(arrays, k, restricted):
    assert jax.device_count() == DEVICES
    if not restricted:
        arrays = {n: x for n, x in arrays.items() if "groups" not in n and n != "candidates"}
    got = smooth_shards(arrays, k)(arrays)
    np.testing.assert_allclose(got, oracle_queries(**arrays, k=k), rtol=1e-5, atol=1e-6)


def test_a_shard_may_be_without_a_usable_row(arrays):
    arrays["candidates"][:] = False
    arrays["candidates"][17:23] = True
    arrays["pool_features"][40:60] = np.nan
    got = smooth_shards(arrays, 4)(arrays)
    np.testing.assert_allclose(got, oracle_queries(**arrays, k=4), rtol=1e-5, atol=1e-6)


def test_several_columns_are_summed_over_the_shards(arrays):
    for name in ("query_scores", "pool_scores"):
        arrays[name] = np.stack([arrays[name], -2 * arrays[name]], axis=1)
    got = smooth_shards(arrays, 9)(arrays)
    np.testing.assert_allclose(got, oracle_queries(**arrays, k=9), rtol=1e-5, atol=1e-6)


def test_the_centre_is_that_of_all_shards(form):
    """Each shard lies elsewhere: a centre of its own would give each another rounding."""
    rng = np.random.default_rng(1)
    features = np.repeat(np.arange(DEVICES), 12)[:, None] * 100 + rng.standard_normal((ROWS, 16))
    scores = rng.standard_normal(ROWS)
    arrays = {
        "query_scores": scores[:QUERIES],
        "query_features": features[::5],
        "pool_scores": scores,
        "pool_features": features,
    }
    got = smooth_shards(arrays, 6)(arrays)
    np.testing.assert_allclose(got, smooth_queries(**arrays, k=6), rtol=1e-5, atol=1e-6)


def test_pmap_does_the_same(arrays):
    shards = {
        name: x if name.startswith("query") else x.reshape(DEVICES, -1, *x.shape[1:])
        for name, x in arrays.items()
    }
    axes = {name: None if name.startswith("query") else 0 for name in arrays}
    mapped = jax.pmap(
        lambda arrays: smooth_queries_sharded("pool", **arrays, k=7),
        axis_name="pool",
        in_axes=(axes,),
    )
    got = mapped(shards)
    assert got.shape == (DEVICES, QUERIES)
    np.testing.assert_allclose(got[3], oracle_queries(**arrays, k=7), rtol=1e-5, atol=1e-6)


def test_the_gradient_in_the_scores_of_every_shard(arrays):
    del arrays["candidates"]

    def loss(pool_scores, smooth):
        return (smooth({**arrays, "pool_scores": pool_scores}) ** 2).sum()

    got = jax.grad(loss)(arrays["pool_scores"], smooth_shards(arrays, 7))
    expected = jax.grad(loss)(arrays["pool_scores"], lambda x: smooth_queries(**x, k=7))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_k_may_be_up_to_the_rows_of_all_shards_and_the_query(arrays):
    with pytest.raises(
        ValueError, match=rf"k must be in 1\.\.{ROWS + 1}, the {ROWS} rows .*was 98"
    ):
        smooth_shards(arrays, ROWS + 2)(arrays)


def test_nothing_gathers_the_pool_or_holds_all_distances(form):
    queries, rows, dimensions, k = 512, 4096, 64, 5
    shapes = {
        "query_scores": (queries,),
        "query_features": (queries, dimensions),
        "pool_scores": (rows,),
        "pool_features": (rows, dimensions),
    }
    shapes = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in shapes.items()}
    program = smooth_shards(shapes, k).lower(shapes).compile().as_text()
    collectives = re.findall(
        r"= \(?\w+\[([\d,]*)\]\S* (all-gather|all-reduce|all-to-all|collective)", program
    )
    assert collectives
    for shape, _ in collectives:
        # A few numbers a query, or one a dimension for the centre.
        assert np.prod([int(x) for x in shape.split(",") if x]) <= queries * (k - 1) * DEVICES
    if form == "counting":
        assert "all-gather" not in program
    sizes = (
        np.prod([int(x) for x in s.split(",")]) for s in re.findall(r"f32\[([\d,]+)\]", program)
    )
    assert max(sizes) <= queries * rows // DEVICES


def test_shards_of_queries_gather_nothing_and_hold_no_square():
    rows = 4096
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(AxisType.Auto,))
    number = jnp.arange(rows)

    def smooth_shard(scores, features, row, pool_scores, pool_features):
        return smooth_queries(
            scores, features, pool_scores, pool_features, 16, query_groups=row, pool_groups=number
        )

    mapped = jax.shard_map(
        smooth_shard,
        mesh=mesh,
        in_specs=(P("data"), P("data"), P("data"), P(), P()),
        out_specs=P("data"),
    )
    shape = partial(jax.ShapeDtypeStruct, dtype="float32")
    arguments = shape((rows,)), shape((rows, 8)), number, shape((rows,)), shape((rows, 8))
    program = jax.jit(mapped).lower(*arguments).compile().as_text()
    assert not re.search("all-gather|all-reduce|all-to-all", program)
    sizes = (
        np.prod([int(x) for x in s.split(",")]) for s in re.findall(r"f32\[([\d,]+)\]", program)
    )
    assert max(sizes) <= rows * rows // DEVICES


@pytest.mark.soak
def test_a_million_rows_over_eight_devices_answer_a_thousand_queries(form):
    rng = np.random.default_rng(0)
    arrays = {
        "query_scores": rng.standard_normal(1000).astype(np.float32),
        "query_features": rng.integers(-9, 10, (1000, 128)).astype(np.float32),
        "pool_scores": rng.standard_normal(10**6).astype(np.float32),
        "pool_features": rng.integers(-9, 10, (10**6, 128)).astype(np.float32),
    }
    got = np.asarray(smooth_shards(arrays, 32)(arrays))
    some = {name: x[:8] if name.startswith("query") else x for name, x in arrays.items()}
    distances = [
        np.square(arrays["pool_features"] - q).sum(1) for q in some["query_features"]
    ]  # small integers: exact in float32
    nearest = [np.argsort(d, kind="stable")[:31] for d in distances]
    expected = [
        (s + arrays["pool_scores"][n].sum()) / 32
        for s, n in zip(some["query_scores"], nearest, strict=True)
    ]
    np.testing.assert_allclose(got[:8], expected, rtol=1e-5, atol=1e-6)
