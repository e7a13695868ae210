"""The figures of a run made by hand, by the command line and as the report asks for them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from eq7 import oracle
from PIL import Image
from sklearn.metrics import roc_auc_score
from test_outcomes import make_segments, write_run

from dns_jax.evaluation import drawing, figures, outcomes
from dns_jax.evaluation.curves import RATES, SHARES, measure_neighbours
from dns_jax.evaluation.outcomes import read_outcome
from dns_jax.evaluation.pools import stack_pools

ROOT = Path(__file__).parents[1]
SMOOTHING = {"unit": "segment", "scope": "section"}
ROWS = 42  # segments in the pool of a section


def write_config(workdir, smoothing=SMOOTHING, seeds=(0,)):
    config = {"smoothing": smoothing, "seeds": [*seeds]}
    (workdir / "config.json").write_text(json.dumps({"config": config, "versions": {}}))


def leave_ae_alone(segments):
    return segments._replace(feature=np.zeros((len(segments.clip), 0), np.float32))


def forget_labels(segments, sections=(0, 1)):
    unknown = (segments.split == "test") & np.isin(segments.section, sections)
    return segments._replace(label=np.where(unknown, -1, segments.label).astype(np.int32))


@pytest.fixture(scope="module")
def segments():
    return make_segments()


@pytest.fixture
def workdir(segments, tmp_path):
    """A finished run of a fan with two sections, of which section 1 is evaluated."""
    workdir = tmp_path / "run"
    write_run(workdir, segments)
    write_config(workdir)
    return workdir


@pytest.fixture
def outcome(workdir):
    return read_outcome(workdir, "fan", 0)


@pytest.fixture
def first_features(monkeypatch):
    """Places are the first two features: UMAP takes seconds and has tests of its own."""
    monkeypatch.setattr(drawing, "place_features", lambda features, seed=0: features[:, :2])


@pytest.fixture
def call(workdir, tmp_path, monkeypatch, capfd):
    """Run the command in this process: return exit status and what it says."""

    def call(figure, *more, **flags):
        flags = {"workdir": workdir, "machine": "fan", "out": tmp_path / "out.png"} | flags
        flags = [f"--{name}={value}" for name, value in flags.items() if value is not None]
        monkeypatch.setattr(sys, "argv", ["figures", figure, *flags, *more])
        status = 0
        try:
            figures.main()
        except SystemExit as stop:
            status = stop.code
        printed, said = capfd.readouterr()
        assert printed == ""
        return status, said

    return call


@pytest.fixture
def refused(call, tmp_path):
    """Run the command, which must say one line and write nothing."""

    def refused(status, figure, *more, **flags):
        before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
        got, said = call(figure, *more, **flags)
        assert got == status, said
        assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before
        assert said.startswith("dns_jax: ")
        assert said.endswith("\n")
        assert said.count("\n") == 1
        return said[len("dns_jax: ") : -1]

    return refused


def assert_opens(path):
    if path.suffix == ".png":
        with Image.open(path) as image:
            image.load()
            assert image.format == "PNG"
            assert len(image.getcolors(1 << 24)) > 10
    elif path.suffix == ".svg":
        assert ElementTree.parse(path).getroot().tag.endswith("}svg")
    else:
        assert path.read_bytes().startswith(b"%PDF-")
        assert path.read_bytes().rstrip().endswith(b"%%EOF")


# Figures


@pytest.mark.parametrize(
    ("figure", "suffix"),
    [("neighbours", "svg"), ("pool", "pdf"), ("rate", "png"), ("space", "png"), ("space", "svg")],
)
def test_a_figure_is_written_in_the_format_of_its_name(call, tmp_path, figure, suffix):
    out = tmp_path / f"new/{figure}.{suffix}"
    assert call(figure, out=out) == (0, "")
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert_opens(out)


def test_the_command_is_quiet_in_a_process_of_its_own(workdir, tmp_path):
    flags = (f"--workdir={workdir}", "--machine=fan", f"--out={tmp_path}/k.png")
    done = subprocess.run(
        [sys.executable, "-m", "dns_jax.evaluation.figures", "neighbours", *flags],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert_opens(tmp_path / "k.png")


def test_machines_and_seeds_are_found_by_their_names(call, segments, workdir, tmp_path):
    write_run(workdir, segments, machine="pump 2", seed=7)
    write_config(workdir, seeds=(7, 0))
    assert call("neighbours", machine="pump 2")[0] == 0  # the first seed is 7
    assert call("neighbours", machine="fan", seed=0)[0] == 0
    assert call("neighbours", machine="fan")[0] == 2


def hmean(*values):
    return len(values) / sum(1 / value for value in values)


@pytest.mark.parametrize("name", ["neighbours", "pool", "rate"])
def test_a_curve_is_that_of_the_evaluation_sections_with_the_systems_as_lines(outcome, name):
    curve = figures.measure_curve(name, outcome, SMOOTHING)
    own = curve[curve["curve"] == name]
    pools = stack_pools(outcome.segments, [1], "segment", "section")
    if name == "neighbours":
        assert curve.equals(measure_neighbours(pools))
    else:
        assert sorted(set(own["x"])) == sorted(SHARES if name == "pool" else RATES)
    axis = figures.draw_curve(name, outcome, curve).axes[0]
    tested = outcome.tested[outcome.tested["section"] == 1]
    for system, label in (("ae", "AE"), ("serial_oe", "SerialOE")):
        (line,) = (line for line in axis.lines if line.get_label() == label)
        rates = [
            roc_auc_score(tested["label"], tested[system], max_fpr=most) for most in (None, 0.1)
        ]
        assert line.get_ydata()[0] == pytest.approx(100 * hmean(*rates))
    labels = [line.get_label() for line in axis.lines]
    if name == "neighbours":
        assert "chosen (Table I)" in labels
    if name == "rate":
        assert "Proposed, K = 4, all" in labels


@pytest.mark.parametrize("unit", ["segment", "clip"])
@pytest.mark.parametrize("scope", ["section", "machine"])
def test_the_pools_of_a_curve_are_those_of_the_configuration(outcome, monkeypatch, unit, scope):
    monkeypatch.setitem(figures.CURVES, "neighbours", (lambda pools: pools, None))
    pools = figures.measure_curve("neighbours", outcome, {"unit": unit, "scope": scope})
    expected = stack_pools(outcome.segments, [1], unit, scope)
    for ours, theirs in zip(pools, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("unknown", "evaluable"), [((), True), ((0,), True), ((1,), False), ((0, 1), False)]
)
def test_curves_need_evaluation_sections_with_both_labels(workdir, segments, unknown, evaluable):
    write_run(workdir, forget_labels(segments, unknown))
    assert bool(figures.list_evaluable(read_outcome(workdir, "fan", 0))) is evaluable


def test_curves_need_smoothing(workdir, segments):
    write_run(workdir, leave_ae_alone(segments), None)
    assert not figures.list_evaluable(read_outcome(workdir, "fan", 0))


def test_sections_of_one_label_each_are_no_reason_for_curves(workdir, segments):
    # AUC has nothing to say in any of them.
    split = (segments.split == "train") | (segments.label == segments.section)
    write_run(workdir, segments.select(split), evaluated=(0, 1))
    assert not figures.list_evaluable(read_outcome(workdir, "fan", 0))


@pytest.mark.parametrize("lacking", ["labels", "anomalies"])
def test_a_section_that_is_not_evaluable_takes_no_curve_from_the_others(workdir, segments, lacking):
    if lacking == "labels":
        segments = forget_labels(segments, (0,))
    else:
        normal = (segments.section == 1) | (segments.label == 0)
        segments = segments.select(normal | (segments.split == "train"))
    write_run(workdir, segments, evaluated=(0, 1))
    curve = figures.measure_curve("rate", read_outcome(workdir, "fan", 0), SMOOTHING)
    assert curve["value"].notna().all()


# Figs. 3 and 4


def read_panels(figure):
    """{title: {legend label: dots}}."""
    return {
        axis.get_title(): {dots.get_label(): dots for dots in axis.collections}
        for axis in figure.axes[:-1]
    }


def count_dots(panel):
    return {label: len(dots.get_offsets()) for label, dots in panel.items()}


def count_rows(segments, split, domains=("source", "target"), label=0):
    rows = (segments.section == 1) & (segments.split == split) & (segments.label == label)
    return int(np.sum(rows & np.isin(segments.domain, domains)))


def title_by_hand(segments, name, k, data, domains=("source", "target")):
    """The title of a panel, with the AUC of the recordings' mean score over the whole pool."""
    test = segments.select((segments.split == "test") & (segments.section == 1))
    candidates = (test.domain == "source") | (data == "all")
    a_prop = oracle(test.ae_score, test.feature, k, candidates=candidates)
    clips = np.unique(test.clip[np.isin(test.domain, domains)])
    labels = [test.label[test.clip == clip][0] for clip in clips]
    auc = roc_auc_score(labels, [a_prop[test.clip == clip].mean() for clip in clips])
    return f"{name}: AUC {100 * auc:.1f} %"


def test_the_space_is_drawn_by_a_g_and_by_a_prop_of_both_choices(outcome, segments, first_features):
    panels = read_panels(figures.draw_space(outcome, SMOOTHING, 1))
    assert list(panels) == [
        title_by_hand(segments, "$a_G$", 1, "all"),
        title_by_hand(segments, "$a_{prop}$, K = 4, all", 4, "all"),
        title_by_hand(segments, "$a_{prop}$, K = 8, source", 8, "source"),
    ]
    test = segments.select((segments.split == "test") & (segments.section == 1))
    smoothed = oracle(test.ae_score, test.feature, 8, candidates=test.domain == "source")
    ranks = np.argsort(np.argsort(smoothed)) / (ROWS - 1)
    dots = list(panels.values())[2]
    for label, name in ((0, "normal"), (1, "anomalous")):
        rows = test.label == label
        np.testing.assert_allclose(dots[name].get_offsets(), test.feature[rows, :2], rtol=1e-6)
        # Rows that are neighbours of each other and of the same others tie.
        np.testing.assert_allclose(dots[name].get_array(), ranks[rows], atol=1.1 / (ROWS - 1))


@pytest.mark.parametrize("domain", ["source", "target"])
def test_of_a_domain_its_dots_are_drawn_and_smoothed_by_the_whole_pool(
    outcome, segments, first_features, domain
):
    panels = read_panels(figures.draw_space(outcome, SMOOTHING, 1, domain, (16,)))
    assert list(panels)[1] == title_by_hand(
        segments, "$a_{prop}$, K = 16, all", 16, "all", (domain,)
    )
    for panel in panels.values():
        assert count_dots(panel) == {
            "training": count_rows(segments, "train", (domain,)),
            "normal": count_rows(segments, "test", (domain,)),
            "anomalous": count_rows(segments, "test", (domain,), 1),
        }


def test_of_many_training_segments_those_of_the_domain_are_sampled(
    outcome, segments, first_features, monkeypatch
):
    monkeypatch.setattr(outcomes, "TRAINING", 5)
    assert count_rows(segments, "train", ("target",)) == 6
    panels = read_panels(figures.draw_space(outcome, SMOOTHING, 1, "target"))
    assert {count_dots(panel)["training"] for panel in panels.values()} == {5}


def test_every_k_asked_for_has_a_picture_by_the_data_asked_for_or_chosen(
    workdir, segments, first_features
):
    write_run(workdir, segments, (2, "source"))
    outcome = read_outcome(workdir, "fan", 0)
    for data in ("source", "all"):
        asked = {} if data == "source" else {"data": "all"}  # Table I says source
        figure = figures.draw_space(outcome, SMOOTHING, 1, ks=(1, 3, 16), **asked)
        assert [axis.get_title() for axis in figure.axes[1:-1]] == [
            title_by_hand(segments, f"$a_{{prop}}$, K = {k}, {data}", k, data) for k in (1, 3, 16)
        ]


def test_unlabelled_recordings_have_a_space_without_an_auc(workdir, segments, first_features):
    write_run(workdir, forget_labels(segments), oracle=None)
    panels = read_panels(figures.draw_space(read_outcome(workdir, "fan", 0), SMOOTHING, 1))
    assert list(panels) == ["$a_G$", "$a_{prop}$, K = 4, all"]
    assert set(panels["$a_G$"]) == {"training", "not labelled"}


def test_the_pool_of_recordings_has_a_dot_for_each(workdir, segments, first_features):
    write_run(workdir, segments, (4, "all"), (2, "all"))
    outcome = read_outcome(workdir, "fan", 0)
    figure = figures.draw_space(outcome, {"unit": "clip", "scope": "section"}, 1)
    dots = count_dots(next(iter(read_panels(figure).values())))
    assert dots["normal"] + dots["anomalous"] == 14


def test_the_chosen_k_of_a_pool_of_all_sections_has_a_space(workdir, segments, first_features):
    write_run(workdir, segments, (64, "all"))
    outcome = read_outcome(workdir, "fan", 0)
    figures.draw_space(outcome, {"unit": "segment", "scope": "machine"}, 1)


def test_the_command_hands_over_what_it_was_asked(call, monkeypatch):
    asked = []

    def draw_space(outcome, smoothing, *how):
        asked.append((outcome.machine, smoothing, *how))
        return drawing.Figure()

    monkeypatch.setattr(figures, "draw_space", draw_space)
    call("space")
    call("space", "--k", "2", "4", section=0, domain="target", data="source", share=0.3)
    assert asked == [
        ("fan", SMOOTHING, 1, "", (), "", 1.0),
        ("fan", SMOOTHING, 0, "target", (2, 4), "source", 0.3),
    ]


def test_without_evaluation_sections_the_first_one_is_drawn(call, workdir, segments, monkeypatch):
    write_run(workdir, segments, evaluated=())
    sections = []
    monkeypatch.setattr(
        figures, "draw_space", lambda *how: sections.append(how[2]) or drawing.Figure()
    )
    assert call("space") == (0, "")
    assert sections == [0]


# Mistakes in the call


@pytest.mark.parametrize(
    ("figure", "flags", "said"),
    [
        ("pool", {"out": "x.jpg"}, "--out=x.jpg: it must end in .png, .svg or .pdf"),
        ("pool", {"out": "png"}, "--out=png: it must end in .png, .svg or .pdf"),
        ("space", {"share": 0}, "--share=0.0: it must be above 0 and at most 1"),
        ("space", {"share": 1.5}, "--share=1.5: it must be above 0 and at most 1"),
        ("space", {"share": "nan"}, "--share=nan: it must be above 0 and at most 1"),
        ("rate", {"workdir": "gone\nout"}, "--workdir=gone\\nout: there is no run in it"),
        (
            "rate",
            {"machine": "fam"},
            "no results of --machine=fam with seed 0; there are fan with seeds 0",
        ),
        (
            "space",
            {"machine": ""},
            "no results of --machine= with seed 0; there are fan with seeds 0",
        ),
        (
            "space",
            {"seed": 3},
            "no results of --machine=fan with seed 3; there are fan with seeds 0",
        ),
        ("space", {"section": 5}, "fan has no test recordings in section 5; sections: [0, 1]"),
        ("space", {"section": -1}, "fan has no test recordings in section -1; sections: [0, 1]"),
        ("space", {"k": 0}, f"--k=0: it must be from 1 to {ROWS}, the segments"),
        ("space", {"k": ROWS + 1}, f"--k={ROWS + 1}: it must be from 1 to {ROWS}, the segments"),
    ],
)
def test_a_mistake_in_the_call_is_one_line_and_status_2(refused, figure, flags, said):
    assert refused(2, figure, **flags).startswith(said)


@pytest.mark.parametrize(
    ("figure", "flags", "named"),
    [
        ("spaces", {}, "spaces"),
        ("space", {"section": "one"}, "--section"),
        ("space", {"domain": "both"}, "--domain"),
        ("space", {"data": "target"}, "--data"),
        ("space", {"k": "many"}, "--k"),
        ("space", {"share": "half"}, "--share"),
        ("space", {"machine": None}, "--machine"),
        ("space", {"out": None}, "--out"),
        ("space", {"colour": "red"}, "--colour"),
        ("pool", {"section": 1}, "--section"),
        ("rate", {"domain": "source"}, "--domain"),
        ("neighbours", {"k": 4}, "--k"),
        ("pool", {"share": 0.5}, "--share"),
        ("rate", {"data": "all"}, "--data"),
    ],
)
def test_a_flag_that_cannot_be_heeded_is_named_in_one_line(refused, figure, flags, named):
    assert named in refused(2, figure, **flags)


def test_a_domain_without_recordings_is_a_mistake(refused, workdir, segments):
    kept = (segments.domain == "source") | (segments.section == 0)
    write_run(workdir, segments.select(kept))
    assert refused(2, "space", domain="target") == (
        "fan has no test recordings in section 1, target domain; sections: [0, 1]"
    )


def test_a_k_above_the_recordings_of_a_pool_of_recordings_is_a_mistake(refused, workdir):
    write_config(workdir, {"unit": "clip", "scope": "section"})
    assert refused(2, "space", k=20).startswith("--k=20: it must be from 1 to 14, ")


# Bad input


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", "{"),
        ("config.json", "{}"),
        ("config.json", "[]"),
        ("fan/seed_0/segments.npz", "PK"),
        ("fan/seed_0/selection.json", "{"),
        ("fan/seed_0/scores/ae/anomaly_score_fan_section_01_source_test.csv", "a.wav,high\n"),
        ("fan/seed_0/scores/ae/anomaly_score_fan_section_01_source_test.csv", ""),
        ("config.json", '{"config": {"smoothing": {}, "seeds": [0]}}'),
        ("config.json", '{"config": {"smoothing": {"unit": "segment"}, "seeds": []}}'),
        ("fan/seed_0/selection.json", "{}"),
        ("fan/seed_0/selection.json", "[]"),
    ],
)
def test_a_damaged_artifact_is_one_line_and_status_1(refused, workdir, name, text):
    (workdir / name).write_text(text)
    said = refused(1, "neighbours")
    assert "is damaged (" in said
    assert "start again" in said


def test_scores_that_are_gone_are_one_line_and_status_1(refused, workdir):
    for file in (workdir / "fan/seed_0/scores/ae").iterdir():
        file.unlink()
    assert "is damaged (" in refused(1, "neighbours")


@pytest.mark.parametrize("figure", ["neighbours", "pool", "rate"])
@pytest.mark.parametrize("why", ["no labels", "no evaluation sections"])
def test_a_curve_of_what_is_not_evaluable_is_one_line_and_status_1(
    refused, workdir, segments, figure, why
):
    if why == "no labels":
        write_run(workdir, forget_labels(segments))
    else:
        write_run(workdir, segments, evaluated=())
    assert refused(1, figure) == (
        "fan: a curve needs evaluation sections with normal and anomalous recordings, labelled"
    )


def test_a_curve_of_what_is_not_smoothed_is_refused_for_that_reason(refused, workdir, segments):
    write_run(workdir, leave_ae_alone(segments), None)
    assert "smooth" in refused(1, "pool")


def test_a_machine_without_discriminative_features_has_no_space_and_says_so(
    refused, workdir, segments
):
    write_run(workdir, leave_ae_alone(segments), None)
    assert refused(1, "space").startswith("fan: ")


def test_a_file_that_cannot_be_written_is_one_line_and_status_1(refused, tmp_path, first_features):
    (tmp_path / "taken.png").mkdir()
    assert "taken.png" in refused(1, "space", out=tmp_path / "taken.png")


def test_ctrl_c_is_one_line_and_status_130(refused, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(figures, "measure_curve", stop)
    assert refused(130, "pool") == "stopped"
