"""Batches from a store on the devices and from the cache: the same to the last bit, and right."""

import dataclasses

import jax
import librosa
import numpy as np
import pytest
import tiny
from flax import nnx

from dns_jax.data.batches import Plan
from dns_jax.data.refusals import ConfigError
from dns_jax.data.waveforms import Waveforms, standardise
from dns_jax.features import make_front_end
from dns_jax.feeding import open_feed, open_mel_feed
from dns_jax.models.autoencoder import Autoencoder
from dns_jax.parallel import compile_program, each_device, make_mesh, spread_batches
from dns_jax.tasks import make_autoencoder_task

SAMPLES = 500
ROWS = np.array([0, 2, 3, 5, 6, 8, 9])  # those that are used


def make_waveforms(kind):
    """Ten recordings of unequal length: of int16, of float32, or of both, with offsets."""
    rng = np.random.default_rng(0)
    lengths = SAMPLES + 37 * np.arange(10)
    of_float = {"int16": [], "float32": range(10), "both": range(5, 10)}[kind]
    samples, machines = [], np.array([row in of_float for row in range(10)], int)
    for row, length in enumerate(lengths):
        noise = rng.standard_normal(length)
        # A constant offset that is 10,000 times as large as the sound.
        wave = 0.7 + 7e-5 * noise if row in of_float else np.rint(1000 * row + 300 * noise)
        samples.append(wave.astype(np.float32 if row in of_float else np.int16))
    whole = [
        np.concatenate([s for s, m in zip(samples, machines, strict=True) if m == n] or [[]])
        for n in (0, 1)
    ]
    whole = whole[0].astype(np.int16), whole[1].astype(np.float32)
    offsets = [int(lengths[:row][machines[:row] == machines[row]].sum()) for row in range(10)]
    exact = [wave.astype(np.float64) for wave in samples]
    return Waveforms(
        lengths=lengths,
        digests=np.full(10, ""),
        means=np.array([wave.mean() for wave in exact]),
        scales=np.array([1 / wave.std() for wave in exact]),
        machines=machines,
        offsets=np.array(offsets),
        samples=whole,
    ), exact


def open_both(waveforms, rows=ROWS, mesh=None, batch=8):
    lengths = waveforms.lengths[rows]
    return [
        open_feed(waveforms, rows, lengths, SAMPLES, batch, mesh or make_mesh(1), budget)
        for budget in (1e9, 0)
    ]


def draw_plan(waveforms, steps=4, batch=8):
    rng = np.random.default_rng(1)
    rows = rng.choice(ROWS, (steps, batch))
    starts = rng.integers(0, waveforms.lengths[rows] - SAMPLES + 1)
    starts[0] = waveforms.lengths[rows[0]] - SAMPLES  # the very end
    return Plan(rows, starts)


def cut(feed, plan):
    return np.stack([tiny.cut_batch(feed, plan, step)[0] for step in range(len(plan.rows))])


@pytest.mark.parametrize("kind", ["int16", "float32", "both"])
@pytest.mark.parametrize("how", ["recording", "machine", "none"])
def test_both_feeds_cut_the_same_bits_which_are_those_of_float64(kind, how):
    waveforms, exact = make_waveforms(kind)
    waveforms = standardise(waveforms, how, ROWS)
    stored, streamed = open_both(waveforms)
    assert jax.tree.leaves(stored.store)
    assert not jax.tree.leaves(streamed.store)
    plan = draw_plan(waveforms)
    got = cut(stored, plan)
    np.testing.assert_array_equal(got, cut(streamed, plan))
    assert got.dtype == np.float32
    for pieces, rows, starts in zip(got, *plan[:2], strict=True):
        for piece, row, start in zip(pieces, rows, starts, strict=True):
            wave = exact[row][start : start + SAMPLES]
            expected = (wave - waveforms.means[row]) * waveforms.scales[row]
            np.testing.assert_allclose(piece, expected, rtol=4e-7, atol=1e-7)


@pytest.mark.parametrize("kind", ["int16", "float32", "both"])
def test_recordings_travel_and_lie_as_they_are_stored(kind):
    waveforms, _ = make_waveforms(kind)
    stored, streamed = open_both(waveforms)
    wanted = np.int16 if kind == "int16" else np.float32
    assert stored.store[0].dtype == wanted
    assert streamed.fetch(*draw_plan(waveforms)[:2])[0].dtype == wanted
    alone = open_both(waveforms, np.array([0, 2]))[0]  # of both kinds only int16 is used
    assert alone.store[0].dtype == (np.float32 if kind == "float32" else np.int16)


def test_a_constant_recording_is_zeros():
    waveforms, _ = make_waveforms("int16")
    waveforms = dataclasses.replace(waveforms, scales=np.zeros(10))
    for feed in open_both(waveforms):
        assert not cut(feed, draw_plan(waveforms)).any()


@pytest.mark.parametrize("way", ["mesh", "pmap"])
@pytest.mark.parametrize("budget", [1e9, 0])
def test_eight_devices_cut_the_bits_that_one_does(way, budget):
    waveforms, _ = make_waveforms("both")
    plan, mesh = draw_plan(waveforms, batch=16), make_mesh(8)
    expected = cut(open_both(waveforms, batch=16)[0], plan)
    lengths = waveforms.lengths[ROWS]
    feed = open_feed(waveforms, ROWS, lengths, SAMPLES, 16, mesh, budget)
    of_each = each_device(feed.cut, mesh) if way == "mesh" else feed.cut

    def gather(state, store, batches, first, count):
        del first, count
        steps = [jax.tree.map(lambda x, i=i: x[i], batches) for i in range(4)]
        cut = jax.numpy.stack([of_each(store, step) for step in steps])
        return state, jax.lax.all_gather(cut, "data", axis=1, tiled=True) if way == "pmap" else cut

    run = compile_program(gather, mesh, way)
    batches = spread_batches(mesh, feed.fetch(*plan[:2]), way)
    _, got = run(np.float32(0), feed.store, batches, 0, 4)
    np.testing.assert_array_equal(got, expected)
    if budget:
        assert feed.store[0].sharding.is_fully_replicated


def test_only_the_rows_that_are_used_are_held_and_the_padding_counts():
    waveforms, _ = make_waveforms("int16")
    rows = np.array([0, 9])
    size = 2 * waveforms.lengths[9] * 2
    lengths, mesh = waveforms.lengths[rows], make_mesh(1)
    assert lengths.sum() * 2 < size - 1
    held = open_feed(waveforms, rows, lengths, SAMPLES, 8, mesh, size)
    assert held.store[0].shape == (2, waveforms.lengths[9])
    assert held.size == held.store[0].nbytes == size
    assert open_feed(waveforms, rows, lengths, SAMPLES, 8, mesh, size - 1).store == ()
    beginnings = open_feed(waveforms, rows, np.full(2, SAMPLES), SAMPLES, 8, mesh, size - 1)
    assert beginnings.store[0].shape == (2, SAMPLES)


def test_what_is_read_for_a_program_is_bounded(monkeypatch):
    waveforms, _ = make_waveforms("both")
    monkeypatch.setattr("dns_jax.feeding._MOST_BYTES", 5.5 * 8 * SAMPLES * 4)
    stored, streamed = open_both(waveforms)
    assert streamed.most_steps == 5
    assert stored.most_steps > 1000
    monkeypatch.setattr("dns_jax.feeding._MOST_BYTES", 1)
    assert open_both(waveforms)[1].most_steps == 1


def test_a_piece_that_reaches_outside_its_recording_is_refused_by_both():
    waveforms, _ = make_waveforms("int16")
    for feed in open_both(waveforms):
        with pytest.raises(ValueError, match="samples 1 to 501 of row 0; it has 500"):
            feed.fetch(np.array([0]), np.array([1]))


def test_validation_is_held_before_the_training_recordings():
    recordings = tiny.Recordings(np.full(12, 4000))
    config = tiny.make_config()
    train, validation = np.arange(8), np.arange(8, 12)
    stores = {}
    for size in (0, 4 * 2000 * 4 - 1, 4 * 2000 * 4, 8 * 4000 * 4, (4 * 2000 + 8 * 4000) * 4):
        config.data.device_gigabytes = size / 1e9
        task, *_ = make_autoencoder_task(config, recordings, train, validation, 0)
        stores[size] = [bool(feed.store) for feed in task.open_feeds(make_mesh(1))]
    # Training, validation.
    assert [*stores.values()] == [
        [False, False],
        [False, False],
        [False, True],
        [False, True],
        [True, True],
    ]


# Log-mel spectra that are computed once


def make_mel_task(lengths, **fields):
    config = tiny.make_config()
    config.autoencoder.cached_mel = True
    config.update_from_flattened_dict(fields)
    recordings, rows = tiny.Recordings(lengths), np.arange(len(lengths))
    task, *_ = make_autoencoder_task(config, recordings, rows[:-2], rows[-2:], 0)
    return config, recordings, task


LENGTHS = 2000 + 133 * np.arange(11)


@pytest.mark.parametrize("devices", [1, 8])
def test_cached_spectra_are_librosas_of_the_whole_standardised_recordings(devices):
    waveforms, exact = make_waveforms("both")
    front_end = make_front_end(tiny.make_config().autoencoder.front_end)
    feed = open_mel_feed(waveforms, ROWS, front_end, SAMPLES, make_mesh(devices), 1e9)
    spectra = np.asarray(feed.store)
    assert spectra.shape == (len(ROWS), 1 + waveforms.lengths[9] // front_end.hop, 16)
    assert feed.size == spectra.nbytes
    for spectrum, row in zip(spectra, ROWS, strict=True):
        power = librosa.feature.melspectrogram(
            y=(exact[row] - waveforms.means[row]) * waveforms.scales[row],
            sr=4000,
            n_fft=256,
            hop_length=128,
            n_mels=16,
            fmin=50,
            fmax=1900,
            pad_mode="constant",
        )
        expected = 10 * np.log10(np.maximum(power, np.finfo(float).eps))
        np.testing.assert_allclose(spectrum[: power.shape[1]], expected.T, rtol=1e-4, atol=1e-3)


def test_crops_of_cached_spectra_begin_at_any_frame_so_that_they_lie_inside():
    config, _, task = make_mel_task(LENGTHS)
    front_end = make_front_end(config.autoencoder.front_end)
    feed, validation_feed = task.open_feeds(make_mesh(1))
    plan = task.draw(0, 3000)
    room = front_end.count_frames(LENGTHS)[plan.rows] - front_end.count_frames(2000)
    assert (plan.starts >= 0).all()
    assert (plan.starts <= room).all()
    for row in range(9):
        places = np.bincount(plan.starts[plan.rows == row], minlength=room.max() + 1)
        assert (places > 0).sum() == room[plan.rows == row][0] + 1
    (mels,) = tiny.cut_batch(feed, plan, 7)
    frames = front_end.count_frames(2000)
    assert mels.shape == (4, 16, frames)
    spectra = np.asarray(feed.store)
    for got, row, start in zip(mels, plan.rows[7], plan.starts[7], strict=True):
        np.testing.assert_array_equal(got, spectra[row, start : start + frames].T)
    assert not task.validation.starts.any()
    assert validation_feed is feed


def test_the_autoencoder_learns_from_cached_spectra_what_it_learns_from_waveforms():
    """At frame 0 of a recording of one segment both ways see the same frames."""
    config, recordings, cached = make_mel_task(np.full(11, 2000))
    config.autoencoder.cached_mel = False
    plain, *_ = make_autoencoder_task(config, recordings, np.arange(9), np.arange(9, 11), 0)
    losses = []
    for task in (cached, plain):
        model = tiny.randomise(lambda: Autoencoder(config.autoencoder, rngs=nnx.Rngs(0)))
        feeds = task.open_feeds(make_mesh(1))
        plans = task.draw(0, 1), task.validation
        assert not plans[0].starts.any()
        batches = [tiny.cut_batch(*pair) for pair in zip(feeds, plans, strict=True)]
        losses.append(
            (
                task.loss(model, batches[0], jax.random.key(0), 0.0),
                *task.validation_loss(model, batches[1]),
            )
        )
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_spectra_that_do_not_fit_are_refused_in_one_line():
    _, _, task = make_mel_task(LENGTHS, **{"data.device_gigabytes": 1e-5})
    with pytest.raises(ConfigError) as refusal:
        task.open_feeds(make_mesh(1))
    assert str(refusal.value) == (
        "--config.autoencoder.cached_mel=True: the spectra of 11 recordings take 1.9e-05 GB on "
        "every device, and --config.data.device_gigabytes is 1e-05; give more, or "
        "--config.autoencoder.cached_mel=False"
    )
