"""A real Slurm of one node: jobs run, are preempted and requeued, and are cancelled."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
LAUNCHER = Path(__file__).parents[3] / "launchers" / "slurm_one_node.sh"

# Says which run of the job it is, and goes on until it has been told to stop. As submitit does, it
# asks for its own requeueing: a job that only ends in its grace time is over.
JOB = """#!/bin/bash
exec srun bash -c '
trap "echo got USR2; scontrol requeue $SLURM_JOB_ID; exit 1" USR2
trap "echo got TERM; exit 1" TERM
echo run ${SLURM_RESTART_COUNT:-0}
for _ in $(seq 600); do sleep 0.1; done'
"""


def slurm_says(env: dict[str, str], *command: str) -> str:
    return subprocess.run(command, env=env, text=True, check=True, capture_output=True).stdout


def submit(env: dict[str, str], script: str, *options: str) -> str:
    command = ["sbatch", "--parsable", "--output=%j.out", "--open-mode=append", *options]
    done = subprocess.run(
        command, env=env, text=True, check=True, capture_output=True, input=script
    )
    return done.stdout.strip()


def state(env: dict[str, str], job: str) -> str:
    found = re.search(r"JobState=(\w+)", slurm_says(env, "scontrol", "show", "job", job))
    assert found
    return found[1]


def wait(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to this in time"
        time.sleep(0.2)


def test_jobs_run_side_by_side(slurm: dict[str, str]) -> None:
    assert slurm_says(slurm, "srun", "echo", "hello") == "hello\n"
    wait_for_other = "#!/bin/bash\ntouch $1; until [[ -e $2 ]]; do sleep 0.1; done\n"
    jobs = []
    for mine, other in (("a", "b"), ("b", "a")):
        script = wait_for_other.replace("$1", mine).replace("$2", other)
        jobs.append(submit(slurm, script, "--time=1"))
    wait(lambda: all(state(slurm, job) == "COMPLETED" for job in jobs))


def test_preempted_job_is_signalled_and_requeued(slurm: dict[str, str], tmp_path: Path) -> None:
    job = submit(slurm, JOB, "--time=10", "--cpus-per-task=2", "--signal=USR2@30", "--requeue")
    output = tmp_path / f"{job}.out"
    wait(lambda: output.exists() and "run 0" in output.read_text())
    urgent = submit(slurm, "#!/bin/bash\nhostname\n", "--partition=urgent", "--cpus-per-task=2")
    wait(lambda: "got USR2" in output.read_text())
    wait(lambda: "run 1" in output.read_text())
    assert state(slurm, urgent) == "COMPLETED"
    slurm_says(slurm, "scancel", job)


def test_scancel_sends_term_to_the_task(slurm: dict[str, str], tmp_path: Path) -> None:
    job = submit(slurm, JOB, "--time=10")
    output = tmp_path / f"{job}.out"
    wait(lambda: output.exists() and "run 0" in output.read_text())
    slurm_says(slurm, "scancel", job)
    wait(lambda: state(slurm, job) == "CANCELLED")
    wait(lambda: "got TERM" in output.read_text())


def test_up_twice_and_down_with_jobs(tmp_path: Path, slurm: dict[str, str]) -> None:
    """A second one beside the first: ports, munge and processes are its own."""

    def launcher(command: str, *options: str) -> subprocess.CompletedProcess[str]:
        call = [str(LAUNCHER), command, "--dir", str(tmp_path / "own"), *options]
        return subprocess.run(call, text=True, capture_output=True, timeout=120)

    partitions = ("--cpus", "3", "--partition", "low", "--partition", "high:5")
    first = launcher("up", *partitions)
    assert first.returncode == 0, first.stderr
    try:
        again = launcher("up", *partitions)
        assert (again.returncode, again.stdout) == (0, first.stdout)
        assert "is up already" in again.stderr
        env = {**slurm, "SLURM_CONF": str(tmp_path / "own" / "slurm.conf")}
        assert slurm_says(env, "sinfo", "-h", "-o", "%P %c").split("\n")[:2] == ["low* 3", "high 3"]
        job = submit(env, "#!/bin/bash\ntrap '' TERM\necho $$ >pid; while :; do sleep 0.1; done\n")
        wait(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() != "")
        assert launcher("status").returncode == 0
        assert state(env, job) == "RUNNING"
    finally:
        down = launcher("down")
    assert down.returncode == 0, down.stderr
    stat = Path("/proc") / (tmp_path / "pid").read_text().strip() / "stat"
    assert not stat.exists() or stat.read_text().rsplit(") ", 1)[1].startswith("Z")
    assert launcher("status").returncode == 1
    assert launcher("down").returncode == 0
    assert slurm_says(slurm, "sinfo", "-h", "-o", "%T").split()[0] in ("idle", "mixed", "allocated")
