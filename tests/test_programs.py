"""The thread that prepares programs, how long they are, and that it is gone whatever happens."""

import threading
import time

import jax
import numpy as np
import pytest

from dns_jax.programs import Ahead, Program, choose_count


def make_ahead(prepare, end=10, per_epoch=5, capacity=5, first=0):
    return Ahead(Program(prepare, None, capacity), first, end, per_epoch)


def count_threads():
    return sum(thread.name.startswith("batches") for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def no_thread_is_left():
    assert not count_threads()
    yield
    assert not count_threads()


@pytest.mark.parametrize(
    ("steps", "seconds", "count"),
    [
        (100, 1.0, 100),  # a second's worth
        (100, 0.01, 320),  # no more than the plan has room for
        (3, 7.5, 1),  # a step that takes longer than a second is a program
        (10, 4.0, 2),
        (1, 0.0, 320),  # a clock that has not moved
    ],
)
def test_a_program_takes_about_a_second_and_at_least_one_step(steps, seconds, count):
    assert choose_count(steps, seconds, 320) == count


def test_programs_come_in_order_with_their_batches_and_end_with_the_training():
    with make_ahead(lambda first, count: (first, count), first=3) as ahead:
        taken = []
        for first, count, batches in ahead:
            assert batches == (first, count)
            taken += range(first, first + count)
    assert taken == list(range(3, 10))


def test_programs_grow_when_steps_are_fast_and_never_cross_an_epoch(monkeypatch):
    monkeypatch.setattr(time, "monotonic", iter(np.arange(1000) * 1e-6).__next__)
    taken = []
    with make_ahead(lambda *_: None, end=60, per_epoch=10, capacity=8) as ahead:
        for first, count, _ in ahead:
            taken.append((first, count))
            ahead.pace(first + count)
    assert max(count for _, count in taken) == 8
    assert all(first // 10 == (first + count - 1) // 10 for first, count in taken)
    assert [first + count for first, count in taken] == [first for first, _ in taken[1:]] + [60]


def test_time_before_a_mark_does_not_count(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    with make_ahead(lambda *_: None, end=1000, per_epoch=1000, capacity=1000) as ahead:
        clock[0] += 100.0  # a compilation, a validation, a checkpoint
        ahead.mark(7)
        clock[0] += 0.5
        ahead.pace(57)
        counts = [next(ahead)[1] for _ in range(3)]
    assert counts == [100] * 3


def test_two_programs_are_prepared_ahead_and_no_more():
    asked = []
    prepared = threading.Semaphore(0)

    def prepare(first, count):
        asked.append(first)
        prepared.release()

    with make_ahead(prepare) as ahead:
        for taken in range(4):
            next(ahead)
            while len(asked) < taken + 3:
                assert prepared.acquire(timeout=10)
            time.sleep(0.02)
            assert asked == list(range(taken + 3))


def test_the_wait_is_that_for_the_thread_alone():
    gate = threading.Event()

    def prepare(first, count):
        if first == 1:
            gate.wait(10)

    with make_ahead(prepare) as ahead:
        next(ahead)
        before = ahead.waited
        threading.Timer(0.2, gate.set).start()
        next(ahead)
        assert 0.1 < ahead.waited - before < 5
        time.sleep(0.2)  # a step; the next program is ready
        before = ahead.waited
        next(ahead)
        assert ahead.waited - before < 0.1


class Broken(Exception):
    pass


def test_an_exception_of_the_thread_is_raised_where_its_program_is_taken():
    def prepare(first, count):
        if first == 2:
            raise Broken("the cache is gone")

    with make_ahead(prepare) as ahead:
        assert [next(ahead)[0] for _ in range(2)] == [0, 1]
        with pytest.raises(Broken, match="the cache is gone"):
            next(ahead)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_no_thread_is_left_after_any_way_out(error):
    asked = []

    def prepare(first, count):
        asked.append(first)
        time.sleep(0.3 * (first == 1))

    def train():
        with make_ahead(prepare, end=1000) as ahead:
            next(ahead)
            raise error

    with pytest.raises(error):
        train()
    assert 2 not in asked  # it was asked for, and is not waited for


def test_a_loop_that_is_left_early_leaves_no_thread():
    with make_ahead(lambda *_: None) as ahead:
        for _ in ahead:
            break
    assert not count_threads()


def test_the_thread_may_place_arrays_on_devices():
    with make_ahead(lambda first, count: jax.device_put(np.full(3, first))) as ahead:
        for first, _, array in ahead:
            np.testing.assert_array_equal(array, first)


def test_a_pace_taken_where_no_step_was_done_stays_what_it_was():
    program = Program(lambda first, count: None, None, capacity=8)
    with Ahead(program, 0, 100, 50) as ahead:
        next(ahead)
        ahead.pace(1)
        ahead.mark(1)
        ahead.pace(1)
        assert [next(ahead)[1] for _ in range(4)][-1] == 8
