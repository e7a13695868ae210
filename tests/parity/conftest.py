"""Parity with PyTorch: both sides in float64, then float32; the errors are listed at the end.

Without PyTorch all but the front ends are skipped; docs/fidelity.md says how to install it.
"""

import jax
import numpy as np
import pytest

BOUNDS = {np.dtype(np.float64): 1e-8, np.dtype(np.float32): 1e-4}

_LARGEST = pytest.StashKey[dict]()  # {part: (error, bound)}


@pytest.fixture(params=[np.float64, np.float32], ids=["float64", "float32"])
def dtype(request):
    """Give the number type of both sides, with x64 on for float64."""
    with jax.enable_x64(request.param is np.float64):
        yield np.dtype(request.param)


@pytest.fixture
def compare(request):
    """Assert that two arrays, or two {name: array}, agree and note the error.

    The error is the norm of the difference over the norm of the reference; of several arrays, the
    largest norm of a difference over the largest norm of a reference.
    """
    largest = request.config.stash.setdefault(_LARGEST, {})

    def compare(part, ours, reference, bound=None):
        if not isinstance(reference, dict):
            ours, reference = {part: ours}, {part: reference}
        assert ours.keys() == reference.keys()
        ours, reference = (
            {k: np.asarray(v) for k, v in side.items()} for side in (ours, reference)
        )
        (kind,) = {array.dtype for array in reference.values()}
        for name, array in reference.items():
            assert (ours[name].shape, ours[name].dtype) == (array.shape, kind), name
        bound = bound or BOUNDS[kind]
        scale = max(np.linalg.norm(array) for array in reference.values())
        errors = {name: np.linalg.norm(ours[name] - reference[name]) / scale for name in reference}
        worst = max(errors, key=errors.get)
        before, _ = largest.get((part, kind.name), (0.0, bound))
        largest[part, kind.name] = max(before, errors[worst]), bound
        assert errors[worst] <= bound, f"{part}, {worst}: {errors[worst]:.2g} > {bound}"

    return compare


def pytest_terminal_summary(terminalreporter, config):
    """Print the largest error of every part."""
    largest = config.stash.get(_LARGEST, {})
    if largest:
        terminalreporter.section("parity with the references: largest relative error")
        for (part, kind), (error, bound) in sorted(largest.items()):
            terminalreporter.line(f"{part:<60} {kind}  {error:.1e}  (bound {bound:.0e})")
