"""jobs/slurm.sh, with stand-ins for Slurm's commands."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.runs import ROOT, options

STAND_INS = {
    "scontrol": "echo 127.0.0.1",
    "srun": """"$@" & one=$!
"$@" & two=$!
trap 'kill -TERM $one $two' TERM
echo $$ > "$SRUN_PID"
wait  # which a signal ends
wait $one $two""",
}


@pytest.mark.slow
def test_a_slurm_job_that_ends_early_and_is_submitted_again_resumes(built, tokenizer_folder, tmp_path):
    """Two nodes of one process each, on this machine."""
    for name, script in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").write_text(f"PATH={tmp_path}:{Path(sys.executable).parent}:$PATH; cd {ROOT}")
    nodes = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "1", "SLURM_JOB_ID": "1"}
    arguments = options(built, tokenizer_folder, tmp_path / "runs", max_steps=60, per_device_train_batch_size=4)
    command = ["bash", ROOT / "jobs/slurm.sh", *arguments]
    environment = {**os.environ, **nodes, "SRUN_PID": str(tmp_path / "pid"), "OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT}
    folder = tmp_path / "runs/hybrid-shift-64"
    with open(tmp_path / "log", "w+") as log:
        job = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT)
        while job.poll() is None and not list(folder.glob("step_*")):
            time.sleep(0.2)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
        job.wait(120)
        stopped = max(int(kept.name.split("_")[1]) for kept in folder.glob("step_*"))
        again = subprocess.run(command, cwd=tmp_path, env=environment, stdout=log, stderr=log, timeout=600)
        log.seek(0)
        printed = log.read()
    assert again.returncode == 0, printed
    assert 3 <= stopped < 60 and f"step_{stopped:06}" in printed and (folder / "best").is_dir()
