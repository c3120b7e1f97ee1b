from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from sseg_nase.provenance import git
from sseg_nase.provenance.git import git_commit, git_diff, origin


def test_git_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        done = subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, capture_output=True, check=True, text=True
        )
        return done.stdout.strip()

    assert git_commit(tmp_path / "nowhere") is None
    git("init")
    (tmp_path / "code").mkdir()
    (tmp_path / "untracked").mkdir()
    (tmp_path / "code" / "a.py").write_text("")
    git("add", "code")
    assert git_commit(tmp_path / "code") is None
    git("commit", "-m", "first")
    commit = git("rev-parse", "HEAD")
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert git_commit(tmp_path / "code") == commit
    assert git_commit(tmp_path / "untracked") is None
    monkeypatch.setenv("PATH", "")
    assert git_commit(tmp_path / "code") is None


def test_git_diff_has_what_the_commit_does_not(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True
        )

    (tmp_path / "code").mkdir()
    (tmp_path / "conf.yaml").write_text("lr: 1\n")
    (tmp_path / "code" / "a.py").write_text("x = 1\n")
    assert git_diff(tmp_path / "code") is None
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    assert git_diff(tmp_path / "code") == ""
    (tmp_path / "conf.yaml").write_text("lr: 2\n")
    diff = git_diff(tmp_path / "code")
    assert diff is not None
    assert "-lr: 1" in diff
    assert "+lr: 2" in diff
    git("add", ".")  # also what is ready to be committed
    git("config", "diff.relative", "true")  # and what lies beside the folder
    assert git_diff(tmp_path / "code") == diff


def test_who_runs_which_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(git, "_own_commit", lambda: "f00")
    monkeypatch.setattr(git.getpass, "getuser", lambda: "bob")
    assert origin() == {
        "mlflow.user": "bob",
        "mlflow.source.name": "sseg-nase",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": "f00",
    }


@pytest.mark.parametrize("error", [KeyError("uid not found"), OSError("no name"), ImportError()])
def test_a_user_without_a_name_has_no_tag(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown() -> str:
        raise error

    monkeypatch.setattr(git, "_own_commit", lambda: None)
    monkeypatch.setattr(git.getpass, "getuser", unknown)
    assert origin() == {"mlflow.source.name": "sseg-nase", "mlflow.source.type": "LOCAL"}
