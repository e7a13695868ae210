"""What SerialOE is shown in 1,000 batches of the paper's size, from a whole table of recordings.

The published recipes skip half of the positives, stop half-way through the learning-rate cycle and,
for pumps, take pumps as pseudo-anomalous sounds: each has its test here.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from configs import default
from dns_jax import experiment
from dns_jax.data.clips import split_validation

STEPS = 1000
SEVEN = ("ToyCar", "ToyTrain", "fan", "gearbox", "pump", "slider", "valve")
GEARBOX = (1001, 1008, 1008, 1005, 1092, 1008)
LAYOUTS = {
    "seven machines": {m: GEARBOX if m == "gearbox" else (1000,) * 6 for m in SEVEN},
    "few negatives": {"pump": (300, 200), "fan": (70,), "valve": (40,)},
}


def make_clips(counts):
    """The training recordings, three more of the target domain, and a test recording each."""
    clips = pd.DataFrame(
        (machine, split, section, domain, f"{machine}_{section}_{domain}_{split}_{i}.wav")
        for machine, sources in counts.items()
        for section, source in enumerate(sources)
        for split, domain, count in (
            ("train", "source", source),
            ("train", "target", 3),
            ("test", "source", 1),
            ("test", "target", 1),
        )
        for i in range(count)
    )
    return clips.set_axis("machine split section domain clip".split(), axis=1).assign(usable=True)


class Drawn:
    """1,000 batches for pumps, as a run draws them."""

    def __init__(self, counts, target_per_batch, directory):
        self.clips = make_clips(counts)
        config = default.get_config()
        config.progress = False
        config.serial_oe.target_per_batch = target_per_batch
        found = {}

        def record(model, optimizer, task, schedule, *, directory, **options):
            found[directory.name] = task, schedule, optimizer

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(experiment, "fit", record)
            for name in ("Autoencoder", "SerialOE", "score_segments", "save_segments"):
                patched.setattr(experiment, name, lambda *args, **options: None)
            recordings = SimpleNamespace(lengths=np.full(len(self.clips), 64_000))
            experiment.make_segments(
                config,
                self.clips,
                recordings,
                "pump",
                0,
                directory=directory,
                mesh=None,
                preemption=None,
            )
        task, self.schedule, self.optimizer = found["serial_oe"]
        self.rows, _, (self.machine, self.product) = task.draw(0, STEPS)
        self.positives, self.negatives = self.rows[:, :64], self.rows[:, 64:]
        training = (self.clips["split"] == "train").to_numpy()
        self.learns = training & ~split_validation(self.clips, 0)
        self.pump = (self.clips["machine"] == "pump").to_numpy()
        self.shifted = (self.clips["domain"] == "target").to_numpy()

    def batches_that_skip(self, chosen, drawn):
        """Whether every N draws hold each of the N rows once: rows that are not so."""
        rows = np.flatnonzero(chosen)
        drawn = drawn.ravel()
        turns = drawn[: len(drawn) // len(rows) * len(rows)].reshape(-1, len(rows))
        assert len(turns) >= 2
        return [turn for turn in np.sort(turns, axis=1) if (turn != rows).any()]


@pytest.fixture(scope="module", params=[-1, 0, 1, 3], ids="target_per_batch_{}".format)
def quota(request):
    return request.param


@pytest.fixture(scope="module", params=LAYOUTS)
def drawn(request, quota, tmp_path_factory):
    return Drawn(LAYOUTS[request.param], quota, tmp_path_factory.mktemp("run"))


def test_every_batch_is_64_of_the_machine_and_64_of_others(drawn):
    assert drawn.rows.shape == (STEPS, 128)
    np.testing.assert_array_equal(drawn.machine, np.tile(np.repeat([1, 0], 64), (STEPS, 1)))
    np.testing.assert_array_equal(drawn.machine == 1, drawn.pump[drawn.rows])


def test_no_recording_of_the_machine_is_ever_a_negative_and_every_other_machine_is(drawn):
    assert not drawn.pump[drawn.negatives].any()
    machines = drawn.clips["machine"].to_numpy()
    assert {*machines[drawn.negatives].ravel()} == {*machines} - {"pump"}
    assert not drawn.product[:, 64:].any()


def test_only_the_training_part_is_drawn(drawn):
    assert drawn.learns[drawn.rows].all()


def test_each_positive_comes_exactly_once_in_every_n_draws(drawn, quota):
    positives = drawn.pump & drawn.learns
    if quota < 0:
        assert not drawn.batches_that_skip(positives, drawn.positives)
        return
    source, target = np.split(drawn.positives, [64 - quota], axis=1)
    assert not drawn.batches_that_skip(positives & ~drawn.shifted, source)
    if quota:
        assert not drawn.batches_that_skip(positives & drawn.shifted, target)


def test_target_domain_recordings_enter_as_configured(drawn, quota):
    in_batch = drawn.shifted[drawn.positives].sum(1)
    if quota < 0:
        share = drawn.shifted[drawn.pump & drawn.learns].mean()
        assert in_batch.mean() == pytest.approx(64 * share, rel=0.05)
    else:
        assert {*in_batch} == {quota}


def test_negatives_come_equally_often_however_few_there_are(drawn):
    counts = np.bincount(drawn.negatives.ravel(), minlength=len(drawn.clips))
    counts = counts[~drawn.pump & drawn.learns]
    assert counts.min() > 0
    assert counts.max() - counts.min() <= 1


def test_an_epoch_shows_every_positive(drawn, quota):
    chain = drawn.pump & drawn.learns & (~drawn.shifted | (quota < 0))
    first = drawn.positives[: drawn.schedule.steps_per_epoch]
    assert {*np.flatnonzero(chain)} <= {*first.ravel()}
    shown = (drawn.schedule.steps_per_epoch - 1) * (64 - max(quota, 0))
    assert shown < chain.sum()  # and takes no step more


def test_the_last_step_is_the_end_of_the_learning_rate_cycle(drawn):
    steps = drawn.schedule.epochs * drawn.schedule.steps_per_epoch

    def step(state, _):
        _, state = drawn.optimizer.update(jnp.ones(()), state, jnp.zeros(()))
        return state, (state.hyperparams["learning_rate"], state.hyperparams["b1"])

    _, (rate, beta1) = jax.lax.scan(step, drawn.optimizer.init(jnp.zeros(())), length=steps)
    np.testing.assert_allclose([rate[0], rate.max(), rate[-1]], [4e-5, 1e-3, 4e-9], rtol=1e-6)
    np.testing.assert_allclose([beta1[0], beta1.min(), beta1[-1]], [0.95, 0.85, 0.95], rtol=1e-6)
    assert int(rate.argmax()) == pytest.approx(0.3 * steps - 1, abs=1)
