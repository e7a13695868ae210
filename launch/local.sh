#!/usr/bin/env bash
# One machine, all its devices. The flags are those of `python -m dns_jax.main`:
#   launch/local.sh --config=configs/fan.py --workdir=runs/fan --config.data_dir=DIR
# Stop it whenever you like, also by SIGTERM: the same command goes on where it stopped.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=$root/.venv/bin/python
[[ -x $python ]] || python=python3

"$python" -c '
import jax
first = jax.devices()[0]
print(f"dns_jax: {jax.device_count()} x {first.device_kind} ({first.platform})")
'
exec "$python" -m dns_jax.main "$@"
