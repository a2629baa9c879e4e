#!/bin/bash
# A scheduler, executors and a run as tasks of one job. TWINLENS_CLUSTER_KEY must be set, and DIR be a
# store or file:///DIR in a file system that all nodes mount. When the time is over, submit it again:
# it resumes.
#
#     TWINLENS_CLUSTER_KEY=$(openssl rand -hex 32) DIR=file:///shared/$USER/run sbatch slurm.sh mine.toml
#
#SBATCH --job-name=twinlens
#SBATCH --nodes=8 --ntasks-per-node=1 --cpus-per-task=16 --mem=64G
#SBATCH --time=24:00:00
set -euo pipefail
: "${DIR:?the run directory}" "${TWINLENS_CLUSTER_KEY:?a secret of 16 characters or more}"
export TWINLENS_CLUSTER_KEY
pipeline=$1
address="df://$(hostname):50050"

twinlens scheduler --advertise "$(hostname)" &
scheduler=$!
srun --overlap twinlens executor "$address" --scratch "${TMPDIR:-/tmp}" --memory 32GiB --bytes-in-flight 8GiB &
executors=$!
trap 'kill $executors $scheduler 2>/dev/null || true' EXIT
twinlens run "$pipeline" --dir "$DIR" --on "$address" --patience 10m
