"""Eight devices compute what one does: training by mesh and by pmap, scoring, smoothing."""

import re
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
import tiny
from flax import nnx

from dns_jax.data.batches import Plan
from dns_jax.data.refusals import ConfigError
from dns_jax.feeding import Feed
from dns_jax.models.autoencoder import Autoencoder
from dns_jax.models.batch_norm import BatchNorm
from dns_jax.models.serial_oe import SerialOE
from dns_jax.parallel import (
    AXIS,
    check_batches,
    compile_rows,
    make_mesh,
    own_rows,
    replicate,
    smooth_spread,
)
from dns_jax.programs import Task, make_program
from dns_jax.scoring import score_segments
from dns_jax.smoothing import smooth_sweep
from dns_jax.tasks import make_autoencoder_task, make_serial_oe_task
from dns_jax.training import init_state, make_train_step

STEPS = 20
RECORDINGS = tiny.Recordings(2000 + 17 * np.arange(40))
PRODUCTS = np.r_[np.arange(24) % 3, np.full(16, -1)]


def make_config():
    config = tiny.make_config()
    config.autoencoder.batch = config.serial_oe.batch = 16
    config.serial_oe.backbone.stages = ((2, 8, 1, 2, 3),)
    return config


def make(network):
    """Return the network with random weights, its task and its optimizer."""
    config, none = make_config(), np.arange(0)
    if network == "autoencoder":
        model = tiny.randomise(lambda: Autoencoder(config.autoencoder, rngs=nnx.Rngs(0)))
        task, _, optimizer = make_autoencoder_task(config, RECORDINGS, np.arange(24), none, 0)
    else:
        model = tiny.randomise(lambda: SerialOE(config.serial_oe, 3, rngs=nnx.Rngs(0)))
        rows = np.arange(24), np.arange(24, 40)
        shifted = np.zeros(40, bool)
        task, _, optimizer = make_serial_oe_task(
            config, RECORDINGS, PRODUCTS, shifted, rows, (none, none), 0
        )
    return model, task, optimizer


def make_network_program(model, task, optimizer, mesh, way, loss=None):
    by = AXIS if way == "pmap" else mesh
    step = make_train_step(model, optimizer, loss or task.loss, 0, STEPS, by)
    return make_program(step, task, task.open_feeds(mesh)[0], STEPS, mesh, way)


class Trained(NamedTuple):
    losses: np.ndarray  # f64[STEPS]
    outputs: np.ndarray  # after the last step
    params: dict
    statistics: dict


@cache
def train(network, devices, way, dtype):
    """Train for 20 steps on so many devices."""
    with jax.enable_x64(dtype == "float64"):
        model, task, optimizer = make(network)
        if network == "autoencoder" and dtype == "float32":
            # At a kink of ReLU rounding alone sends two runs different ways, one in ten of these.
            for norm in model.norms:
                norm.activation = nnx.silu
        graph, state = nnx.split(model)
        model = nnx.merge(graph, jax.tree.map(lambda x: x.astype(dtype), state))
        mesh = make_mesh(devices)

        def loss(model, batch, *more):
            return task.loss(model, jax.tree.map(lambda x: x.astype(dtype), batch), *more)

        program = make_network_program(model, task, optimizer, mesh, way, loss)
        state, sums = replicate(mesh, init_state(model, optimizer)), [0.0]
        for step in range(STEPS):
            state, total = program.run(state, program.prepare(step, 1), step, 1)
            sums.append(np.float64(total))
        graph = nnx.graphdef(model)

        @jax.jit
        def apply(params, statistics, segments):
            last = nnx.merge(graph, params, statistics)
            # Not by the running statistics: they lag behind biases that batch norms make void,
            # whose gradients are rounding, which Adam makes as large as any other.
            if network == "autoencoder":
                return last(last.extract(segments), train=True)
            return last(segments, train=True, key=jax.random.key(0))

        segments = RECORDINGS.crop(np.arange(16), np.zeros(16, int), 2000).astype(dtype)
        outputs = np.asarray(apply(*jax.device_get((state.params, state.statistics)), segments))
        assert outputs.dtype == dtype
        params, statistics = jax.tree.map(np.asarray, (state.params, state.statistics))
        return Trained(np.diff(sums), outputs, params, statistics)


@pytest.mark.parametrize("way", ["mesh", "pmap"])
@pytest.mark.parametrize("network", ["autoencoder", "serial_oe"])
def test_eight_devices_train_as_one_in_float32(network, way):
    one, eight = train(network, 1, "mesh", "float32"), train(network, 8, way, "float32")
    assert np.ptp(one.losses) > 1e-3
    np.testing.assert_allclose(eight.losses, one.losses, rtol=1e-5)
    error = np.linalg.norm(eight.outputs - one.outputs) / np.linalg.norm(one.outputs)
    print(f"losses {np.max(np.abs(eight.losses / one.losses - 1)):.1e}, outputs {error:.1e}")
    assert error < 3e-5


@pytest.mark.parametrize("way", ["mesh", "pmap"])
@pytest.mark.parametrize("network", ["autoencoder", "serial_oe"])
def test_eight_devices_learn_the_weights_of_one_in_float64(network, way):
    one, eight = train(network, 1, "mesh", "float64"), train(network, 8, way, "float64")
    ours, theirs = (jax.tree.leaves((x.params, x.statistics)) for x in (eight, one))
    pairs = list(zip(ours, theirs, strict=True))
    print(f"largest difference {max(np.abs(a - b).max() for a, b in pairs):.1e}")
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("way", ["mesh", "pmap"])
def test_a_batch_norm_has_the_statistics_of_the_whole_batch(way):
    norm = BatchNorm(3)
    x = np.random.default_rng(0).normal(2, 5, (16, 4, 3)).astype(np.float32)

    def loss(norm, batch, key, progress):
        return jnp.mean(norm(batch[0], train=True) ** 2)

    optimizer, mesh = optax.sgd(0.0), make_mesh(8)
    plan = Plan(np.arange(16)[None], np.zeros((1, 16), int))
    feed = Feed((), lambda rows, starts: x[rows], lambda store, rows: rows)
    task = Task(loss, None, 16, lambda *_: plan, plan, 16, lambda mesh: (feed, feed))
    program = make_network_program(norm, task, optimizer, mesh, way)
    state = replicate(mesh, init_state(norm, optimizer))
    statistics = program.run(state, program.prepare(0, 1), 0, 1)[0].statistics
    rows = x.reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(statistics["mean"], 0.1 * rows.mean(0), rtol=1e-5)
    np.testing.assert_allclose(statistics["var"], 0.9 + 0.1 * rows.var(0, ddof=1), rtol=1e-5)


@pytest.mark.parametrize("looped", [False, True])
@pytest.mark.parametrize("way", ["mesh", "pmap"])
def test_no_device_gets_more_of_the_others_than_it_needs(way, looped, monkeypatch):
    """Waveforms are gathered once, for mixup; XLA by itself would gather every FFT and crop."""
    compiled, jit, pmap = [], jax.jit, jax.pmap

    def keep(compile, *options, **more):
        compiled.append(compile(*options, **more))
        return compiled[-1]

    monkeypatch.setattr(jax, "jit", lambda *a, **b: keep(jit, *a, **b))
    monkeypatch.setattr(jax, "pmap", lambda *a, **b: keep(pmap, *a, **b))
    model, task, optimizer = make("serial_oe")
    task = task._replace(looped=looped)
    mesh = make_mesh(8)
    program = make_network_program(model, task, optimizer, mesh, way)
    (take_steps,) = (x for x in compiled if x.__name__ == "take_steps")
    store = task.open_feeds(mesh)[0].store
    state = replicate(mesh, init_state(model, optimizer))
    lowered = take_steps.lower(state, store, program.prepare(0, 1), np.int32(0), np.int32(1))
    text = lowered.compile().as_text()
    assert ("while(" in text) >= looped
    gathered = re.findall(r"= \(?(\w+)\[([\d,]*)\]\S* all-gather", text)
    assert ("f32", "16,2000") in gathered
    sizes = [np.prod([int(n) for n in shape.split(",")]) for _, shape in gathered]
    assert sorted(sizes)[-2] <= 16 * 16  # labels, and features before dropout


# Devices


def test_a_mesh_has_all_devices_or_the_first_of_them():
    assert [d.id for d in make_mesh().devices] == list(range(8))
    assert [d.id for d in make_mesh(3).devices] == [0, 1, 2]
    assert make_mesh().axis_names == ("data",)
    assert own_rows(make_mesh(), 24) == slice(0, 24)


def test_more_devices_than_there_are_is_an_error_with_both_numbers():
    with pytest.raises(ConfigError, match=r"--config.devices=9: there are 8 \(cpu\)"):
        make_mesh(9)


@pytest.mark.parametrize(
    ("autoencoder", "serial_oe", "devices", "message"),
    [
        (16, 30, 8, "serial_oe.batch=30: 8 devices do not divide it.* multiple of 8, .*devices=2 "),
        (12, 32, 8, "autoencoder.batch=12: 8 devices do not divide it.*--config.devices=4 "),
        (16, 32, 3, "autoencoder.batch=16: 3 devices do not divide it.*--config.devices=2 "),
    ],
)
def test_a_batch_that_the_devices_do_not_divide_is_an_error_with_both_numbers(
    autoencoder, serial_oe, devices, message
):
    config = tiny.make_config()
    config.autoencoder.batch, config.serial_oe.batch = autoencoder, serial_oe
    with pytest.raises(ConfigError, match=f"--config.{message}"):
        check_batches(config, make_mesh(devices))


def test_the_advice_is_one_that_the_hosts_can_follow(monkeypatch):
    mesh, config = make_mesh(8), tiny.make_config()
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    config.autoencoder.batch, config.serial_oe.batch = 12, 24
    with pytest.raises(ConfigError, match=r"or --config.devices=4 to use fewer"):
        check_batches(config, mesh)
    config.autoencoder.batch = 9
    with pytest.raises(ConfigError, match=r"give a multiple of 8$"):
        check_batches(config, mesh)


def test_batches_that_the_devices_divide_pass():
    config = tiny.make_config()
    config.autoencoder.batch, config.serial_oe.batch = 8, 24
    check_batches(config, make_mesh(8))


# Scoring and smoothing


def test_rows_are_mapped_on_all_devices_and_come_back_in_order():
    x = np.arange(24, dtype=np.float32).reshape(8, 3)
    seen = []

    def double(factor, rows):
        seen.append(rows.shape)
        return factor * rows, rows[:, 0]

    doubled, first = jax.device_get(compile_rows(double, make_mesh(8))(np.float32(2), x))
    np.testing.assert_array_equal(doubled, 2 * x)
    np.testing.assert_array_equal(first, x[:, 0])
    assert set(seen) == {(1, 3)}


@pytest.mark.parametrize("size", [5, 8, 29])
def test_eight_devices_smooth_as_one(size):
    rng = np.random.default_rng(size)
    scores, features = (rng.normal(size=shape).astype(np.float32) for shape in (size, (size, 4)))
    candidates, ks = rng.random(size) < 0.7, (1, 2, 5)
    rows = scores, features, np.arange(size)
    got = smooth_spread(make_mesh(8), rows, rows, candidates, ks)
    np.testing.assert_allclose(
        got, smooth_sweep(scores, features, ks, candidates=candidates), rtol=1e-6
    )


def score_and_smooth(devices):
    """Score 11 recordings by two networks, and smooth the scores."""
    config, mesh = make_config(), make_mesh(devices)
    clips = pd.DataFrame(
        {"clip": [f"{i}.wav" for i in range(11)], "split": "test", "domain": "source"}
    ).assign(section=0, label=0)
    networks = make("autoencoder")[0], make("serial_oe")[0]
    options = tiny.on_one_device(name="fan") | {"mesh": mesh}
    with jax.transfer_guard("disallow"):
        segments = score_segments(*networks, clips, RECORDINGS, config, **options)
        rows = segments.ae_score, segments.feature, np.arange(len(segments.clip))
        smoothed = smooth_spread(mesh, rows, rows, np.ones(len(segments.clip), bool), (1, 4))
    return segments, smoothed


def test_scores_and_smoothing_move_nothing_but_by_name_and_agree_on_eight_devices():
    (one, one_smoothed), (eight, eight_smoothed) = score_and_smooth(1), score_and_smooth(8)
    np.testing.assert_array_equal(one.clip, eight.clip)
    np.testing.assert_allclose(one.ae_score, eight.ae_score, rtol=1e-5)
    np.testing.assert_allclose(one.feature, eight.feature, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(one_smoothed, eight_smoothed, rtol=1e-5)


def test_the_guard_of_the_test_above_sees_transfers_without_a_name():
    with jax.transfer_guard("disallow"), pytest.raises(Exception, match="Disallowed"):
        jnp.add(np.ones(3, np.float32), 1).block_until_ready()
