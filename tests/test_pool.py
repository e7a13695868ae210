"""F of the operating phase, whole: the same scores as eq. 7, before and after a restart."""

import numpy as np
import pytest
from eq7 import oracle, oracle_queries
from hypothesis import given, settings
from hypothesis import strategies as st

from dns_jax.data.refusals import DataError
from dns_jax.evaluation.systems import average_segments
from dns_jax.operation.pool import NeighborPool, Recording, Setting
from dns_jax.operation.store import Store

D = 3
OPTIONS = {"identity": "networks", "dimensions": D}


def make_recording(number, machine="fan", section=None, domain=None, segments=3, **fields):
    rng = np.random.default_rng(number)
    defaults = {
        "machine": machine,
        "section": number % 2 if section is None else section,
        "domain": domain or ("source", "source", "target")[number % 3],
        "clip": f"{machine}_{number:04d}.wav",
        "path": f"/in/{machine}_{number:04d}.wav",
        "digest": f"{number:032x}",
        "arrived": 1.7e9 + 10 * number,
        "seconds": 10.0,
        "scores": rng.normal(size=segments).astype(np.float32),
        "features": 12.0 * rng.integers(-2, 3, (segments, D)).astype(np.float32),  # exact means
    }
    return Recording(**defaults | fields)


class Held:
    """What a pool should hold, as plain recordings, and what eq. 7 makes of them."""

    def __init__(self, setting):
        self.setting, self.recordings = setting, {}

    def rows(self, section):
        chosen = {
            id_: recording
            for id_, recording in self.recordings.items()
            if self.setting.scope == "machine" or recording.section == section
        }
        parts = [self.take_unit(r.scores, r.features) for r in chosen.values()]
        counts = [len(scores) for scores, _ in parts]
        owner = np.repeat(list(chosen), counts).astype(int)
        allowed = [self.setting.data == "all" or r.domain == "source" for r in chosen.values()]
        candidates = np.repeat(np.array(allowed, bool), counts)
        scores = np.concatenate([np.zeros(0), *(p[0] for p in parts)])
        features = np.concatenate([np.zeros((0, D)), *(p[1] for p in parts)])
        k = min(self.setting.k, max(1, candidates.sum() // 5)) if self.setting.capped else None
        return scores, features, candidates, owner, k or self.setting.k

    def take_unit(self, scores, features):
        if self.setting.unit == "segment":
            return scores, features
        mean = np.float32(np.mean(features, axis=0, dtype=float))
        return np.float32([np.mean(scores, dtype=float)]), mean[None]

    def refresh(self):
        expected = {}
        for section in {0} if self.setting.scope == "machine" else {0, 1}:
            scores, features, candidates, owner, k = self.rows(section)
            groups = None if self.setting.own_windows else owner
            smoothed = oracle(scores, features, k, candidates, groups)
            ids = np.unique(owner)
            means = average_segments(smoothed, owner, ids.tolist())
            expected |= dict(zip(ids.tolist(), means.tolist(), strict=True))
        return dict(sorted(expected.items()))

    def query(self, section, scores, features, own):
        pool = *self.rows(section), np.zeros(0)
        scores, features = self.take_unit(scores, features)
        groups = np.full(len(scores), own or 0), pool[3]
        return oracle_queries(scores, features, pool[0], pool[1], pool[4], pool[2], *groups)


def assert_current(pool, held):
    found, expected = pool.refresh("fan"), held.refresh()
    assert found.id.tolist() == list(expected)
    np.testing.assert_allclose(found.score, list(expected.values()), rtol=1e-5, atol=1e-6)


SETTINGS = st.builds(
    Setting,
    k=st.sampled_from([1, 3, 6]),
    data=st.sampled_from(["source", "all"]),
    scope=st.sampled_from(["section", "machine"]),
    unit=st.sampled_from(["segment", "clip"]),
    capped=st.booleans(),
    own_windows=st.booleans(),
)


@given(
    setting=SETTINGS,
    steps=st.lists(
        st.tuples(
            st.sampled_from(["append", "keep", "age", "refresh", "score"]), st.integers(1, 15)
        ),
        min_size=1,
        max_size=8,
    ),
)
@settings(max_examples=40, deadline=None)
def test_after_any_steps_it_is_eq_7_on_the_recordings_held(setting, steps):
    pool, held, number = NeighborPool(None, {"fan": setting}, **OPTIONS), Held(setting), 0
    for step, count in steps:
        if step == "append":
            for _ in range(count):
                number += 1
                added = pool.append(make_recording(number))
                held.recordings[added.id] = make_recording(number)
        elif step == "keep":
            for id_ in pool.evict(keep=count):
                del held.recordings[id_]
        elif step == "age":
            for id_ in pool.evict(older_than=10.0 * count + 5, section=1):
                del held.recordings[id_]
        elif step == "refresh":
            assert_current(pool, held)
        elif step == "score":
            for asked, own in ((make_recording(1000 + count), None), (make_recording(count), 1)):
                own = own and (count if count in held.recordings else None)
                found = pool.score("fan", asked.section, asked.scores, asked.features, asked.digest)
                expected = held.query(asked.section, asked.scores, asked.features, own)
                np.testing.assert_allclose(found.segments, expected, rtol=1e-5, atol=1e-6)
                np.testing.assert_allclose(found.score, np.mean(expected), rtol=1e-5, atol=1e-6)
                assert own not in dict(found.deciding)
        assert list(pool.entries) == list(held.recordings)
    assert_current(pool, held)


@pytest.mark.parametrize("data", ["source", "all"])
def test_results_are_the_same_after_reopening(tmp_path, data):
    machines = {"fan": Setting(4, data=data), "pump": Setting(3, scope="machine", unit="clip")}
    held = Held(machines["fan"])
    with NeighborPool(tmp_path / "F.sqlite", machines, **OPTIONS) as pool:
        for number in range(40):
            for machine in machines:
                added = pool.append(make_recording(number, machine))
                if machine == "fan":
                    held.recordings[added.id] = make_recording(number)
        for id_ in pool.evict(keep=12):
            held.recordings.pop(id_, None)
        before = {machine: pool.refresh(machine) for machine in machines}
        asked = make_recording(99)
        score = pool.score("fan", 1, asked.scores, asked.features)
        entries = dict(pool.entries)
    for writable in (False, True):
        with NeighborPool(
            tmp_path / "F.sqlite", machines, writable=writable, **OPTIONS
        ) as reopened:
            assert reopened.notice == ""
            assert reopened.entries == entries
            assert_current(reopened, held)
            for machine in machines:
                for got, expected in zip(reopened.refresh(machine), before[machine], strict=True):
                    np.testing.assert_array_equal(got, expected)
            again = reopened.score("fan", 1, asked.scores, asked.features)
            assert again.score == score.score
            assert again.deciding == score.deciding


def test_the_pool_says_which_recordings_decided():
    pool = NeighborPool(None, {"fan": Setting(3, capped=False)}, **OPTIONS)
    for place in (1, 2, 9):
        features = np.full((2, D), place, np.float32)
        pool.append(make_recording(place, section=0, segments=2, features=features))
    scores = [1.0, 2.0]
    found = pool.score("fan", 0, scores, np.array([[1.0] * D, [9.0] * D]))
    assert found.deciding == ((1, pytest.approx(1 / 3)), (3, pytest.approx(1 / 3)))
    assert (found.behind, found.k) == (2, 3)
    expected = (1 + make_recording(1, segments=2).scores.sum()) / 3
    assert found.segments[0] == pytest.approx(expected, rel=1e-6)
    assert found.score == pytest.approx(found.segments.mean())


def test_a_cold_pool_says_how_many_neighbours_stood_behind():
    pool = NeighborPool(None, {"fan": Setting(32)}, **OPTIONS)
    new = make_recording(50, section=0)
    for number, (behind, k) in enumerate([(0, 1), (0, 1), (0, 1), (0, 1), (1, 2), (2, 3)]):
        found = pool.score("fan", 0, new.scores, new.features)
        assert (found.behind, found.k) == (behind, k)
        if not behind:
            np.testing.assert_allclose(found.segments, new.scores)
        pool.append(make_recording(number, section=0))


def test_references_are_smoothed_and_change_nothing():
    setting = Setting(4)
    pool, held = NeighborPool(None, {"fan": setting}, **OPTIONS), Held(setting)
    rng = np.random.default_rng(5)
    scores, features = rng.normal(size=12), rng.integers(-2, 3, (12, D))
    clips = np.repeat(["b.wav", "a.wav", "c.wav"], 4)
    pool.add_references("fan", 1, clips, scores, features)
    before = pool.smooth_references("fan")
    assert before == pytest.approx(
        {clip: scores[clips == clip].mean() for clip in clips.tolist()}, rel=1e-6
    )
    for number in range(30):
        held.recordings[pool.append(make_recording(number)).id] = make_recording(number)
        if number == 15:
            pool.smooth_references("fan")
    pool.evict(keep=6)
    held.recordings = {id_: held.recordings[id_] for id_ in pool.entries}
    assert_current(pool, held)
    smoothed = held.query(1, scores, features, None)
    expected = {clip: smoothed[clips == clip].mean() for clip in clips.tolist()}
    assert pool.smooth_references("fan") == pytest.approx(expected, rel=1e-5)
    assert sorted(expected) == ["a.wav", "b.wav", "c.wav"]


def test_the_same_recording_is_counted_once(tmp_path):
    for path in (None, tmp_path / "F.sqlite"):
        with NeighborPool(path, {"fan": Setting(3), "pump": Setting(3)}, **OPTIONS) as pool:
            assert pool.append(make_recording(1)) == (1, True)
            assert pool.append(make_recording(2)) == (2, True)
            assert pool.append(make_recording(1, clip="copy.wav")) == (1, False)
            assert pool.append(make_recording(1, "pump")) == (3, True)
            assert pool.append(make_recording(4, digest=None)) == (4, True)
            assert pool.append(make_recording(4, digest=None)) == (5, True)
            assert pool.evict(keep=0, domain="source", machine="fan") == [1, 4, 5]
            assert pool.append(make_recording(1)) == (6, True)
            assert len(pool) == 3


def test_eviction_by_number_keeps_the_latest_of_every_cell():
    pool = NeighborPool(None, {"fan": Setting(3), "pump": Setting(3)}, **OPTIONS)
    for number in range(12):
        pool.append(make_recording(number, domain=("source", "target")[number // 2 % 2]))
        pool.append(make_recording(number, "pump", domain="source"))
    assert pool.evict(keep=2, machine="fan", section=0) == [1, 5]
    assert pool.evict(keep=2, machine="fan", domain="target") == [7]
    pool.evict(keep=1)
    cells = [entry[:3] for entry in pool.entries.values()]
    assert len(set(cells)) == len(cells) == 6
    assert {entry.clip for entry in pool.entries.values()} == {
        *(f"fan_{number:04d}.wav" for number in (8, 9, 10, 11)[:2]),
        *(f"fan_{number:04d}.wav" for number in (10, 11)),
        *(f"pump_{number:04d}.wav" for number in (10, 11)),
    }


def hold(arrivals):
    pool = NeighborPool(None, {"fan": Setting(3)}, **OPTIONS)
    for number, arrived in enumerate(arrivals):
        pool.append(make_recording(number, arrived=float(arrived)))
    return pool


def test_eviction_by_age_counts_from_the_latest():
    pool = hold(range(0, 1000, 10))
    assert pool.evict(older_than=200) == list(range(1, 80))
    assert pool.evict(older_than=200) == []


@pytest.mark.parametrize(
    "jump",
    [
        pytest.param(-1.7e9, id="set back to 1970"),
        pytest.param(1e9, id="set forward by decades"),
        pytest.param(3e5, id="stood still over the holidays"),
    ],
)
def test_a_clock_that_is_set_evicts_a_tenth_at_most(jump):
    before, after = 1.7e9 + np.arange(0, 500, 10), 1.7e9 + np.arange(500, 600, 10) + jump
    pool = hold([*before, *after])
    # 10 came since, and the jump counts as 40 s at most.
    assert len(pool.evict(older_than=400)) <= 60 - 41 + 4
    steady = hold(1.7e9 + np.arange(0, 600, 10))
    assert len(steady.evict(older_than=400)) == 60 - 41
    # Back in time again: what came by the wrong clock ages as well.
    for number in range(60, 160):
        pool.append(make_recording(number, arrived=1.7e9 + 10 * number))
        pool.evict(older_than=400)
    assert 41 <= len(pool) <= 42


def test_a_recording_that_cannot_be_kept_is_in_no_f(tmp_path):
    with NeighborPool(tmp_path / "F.sqlite", {"fan": Setting(3)}, **OPTIONS) as pool:
        with pytest.raises(DataError, match="no machine 'pump' in this run; it has fan"):
            pool.append(make_recording(1, "pump"))
        with pytest.raises(DataError, match="no machine 'pump'"):
            pool.score("pump", 0, [1.0], np.zeros((1, D)))
        with pytest.raises(DataError, match="their shapes were"):
            pool.append(make_recording(1, features=np.zeros((3, D + 1))))
        pool.append(make_recording(1))
        database = pool._store._database
        pages = database.execute("PRAGMA page_count").fetchone()[0]
        database.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(DataError, match="full"):
            pool.append(make_recording(2, segments=3000))
        assert (len(pool), len(pool.refresh("fan").id)) == (1, 1)
    with NeighborPool(tmp_path / "F.sqlite", {"fan": Setting(3)}, **OPTIONS) as pool:
        assert len(pool) == 1


def test_recordings_of_other_machines_stay_in_the_file(tmp_path):
    path = tmp_path / "F.sqlite"
    with NeighborPool(path, {"fan": Setting(3), "pump": Setting(3)}, **OPTIONS) as pool:
        pool.append(make_recording(1))
        pool.append(make_recording(1, "pump"))
    with NeighborPool(path, {"pump": Setting(3)}, **OPTIONS) as pool:
        assert list(pool.entries) == [2]
        pool.evict(keep=0)
    store = Store(path, "networks", D)
    assert [recording.machine for _, recording in store.read()] == ["fan"]
    store.close()


def test_a_writer_that_fails_to_load_lets_others_in(tmp_path, monkeypatch):
    path = tmp_path / "F.sqlite"
    with monkeypatch.context() as patch:
        patch.setattr(NeighborPool, "_load", lambda pool: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            NeighborPool(path, {}, **OPTIONS)
    NeighborPool(path, {}, **OPTIONS).close()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pool: pool.evict(), "needs older_than .* or keep"),
        (lambda pool: pool.evict(keep=-1), "keep must be at least 0; it was -1"),
        (lambda pool: pool.evict(older_than=0), "older_than must be above 0 s; it was 0"),
        (lambda pool: pool.score("fan", 0, [], np.zeros((0, D))), "at least one segment"),
        (lambda pool: pool.score("fan", 0, [1.0], np.zeros((1, 2))), r"\(1,\) and \(1, 2\)"),
        (lambda pool: NeighborPool(None, {"fan": Setting(0)}, D), "fan: k must be .* it was 0"),
        (
            lambda pool: NeighborPool(None, {"fan": Setting(2, scope="all")}, D),
            "fan: scope must be section or machine; it was 'all'",
        ),
    ],
)
def test_a_call_that_makes_no_sense_is_refused(call, message):
    pool = NeighborPool(None, {"fan": Setting(3)}, **OPTIONS)
    with pytest.raises(ValueError, match=message):
        call(pool)
