"""What is in the figures: dots, lines, bands and colours, read off their artists."""

import io
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from PIL import Image
from scipy.spatial.distance import pdist
from test_outcomes import make_segments

from dns_jax.evaluation import drawing
from dns_jax.evaluation.curves import COLUMNS
from dns_jax.evaluation.drawing import (
    draw_anomaly_rates,
    draw_neighbours,
    draw_pool_sizes,
    draw_section,
    draw_space,
    place_features,
    save_figure,
)
from dns_jax.scoring import Segments

TRAINING, LABELS = "training", {0: "normal", 1: "anomalous", -1: "not labelled"}
LINES = {"ae": 0.61, "serial_oe": 0.72}


def render(figure):
    """Draw the figure as a file would have it, and return the picture."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=50)
    return Image.open(file)


def find_line(axis, label):
    (line,) = (line for line in axis.lines if line.get_label() == label)
    return line


def read_line(axis, label):
    return np.array(find_line(axis, label).get_data())


# UMAP


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 15, 16, 50, 51, 60])
def test_any_number_of_rows_has_places_the_same_each_time(rows):
    features = np.random.default_rng(rows).normal(size=(rows, 7)).astype(np.float32)
    place = place_features(features)
    assert place.shape == (rows, 2)
    assert np.isfinite(place).all()
    np.testing.assert_array_equal(place, place_features(features.copy()))
    assert len(np.unique(place, axis=0)) == rows


@pytest.mark.parametrize("rows", [2, 3])
@pytest.mark.parametrize("dimensions", [1, 2, 128])
def test_the_distances_of_up_to_three_rows_are_kept(rows, dimensions):
    features = np.random.default_rng(0).normal(5, 1, size=(rows, dimensions)).astype(np.float32)
    np.testing.assert_allclose(pdist(place_features(features)), pdist(features), rtol=1e-4)


def test_rows_that_are_alike_lie_together():
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(m, 1, size=(30, 8)) for m in (0, 10)])
    place = place_features(features.astype(np.float32))
    first, second = place[:30], place[30:]
    apart = np.linalg.norm(first.mean(axis=0) - second.mean(axis=0))
    assert apart > 3 * max(first.std(), second.std())


@pytest.mark.parametrize("rows", [3, 12, 60])
def test_duplicates_have_places(rows):
    assert np.isfinite(place_features(np.ones((rows, 4), np.float32))).all()


# Figs. 3 and 4


@pytest.fixture(scope="module")
def segments():
    """A section with 24 training and 42 test segments; a third of these are not labelled."""
    segments = make_segments()
    segments = segments.select(segments.section == 0)
    label = segments.label.copy()
    label[(segments.split == "test") & (np.arange(len(label)) % 3 == 0)] = -1
    return segments._replace(label=label)


@pytest.fixture(scope="module")
def many():
    """The same some hundred times over, so that shares can be counted."""
    segments = make_segments()
    return Segments(*(np.concatenate(100 * [field]) for field in segments))


def score(segments, count=2):
    rng = np.random.default_rng(1)
    tested = segments.split == "test"
    return {
        f"score {i}": np.where(tested, rng.normal(size=len(tested)), np.nan) for i in range(count)
    }


def read_dots(axis):
    """{legend label: dots} in the order of drawing."""
    dots = [artist for artist in axis.collections if isinstance(artist, PathCollection)]
    return {artist.get_label(): artist for artist in sorted(dots, key=lambda d: d.get_zorder())}


def test_every_segment_is_a_dot_at_its_place_in_every_panel(segments):
    place = np.random.default_rng(0).normal(size=(len(segments.clip), 2))
    figure = draw_space(place, segments, score(segments))
    render(figure)
    panels = figure.axes[:2]
    assert [axis.get_title() for axis in panels] == ["score 0", "score 1"]
    for axis in panels:
        dots = read_dots(axis)
        assert set(dots) == {TRAINING, *LABELS.values()}
        for label, name in LABELS.items():
            rows = (segments.split == "test") & (segments.label == label)
            np.testing.assert_allclose(dots[name].get_offsets(), place[rows])
        rows = segments.split == "train"
        np.testing.assert_allclose(dots[TRAINING].get_offsets(), place[rows])
    assert panels[0].get_xlim() == panels[1].get_xlim()
    assert panels[0].get_ylim() == panels[1].get_ylim()
    for limits, values in (
        (panels[0].get_xlim(), place[:, 0]),
        (panels[0].get_ylim(), place[:, 1]),
    ):
        assert limits[0] < values.min() <= values.max() < limits[1]


def test_training_lies_under_test(segments):
    place = np.zeros((len(segments.clip), 2))
    figure = draw_space(place, segments, score(segments, 1))
    assert next(iter(read_dots(figure.axes[0]))) == TRAINING


def test_labels_can_be_told_apart_without_colour(segments):
    place = np.random.default_rng(0).normal(size=(len(segments.clip), 2))
    dots = read_dots(draw_space(place, segments, score(segments, 1)).axes[0])
    shapes = {dots[name].get_paths()[0].vertices.tobytes() for name in LABELS.values()}
    assert len(shapes) == 3


def test_the_colour_is_the_rank_of_the_score_among_the_test_segments(segments):
    place = np.arange(2 * len(segments.clip)).reshape(-1, 2)
    scores = score(segments)
    figure = draw_space(place, segments, scores)
    tested = segments.split == "test"
    for axis, of_score in zip(figure.axes[:2], scores.values(), strict=True):
        ranks = np.full(len(tested), np.nan)
        ranks[tested] = (scipy.stats.rankdata(of_score[tested]) - 1) / (np.sum(tested) - 1)
        for label, name in LABELS.items():
            dots = read_dots(axis)[name]
            np.testing.assert_allclose(dots.get_array(), ranks[tested & (segments.label == label)])
            assert dots.get_clim() == (0, 1)
    assert [text.get_text() for text in figure.axes[-1].get_yticklabels()] == ["low", "high"]


def test_equal_scores_have_equal_colours(segments):
    # As AUC shares them out.
    place = np.arange(2 * len(segments.clip)).reshape(-1, 2)
    scores = {"two values": np.where(np.arange(len(place)) % 2, 1.0, 2.0)}
    dots = read_dots(draw_space(place, segments, scores).axes[0])
    values = np.concatenate([dots[name].get_array() for name in LABELS.values()])
    assert len(np.unique(values)) == 2


def test_a_score_that_is_not_known_takes_no_colour_from_the_others(segments):
    place = np.arange(2 * len(segments.clip)).reshape(-1, 2)
    tested = np.flatnonzero(segments.split == "test")
    scores = np.arange(len(place), dtype=float)
    scores[tested[0]] = np.nan
    dots = read_dots(draw_space(place, segments, {"one unknown": scores}).axes[0])
    values = np.ma.concatenate([dots[name].get_array() for name in LABELS.values()])
    known = np.sort(np.ma.filled(values.astype(float), np.nan))[: len(tested) - 1]
    assert (np.diff(known) > 0).all()


def test_a_share_of_the_training_and_of_the_test_segments_is_drawn_the_same_in_every_panel(many):
    place = np.arange(2 * len(many.clip)).reshape(-1, 2)
    scores = score(many)
    first, second = (read_dots(axis) for axis in draw_space(place, many, scores, 0.3).axes[:2])
    for name, dots in first.items():
        rows = many.split == "train"
        if name != TRAINING:
            rows = (many.split == "test") & (many.label == {"normal": 0, "anomalous": 1}[name])
        count = np.sum(rows)
        assert abs(len(dots.get_offsets()) - 0.3 * count) < 5 * np.sqrt(0.21 * count)
        np.testing.assert_array_equal(dots.get_offsets(), second[name].get_offsets())
    again = read_dots(draw_space(place, many, scores, 0.3).axes[0])
    other = read_dots(draw_space(place, many, scores, 0.3, seed=1).axes[0])
    offsets = [d["normal"].get_offsets().tolist() for d in (first, again, other)]
    assert offsets[0] == offsets[1] != offsets[2]


def test_the_colours_of_a_share_are_those_of_all(many):
    place = np.arange(2 * len(many.clip)).reshape(-1, 2)
    drawn = [read_dots(draw_space(place, many, score(many, 1), s).axes[0]) for s in (1.0, 0.3)]
    everything, some = (
        dict(zip(map(tuple, d["normal"].get_offsets()), d["normal"].get_array(), strict=True))
        for d in drawn
    )
    assert some.items() < everything.items()


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_space_of_training_or_test_segments_only_is_drawn(segments, split):
    only = segments.select(segments.split == split)
    place = np.random.default_rng(0).normal(size=(len(only.clip), 2))
    render(draw_space(place, only, score(only)))


# Curves


def make_curve(curve, lines, std=np.nan):
    rows = [(curve, x, line, value, std) for line, of in lines.items() for x, value in of.items()]
    return pd.DataFrame(rows, columns=COLUMNS)


NEIGHBOURS = {
    "source": {1: 0.5, 2: 0.6, 4: np.nan},
    "all": {1: 0.5, 2: 0.55, 4: 0.7},
    "source, other recordings": {1: 0.5, 2: 0.4, 4: np.nan},
    "all, other recordings": {1: 0.5, 2: 0.45, 4: 0.6},
}
OWN = {"source": {2: 0.9, 4: 0.4}, "all": {2: 0.8, 4: 0.3}}
CURVES = pd.concat([make_curve("neighbours", NEIGHBOURS), make_curve("own_windows", OWN)])


def assert_lines(axis, lines):
    """The systems lie across the whole axis at their values."""
    for system, name in (("ae", "AE"), ("serial_oe", "SerialOE")):
        line = find_line(axis, name)
        assert (np.array(line.get_ydata()) == pytest.approx(100 * lines[system])) is True
        assert list(line.get_xdata()) == [0, 1]
        assert line.get_transform() == axis.get_yaxis_transform(which="grid")


@pytest.mark.parametrize("choice", [(2, "source"), (4, "all")])
def test_the_metric_is_drawn_against_k_and_the_chosen_k_is_marked(choice):
    figure = draw_neighbours(CURVES, choice, LINES)
    render(figure)
    left, right = figure.axes
    for name, values in NEIGHBOURS.items():
        x, y = read_line(left, name)
        assert list(x) == [1, 2, 4]
        np.testing.assert_allclose(y, [100 * value for value in values.values()])
    for name, values in OWN.items():
        x, y = read_line(right, name)
        assert list(x) == [2, 4]
        np.testing.assert_allclose(y, [100 * value for value in values.values()])
    k, data = choice
    mark = read_line(left, "chosen (Table I)")
    assert mark.ravel() == pytest.approx([k, 100 * NEIGHBOURS[data][k]])
    assert find_line(left, "chosen (Table I)").get_marker() == "*"
    assert_lines(left, LINES)
    assert left.get_xscale() == right.get_xscale() == "log"
    texts = [label.get_text() for label in left.get_xticklabels()]
    assert {"1", "2", "4"} <= set(texts)


def test_data_have_a_colour_each_and_other_recordings_are_dotted():
    left, right = draw_neighbours(CURVES, None, LINES).axes
    for data in ("source", "all"):
        solid, dotted = (find_line(left, data + more) for more in ("", ", other recordings"))
        assert solid.get_color() == dotted.get_color() == find_line(right, data).get_color()
        assert (solid.get_linestyle(), dotted.get_linestyle()) == ("-", ":")
    assert find_line(left, "source").get_color() != find_line(left, "all").get_color()


@pytest.mark.parametrize("choice", [None, (8, "all"), (512, "source")])
def test_a_choice_that_is_not_on_the_curve_is_not_marked(choice):
    left, _ = draw_neighbours(CURVES, choice, LINES).axes
    assert "chosen (Table I)" not in [line.get_label() for line in left.lines]


def test_a_pool_in_which_only_k_1_fits_is_drawn():
    lines = {name: {1: 0.5} for name in NEIGHBOURS}
    render(draw_neighbours(make_curve("neighbours", lines), (1, "all"), LINES))


def read_band(axis, number):
    """{x: (lowest, highest)} of a band."""
    x, y = axis.collections[number].get_paths()[0].vertices.T
    return {of: (y[x == of].min(), y[x == of].max()) for of in set(x.tolist())}


@pytest.mark.parametrize(
    ("draw", "curve", "lines"),
    [
        (draw_pool_sizes, "pool", {"drawn": {0.05: 0.6, 0.5: 0.7, 1.0: 0.65}, "all": {0.05: 0.5}}),
        (
            draw_anomaly_rates,
            "rate",
            {"best K and Data": {0.005: 0.6, 0.1: 0.65, 0.5: 0.7}, "K = 4, all": {0.005: 0.5}},
        ),
    ],
)
def test_a_band_shows_mean_and_standard_deviation(draw, curve, lines):
    table = pd.concat([make_curve(curve, lines, 0.03), make_curve("neighbours", NEIGHBOURS)])
    figure = draw(table, LINES)
    render(figure)
    (axis,) = figure.axes
    labels = [line.get_label() for line in axis.lines]
    assert labels[2:] == ["AE", "SerialOE"]
    for number, (name, of) in enumerate(lines.items()):
        x, y = np.array(axis.lines[number].get_data())
        assert x == pytest.approx([100 * x for x in of])
        assert y == pytest.approx([100 * value for value in of.values()])
        band = read_band(axis, number)
        for x, value in of.items():
            ends = next(ends for at, ends in band.items() if at == pytest.approx(100 * x))
            assert ends == pytest.approx((100 * value - 3, 100 * value + 3))
        assert axis.lines[number].get_color() not in (
            other.get_color() for i, other in enumerate(axis.lines) if i != number
        )
        if curve == "rate":
            assert labels[number] == f"Proposed, {name}"
    assert_lines(axis, LINES)
    assert axis.get_ylim()[1] <= 101
    if curve == "pool":
        assert "evaluated on the drawn" in labels[0]
        assert "all recordings" in labels[1]


def test_the_rates_are_ticks_on_a_logarithmic_axis():
    rates = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    figure = draw_anomaly_rates(make_curve("rate", {"best": dict.fromkeys(rates, 0.6)}, 0), LINES)
    render(figure)
    (axis,) = figure.axes
    assert axis.get_xscale() == "log"
    texts = [label.get_text() for label in axis.get_xticklabels()]
    assert texts == ["0.5", "1", "2", "5", "10", "20", "50"]


# Histograms and ROC


@pytest.fixture
def tested():
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1, -1], [30, 25, 5])
    scores = {s: rng.normal(label, 1.0) for s in ("ae", "serial_oe", "proposed", "oracle")}
    return pd.DataFrame({"label": label, **scores})


def count_bars(axis):
    """{legend label: recordings in its histogram}."""
    return {bars[0].get_label(): sum(b.get_height() for b in bars) for bars in axis.containers}


def integrate(line):
    x, y = np.array(line.get_data()) / 100
    return np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2)


def count_pairs(tested, system):
    """AUC: how often an anomaly is above a normal recording."""
    scores = tested[system].to_numpy()
    normal, anomalous = (scores[tested["label"] == label] for label in (0, 1))
    pairs = anomalous[:, None] - normal
    return np.mean((pairs > 0) + 0.5 * (pairs == 0))


def test_histograms_hold_all_recordings_and_the_area_under_a_roc_curve_is_its_auc(tested):
    tested["oracle"] = tested["oracle"].round()  # ties
    tested["label_free"] = tested["serial_oe"] - tested["ae"]
    figure = draw_section(tested, [*drawing.NAMES])
    render(figure)
    *histograms, roc = figure.axes
    assert [axis.get_title() for axis in histograms] == ["AE", "Proposed", "Label-free"]
    for axis in histograms:
        assert count_bars(axis) == {"normal": 30, "anomalous": 25, "not labelled": 5}
    for system, name in drawing.NAMES.items():
        line = find_line(roc, name)
        assert integrate(line) == pytest.approx(count_pairs(tested, system))
        x, y = line.get_data()
        assert (x[0], y[0], x[-1], y[-1]) == pytest.approx((0, 0, 100, 100))


def test_a_system_has_the_same_colour_everywhere(tested):
    tested["label_free"] = tested["ae"]
    roc = draw_section(tested, [*drawing.NAMES]).axes[-1]
    colours = {s: find_line(roc, name).get_color() for s, name in drawing.NAMES.items()}
    assert len(set(colours.values())) == 5
    (axis,) = draw_pool_sizes(make_curve("pool", {"drawn": {1.0: 0.5}}, 0), LINES).axes
    for system in ("ae", "serial_oe"):
        assert find_line(axis, drawing.METHODS[system]).get_color() == colours[system]


def test_the_autoencoder_alone_has_one_histogram_and_one_curve(tested):
    figure = draw_section(tested, ["ae"])
    render(figure)
    histogram, roc = figure.axes
    assert count_bars(histogram)["normal"] == 30
    assert integrate(find_line(roc, "AE")) == pytest.approx(count_pairs(tested, "ae"))


@pytest.mark.parametrize("label", [-1, 0, 1])
def test_recordings_of_one_label_have_histograms_and_no_curves(tested, label):
    figure = draw_section(tested.assign(label=label), ["ae", "proposed"])
    render(figure)
    assert count_bars(figure.axes[0]) == {LABELS[label]: 60}
    assert set(drawing.METHODS.values()).isdisjoint(
        line.get_label() for line in figure.axes[-1].lines
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_recording_without_a_finite_score_is_left_out(tested, value):
    tested.loc[[0, 30], "ae"] = value
    figure = draw_section(tested, ["ae"])
    render(figure)
    assert count_bars(figure.axes[0]) == {"normal": 29, "anomalous": 24, "not labelled": 5}
    kept = tested.drop(index=[0, 30])
    assert integrate(find_line(figure.axes[1], "AE")) == pytest.approx(count_pairs(kept, "ae"))


def test_a_section_without_any_score_is_drawn_without_a_warning(tested):
    tested["ae"] = np.nan
    render(draw_section(tested, ["ae"]))


@pytest.mark.parametrize("spread", [0.0, 1e-17, 3e-16, 1e-9])
def test_scores_that_are_hardly_different_have_a_histogram(tested, spread):
    # NumPy refuses 24 bins where 24 numbers do not lie between.
    tested["ae"] = 1 + spread * (np.arange(60) % 2)
    figure = draw_section(tested, ["ae"])
    assert count_bars(figure.axes[0])["normal"] == 30
    assert min(bar.get_width() for bars in figure.axes[0].containers for bar in bars) > 0


# Files


def make_figure():
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1])
    return figure


def test_the_format_is_what_the_name_asks_for(tmp_path):
    for name in ("a.png", "a.svg", "a.pdf", "deep/er/a"):
        save_figure(make_figure(), tmp_path / name)
    for name in ("a.png", "deep/er/a"):
        with Image.open(tmp_path / name) as image:
            image.load()
            assert (image.format, image.size) == ("PNG", (220, 110))
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("}svg")
    pdf = (tmp_path / "a.pdf").read_bytes()
    assert pdf.startswith(b"%PDF-")
    assert pdf.rstrip().endswith(b"%%EOF")


def test_a_figure_is_written_complete_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "a.png"
    file.write_text("before")

    def fail(self, file, **how):
        file.write(b"half")
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", fail)
        with pytest.raises(OSError, match="no space left"):
            save_figure(make_figure(), file)
    assert file.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    save_figure(make_figure(), file)
    with Image.open(file) as image:
        image.load()


def test_rows_that_are_not_finite_have_no_place(many):
    features = np.array([[0, 0], [1, 0], [np.nan, 0], [0, 2]], np.float32)
    place = place_features(features)
    assert np.isnan(place).all(axis=1).tolist() == [False, False, True, False]
    np.testing.assert_array_equal(place_features(features[:0]), np.empty((0, 2)))


def test_scores_of_zero_have_a_histogram(tested):
    tested["ae"] = 0.0
    assert count_bars(draw_section(tested, ["ae"]).axes[0])["normal"] == 30
