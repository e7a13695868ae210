"""Windows of 4 s, their scores and features, and the file that keeps them."""

import jax
import numpy as np
import pandas as pd
import pytest
import tiny
from flax import nnx

from dns_jax.hosts import Preempted, Preemption
from dns_jax.models.autoencoder import Autoencoder, describe_segments
from dns_jax.models.autoencoder import score_segments as score_by_autoencoder
from dns_jax.models.serial_oe import SerialOE
from dns_jax.parallel import make_mesh
from dns_jax.scoring import Segments, cut_segments, load_segments, save_segments, score_segments

# Windows


@pytest.mark.parametrize(
    ("seconds", "count"), [(10, 7), (4, 1), (11, 8), (11.9, 8), (4.9, 1), (3.9, 0), (0, 0), (1, 0)]
)
def test_windows_start_every_second_while_4_seconds_fit(seconds, count):
    recording, start = cut_segments(np.array([round(seconds * 16000)]), 64000, 16000)
    np.testing.assert_array_equal(start, 16000 * np.arange(count))
    np.testing.assert_array_equal(recording, np.zeros(count))


def test_recordings_of_unequal_length_stay_side_by_side():
    recording, start = cut_segments(np.array([4, 0, 6, 3, 5]), 4, 1)
    np.testing.assert_array_equal(recording, [0, 2, 2, 2, 4, 4])
    np.testing.assert_array_equal(start, [0, 0, 1, 2, 0, 1])


def test_windows_may_leave_gaps():
    recording, start = cut_segments(np.array([10, 11]), 4, 7)
    np.testing.assert_array_equal(recording, [0, 1, 1])
    np.testing.assert_array_equal(start, [0, 0, 7])


# Scores and features

LENGTHS = [2500, 1999, 2000, 3100, 2499]  # of 2,000-sample windows every 500: 2, 0, 1, 3, 1


def build_networks():
    config = tiny.make_config()
    return (
        tiny.randomise(lambda: Autoencoder(config.autoencoder, rngs=nnx.Rngs(0))),
        tiny.randomise(lambda: SerialOE(config.serial_oe, 2, rngs=nnx.Rngs(0))),
    )


@pytest.fixture(scope="module")
def networks():
    return build_networks()


@pytest.fixture(scope="module")
def recordings():
    return tiny.Recordings(LENGTHS)


@pytest.fixture(scope="module")
def clips():
    """Recordings 3, 1, 0, 4 of the five: in another order, and one that is another machine's."""
    return pd.DataFrame(
        {
            "clip": ["d.wav", "b.wav", "a.wav", "größe.wav"],
            "split": ["train", "train", "test", "test"],
            "section": [0, 0, 1, 12],
            "domain": ["source", "target", "target", "source"],
            "label": [0, 0, 1, -1],
        },
        index=[3, 1, 0, 4],
    )


def score(networks, clips, recordings, batch, spectra=False, **more):
    config = tiny.make_config()
    config.scoring_batch = batch
    where = tiny.on_one_device(**more)
    where |= {"name": "fan", "spectra": spectra}
    return score_segments(*networks, clips, recordings, config, **where)


@pytest.fixture(scope="module")
def segments(networks, clips, recordings):
    return score(networks, clips, recordings, 4)


def test_every_window_carries_what_is_known_of_its_recording(segments):
    assert segments.clip.tolist() == ["d.wav"] * 3 + ["a.wav"] * 2 + ["größe.wav"]
    assert segments.split.tolist() == ["train"] * 3 + ["test"] * 3
    assert segments.section.tolist() == [0, 0, 0, 1, 1, 12]
    assert segments.domain.tolist() == ["source"] * 3 + ["target"] * 2 + ["source"]
    assert segments.label.tolist() == [0, 0, 0, 1, 1, -1]
    np.testing.assert_allclose(segments.start, [0, 0.125, 0.25, 0, 0.125, 0])  # s


def test_every_window_is_scored_as_if_it_were_alone(networks, recordings, segments):
    autoencoder, serial_oe = networks
    windows = [(3, 0), (3, 500), (3, 1000), (0, 0), (0, 500), (4, 0)]
    graph, state = nnx.split(serial_oe)
    extract = jax.jit(lambda state, x: nnx.merge(graph, state)(x, train=False))
    for i, (row, start) in enumerate(windows):
        window = recordings.samples[row][None, start : start + 2000]
        a_g = score_by_autoencoder(autoencoder, window)
        np.testing.assert_allclose(segments.ae_score[i : i + 1], a_g, rtol=1e-4)
        f_d = extract(state, window)
        np.testing.assert_allclose(segments.feature[i : i + 1], f_d, rtol=1e-3, atol=1e-4)


def test_spectra_are_kept_where_they_are_asked_for(networks, clips, recordings, segments, tmp_path):
    assert segments.spectrum.shape == segments.residual.shape == (6, 0)
    kept = score(networks, clips, recordings, 4, spectra=True)
    for name in ("ae_score", "feature"):
        np.testing.assert_allclose(getattr(kept, name), getattr(segments, name), rtol=1e-4)
    for i, (row, start) in enumerate([(3, 0), (3, 500), (3, 1000), (0, 0), (0, 500), (4, 0)]):
        window = recordings.samples[row][None, start : start + 2000]
        _, spectrum, residual = describe_segments(networks[0], window)
        np.testing.assert_allclose(kept.spectrum[i : i + 1], spectrum, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(kept.residual[i : i + 1], residual, rtol=1e-3, atol=1e-3)
    save_segments(tmp_path / "segments.npz", kept)
    for got, expected in zip(load_segments(tmp_path / "segments.npz"), kept, strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("batch", [6, 7], ids=["fits", "exceeds"])
def test_the_size_of_the_batches_changes_nothing(networks, clips, recordings, segments, batch):
    other = score(networks, clips, recordings, batch)
    for ours, theirs in zip(other[:6], segments[:6], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert other.feature.shape == (6, 8)
    np.testing.assert_allclose(other.ae_score, segments.ae_score, rtol=1e-5)
    np.testing.assert_allclose(other.feature, segments.feature, rtol=1e-4, atol=1e-5)


class Noted(tiny.Recordings):
    """Note how many windows are cut at a time."""

    def crop(self, rows, starts, length):
        self.events.append(len(rows))
        return super().crop(rows, starts, length)


class Asked(Preemption):
    """The run was asked to stop."""

    def reached(self):
        return True


def make_clips(count):
    """Return a table of `count` recordings and the recordings, each of two windows."""
    columns = {"clip": [f"{i}.wav" for i in range(count)], "split": "test", "section": 0}
    recordings = Noted([2500] * count)
    recordings.events = []
    return pd.DataFrame({**columns, "domain": "source", "label": 0}), recordings


@pytest.mark.parametrize("count", [3, 30])
def test_one_program_scores_any_number_of_recordings(networks, monkeypatch, count):
    traced = []

    def count_traces(autoencoder, segments):
        traced.append(segments.shape)
        return describe_segments(autoencoder, segments)

    monkeypatch.setattr("dns_jax.scoring.describe_segments", count_traces)
    segments = score(networks, *make_clips(count), batch=4)
    assert len(segments.clip) == 2 * count
    assert traced == [(4, 2000)]


def test_a_batch_is_cut_and_sent_before_the_one_before_is_fetched(networks, monkeypatch):
    clips, recordings = make_clips(5)
    fetch = jax.device_get

    def note_fetch(arrays):
        recordings.events.append("fetch")
        return fetch(arrays)

    monkeypatch.setattr(jax, "device_get", note_fetch)
    score(networks, clips, recordings, batch=4)
    assert recordings.events == [4, 4, "fetch", 4, "fetch", "fetch"]


def test_a_run_that_is_asked_to_stop_stops_after_a_batch(networks):
    clips, recordings = make_clips(5)
    with pytest.raises(Preempted):
        score(networks, clips, recordings, batch=4, preemption=Asked())
    assert recordings.events == [4]


def test_each_device_scores_a_batch_at_a_time(networks):
    clips, recordings = make_clips(5)
    alone = score(networks, clips, recordings, batch=4)
    recordings.events.clear()
    shared = score(networks, clips, recordings, batch=4, mesh=make_mesh(2))
    assert recordings.events == [8, 8]
    np.testing.assert_allclose(shared.ae_score, alone.ae_score, rtol=1e-5)
    np.testing.assert_allclose(shared.feature, alone.feature, rtol=1e-4, atol=1e-5)


def test_the_networks_are_not_changed(networks, segments):
    del segments  # have been scored
    for scored, fresh in zip(networks, build_networks(), strict=True):
        jax.tree.map(np.testing.assert_array_equal, nnx.state(scored), nnx.state(fresh))


# segments.npz


def test_the_columns_have_the_contracts_types(segments):
    assert segments.ae_score.shape == (6,)
    assert {name: column.dtype.kind for name, column in segments._asdict().items()} == {
        "clip": "U",
        "split": "U",
        "section": "i",
        "domain": "U",
        "label": "i",
        "start": "f",
        "ae_score": "f",
        "feature": "f",
        "spectrum": "f",
        "residual": "f",
    }
    numbers = segments.section, segments.label, segments.start, segments.ae_score, segments.feature
    assert {column.dtype.itemsize for column in numbers} == {4}


def test_a_saved_table_comes_back_bit_for_bit_without_pickle(tmp_path, segments):
    save_segments(tmp_path / "segments.npz", segments)
    loaded = load_segments(tmp_path / "segments.npz")
    assert isinstance(loaded, Segments)
    for got, expected in zip(loaded, segments, strict=True):
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)
    with np.load(tmp_path / "segments.npz", allow_pickle=False) as arrays:
        assert set(arrays.files) == {*Segments._fields} - {"spectrum", "residual"}
        assert all(not arrays[name].dtype.hasobject for name in arrays.files)


def test_select_keeps_the_rows_of_a_mask_in_every_column(segments):
    tested = segments.select(segments.split == "test")
    assert tested.clip.tolist() == ["a.wav", "a.wav", "größe.wav"]
    np.testing.assert_array_equal(tested.feature, segments.feature[3:])
