#!/usr/bin/env bash
# Several machines under SLURM. From the repository, with `.venv` and --workdir on a shared disk:
#   sbatch --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 --gpu-bind=none launch/slurm.sh \
#     --config=configs/fan.py --workdir=runs/fan --config.data_dir=DIR  # one task a GPU
#SBATCH --job-name=dns_jax
#SBATCH --output=dns_jax-%j.log
#SBATCH --signal=TERM@120
#SBATCH --open-mode=append
# SIGTERM comes 120 s before the time is up and saves; the same sbatch goes on where it stopped. To
# stop it by hand: scancel --signal=TERM JOB. JAX gives each task the GPU of its number on the
# machine, so all must be seen by all (--gpu-bind=none); without GPUs: --ntasks-per-node=1.
set -euo pipefail

# SLURM runs a copy of this script elsewhere, in the directory of the call.
python=${SLURM_SUBMIT_DIR:-$PWD}/.venv/bin/python
[[ -x $python ]] || python=python3

# A proxy between the machines would have them wait for each other for ever.
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY all_proxy ALL_PROXY

exec srun --kill-on-bad-exit=1 --label "$python" -u -m dns_jax.main --distributed "$@"
