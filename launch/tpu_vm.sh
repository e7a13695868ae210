#!/usr/bin/env bash
# A Cloud TPU of one worker or many, set up by variables; DRY=1 prints the commands instead:
#   NAME=dns TYPE=v5litepod-16 SHARE=10.0.0.2:/share launch/tpu_vm.sh create install
#   NAME=dns launch/tpu_vm.sh run --config=configs/fan.py --workdir=/mnt/share/fan --config.data_dir=DIR
#   NAME=dns WORKDIR=/mnt/share/fan launch/tpu_vm.sh fetch delete
#
# create: a TPU VM of NAME, ZONE, TYPE and VERSION, as gcloud has them. install: this commit of the
# repository on all workers, with SHARE (an NFS export, as of Filestore) at /mnt/share: several
# workers need it for --workdir and the recordings. run: on all workers, with all flags that follow.
# fetch: WORKDIR into runs/. delete: the TPU VM.
set -euo pipefail

NAME=${NAME:-dns-jax}
ZONE=${ZONE:-us-west4-a}
TYPE=${TYPE:-v5litepod-8}
VERSION=${VERSION:-v2-alpha-tpuv5-lite}
SHARE=${SHARE:-}
WORKDIR=${WORKDIR:-/mnt/share/run}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

do_it() {
  printf '%q ' "$@" && echo
  [[ -n ${DRY:-} ]] || "$@"
}

tpu() {
  do_it gcloud compute tpus tpu-vm "$1" "${@:2}" --zone="$ZONE"
}

on_all() {
  tpu ssh "$NAME" --worker=all --command="$1"
}

create() {
  tpu create "$NAME" --accelerator-type="$TYPE" --version="$VERSION"
}

install() {
  local archive
  archive=$(mktemp -d)/dns_jax.tar.gz
  do_it git -C "$root" archive --format=tar.gz --output="$archive" HEAD
  tpu scp "$archive" "$NAME:dns_jax.tar.gz" --worker=all
  # The workers' own Python may be older than 3.11; uv brings one.
  on_all 'mkdir -p dns_jax && tar -xzf dns_jax.tar.gz -C dns_jax && cd dns_jax &&
    python3 -m pip install -q --user uv && ~/.local/bin/uv venv -q --python 3.12 --clear .venv &&
    ~/.local/bin/uv pip install -q -e ".[tpu]"'
  if [[ -n $SHARE ]]; then
    # A TPU VM that has just started holds the lock of apt; a new export belongs to root.
    local apt="sudo apt-get -o DPkg::Lock::Timeout=300 -q"
    on_all "$apt update && $apt install -y nfs-common && sudo mkdir -p /mnt/share &&
      { mountpoint -q /mnt/share || sudo mount $(printf %q "$SHARE") /mnt/share; } &&
      sudo chmod a+rwx /mnt/share"
  fi
}

run() {
  local flags
  flags=$(printf ' %q' "$@")
  on_all "cd dns_jax && .venv/bin/python -u -m dns_jax.main --distributed$flags"
}

fetch() {
  do_it mkdir -p "$root/runs"
  tpu scp --recurse "$NAME:$WORKDIR" "$root/runs" --worker=0
}

delete() {
  tpu delete "$NAME" --quiet
}

[[ $# -gt 0 ]] || { sed -n '2,10s/^# \?//p' "$0"; exit 2; }
while [[ $# -gt 0 ]]; do
  action=$1
  shift
  case $action in
    run) run "$@"; break ;;
    create | install | fetch | delete) "$action" ;;
    *) echo "tpu_vm.sh: $action: it may be create, install, run, fetch or delete" >&2; exit 2 ;;
  esac
done
