"""Configurations of runs, for `python -m dns_jax.main --config=FILE`."""
