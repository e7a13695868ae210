"""What the two networks learn from which recordings: batches, labels, losses, schedules."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
import tiny

from configs import default
from dns_jax import experiment
from dns_jax.parallel import make_mesh
from dns_jax.tasks import make_autoencoder_task, make_serial_oe_task

SAMPLES = 2000
# Rows 0 to 19 are the target's, three products; 20 to 29 are other machines'.
PRODUCTS = np.r_[np.arange(20) % 3, np.full(10, -1)]
SHIFTED = np.arange(30) % 5 == 0
TRAIN = np.r_[0:9, 12], np.arange(20, 26)
VALIDATION = np.r_[9, 10, 11, 13:17], np.arange(26, 30)


@pytest.fixture
def recordings():
    return tiny.Recordings(SAMPLES + 17 * np.arange(30))


def autoencoder_task(recordings, config=None, train=TRAIN[0], validation=VALIDATION[0], seed=0):
    return make_autoencoder_task(config or tiny.make_config(), recordings, train, validation, seed)


def serial_oe_task(recordings, config=None, train=TRAIN, validation=VALIDATION, seed=0):
    return make_serial_oe_task(
        config or tiny.make_config(), recordings, PRODUCTS, SHIFTED, train, validation, seed
    )


def draw_batch(task, step=0):
    """One training batch, cut on one device."""
    feed, _ = task.open_feeds(make_mesh(1))
    return tiny.cut_batch(feed, task.draw(step, 1))


def validate(task):
    """The rows that count, and where all are cut."""
    plan = task.validation
    return plan.rows.ravel()[: task.validated], plan.starts


# Training batches


def test_an_epoch_of_the_autoencoder_crops_every_training_recording_once(recordings):
    task, schedule, _ = autoencoder_task(recordings)
    assert schedule.steps_per_epoch == 3  # ten recordings, batches of four
    plan = task.draw(0, 10)
    assert plan.rows.shape == plan.starts.shape == (10, 4)
    rows = plan.rows.reshape(-1, len(TRAIN[0]))
    np.testing.assert_array_equal(np.sort(rows, axis=1), np.tile(np.sort(TRAIN[0]), (4, 1)))
    assert plan.starts.any()  # anywhere, not only at 0


@pytest.mark.parametrize("gigabytes", [0, 8])
@pytest.mark.parametrize("make", [autoencoder_task, serial_oe_task])
def test_segments_are_cut_anywhere_inside_the_recordings_that_were_drawn(
    recordings, make, gigabytes
):
    config = tiny.make_config()
    config.data.device_gigabytes = gigabytes
    task, *_ = make(recordings, config)
    feeds = task.open_feeds(make_mesh(1))
    for feed, plan in zip(feeds, (task.draw(0, 100), task.validation), strict=True):
        assert bool(jax.tree.leaves(feed.store)) == bool(gigabytes)
        for number, (rows, starts) in enumerate(zip(plan.rows[:9], plan.starts[:9], strict=True)):
            segments, *labels = tiny.cut_batch(feed, plan, number)
            np.testing.assert_array_equal(segments, recordings.crop(rows, starts, SAMPLES))
            assert len(labels) == len(plan.labels)
    room = recordings.lengths[task.draw(0, 2000).rows] - SAMPLES
    starts = task.draw(0, 2000).starts
    assert (starts >= 0).all()
    assert (starts <= room).all()
    assert (starts == room).any()
    assert (starts == 0).any()


def test_half_a_batch_is_of_the_target_and_half_pseudo_anomalous(recordings):
    task, *_ = serial_oe_task(recordings)
    rows = task.draw(0, 1000).rows
    assert rows.shape == (1000, 8)
    positives, negatives = rows[:, :4].reshape(-1, 10), rows[:, 4:].ravel()
    np.testing.assert_array_equal(np.sort(positives, 1), np.tile(np.sort(TRAIN[0]), (400, 1)))
    np.testing.assert_array_equal(np.unique(negatives), TRAIN[1])
    counts = np.bincount(negatives)[20:26]
    assert counts.max() - counts.min() <= 1


def test_labels_are_t_mac_and_the_one_hot_t_id_with_zero_rows_for_the_others(recordings):
    task, *_ = serial_oe_task(recordings)
    rows, _, (machine, product) = task.draw(0, 10)
    np.testing.assert_array_equal(machine, np.tile([1, 1, 1, 1, 0, 0, 0, 0], (10, 1)))
    expected = [[[float(PRODUCTS[row] == c) for c in range(3)] for row in step] for step in rows]
    np.testing.assert_array_equal(product, expected)
    assert (machine.dtype, product.dtype) == (np.float32, np.float32)


@pytest.mark.parametrize("make", [autoencoder_task, serial_oe_task])
def test_a_plan_follows_from_seed_and_steps_whatever_is_drawn_at_once(recordings, make):
    def draw(seed, first, count):
        return make(recordings, seed=seed)[0].draw(first, count)

    whole = draw(0, 0, 20)
    for first, count in ((0, 20), (5, 1), (6, 11)):
        jax.tree.map(
            lambda a, b, at=slice(first, first + count): np.testing.assert_array_equal(a, b[at]),
            draw(0, first, count),
            whole,
        )
    other = draw(1, 0, 20)
    assert (whole.rows != other.rows).any()
    assert (whole.starts != other.starts).mean() > 0.5
    assert (whole.starts[1:] != whole.starts[:-1]).mean() > 0.5


# Validation batches


def test_the_autoencoder_validates_the_beginning_of_every_recording_once(recordings):
    task, *_ = autoencoder_task(recordings)
    rows, starts = validate(task)
    assert task.validation.rows.shape == (2, 4)
    np.testing.assert_array_equal(np.sort(rows), VALIDATION[0])
    assert not starts.any()


@pytest.mark.parametrize("negatives", [2, 4, 40])
def test_serial_oe_validates_every_positive_once_beside_as_many_negatives(negatives):
    recordings = tiny.Recordings([SAMPLES] * 80)
    products = np.r_[PRODUCTS, np.full(50, -1)]
    others = np.arange(26, 26 + negatives)
    task, *_ = make_serial_oe_task(
        tiny.make_config(), recordings, products, products > 0, TRAIN, (VALIDATION[0], others), 0
    )
    rows, starts = validate(task)
    assert task.validation.rows.shape == (2, 8)
    assert task.validated == 14
    np.testing.assert_array_equal(np.sort(rows[rows < 20]), VALIDATION[0])
    drawn = rows[rows >= 20]
    assert len(drawn) == len(VALIDATION[0])
    assert np.isin(drawn, others).all()
    assert len({*drawn}) == min(negatives, len(drawn))  # starts over only when all were drawn
    assert not starts.any()
    machine, product = task.validation.labels
    np.testing.assert_array_equal(machine.ravel()[:14], rows < 20)
    np.testing.assert_array_equal(product.sum(-1), machine)


NONE = np.array([], int)


@pytest.mark.parametrize("validation", [(NONE, VALIDATION[1]), (VALIDATION[0], NONE)])
def test_without_positives_or_negatives_serial_oe_is_not_validated(recordings, validation):
    task, *_ = serial_oe_task(recordings, validation=validation)
    assert (len(task.validation.rows), task.validated) == (0, 0)


def test_without_validation_recordings_the_autoencoder_is_not_validated(recordings):
    task, *_ = autoencoder_task(recordings, validation=NONE)
    assert (len(task.validation.rows), task.validated) == (0, 0)


# Losses


class HalvingAutoencoder:
    """Reconstructs half of every vector, in training a quarter."""

    def extract(self, segments):
        return segments.reshape(len(segments), -1, 10)

    def __call__(self, vectors, *, train):
        return vectors / (4 if train else 2)


def test_the_autoencoder_learns_equation_1_and_is_validated_by_equation_2(recordings):
    task, *_ = autoencoder_task(recordings)
    batch = draw_batch(task)
    vectors = np.float64(batch[0]).reshape(-1, 10)
    loss = task.loss(HalvingAutoencoder(), batch, jax.random.key(0), 0.5)
    expected = np.sum((0.75 * vectors) ** 2) / vectors.size
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    losses = task.validation_loss(HalvingAutoencoder(), batch)
    expected = ((0.5 * vectors) ** 2).reshape(4, -1).mean(1)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


class LinearSerialOE:
    """f_D is the first eight samples; g_mac the first of them, g_id the next three."""

    spread = None

    def __init__(self):
        self.calls = []

    def __call__(self, segments, **mode):
        self.calls.append((np.asarray(segments, np.float64), mode))
        return segments[:, :8]

    def classify_machine(self, features):
        return features[:, 0]

    def classify_product(self, features):
        return features[:, 1:4]


def serial_oe_losses(features, machine, product, weight):
    """Eqs. 3 to 6 row by row in float64."""

    def bce(p, logit):
        q = 1 / (1 + np.exp(-logit))
        return -(p * np.log(q) + (1 - p) * np.log(1 - q))

    return bce(machine, features[:, 0]) + weight * bce(product, features[:, 1:4]).mean(1)


def test_serial_oe_learns_mixed_waveforms_under_equally_mixed_labels(recordings):
    task, *_ = serial_oe_task(recordings)  # mixes every batch
    segments, machine, product = map(np.asarray, draw_batch(task))
    model = LinearSerialOE()
    loss = task.loss(model, (segments, machine, product), jax.random.key(1), 0.5)
    ((mixed, mode),) = model.calls
    assert mode["train"] is True
    assert mode["key"] is not None
    # The shares of the eight recordings in each mixed one; noise is linearly independent.
    shares = np.linalg.lstsq(segments.T.astype(np.float64), mixed.T, rcond=None)[0].T
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-5)
    assert ((shares > 0.01) & (shares < 0.99)).any()
    expected = serial_oe_losses(mixed, shares @ machine, shares @ product, 5).mean()
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("schedule", "progress", "mixes"),
    [("ramp_up", 0.0, False), ("ramp_up", 0.5, True), ("ramp_down", 0.0, True)],
)
def test_mix_up_follows_its_schedule(recordings, schedule, progress, mixes):
    config = tiny.make_config()
    config.serial_oe.mixup_schedule = schedule
    config.serial_oe.product_weight = 2.0
    task, *_ = serial_oe_task(recordings, config)
    batch = draw_batch(task)
    model = LinearSerialOE()
    loss = task.loss(model, batch, jax.random.key(2), jnp.float32(progress))
    ((seen, _),) = model.calls
    assert (np.abs(seen - batch[0]).max() > 1e-3) == mixes
    if not mixes:
        expected = serial_oe_losses(*batch, 2).mean()
        np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_mix_up_and_dropout_use_different_keys(recordings):
    task, *_ = serial_oe_task(recordings)
    model, batch = LinearSerialOE(), draw_batch(task)
    keys = [jax.random.key(seed) for seed in (3, 4)]
    for key in keys:
        task.loss(model, batch, key, 0.5)
    used = [jax.random.key_data(mode["key"]).tolist() for _, mode in model.calls]
    assert used[0] != used[1]
    assert used[0] != jax.random.key_data(keys[0]).tolist()


def test_validation_neither_mixes_nor_drops(recordings):
    task, *_ = serial_oe_task(recordings)
    batch = tiny.cut_batch(task.open_feeds(make_mesh(1))[1], task.validation)
    model = LinearSerialOE()
    losses = task.validation_loss(model, batch)
    ((seen, mode),) = model.calls
    np.testing.assert_array_equal(seen, batch[0])
    assert mode == {"train": False}
    np.testing.assert_allclose(losses, serial_oe_losses(*batch, 5), rtol=1e-5)


# Schedules and optimisers


@pytest.mark.parametrize(("positives", "steps"), [(1, 1), (64, 1), (65, 2), (5112, 80)])
def test_an_epoch_of_the_papers_serial_oe_is_its_positives_by_64(positives, steps):
    train = np.arange(positives), np.arange(positives, positives + 3)
    products = np.r_[np.zeros(positives, int), [-1] * 3]
    _, schedule, _ = make_serial_oe_task(
        default.get_config(), None, products, products > 0, train, (NONE, NONE), 0
    )
    assert schedule == (150, steps, 5, 60.0)


@pytest.mark.parametrize(("recordings", "steps"), [(1, 1), (16, 1), (17, 2), (5112, 320)])
def test_an_epoch_of_the_papers_autoencoder_is_its_recordings_by_16(recordings, steps):
    config = default.get_config()
    _, schedule, _ = make_autoencoder_task(config, None, np.arange(recordings), NONE, 0)
    assert schedule == (1500, steps, 5, 60.0)


def test_serial_oe_takes_its_steps_one_by_one_on_a_cpu_and_the_autoencoder_in_a_loop(recordings):
    assert jax.default_backend() == "cpu"
    assert not serial_oe_task(recordings)[0].looped
    assert autoencoder_task(recordings)[0].looped


def take_steps(optimizer, steps):
    """How far every step goes along a constant gradient, and the rates that it reports."""
    weights, update = jnp.zeros(()), jax.jit(optimizer.update)
    state, sizes, rates = optimizer.init(weights), [], []
    for _ in range(steps):
        change, state = update(jnp.full((), 7.0), state, weights)
        weights = optax.apply_updates(weights, change)
        sizes.append(-float(change))
        rates.append(float(getattr(state, "hyperparams", {}).get("learning_rate", np.nan)))
    return np.array(sizes), np.array(rates)


def test_the_autoencoder_has_adam_with_a_fixed_rate(recordings):
    sizes, _ = take_steps(autoencoder_task(recordings)[2], 9)
    np.testing.assert_allclose(sizes, 1e-3, rtol=1e-4)


def test_serial_oe_has_one_cycle_over_all_its_steps(recordings):
    config = tiny.make_config()
    config.serial_oe.epochs = 10
    _, schedule, optimizer = serial_oe_task(recordings, config)
    assert schedule.epochs * schedule.steps_per_epoch == 30
    sizes, rates = take_steps(optimizer, 30)
    assert rates.argmax() == 8  # 0.3 * 30 - 1
    np.testing.assert_allclose(rates[[0, 8, 29]], [4e-5, 1e-3, 4e-9], rtol=1e-3)
    np.testing.assert_allclose(sizes, rates, rtol=0.3)  # beta1 and so the correction cycles


# Which recordings the experiment gives to which list


@pytest.fixture(scope="module")
def clips():
    """Three machines with three sections: source and target, training and test recordings."""
    rows = [
        (machine, split, section, domain, i)
        for machine in ("fan", "pump", "valve")
        for section in (0, 1, 4)
        for split, domain, count in (
            ("train", "source", 20),
            ("train", "target", 3),
            ("test", "source", 2),
            ("test", "target", 2),
        )
        for i in range(count)
    ]
    clips = pd.DataFrame(rows, columns=["machine", "split", "section", "domain", "number"])
    clips["clip"] = [
        f"section_{r.section:02d}_{r.domain}_{r.split}_{r.number:04d}.wav"
        for r in clips.itertuples()
    ]
    clips["usable"] = (clips["machine"] == "valve") | (clips["number"] != 1)
    return clips.sample(frac=1, random_state=0).reset_index(drop=True)


@pytest.fixture(scope="module")
def drawn(clips, tmp_path_factory):
    """Rows that training and validation of both networks on pumps use, and their labels."""
    recordings = tiny.Recordings(np.full(len(clips), SAMPLES))
    uses = {}

    def record(model, optimizer, task, schedule, *, directory, **options):
        steps = 5 * schedule.steps_per_epoch
        plan = task.draw(0, steps)
        uses[directory.name] = SimpleNamespace(
            trained=plan.rows, validated=validate(task)[0], plan=plan, model=model
        )

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(experiment, "fit", record)
        patched.setattr(experiment, "Autoencoder", lambda config, rngs: None)
        patched.setattr(experiment, "SerialOE", lambda config, products, rngs: products)
        for name in ("score_segments", "save_segments"):
            patched.setattr(experiment, name, lambda *args, **options: None)
        experiment.make_segments(
            tiny.make_config(),
            clips,
            recordings,
            "pump",
            0,
            directory=tmp_path_factory.mktemp("run"),
            mesh=None,
            preemption=None,
        )
    return uses


def test_no_recording_of_the_target_is_ever_a_negative_and_no_other_a_positive(clips, drawn):
    of_target = (clips["machine"] == "pump").to_numpy()
    rows = drawn["serial_oe"].trained
    assert of_target[rows[:, :4]].all()
    assert not of_target[rows[:, 4:]].any()
    assert of_target[drawn["ae"].trained].all()
    assert of_target[drawn["ae"].validated].all()


def test_no_validation_or_test_recording_is_ever_trained_on(clips, drawn):
    training = (clips["split"] == "train").to_numpy() & clips["usable"].to_numpy()
    trained, validated = (
        np.concatenate([np.ravel(getattr(uses, kind)) for uses in drawn.values()])
        for kind in ("trained", "validated")
    )
    assert not np.isin(trained, validated).any()
    assert training[trained].all()
    assert training[validated].all()


def test_both_networks_share_the_papers_split_of_the_target(clips, drawn):
    autoencoder, serial_oe = drawn["ae"], drawn["serial_oe"]
    trained, validated = np.unique(autoencoder.trained), np.sort(autoencoder.validated)
    np.testing.assert_array_equal(np.unique(serial_oe.trained[:, :4]), trained)
    np.testing.assert_array_equal(np.sort(serial_oe.validated[: len(validated)]), validated)
    ours = (clips["machine"] == "pump") & (clips["split"] == "train") & clips["usable"]
    both = np.sort(np.concatenate([trained, validated]))
    np.testing.assert_array_equal(both, np.flatnonzero(ours))
    # In each of three sections 16 of 19 usable source recordings and one of two of the target.
    kinds = clips.iloc[trained].groupby(["section", "domain"]).size()
    assert kinds.tolist() == 3 * [16, 1]


def test_the_product_id_is_the_section_counted_from_0(clips, drawn):
    serial_oe = drawn["serial_oe"]
    assert serial_oe.model == 3  # products
    rows, _, (machine, product) = serial_oe.plan
    sections = clips["section"].to_numpy()[rows]
    assert (machine == [1, 1, 1, 1, 0, 0, 0, 0]).all()
    expected = (sections[..., None] == [0, 1, 4]) & (machine[..., None] == 1)
    np.testing.assert_array_equal(product, expected)
