#!/bin/bash
# A run and its workers as tasks of one job: no ports. DIR is the URL of an object store, or
# file:///DIR in a file system that all nodes mount. When the time is over, submit it again: it
# resumes.
#
#     DIR=file:///shared/$USER/run sbatch slurm-workers.sh mine.toml
#
#SBATCH --job-name=twinlens
#SBATCH --ntasks=16 --cpus-per-task=8 --mem-per-cpu=2G
#SBATCH --time=24:00:00
set -euo pipefail
: "${DIR:?the run directory}"
export DIR PIPELINE=$1 XDG_CACHE_HOME=${TMPDIR:-/tmp}
srun bash -c '
    if [ "$SLURM_PROCID" = 0 ]; then
        exec twinlens run "$PIPELINE" --dir "$DIR" --workers
    fi
    exec twinlens work "$DIR" --threads 8 --memory 4GiB --idle 30m'
