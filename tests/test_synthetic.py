"""The embedded factory: its files, and its physics as an independent spectral analysis sees it."""

import json
import re
import shutil
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy import signal

from dns_jax.data import synthetic
from dns_jax.data.synthetic import MACHINES, synthesise, write_factory

TINY = {"seed": 3, "train": 2, "target_train": 1, "test": 1}
GRAMMAR = re.compile(
    r"section_(?P<section>\d\d)_(?P<domain>source|target)_(?P<split>train|test)"
    r"_(?P<label>normal|anomaly)_\d{4}(?P<attribute>_rpm_\d+)?\.wav"
)
FAULTS = [(machine, fault) for machine, kind in MACHINES.items() for fault in kind.faults]


@pytest.fixture(scope="module")
def factory(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("synthetic") / "factory"
    write_factory(directory, **TINY)
    return directory


@lru_cache(maxsize=64)
def record(machine, fault=None, *, section=0, domain="source", clip=0, severity=-3.0):
    """One clip, standardised, and its shaft speed in Hz."""
    samples, rpm = synthesise(
        machine, section, domain, ("clip", clip), fault=fault, severity=severity
    )
    return (samples - samples.mean()) / samples.std(), rpm / 60


def measure_power(clip, low, high):
    """Power between two frequencies, Hz."""
    frequency, density = signal.welch(clip, 16_000, nperseg=16_000)
    return density[(frequency >= low) & (frequency <= high)].sum()


def measure_envelope(clip, band, frequencies):
    """Power spectrum of the squared envelope in a band, over its median, at `frequencies`."""
    sections = signal.butter(4, band, "bandpass", fs=16_000, output="sos")
    envelope = np.abs(signal.hilbert(signal.sosfiltfilt(sections, clip))) ** 2
    grid, density = signal.welch(envelope, 16_000, nperseg=32_768, noverlap=24_576)
    density = np.interp(frequencies, grid, density)
    return density / np.median(density)


def count_strokes(clip, shaft):
    band = signal.butter(4, (300, 3000), "bandpass", fs=16_000, output="sos")
    smooth = signal.butter(2, 20, fs=16_000, output="sos")
    envelope = signal.sosfiltfilt(smooth, signal.sosfilt(band, clip) ** 2)
    peaks, _ = signal.find_peaks(
        envelope, height=5 * np.median(envelope), distance=int(0.6 * 16_000 / shaft)
    )
    return len(peaks)


def list_files(directory):
    return {str(path.relative_to(directory)): path for path in directory.rglob("*.wav")}


# The files


def test_four_machines_that_are_none_of_dcases(factory):
    machines = {path.name for path in factory.iterdir() if path.is_dir()}
    assert machines == {"blower", "compressor", "conveyor", "press"}


def test_names_follow_the_grammar_and_agree_with_their_folders(factory):
    for path in factory.rglob("*.wav"):
        name = GRAMMAR.fullmatch(path.name)
        assert name, path.name
        train = path.parent.name == "train"
        assert path.parent.name == ("train" if train else f"{name['domain']}_test")
        assert name["split"] == ("train" if train else "test")
        assert bool(name["attribute"]) == train
        assert name["label"] == "normal" or not train


def test_counts_are_those_asked_for(factory):
    counts = {}
    for path in factory.rglob("*.wav"):
        key = (path.parts[-3], path.name[:10], *GRAMMAR.fullmatch(path.name).group(2, 3, 4))
        counts[key] = counts.get(key, 0) + 1
    sections = [("blower", f"section_{s:02d}") for s in range(4)]
    sections += [(machine, "section_00") for machine in ("compressor", "conveyor", "press")]
    expected = {}
    for section in sections:
        expected[*section, "source", "train", "normal"] = 2
        expected[*section, "target", "train", "normal"] = 1
        for domain in ("source", "target"):
            for label in ("normal", "anomaly"):
                expected[*section, domain, "test", label] = 1
    assert counts == expected


def test_every_file_is_ten_seconds_of_16_bit_mono_at_16_khz(factory):
    for path in factory.rglob("*.wav"):
        about = soundfile.info(path)
        assert (about.samplerate, about.channels, about.frames) == (16_000, 1, 160_000)
        assert (about.format, about.subtype) == ("WAV", "PCM_16")
        assert path.stat().st_size == 44 + 320_000


def test_no_clip_is_silent_or_clipped_at_any_time(factory):
    for path in factory.rglob("*.wav"):
        samples, _ = soundfile.read(path)
        assert np.abs(samples).max() < 0.5
        assert samples.reshape(100, -1).std(axis=1).min() > 1e-4


def test_equal_seeds_give_equal_files_and_other_parameters_change_no_clip(factory, tmp_path):
    write_factory(tmp_path / "again", **TINY | {"train": 1, "test": 0})
    again = list_files(tmp_path / "again")
    assert len(again) == 14
    for name, path in again.items():
        assert path.read_bytes() == list_files(factory)[name].read_bytes()


def test_another_seed_gives_other_clips():
    first, speed = synthesise("press", 0, "source", ("clip", 0), seed=0)
    second, other = synthesise("press", 0, "source", ("clip", 0), seed=1)
    assert speed != other
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.2


def test_no_two_clips_are_alike(factory):
    clips = np.stack([soundfile.read(path)[0] for path in sorted(factory.rglob("*blower/*/*.wav"))])
    likeness = np.abs(np.corrcoef(clips)) - np.eye(len(clips))
    assert likeness.max() < 0.5


def test_the_attribute_is_the_set_speed(factory):
    speeds = [
        int(path.stem.rsplit("_", 1)[1]) for path in factory.glob("blower/train/*_00_*source*")
    ]
    rated = synthesise("blower", 0, "source", ("train_normal", 0), seed=3)[1]
    assert len(speeds) == 2
    for speed in speeds:
        assert 0.9 < speed / rated < 1.12


# Writing


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    write, written = soundfile.write, []

    def fail(path, *args, **kwargs):
        if len(written) >= 5:
            raise RuntimeError("disk full")
        write(path, *args, **kwargs)
        written.append(path)

    monkeypatch.setattr(soundfile, "write", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        write_factory(tmp_path / "factory", train=1, target_train=0, test=0)
    assert written
    assert list(tmp_path.iterdir()) == []


def test_a_complete_factory_is_left_alone(factory):
    before = {path: path.stat().st_mtime_ns for path in factory.rglob("*")}
    write_factory(factory, **TINY)
    assert {path: path.stat().st_mtime_ns for path in factory.rglob("*")} == before


def test_a_factory_of_other_parameters_is_refused(factory):
    with pytest.raises(ValueError, match=r'"seed": 3.*not.*"seed": 4.*another directory'):
        write_factory(factory, **TINY | {"seed": 4})


def test_a_directory_of_other_things_is_refused_and_kept(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds no factory"):
        write_factory(tmp_path, **TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_factory_that_lost_a_clip_is_refused(tmp_path):
    write_factory(tmp_path, train=1, target_train=0, test=0)
    next(tmp_path.rglob("*.wav")).unlink()
    with pytest.raises(ValueError, match=r"6 clips.*delete it"):
        write_factory(tmp_path, train=1, target_train=0, test=0)


def test_whoever_comes_second_accepts_the_first_ones_factory(tmp_path, monkeypatch):
    def lose_the_race(self, target):
        shutil.copytree(self, target)
        raise OSError("directory not empty")

    monkeypatch.setattr(Path, "replace", lose_the_race)
    write_factory(tmp_path / "factory", train=1, target_train=0, test=0)
    assert [path.name for path in tmp_path.iterdir()] == ["factory"]
    assert json.loads((tmp_path / "factory" / "factory.json").read_text())["clips"] == 7


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"train": 2.0}, {"test": "8"}])
def test_a_wrong_number_is_named(tmp_path, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"{name} must be .* got {value!r}"):
        write_factory(tmp_path / "factory", **wrong)
    assert not (tmp_path / "factory").exists()


def test_a_fault_the_machine_cannot_have_is_refused():
    with pytest.raises(ValueError, match=r"missing_stroke.*got 'squeal'"):
        synthesise("press", 0, "source", ("clip", 0), fault="squeal")


# The physics: each fault against the same recording of the same machine without it


@pytest.mark.parametrize(("machine", "fault"), FAULTS)
def test_the_level_does_not_tell_a_fault(machine, fault):
    healthy, _ = synthesise(machine, 0, "source", ("clip", 0))
    faulty, _ = synthesise(machine, 0, "source", ("clip", 0), fault=fault, severity=-3)
    assert not np.array_equal(healthy, faulty)
    assert faulty.std() == pytest.approx(healthy.std(), rel=0.01)


def test_a_recording_keeps_below_its_peak(monkeypatch):
    monkeypatch.setattr(synthetic, "PEAK", 0.01)
    clip, _ = synthesise("press", 0, "source", ("clip", 0))
    assert np.abs(clip).max() == 328


def test_levels_spread_over_ten_decibels():
    levels = [
        20 * np.log10(synthesise("blower", 0, "source", ("clip", i))[0].std() / 32767)
        for i in range(12)
    ]
    assert -46.1 < min(levels) < -42
    assert -40 < max(levels) < -35.9


@pytest.mark.parametrize(("machine", "fault"), FAULTS)
def test_severity_runs_from_faint_to_plain_and_is_drawn_between(machine, fault):
    healthy, _ = record(machine)
    faint, drawn, plain = (
        np.std(record(machine, fault, severity=severity)[0] - healthy)
        for severity in (-20, None, -3)
    )
    assert faint < 0.6 * plain
    assert 0.5 * faint < drawn < 1.5 * plain


@pytest.mark.parametrize("section", range(4))
def test_a_blowers_shaft_turns_at_the_set_speed(section):
    orders = np.linspace(0.8, 1.2, 401)
    clip, shaft = record("blower", "imbalance", section=section)
    peak = orders[np.argmax(measure_envelope(clip, (800, 4000), orders * shaft))]
    assert peak == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("section", range(4))
def test_imbalance_raises_the_line_at_1x_and_modulates_the_rest(section):
    (healthy, shaft), (faulty, _) = (
        record("blower", fault, section=section) for fault in (None, "imbalance")
    )
    line = (0.97 * shaft, 1.03 * shaft)
    assert measure_power(faulty, *line) > 5 * measure_power(healthy, *line)
    orders = np.linspace(0.5, 8.5, 1601)
    once = np.argmin(np.abs(orders - 1))
    before, after = (
        measure_envelope(clip, (1000, 4000), orders * shaft)[once - 4 : once + 5].max()
        for clip in (healthy, faulty)
    )
    assert after > 10 * before


@pytest.mark.parametrize(("machine", "section"), [("blower", 0), ("blower", 1), ("compressor", 0)])
def test_bearing_impacts_ring_a_high_resonance_at_a_fixed_non_integer_order(machine, section):
    orders = np.linspace(3.05, 5.45, 961)
    found = []
    for domain in ("source", "target"):
        (healthy, shaft), (faulty, _) = (
            record(machine, fault, section=section, domain=domain) for fault in (None, "bearing")
        )
        frequency, before = signal.welch(healthy, 16_000, nperseg=2048)
        _, after = signal.welch(faulty, 16_000, nperseg=2048)
        resonance = frequency[np.argmax(after / before)]
        assert 2400 < resonance < 6100
        band = (0.93 * resonance, 1.07 * resonance)
        envelope = measure_envelope(faulty, band, orders * shaft)
        peak = np.argmax(envelope)
        assert envelope[peak] > 50
        assert envelope[peak] > 10 * measure_envelope(healthy, band, orders * shaft)[peak]
        found.append(orders[peak])
    assert found[0] == pytest.approx(found[1], abs=0.05)  # of the shaft, at two speeds
    assert abs(found[0] - round(found[0])) > 0.05


@pytest.mark.parametrize("machine", ["blower", "compressor", "press"])
def test_leakage_hisses_high_and_leaves_the_low_band(machine):
    healthy, faulty = (record(machine, fault)[0] for fault in (None, "leakage"))
    assert measure_power(faulty, 2500, 7500) > 2 * measure_power(healthy, 2500, 7500)
    assert measure_power(faulty, 50, 1500) == pytest.approx(
        measure_power(healthy, 50, 1500), rel=0.25
    )


def test_the_hiss_of_a_press_pulsates_with_its_strokes():
    (faulty, shaft), (healthy, _) = record("press", "leakage"), record("press")
    band = signal.butter(4, (2500, 7500), "bandpass", fs=16_000, output="sos")
    power = [
        np.sort((signal.sosfilt(band, clip) ** 2).reshape(100, -1).mean(axis=1))
        for clip in (faulty, healthy)
    ]
    assert power[0][-5:].mean() > 5 * np.median(power[0])
    assert np.median(power[0]) > 2 * np.median(power[1])
    assert count_strokes(faulty, shaft) == count_strokes(healthy, shaft)


def test_squeal_is_intermittent_harmonic_and_of_wandering_pitch():
    spectra = []
    for fault in (None, "squeal"):
        frequency, _, power = signal.spectrogram(
            record("conveyor", fault)[0], 16_000, nperseg=2048, noverlap=1024
        )
        spectra.append(power)
    rise = spectra[1] / spectra[0]
    pitches = (frequency > 800) & (frequency < 2100)
    power = spectra[1][pitches].sum(axis=0) / spectra[0][pitches].sum(axis=0)
    squeals = power > 2
    assert np.mean(squeals) > 0.2
    assert np.mean(power < 1) > 0.2
    pitch = frequency[pitches][np.argmax(spectra[1][pitches], axis=0)][squeals]
    assert np.std(pitch) > 0.003 * np.mean(pitch)
    for harmonic in (2, 3):
        bins = np.rint(harmonic * pitch / (16_000 / 2048)).astype(int)
        there = np.stack([rise[bins + shift, squeals] for shift in (-3, -2, -1, 0, 1, 2, 3)])
        assert np.median(there.max(axis=0)) > 10


@pytest.mark.parametrize("clip", range(3))
def test_a_press_pauses_and_misses_the_share_of_strokes_that_severity_says(clip):
    healthy, shaft = record("press", clip=clip)
    strokes = count_strokes(healthy, shaft)
    assert 0.4 * 10 * shaft < strokes < 0.95 * 10 * shaft
    for severity in (-20, -10, -3):
        faulty, _ = record("press", "missing_stroke", clip=clip, severity=severity)
        lost = strokes - count_strokes(faulty, shaft)
        assert lost >= 1
        assert lost == pytest.approx(10 ** (severity / 20) * strokes, abs=1.6)


def test_a_compressor_that_misses_strokes_loses_its_regularity():
    (healthy, shaft), (faulty, _) = record("compressor"), record("compressor", "missing_stroke")
    orders = np.linspace(0.3, 12, 4000)
    before, after = (
        measure_envelope(clip, (100, 3000), orders * shaft).max() for clip in (healthy, faulty)
    )
    assert after < 0.5 * before


@pytest.mark.parametrize("section", range(4))
def test_a_missing_blade_takes_one_push_a_turn_and_unbalances_the_wheel(section):
    (healthy, shaft), (faulty, _) = (
        record("blower", fault, section=section) for fault in (None, "missing_blade")
    )
    change = faulty - healthy * np.mean(faulty * healthy)
    at, between = (
        np.array([measure_power(change, (n - 0.05) * shaft, (n + 0.05) * shaft) for n in orders])
        for orders in ((1, 2, 3, 4), (1.5, 2.5, 3.5, 4.5))
    )
    assert at[0] > 10 * between[0]
    assert at[1:].sum() > 3 * between[1:].sum()
    line = (0.97 * shaft, 1.03 * shaft)
    assert measure_power(faulty, *line) > 2 * measure_power(healthy, *line)


# Sections, domains, recordings


def measure_timbre(machine, section, domain, clips):
    """Mean level in 40 bands, dB, of each clip: f64[clips, 40]."""
    edges = np.geomspace(60, 7500, 41)
    levels = []
    for clip in clips:
        frequency, density = signal.welch(
            record.__wrapped__(machine, section=section, domain=domain, clip=clip)[0],
            16_000,
            nperseg=4096,
        )
        bands = np.digitize(frequency, edges) - 1
        levels.append([10 * np.log10(density[bands == b].mean()) for b in range(40)])
    return np.array(levels)


@pytest.mark.parametrize("machine", ["blower", "press"])
def test_the_target_domain_sounds_different_from_the_source(machine):
    source, target = (
        measure_timbre(machine, 0, domain, range(5)) for domain in ("source", "target")
    )
    within = np.linalg.norm(source - source.mean(axis=0), axis=1).mean()
    assert np.linalg.norm(source.mean(axis=0) - target.mean(axis=0)) > within


def test_a_domain_is_a_hall_in_which_every_machine_stands(monkeypatch):
    for domain in ("source", "target"):
        monkeypatch.setitem(synthetic.SNR, domain, (-50, -50))
    blower, press, elsewhere = (
        measure_timbre(machine, 0, domain, range(4)).mean(axis=0)
        for machine, domain in (("blower", "source"), ("press", "source"), ("blower", "target"))
    )
    assert np.linalg.norm(blower - press) < 0.5 * np.linalg.norm(blower - elsewhere)


@pytest.mark.parametrize(("machine", "section"), [("blower", 2), ("conveyor", 0), ("press", 0)])
def test_the_load_of_the_target_domain_is_another(machine, section, monkeypatch):
    """The motor's hum beside the flow noise around it, without hall and at one speed, in dB."""
    levels = []
    for domain in ("source", "target"):
        monkeypatch.setitem(synthetic.SNR, domain, (60, 60))
        monkeypatch.setitem(synthetic.SPEEDS, domain, (1.0,))
        clips = [
            record.__wrapped__(machine, section=section, domain=domain, clip=i)[0] for i in range(4)
        ]
        hum = [
            measure_power(c, 98, 102) / (measure_power(c, 70, 94) + measure_power(c, 106, 130))
            for c in clips
        ]
        levels.append(10 * np.log10(hum))
    assert abs(np.mean(levels[0]) - np.mean(levels[1])) > 1
    assert max(np.std(levels[0]), np.std(levels[1])) < 0.7


def test_sections_are_individuals():
    timbres = [measure_timbre("blower", section, "source", range(3)) for section in range(4)]
    within = np.mean([np.linalg.norm(t - t.mean(axis=0), axis=1).mean() for t in timbres])
    means = [timbre.mean(axis=0) for timbre in timbres]
    for first in range(4):
        for second in range(first):
            assert np.linalg.norm(means[first] - means[second]) > within


def test_the_target_domain_runs_at_other_speeds():
    speeds = {
        domain: {round(synthesise("blower", 0, domain, ("clip", i))[1], 6) for i in range(10)}
        for domain in ("source", "target")
    }
    assert len(speeds["source"]) > 1
    assert len(speeds["target"]) == 2
    assert min(speeds["target"]) < min(speeds["source"])
    assert max(speeds["target"]) > max(speeds["source"])


def test_the_format_number_is_part_of_a_factorys_identity(factory, monkeypatch):
    monkeypatch.setattr(synthetic, "FORMAT", synthetic.FORMAT + 1)
    with pytest.raises(ValueError, match="delete it"):
        write_factory(factory, **TINY)
