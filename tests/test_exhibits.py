"""Pictures, sounds and links of recordings, taken apart again by other libraries."""

import base64
import io
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import librosa
import numpy as np
import pandas as pd
import pytest
import soundfile
import tiny
from PIL import Image

from configs import default
from dns_jax.evaluation import exhibits
from dns_jax.evaluation.exhibits import (
    average_normal,
    compress_sound,
    compute_log_mel,
    describe_band,
    draw_mel,
    link_sound,
    read_waveform,
    show_recordings,
)
from dns_jax.features import FrontEnd, log_mel, make_front_end

RATE = 16000
FRONT_END = make_front_end(default.get_config().autoencoder.front_end)


def make_noise(seconds, rate=RATE, seed=0):
    return np.random.default_rng(seed).normal(size=round(rate * seconds)).astype(np.float32)


def make_tone(hertz, seconds, rate=RATE):
    return np.sin(2 * np.pi * hertz / rate * np.arange(round(rate * seconds))).astype(np.float32)


def decode(uri, kind):
    head, _, data = uri.partition(",")
    assert head == f"data:{kind};base64"
    return io.BytesIO(base64.b64decode(data, validate=True))


def open_picture(uri):
    image = Image.open(decode(uri, "image/jpeg"))
    assert image.format == "JPEG"
    return image


# Log-mel


@pytest.mark.parametrize(
    "front_end",
    [
        FRONT_END,
        make_front_end(tiny.make_config().autoencoder.front_end),
        FrontEnd(RATE, 401, 160, 40, 0.0, 8000.0),  # an odd window
    ],
)
@pytest.mark.parametrize("sound", ["noise", "tone in noise", "silence"])
def test_the_log_mel_spectrum_is_that_of_the_autoencoder(front_end, sound):
    waveform = make_noise(2, front_end.rate)
    waveform += 30 * make_tone(700, 2, front_end.rate) * (sound == "tone in noise")
    waveform *= sound != "silence"
    shown, theirs = compute_log_mel(waveform, front_end), np.asarray(log_mel(waveform, front_end))
    assert shown.shape == (front_end.mels, front_end.count_frames(len(waveform)))
    np.testing.assert_allclose(shown, theirs, atol=1e-3)


# Where a spectrum is unusual


def average(waveform):
    return compute_log_mel(waveform, FRONT_END).mean(axis=1)


@pytest.fixture(scope="module")
def normal():
    return np.stack([average(make_noise(4, seed=seed)) for seed in range(1, 21)])


@pytest.mark.parametrize("hertz", [100, 440, 1000, 2500, 5000, 7500])
def test_the_band_of_a_planted_tone_is_found(normal, hertz):
    waveform = make_noise(4) + 0.5 * make_tone(hertz, 4)
    low, high, difference = describe_band(average(waveform), normal, default.get_config())
    assert low < hertz < high
    assert high - low < 60 + 0.15 * hertz
    assert 1 < difference < 25


@pytest.mark.parametrize("hertz", [300, 1000, 4000])
def test_a_band_that_is_weaker_is_found_with_its_sign(normal, hertz):
    spectrum = np.fft.rfft(make_noise(4))
    frequencies = np.fft.rfftfreq(4 * RATE, 1 / RATE)
    spectrum[(frequencies > 0.8 * hertz) & (frequencies < 1.25 * hertz)] *= 0.3  # -10.5 dB
    waveform = np.fft.irfft(spectrum).astype(np.float32)
    low, high, difference = describe_band(average(waveform), normal, default.get_config())
    assert low < hertz < high
    assert 0.6 * hertz < low < high < 1.5 * hertz
    assert -11 < difference < -8


@pytest.mark.parametrize("mels", [(0, 0), (40, 43), (127, 127)])
@pytest.mark.parametrize("decibels", [6.0, -6.0])
def test_the_band_is_what_its_filters_hear_and_the_difference_their_mean(mels, decibels):
    first, last = mels
    normal = np.random.default_rng(0).normal(-30, 0.01, size=(9, FRONT_END.mels))
    spectrum = normal.mean(axis=0)
    spectrum[first : last + 1] += decibels * np.linspace(1, 0.9, last + 1 - first)
    low, high, difference = describe_band(spectrum, normal, default.get_config())
    many = 1 << 16  # bins so narrow that a filter's ends are seen
    bank = librosa.filters.mel(sr=RATE, n_fft=many, n_mels=FRONT_END.mels, fmin=50, fmax=7800)
    heard = np.flatnonzero(bank[first : last + 1].any(axis=0)) * RATE / many
    assert (low, high) == pytest.approx((heard[0], heard[-1]), abs=2 * RATE / many)
    expected = decibels * np.linspace(1, 0.9, last + 1 - first).mean()
    assert difference == pytest.approx(expected, rel=1e-6)


def test_a_band_ends_where_the_difference_changes_its_sign():
    normal = np.random.default_rng(0).normal(-30, 0.01, size=(9, FRONT_END.mels))
    spectrum = normal.mean(axis=0)
    spectrum[60:64] += [-5, 6, 6, -5]
    _, _, difference = describe_band(spectrum, normal, default.get_config())
    assert difference == pytest.approx(6)


def test_a_small_difference_where_normal_recordings_agree_is_more_unusual(normal):
    spectrum, spread = normal.mean(axis=0), normal.copy()
    spread[:, 20] += np.linspace(-20, 20, len(normal))
    spectrum[20] += 15
    spectrum[90] += 5
    low, high, difference = describe_band(spectrum, spread, default.get_config())
    centre = librosa.mel_frequencies(FRONT_END.mels + 2, fmin=50, fmax=7800)[91]
    assert low < centre < high
    assert difference == pytest.approx(5)


@pytest.mark.parametrize("recordings", [0, 1])
def test_one_normal_recording_has_no_spread(normal, recordings):
    assert describe_band(normal[0], normal[:recordings], default.get_config()) is None


def test_a_recording_that_is_just_like_the_normal_ones_has_no_unusual_band():
    silence = np.full((3, FRONT_END.mels), -156.5)
    assert describe_band(silence[0], silence, default.get_config()) is None


# Pictures


@pytest.mark.parametrize(("seconds", "width"), [(4, 126), (60, 320)])
def test_a_picture_is_a_jpeg_of_64_rows_and_at_most_320_columns(seconds, width):
    image = open_picture(draw_mel(compute_log_mel(make_noise(seconds), FRONT_END)))
    assert image.size == (width, 64)
    assert image.mode == "RGB"


@pytest.mark.parametrize("mels", [16, 64, 224])
def test_low_frequencies_are_at_the_bottom(mels):
    front_end = FRONT_END._replace(mels=mels)
    for hertz in (150, 6000):
        waveform = make_tone(hertz, 4) + 1e-3 * make_noise(4)
        picture = np.asarray(open_picture(draw_mel(compute_log_mel(waveform, front_end))), float)
        brightness = picture.sum(axis=2).mean(axis=1)
        edges = librosa.mel_frequencies(mels + 2, fmin=50, fmax=7800)
        centre = np.argmin(np.abs(edges[1:-1] - hertz))  # the filter that hears it
        from_below = 63 - np.argmax(brightness)
        assert abs(from_below - centre / mels * 64) <= 64 / mels + 2


def test_time_runs_from_left_to_right():
    waveform = np.concatenate([0.01 * make_noise(3), make_noise(1)])
    picture = np.asarray(open_picture(draw_mel(compute_log_mel(waveform, FRONT_END))), float)
    brightness = picture.sum(axis=2).mean(axis=0)
    assert np.argmax(brightness) > 3 / 4 * 126
    assert brightness[:90].max() < brightness[100:].min()


def test_what_is_60_db_below_the_loudest_is_black():
    loudness = np.repeat([[0.0], [-30.0], [-60.0], [-100.0]], 16, axis=0).repeat(64, axis=1)
    picture = np.asarray(open_picture(draw_mel(loudness + 7)), float).mean(axis=(1, 2))
    black, dark, middle, bright = picture[8], picture[24], picture[40], picture[56]
    assert black < 6
    assert dark < 6
    assert 6 < middle < bright
    assert bright == pytest.approx(232, abs=4)  # magma's last colour, (252, 253, 191)


# Sounds


@pytest.mark.parametrize(
    ("rate", "stored"), [(4000, 8000), (RATE, RATE), (44100, 44100), (96000, 48000), (15999, RATE)]
)
def test_a_sound_is_an_mp3_of_the_recordings_length_that_sounds_like_it(rate, stored):
    waveform = 0.1 * make_tone(440, 2.5, rate) + 0.05 * make_tone(1200, 2.5, rate)
    waveform *= np.linspace(0.2, 1, len(waveform), dtype=np.float32)
    sound = decode(compress_sound(waveform, rate), "audio/mpeg")
    heard, heard_rate = soundfile.read(sound, dtype="float32")
    assert heard_rate == stored
    assert heard.ndim == 1
    assert len(heard) / stored == pytest.approx(2.5, abs=0.05)
    original = librosa.resample(waveform, orig_sr=rate, target_sr=stored)
    length = min(len(heard), len(original))
    assert np.corrcoef(heard[:length], original[:length])[0, 1] > 0.98


@pytest.mark.parametrize("level", [1e-4, 1.0, 300.0])
def test_sounds_are_levelled_to_their_peak(level):
    sound = decode(compress_sound(level * make_noise(2), RATE), "audio/mpeg")
    heard, _ = soundfile.read(sound)
    assert 0.6 < np.max(np.abs(heard)) < 1.05


def test_a_sound_takes_far_less_room_than_the_recording():
    assert len(compress_sound(make_noise(10), RATE)) < 10 * RATE


def test_silence_stays_silent():
    heard, rate = soundfile.read(decode(compress_sound(0 * make_noise(2), RATE), "audio/mpeg"))
    assert len(heard) / rate == pytest.approx(2, abs=0.05)
    assert np.max(np.abs(heard)) < 1e-3


# Links

NAMES = ["a b.wav", "#1?.wav", "100%.wav", "%41.wav", "Lüfter 3.wav", "c:d.wav", "a&b='\"<.wav"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("page", [".", "runs/a b#", "sounds", "sounds/inner"])
def test_a_link_leads_a_page_to_the_recording(tmp_path, monkeypatch, name, page):
    file = tmp_path / "sounds" / name
    folder = tmp_path / page
    for path in (file.parent, folder):
        path.mkdir(parents=True, exist_ok=True)
    file.write_text(name)
    monkeypatch.chdir(tmp_path)
    for recording in (str(file), f"sounds/{name}"):
        for workdir in (folder, Path(page)):
            link = link_sound(recording, workdir)
            assert not urlsplit(link).scheme
            address = urlsplit(urljoin(f"{folder.as_uri()}/report.html", link))
            assert (address.query, address.fragment) == ("", "")
            assert Path(unquote(address.path)).read_text() == name


# Recordings of a run


class Run:
    """Two machines with recordings of different lengths, ranked in an order of their own."""

    def __init__(self, folder):
        self.folder, self.config = folder, tiny.make_config()
        rows = [
            (machine, clip, split, section, True)
            for machine in ("fan", "pump")
            for split, section, count in (("train", 0, 5), ("train", 1, 3), ("test", 0, 6))
            for clip in (f"{split}/{section} {i}.wav" for i in range(count))
        ]
        self.clips = pd.DataFrame(rows, columns=["machine", "clip", "split", "section", "usable"])
        names = self.clips["machine"] + "/" + self.clips["clip"]
        self.clips["path"] = [str(folder / "data" / name) for name in names]
        lengths = 3000 + 1500 * (np.arange(len(rows)) % 3)
        self.waveforms = tiny.Recordings(lengths)
        self.rankings = []
        for seed, machine in enumerate(("fan", "pump")):
            ranked = self.clips[
                (self.clips["machine"] == machine) & (self.clips["split"] == "test")
            ]
            ranked = ranked.sample(frac=1, random_state=seed)[["machine", "clip"]]
            self.rankings.append(ranked.assign(rank=range(1, len(ranked) + 1)))
        both = pd.concat(self.rankings).sort_values("rank", kind="stable")
        self.order = list(both[["machine", "clip"]].itertuples(index=False, name=None))

    def show(self, megabytes):
        self.config.report.megabytes = megabytes
        shown, text = show_recordings(
            self.config, self.clips, self.waveforms, self.rankings, self.folder / "runs"
        )
        machines = ("fan", "pump")
        return {
            (machine, clip): shown[machines.index(machine)][clip] for machine, clip in self.order
        }, text

    def row(self, machine, clip):
        return self.clips[(self.clips["machine"] == machine) & (self.clips["clip"] == clip)].index[
            0
        ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return Run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def two_at_once(monkeypatch):
    """Recordings are encoded two at once, whatever processors there are."""
    monkeypatch.setattr(exhibits, "THREADS", 2)


def test_a_recording_is_shown_with_its_length_picture_spectrum_and_sound(run):
    shown, text = run.show(100.0)
    front_end = make_front_end(run.config.autoencoder.front_end)
    for name, recording in shown.items():
        waveform = run.waveforms.samples[run.row(*name)]
        spectrum = np.asarray(log_mel(waveform, front_end))
        np.testing.assert_allclose(recording["spectrum"], spectrum.mean(axis=1), atol=1e-3)
        assert recording["seconds"] == len(waveform) / 4000
        assert open_picture(recording["picture"]).size == (spectrum.shape[1], 64)
        heard, rate = soundfile.read(decode(recording["sound"], "audio/mpeg"))
        assert len(heard) / rate == pytest.approx(len(waveform) / 4000, abs=0.05)
    assert text == "This page holds the sounds of 12 of 12 recordings."


def test_without_room_for_sounds_all_are_linked(run):
    shown, text = run.show(0.0)
    for (machine, clip), recording in shown.items():
        assert unquote(recording["sound"]) == f"../data/{machine}/{clip}"
        assert recording["picture"]
    assert text.startswith("This page holds the sounds of 0 of 12 recordings (up to 0 MB, ")


def test_sounds_are_held_up_to_the_limit_the_first_ranks_of_all_machines_first(run, two_at_once):
    everything, _ = run.show(100.0)
    sizes = [len(everything[name]["sound"]) for name in run.order]
    limit = sum(sizes[:5]) / 1e6
    shown, text = run.show(limit)
    held = [shown[name]["sound"].startswith("data:") for name in run.order]
    assert held == [True] * 5 + [False] * 7
    for (machine, clip), recording in list(shown.items())[5:]:
        assert unquote(recording["sound"]) == f"../data/{machine}/{clip}"
    assert f"the sounds of 5 of 12 recordings (up to {limit:g} MB, the first ranks" in text


def test_after_a_sound_that_does_not_fit_no_shorter_one_is_held(run, two_at_once):
    everything, _ = run.show(100.0)
    sizes = [len(everything[name]["sound"]) for name in run.order]
    last = next(i for i in range(1, 11) if sizes[i] > min(sizes[i + 1 :]))
    shown, text = run.show((sum(sizes[: last + 1]) - 1) / 1e6)
    held = [shown[name]["sound"].startswith("data:") for name in run.order]
    assert held == [True] * last + [False] * (12 - last)
    assert text.startswith(f"This page holds the sounds of {last} of 12 recordings (up to ")


def test_recordings_of_late_ranks_have_neither_picture_nor_spectrum(run, two_at_once, monkeypatch):
    monkeypatch.setattr(exhibits, "PICTURES", 4)
    shown, text = run.show(100.0)
    for what in ("picture", "spectrum"):
        there = [shown[name][what] is not None for name in run.order]
        assert there == [True] * 4 + [False] * 8
    assert text == "This page holds the sounds of 12 of 12 recordings and the pictures of 4."


# Normal recordings


@pytest.mark.parametrize(("most", "chosen"), [(99, [0, 1, 2, 3, 4]), (3, [0, 2, 4]), (1, [0])])
def test_at_most_so_many_normal_recordings_of_a_section_are_averaged(run, most, chosen):
    spectra = average_normal(run.config, run.clips, run.waveforms, "pump", most)
    assert set(spectra) == {0, 1}
    front_end = make_front_end(run.config.autoencoder.front_end)
    expected = [
        np.asarray(log_mel(run.waveforms.samples[run.row("pump", f"train/0 {i}.wav")], front_end))
        for i in chosen
    ]
    np.testing.assert_allclose(spectra[0], [mel.mean(axis=1) for mel in expected], atol=1e-3)
    assert len(spectra[1]) == min(most, 3)


def test_recordings_that_cannot_be_used_are_not_averaged(run):
    usable = ~run.clips["clip"].isin(["train/0 0.wav", "train/1 0.wav", "train/1 1.wav"])
    clips = run.clips.assign(usable=usable)
    spectra = average_normal(run.config, clips, run.waveforms, "fan", 99)
    assert {section: len(rows) for section, rows in spectra.items()} == {0: 4, 1: 1}


def test_a_recording_is_read_as_a_whole(run):
    for row in (0, 5):
        np.testing.assert_array_equal(read_waveform(run.waveforms, row), run.waveforms.samples[row])
