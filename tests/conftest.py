"""What every test shares: eight virtual CPU devices, and where the real recordings lie."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def realdata() -> Path:
    """`../shared/realdata`: real recordings and scores, which are never part of this project."""
    path = Path(__file__).resolve().parents[2] / "shared" / "realdata"
    if not path.is_dir():
        pytest.skip(f"needs the real recordings at {path}")
    return path
