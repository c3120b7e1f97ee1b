"""What a sweep's folder remembers, and which sweeps are the same."""

from __future__ import annotations

from pathlib import Path

from sseg_nase.sweeps.folder import create, identity
from sseg_nase.sweeps.plan import plan


def test_a_launch_takes_back_an_earlier_stop_and_the_order_of_jobs_is_no_other_sweep(
    tmp_path: Path,
) -> None:
    title, jobs = plan(["seed=0,1", "tracking=jsonl", "dataset=digits"])
    assert identity(jobs) == identity(list(reversed(jobs)))
    assert identity(jobs) != identity(jobs[:1])
    settings = jobs[0].config.sweep
    sweep = create(
        tmp_path,
        jobs,
        title=title,
        shared=[],
        settings=settings,
        tracking=jobs[0].config.tracking,
        code={},
        diff=None,
    )
    sweep.stop("a job failed")
    sweep.end("FAILED")
    assert sweep.stopped == "a job failed"
    sweep.begin_launch(settings, None)
    assert sweep.stopped is None
    assert not sweep.ended
