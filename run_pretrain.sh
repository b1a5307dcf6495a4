#!/usr/bin/env bash
""":"
# Bash and Python at once. A person starts it with bash and gets a run on this machine; DeepSpeed's launcher starts it with
# Python, once per rank; mpiexec and srun start it with bash, once per rank. The launched ranks make no environment.
set -euo pipefail
from=$PWD
cd "$(dirname "$0")"
# CONFIG may be relative to the folder where it is typed; all other paths are relative to this one.
if ! [ "$from" -ef . ] && [[ "${1:-/}" != /* ]] && [ -f "$from/$1" ]; then
  set -- "$from/$1" "${@:2}"
fi
# A Slurm batch script has SLURM_PROCID too, and is no rank; a step of one task is a shell that srun opened, with PMI_RANK or without.
if [ -n "${RANK:-}${MPI_LOCALRANKID:-}${PALS_RANKID:-}${OMPI_COMM_WORLD_RANK:-}" ] || [ "${SLURM_STEP_NUM_TASKS:-1${PMI_RANK:+ of PMI}}" != 1 ]; then
  python=.venv/bin/python
  [ -x "$python" ] || python=python3
  exec "$python" -u run_pretrain.sh "$@"
fi
[ "$from" -ef . ] || echo "run_pretrain.sh: works in $PWD: the paths it prints, and those in CONFIG and in overrides, begin there." >&2
[ -n "${PYTHON:-}" ] && pythons=("$PYTHON") || pythons=(python3.12 python3.11 python3 python)
for python in "${pythons[@]}"; do
  command -v "$python" >/dev/null 2>&1 || { python=; continue; }
  "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && break
  python=
done
[ -n "$python" ] || { echo "run_pretrain.sh: ${PYTHON:-nothing on PATH} is no Python 3.11 or 3.12. Install one, or set PYTHON to its path." >&2; exit 2; }
# One process to the end: bash would hear of no signal while it waits for another.
exec "$python" training/make_venv.py requirements.txt --then .venv/bin/python -u run_pretrain.sh "$@"
: <<'# END OF PYTHON HALF'
":"""
if __name__ == "__main__":  # The workers of a preparation import this file, and must not start it again.
    import os
    import signal
    import sys

    signal.signal(signal.SIGINT, signal.SIG_DFL)  # No traceback of an import that Ctrl-C interrupts.

    from training.launch.world import find_launcher

    if find_launcher(os.environ):
        from training.pretrain import main
    else:
        from training.launch.local import main

    sys.exit(main(sys.argv[1:]))
# END OF PYTHON HALF
