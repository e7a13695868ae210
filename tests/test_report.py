"""The report of a run on noise: what stands in it, that it stands alone, that it can be used."""

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
import soundfile
from noise import RATE, make_config, write_tree

from dns_jax import experiment
from dns_jax.config import check_config
from dns_jax.data.refusals import ConfigError
from dns_jax.evaluation import drawing
from dns_jax.evaluation.report import write_report
from dns_jax.recordings import read_recordings

EVIL = "<img src=x onerror=document.title='owned'>&amp;\"'.wav"
IGNORE = [
    pytest.mark.filterwarnings(f"ignore::{kind}")  # numba's and umap's own
    for kind in ("UserWarning", "DeprecationWarning", "FutureWarning")
]
pytestmark = IGNORE


class Reader(HTMLParser):
    """Collects what a page refers to, its text, and its data."""

    def __init__(self, page):
        super().__init__()
        self.references, self.text, self._open = [], [], []
        self.feed(page)
        start = page.index('id="data">') + len('id="data">')
        self.data = json.loads(page[start : page.index("</script>", start)])

    def handle_starttag(self, tag, attributes):
        self._open.append(tag)
        self.references += [v for k, v in attributes if k in ("src", "href", "srcset", "action")]

    def handle_data(self, text):
        if self._open and self._open[-1] not in ("script", "style"):
            self.text.append(text)


@pytest.fixture(scope="module")
def small_umap():
    """UMAP is tried in test_figures; the runs here take the first two features."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "place_features", lambda features, seed=0: features[:, :2])
        from dns_jax.evaluation import spaces

        patch.setattr(spaces, "place_features", lambda features, seed=0: features[:, :2])
        yield


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return write_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def run(tree, tmp_path_factory, small_umap):
    """A finished run with its report."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    experiment.run(make_config(tree, **{"report.write": True}), workdir)
    return workdir


@pytest.fixture(scope="module")
def page(run):
    return Reader((run / "report.html").read_text())


@pytest.fixture(scope="module")
def folders(tmp_path_factory, small_umap):
    """A run on two folders of recordings with names that try to be more than names."""
    root = tmp_path_factory.mktemp("folders")
    rng = np.random.default_rng(0)
    for name in ("normal/a/1.wav", *(f"normal/{i}.wav" for i in range(2, 9)), f"new/{EVIL}"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, rng.normal(0, 0.05, 6000), RATE, subtype="PCM_16")
    for i in range(5):
        path = root / f"new/day {i % 2}/{i}.flac"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, rng.normal(0, 0.05 + 0.03 * i, 5000), RATE, subtype="PCM_16")
        soundfile.write(root / f"other{i}.wav", rng.uniform(-1, 1, 5000), RATE, subtype="PCM_16")
    return root


def run_on_folders(root, workdir, **fields):
    config = make_config("", **{"report.write": True, "data.skip_bad": False} | fields)
    config.machines, config.validation_sections, config.evaluation_sections = (), (), (0,)
    config.data.normal, config.data.score = str(root / "normal"), str(root / "new")
    experiment.run(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def smoothed_folders(folders):
    (folders / "others").mkdir()
    for file in folders.glob("other*.wav"):
        shutil.move(file, folders / "others")
    return run_on_folders(folders, folders / "run", **{"data.others": str(folders / "others")})


# What stands in it


def test_the_report_refers_to_nothing_outside_itself(page):
    assert page.references
    assert {r.partition(":")[0] for r in page.references} == {"data"}


def test_what_to_listen_to_stands_first_with_reasons(run, page):
    text = " ".join(page.text)
    ranking = pd.read_csv(run / "ranking.csv")
    # By themselves: the reasons of one name others that it sounds like.
    pieces = [piece.strip() for piece in page.text]
    places = [pieces.index(name) for name in ranking["clip"].head(5)]
    assert places == sorted(places)
    assert text.index(ranking["clip"][0]) < text.index("Table I")
    first = ranking.iloc[0]
    assert f"Score {first['score']:.4g}, {first['deviations']:.1f} standard deviations" in text
    assert re.search(r"Most unusual at equal loudness: [\d,]+ to [\d,]+ Hz", text)


def test_the_tables_and_every_figure_stand_in_it_and_beside_it(run, page):
    text = " ".join(page.text)
    table2 = pd.read_csv(run / "table2.csv")
    for value in table2["fan"].dropna():
        assert f"{value:.2f}" in text
    figures = {path.stem for path in (run / "figures").iterdir()}
    curves = {"fan_neighbours", "fan_pool", "fan_rate"}
    assert figures == curves | {"fan_01", "fan_01_source_space", "fan_01_target_space"}
    pictures = [r for r in page.references if r.startswith("data:image/png")]
    assert len(pictures) == len(figures)
    measured = pd.read_csv(run / "curves.csv")
    assert set(measured["curve"]) == {"neighbours", "own_windows", "pool", "rate"}


def test_every_test_segment_is_a_dot_with_its_scores(run, page):
    (machine,) = page.data["machines"]
    with np.load(run / "fan" / "seed_0" / "segments.npz") as arrays:
        test = arrays["split"] == "test"
        expected = sorted(
            (clip, round(float(start), 4), float(f"{score:.5g}"))
            for clip, start, score in zip(
                arrays["clip"][test].tolist(),
                arrays["start"][test],
                arrays["ae_score"][test],
                strict=True,
            )
        )
    names = [clip["name"] for clip in machine["clips"]]
    dots = sorted(
        (names[clip], start, g)
        for section in machine["sections"]
        for clip, start, g in zip(section["clip"], section["start"], section["g"], strict=True)
    )
    assert [d[0] for d in dots] == [e[0] for e in expected]
    assert [d[1:] for d in dots] == [pytest.approx(e[1:], rel=1e-4) for e in expected]


def test_a_report_that_is_deleted_is_made_anew_to_the_byte(run, tree):
    file = run / "report.html"
    before = file.read_bytes()
    file.unlink()
    experiment.run(make_config(tree, **{"report.write": True}), run)
    assert file.read_bytes() == before


def test_without_a_report_there_is_none_and_the_run_is_the_same(run, tree):
    (run / "elsewhere").mkdir()
    shutil.move(run / "report.html", run / "elsewhere")
    experiment.run(make_config(tree), run)
    assert not (run / "report.html").exists()
    shutil.move(run / "elsewhere" / "report.html", run)


@pytest.mark.parametrize("name", ["table2.csv", "fan/seed_0/selection.json"])
def test_what_is_deleted_of_a_finished_run_is_made_anew(run, tree, name):
    before = (run / name).read_bytes()
    (run / name).unlink()
    experiment.run(make_config(tree, **{"report.write": True}), run)
    assert (run / name).read_bytes() == before


def test_the_report_of_a_run_of_an_older_version_is_made_as_of_this_one(run, tree):
    files = run / "fan" / "seed_0" / "selection.json", run / "report.html"
    before = [file.read_bytes() for file in files]
    selection = json.loads(before[0])
    del selection["scale"]
    files[0].write_text(json.dumps(selection))
    files[1].unlink()
    experiment.run(make_config(tree, **{"report.write": True}), run)
    assert [file.read_bytes() for file in files] == before


def test_a_machine_without_test_recordings_has_nothing_to_listen_to(tree, tmp_path):
    config = make_config(tree, **{"report.write": True})
    config.machines = ("pump",)
    experiment.run(config, tmp_path / "run")
    page = Reader((tmp_path / "run" / "report.html").read_text())
    assert page.data["machines"] == []
    assert "0 test recordings" in " ".join(page.text)
    assert pd.read_csv(tmp_path / "run" / "ranking.csv").empty


def test_the_summary_counts_the_recordings_of_all_machines(run, tree, tmp_path, small_umap):
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(run / "fan", tmp_path / "run" / "fan2")
    config = check_config(make_config(tree))
    clips, waveforms = read_recordings(config, tmp_path / "run")
    again = np.flatnonzero(clips["machine"] == "fan")
    rows = np.r_[np.arange(len(clips)), again]
    fields = ("lengths", "digests", "means", "scales", "machines", "offsets")
    waveforms = dataclasses.replace(waveforms, **{f: getattr(waveforms, f)[rows] for f in fields})
    clips = pd.concat([clips, clips.iloc[again].assign(machine="fan2")], ignore_index=True)
    write_report(config, clips, waveforms, ["fan", "fan2"], tmp_path / "run")
    text = " ".join(Reader((tmp_path / "run" / "report.html").read_text()).text)
    assert f"{2 * len(pd.read_csv(run / 'ranking.csv'))} test recordings;" in text


# Recordings of any names


def test_folders_of_recordings_become_a_ranked_list(smoothed_folders, capsys):
    ranking = pd.read_csv(smoothed_folders / "ranking.csv")
    assert sorted(ranking["clip"]) == sorted([EVIL, *(f"day {i % 2}/{i}.flac" for i in range(5))])
    assert (ranking["system"] == "proposed").all()
    assert ranking["deviations"].is_monotonic_decreasing
    experiment.print_tables(smoothed_folders)
    printed = capsys.readouterr().out
    lines = printed[printed.index("Listen to these first") :].splitlines()[2:8]
    assert [EVIL in line or "day" in line for line in lines] == [True] * 6
    assert "Table II" not in printed


def test_scores_without_labels_rank_where_they_are_asked_for(smoothed_folders, folders):
    workdir = run_on_folders(
        folders,
        folders / "label_free",
        **{
            "data.others": str(folders / "others"),
            "smoothing.generative": "ae+gmm+serial_oe",
            "smoothing.space": "f_d+residual",
            "smoothing.method": "diffusion",
        },
    )
    ranking = pd.read_csv(workdir / "ranking.csv")
    assert len(ranking) == len(pd.read_csv(smoothed_folders / "ranking.csv"))
    assert (ranking["system"] == "label_free").all()
    assert ranking["deviations"].is_monotonic_decreasing
    text = " ".join(Reader((workdir / "report.html").read_text()).text)
    assert "The score is that without labels, of segments (generative ae+gmm+serial_oe," in text
    assert "a_prop, smoothed over" not in text
    assert "are called anomalous, in each section as many as by the autoencoder" in text
    assert "standard deviations above the test recordings of section 00" in text
    with np.load(workdir / "machine" / "seed_0" / "segments.npz") as arrays:
        assert len(arrays["spectrum"]) == len(arrays["residual"]) == len(arrays["clip"])


def test_names_are_escaped_in_text_and_data(smoothed_folders):
    page = (smoothed_folders / "report.html").read_text()
    assert "<img src=x" not in page
    reader = Reader(page)
    assert EVIL in "".join(reader.text)
    assert EVIL in [clip["name"] for clip in reader.data["machines"][0]["clips"]]


def test_sounds_beyond_the_limit_are_linked_to_where_they_lie(folders):
    workdir = run_on_folders(
        folders, folders / "linked", **{"data.others": "none", "report.megabytes": 0.0}
    )
    page = Reader((workdir / "report.html").read_text())
    sounds = [clip["sound"] for clip in page.data["machines"][0]["clips"]]
    assert {(workdir / unquote(sound)).resolve() for sound in sounds} == {
        path.resolve() for path in (folders / "new").rglob("*.*")
    }
    assert "holds the sounds of 0 of 6 recordings (up to 0 MB" in " ".join(page.text)


def test_sounds_held_stay_within_the_limit(folders):
    workdir = run_on_folders(
        folders, folders / "limited", **{"data.others": "none", "report.megabytes": 0.012}
    )
    page = Reader((workdir / "report.html").read_text())
    sounds = [clip["sound"] for clip in page.data["machines"][0]["clips"]]
    held = [len(sound) for sound in sounds if sound.startswith("data:")]
    assert 0 < len(held) < len(sounds)
    assert sum(held) <= 12_000


def test_the_machines_own_recordings_are_not_pseudo_anomalous(folders, tmp_path):
    config = make_config("", **{"data.skip_bad": False})
    config.machines = ("press",)
    config.data.normal, config.data.score = str(folders / "normal"), str(folders / "new")
    config.data.others = str(folders)
    clips, _ = read_recordings(check_config(config), tmp_path)
    others = clips[clips["machine"] == "others"]
    assert len(others)
    assert not others["path"].str.contains(r"/(?:normal|new)/").any()


def test_a_run_that_was_begun_with_serial_oe_does_not_go_on_without(smoothed_folders, folders):
    with pytest.raises(ConfigError, match=r"data\.others"):
        run_on_folders(folders, smoothed_folders, **{"data.others": "none"})


def test_the_machine_of_a_folder_has_a_plain_name(folders, tmp_path):
    config = make_config("", **{"data.others": "none"})
    config.machines = ("../x",)
    config.data.normal, config.data.score = str(folders / "normal"), str(folders / "new")
    with pytest.raises(ConfigError, match="plain name"):
        read_recordings(check_config(config), tmp_path)


def test_the_autoencoder_alone_ranks_where_there_is_nothing_else(folders, capsys):
    workdir = run_on_folders(folders, folders / "alone", **{"data.others": "none"})
    assert "SerialOE was not trained" in capsys.readouterr().out
    ranking = pd.read_csv(workdir / "ranking.csv")
    assert (ranking["system"] == "ae").all()
    assert (ranking["score"] == ranking["ae_score"]).all()
    assert not (workdir / "machine" / "seed_0" / "serial_oe").exists()
    text = (workdir / "report.html").read_text()
    assert 'id="space"' not in text
    assert "SerialOE was not trained" in text


# In a browser


@pytest.mark.parametrize("width", [1280, 390])
def test_pointing_at_a_dot_names_its_recording_and_clicking_plays_it(browser, run, width):
    browser.complaints.clear()
    browser.open(run / "report.html", width, 900)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    browser.evaluate("document.getElementById('space').scrollIntoView()")
    x, y, dot = browser.evaluate(
        "(() => { const trace = document.querySelectorAll('#space .scatterlayer .trace')[1];"
        "const box = trace.querySelectorAll('path.point')[3].getBoundingClientRect();"
        "return [box.x + box.width / 2, box.y + box.height / 2,"
        "document.getElementById('space').data[1].customdata[3]]; })()"
    )
    browser.mouse(x, y)
    browser.wait("document.querySelector('#details b')")
    shown = browser.evaluate("document.getElementById('details').innerText")
    machine = Reader((run / "report.html").read_text()).data["machines"][0]
    section = machine["sections"][machine["first"]]
    clip = machine["clips"][section["clip"][dot]]
    assert shown.startswith(clip["name"])
    for other in section["neighbours"][dot]:
        assert machine["clips"][section["clip"][other]]["name"] in shown
    assert browser.evaluate("document.querySelector('#details img').naturalWidth") > 10
    browser.mouse(x, y, click=True)
    browser.wait("playing && playing.audio.duration > 0.9")
    assert browser.complaints == []


def test_a_button_plays_the_recording_that_it_stands_by(browser, run):
    browser.complaints.clear()
    browser.open(run / "report.html", 1280, 900)
    x, y = browser.evaluate(
        "(() => { const box = document.querySelectorAll('button.play')[1].getBoundingClientRect();"
        "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    browser.mouse(x, y, click=True)
    browser.wait("playing && playing.audio.src === data.machines[0].clips[1].sound")
    browser.wait("!playing", 20)  # it ends by itself
    assert browser.complaints == []


def test_another_button_ends_the_sound_before_and_says_nothing_false(browser, run):
    browser.complaints.clear()
    browser.open(run / "report.html", 1280, 900)
    for wait in (0, 1, 4, 40):
        sounds = browser.evaluate(
            "(async () => { const buttons = document.querySelectorAll('button.play');"
            "buttons[0].click(); const first = playing.audio;"
            f"await new Promise((go) => setTimeout(go, {wait})); buttons[1].click();"
            "const second = playing.audio; await new Promise((go) => setTimeout(go, 300));"
            "return [first.paused, second.paused, playing && playing.audio === second]; })()"
        )
        assert sounds == [True, False, True]
        assert browser.evaluate("document.getElementById('trouble').textContent") == ""
    assert browser.complaints == []


def test_a_name_runs_nothing_in_the_browser(browser, smoothed_folders):
    browser.complaints.clear()
    browser.open(smoothed_folders / "report.html", 1280, 900)
    assert "owned" not in browser.evaluate("document.title")
    assert browser.complaints == []


def test_a_sound_that_is_not_there_is_said_to_be_missing(browser, folders):
    workdir = folders / "moved"
    shutil.copytree(folders / "linked", workdir / "deep")
    browser.open(workdir / "deep" / "report.html", 1280, 900)
    browser.evaluate("document.querySelector('button.play').click()")
    browser.wait("document.getElementById('trouble').textContent.includes('cannot be played here')")
