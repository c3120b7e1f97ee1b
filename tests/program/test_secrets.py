"""A password given in an address or in the environment is in nothing that is written."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from sseg_nase import redaction
from sseg_nase.cli import main
from sseg_nase.config.compose import load
from sseg_nase.errors import UserError
from sseg_nase.files import append_line, write_json
from sseg_nase.redaction import (
    ADDRESS_VARIABLES,
    SECRET_VARIABLES,
    Redacting,
    guard_output,
    overrides_without,
    plainly,
    redacted,
    use,
)
from sseg_nase.run import run
from sseg_nase.rundir.directory import RunDirectory
from sseg_nase.sweeps.deliver import deliver
from sseg_nase.sweeps.folder import create
from sseg_nase.sweeps.plan import plan
from sseg_nase.tracking.mlflow_sink import open_store, reason, resolve_uri

SECRET = "S3cret-Pw9"
# Nothing listens on port 9.
ADDRESS = f"http://bob:{SECRET}@127.0.0.1:9"
TINY = [
    "debug=tiny",
    "hardware=cpu",
    "hardware.threads=1",
    "ablation=A1",
    "evaluation.episodes=2",
    "evaluation.shots=[1]",
]

pytestmark = pytest.mark.filterwarnings("ignore")  # what MLflow stands on is full of them


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test leaves its passwords to the next one."""
    for name in (*SECRET_VARIABLES, *ADDRESS_VARIABLES, redaction.USERNAME):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(redaction, "_known", set())
    monkeypatch.setattr(redaction, "_used_for", None)
    yield
    for name in redaction.VARIABLES:
        os.environ.pop(name, None)


def holding(secret: str, *folders: Path) -> list[Path]:
    """As `grep -r` finds them, also in databases and compressed or binary files."""
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if secret.encode() in path.read_bytes()]


# -- what a run writes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        [f"tracking.uri='{ADDRESS}'"],
        [f"++tracking.uri='{ADDRESS}'"],
        [f'tracking.uri="{ADDRESS}"', "experiment_name=debug"],
    ],
)
def test_nothing_of_a_run_holds_the_password(
    given: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    whole = len(given) == 1 and given[0].startswith("tracking")
    overrides = [*TINY, "tracking=server", *given, f"report.at_end={str(whole).lower()}"]
    directory = run(load(overrides), overrides)
    if whole:
        assert (directory / "report" / "report.html").exists()
        config = load(["task=deliver", f"run={directory}", "tracking.uri=sqlite:///late.db"])
        assert deliver(config, print) == 0
        assert list(Path("mlruns").rglob("config.yaml"))  # it has arrived as an artifact
    assert not holding(SECRET, Path.cwd())
    assert not holding("bob", directory)
    said = capfd.readouterr()
    assert SECRET not in said.out + said.err
    assert "http://127.0.0.1:9" in (directory / "config.yaml").read_text()
    assert "http://127.0.0.1:9" in (directory / "overrides.yaml").read_text()
    # The process has them all the same, as have those that it starts.
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "bob"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == SECRET


def test_nothing_of_a_run_holds_a_password_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", ADDRESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "abcDEF123/+x")
    overrides = [*TINY, "tracking=server", "report.at_end=false"]
    run(load(overrides), overrides)
    overrides = [*TINY, "report.at_end=false"]  # tracking=mlflow, which reads that variable, too
    run(load(overrides), overrides)
    assert len(list(Path("runs").glob("*/*/model/MLmodel"))) == 2  # which are looked at, too
    assert not holding(SECRET, Path.cwd())
    assert not holding("abcDEF123", Path.cwd())
    said = capfd.readouterr()
    assert SECRET not in said.out + said.err


def test_errors_and_tracebacks_hold_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    from sseg_nase import stages

    def failing(*arguments: object) -> None:
        raise RuntimeError(f"Max retries exceeded with {ADDRESS}/api?token=abc123def: refused")

    monkeypatch.setattr(stages.results, "efficiency", failing)
    overrides = [*TINY, "tracking=mlflow", "report.at_end=false"]
    with pytest.raises(RuntimeError):
        run(load(overrides), overrides)
    (status,) = Path("runs").glob("*/*/status.json")
    said = json.loads(status.read_text())
    assert "http://127.0.0.1:9/api?token=*** refused" in said["error"].replace(":  ", ": ") or (
        "token=***" in said["error"]
    )
    assert "Traceback" in said["traceback"]
    assert not holding(SECRET, Path.cwd())
    assert not holding("abc123def", Path.cwd())


def test_nothing_of_a_sweep_that_is_planned_holds_the_password() -> None:
    overrides = [*TINY, "tracking=server", f"tracking.uri='{ADDRESS}'", "seed=0,1"]
    title, planned = plan(overrides)
    config = planned[0].config
    assert config.tracking.uri == "http://127.0.0.1:9"
    shared = overrides_without(overrides)
    create(
        Path("runs"), planned, title=title, shared=shared, settings=config.sweep,
        tracking=config.tracking, code={"commit": None}, diff=f"+ uri = '{ADDRESS}'",
    )  # fmt: skip
    assert list(Path("runs").rglob("code.diff"))
    assert not holding(SECRET, Path.cwd())
    swept = [*TINY, "tracking=server", f"tracking.uri='{ADDRESS}','{ADDRESS}0'"]
    title, planned = plan(swept)
    assert SECRET not in title + "".join(job.label + job.configuration for job in planned)


@pytest.mark.slow
def test_nothing_of_a_sweep_holds_the_password(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sseg_nase", "-m", *TINY, "seed=0,1", "tracking=server"]
    for more in (["sweep.parallel=1"], ["hydra/launcher=submitit_local", "seed=2,3"]):
        given = [each for each in command if not each.startswith("seed")]
        seeds = [each for each in more if each.startswith("seed")] or ["seed=0,1"]
        others = [each for each in more if not each.startswith("seed")]
        done = subprocess.run(
            [*given, *seeds, *others, f"tracking.uri='{ADDRESS}'"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert SECRET not in done.stdout + done.stderr
    assert len(list(tmp_path.glob("runs/debug/*/results.json"))) == 4
    assert not holding(SECRET, tmp_path)


def test_the_server_is_asked_with_user_and_password() -> None:
    seen: list[str | None] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path != "/health":
                seen.append(self.headers.get("Authorization"))
            self.send_response(200 if self.path == "/health" else 401)
            self.end_headers()
            self.wfile.write(b"who are you?")

        do_POST = do_GET  # noqa: N815 - the name is http.server's

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Server)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        place = f"127.0.0.1:{server.server_port}"
        uri = resolve_uri(f"http://bob:p%40ss%2Fw@{place}/")
        assert uri == f"http://{place}"
        with pytest.raises(Exception, match="401") as refused:
            open_store(uri, "e")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert base64.b64decode(str(seen[0]).removeprefix("Basic ")) == b"bob:p@ss/w"
    assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in reason(refused.value)


# -- the door --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("http://bob:pw@host:5000/x", "http://host:5000/x"),
        ("see https://bob@host, and mail me@home", "see https://host, and mail me@home"),
        ("http://bob:p@ss@host/x", "http://host/x"),
        ("http://bob:it's@host/", "http://host/"),
        ("postgresql+psycopg2://u:p@db/x", "postgresql+psycopg2://db/x"),
        ("http://h/x?token=abc&a=1", "http://h/x?token=***&a=1"),
        ("http://h/x?a=1&X-Amz-Signature=ab12", "http://h/x?a=1&X-Amz-Signature=***"),
        ("http://h/x?access_token=abc#top", "http://h/x?access_token=***#top"),
        ("http://h/x#access_token=abc", "http://h/x#access_token=***"),
        ("tracking.uri=http://h/x?sig=abc: it has", "tracking.uri=http://h/x?sig=***: it has"),
        ("tracking.uri='bob:pw@host:80'", "tracking.uri='host:80'"),
        ("  uri: bob:pw@host:80", "  uri: host:80"),
        ("tracking.uri=sqlite:///me@work/x.db", "tracking.uri=sqlite:///me@work/x.db"),
        ("MLFLOW_TRACKING_PASSWORD=abc x", "MLFLOW_TRACKING_PASSWORD=*** x"),
        ("'AWS_SESSION_TOKEN': 'abc'", "'AWS_SESSION_TOKEN': '***'"),
        ("Authorization: Basic Ym9iOng=", "Authorization: Basic ***"),
        ('{"authorization": "Bearer abc.def"}', '{"authorization": "Bearer ***"}'),
        ("sqlite:////home/me@work/x.db", "sqlite:////home/me@work/x.db"),
        ("file:///home/me@work", "file:///home/me@work"),
        ("/data//me@work/x", "/data//me@work/x"),
        ("a: b = c, digits/val/5w1s @ 3", "a: b = c, digits/val/5w1s @ 3"),
        ("ssl.temperature=0.5 ?sigma=2", "ssl.temperature=0.5 ?sigma=2"),
    ],
)
def test_what_is_left_of_a_text(text: str, left: str) -> None:
    assert redacted(text) == left


def test_a_password_that_was_used_is_replaced_wherever_it_stands() -> None:
    assert use(f"https://bob:{SECRET}%21@host/x") == "https://host/x"
    assert redacted(f"cut: bob:{SECRET}%21 or {SECRET}! it was") == "cut: *** or *** it was"


@pytest.mark.parametrize("name", ["http_proxy", "HTTPS_PROXY", "all_proxy"])
def test_the_password_of_a_proxy_is_replaced(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, f"http://bob:{SECRET}@proxy:3128")
    assert redacted(f"refused: {SECRET}.") == "refused: ***."


@pytest.mark.parametrize("flag", ["--cfg=job", "--cfg=all", "--cfg=hydra", "--info=config"])
def test_what_hydra_shows_of_a_config_holds_no_password(
    flag: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    GlobalHydra.instance().clear()
    given = ["sseg-nase", flag, "tracking=server", f"tracking.uri='{ADDRESS}'"]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(SystemExit) as ended:
        main()
    shown = "".join(capfd.readouterr())
    assert ended.value.code == 0, shown
    assert "127.0.0.1" in shown
    assert SECRET not in shown


def test_a_password_that_is_a_word_changes_no_other_text() -> None:
    use("https://digits:digits@host")
    assert redacted("dataset=digits in /home/digits") == "dataset=digits in /home/digits"


def test_user_and_password_are_not_sent_to_another_server() -> None:
    use(f"https://bob:{SECRET}@one")
    use("https://one/")
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == SECRET
    use("https://two")
    assert "MLFLOW_TRACKING_PASSWORD" not in os.environ


def test_the_scheme_may_be_written_in_capitals() -> None:
    assert use(f"HTTPS://bob:{SECRET}@host") == "HTTPS://host"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == SECRET


def test_a_user_s_own_variables_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    use("https://one")
    use("https://two")
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == SECRET


def test_a_slash_in_a_password_is_refused_without_showing_it() -> None:
    with pytest.raises(UserError, match="%2F") as refused:
        resolve_uri("http://bob:Se/cretPw1@host:1")
    assert "cretPw1" not in str(refused.value)


def test_all_writers_pass_the_door(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"uri": ADDRESS, ADDRESS: [ADDRESS]})
    append_line(tmp_path / "b.jsonl", {"uri": ADDRESS})
    assert not holding(SECRET, tmp_path)
    json.loads((tmp_path / "a.json").read_text())


def test_what_a_job_prints_passes_the_door() -> None:
    stream = io.StringIO()
    output = Redacting(stream)
    print("half of http://bob:", end="", file=output)
    print(f"{SECRET}@host and more", file=output)
    print("rest", end="", file=output)
    output.flush()
    assert stream.getvalue() == "half of http://host and more\nrest"
    assert output.isatty() is False


def test_pictures_in_a_report_are_passed_on_at_once() -> None:
    picture = "A" * 2_000_000  # minutes, where every letter may begin an address
    text = f"<img src='data:image/png;base64,{picture}'> https://bob:s3cret-{0}@host/x"
    assert redacted(text) == text.replace("bob:s3cret-0@", "")


@pytest.mark.parametrize(
    "name",
    [
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AZURE_STORAGE_ACCESS_KEY",
        "AZURE_STORAGE_CONNECTION_STRING",
    ],
)
def test_the_value_of_a_secret_variable_is_replaced_wherever_it_stands(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, SECRET)
    assert redacted(f"it is {SECRET}, you see") == "it is ***, you see"
    assert redacted(f"{name}: abc, x") == f"{name}: ***, x"  # of another process
    monkeypatch.setenv(name, SECRET[:5])  # occurs by chance
    assert redacted(f"it is {SECRET}") == f"it is {SECRET}"


@pytest.mark.parametrize(
    "name", ["MLFLOW_TRACKING_URI", "MLFLOW_S3_ENDPOINT_URL", "HTTP_PROXY", "HTTPS_PROXY"]
)
def test_the_password_of_an_address_in_the_environment_is_replaced_wherever_it_stands(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, f"http://bob:{SECRET}@host:1/x")
    assert redacted(f"bob, it is {SECRET}") == "bob, it is ***"


def test_a_long_user_without_a_password_is_a_token_and_a_short_one_is_a_name() -> None:
    use("https://bob@host")
    token = "ghp0123456789abcdef"
    use(f"https://{token}@host")
    assert redacted(f"bob has {token}") == "bob has ***"


def test_an_address_without_a_password_keeps_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", SECRET)
    assert use("https://bob@host") == "https://host"
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "bob"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == SECRET


@pytest.mark.parametrize(
    "address", ["http://host:5000/x@y", "https://host/a@b:c", "ftp://bob:pw@host", "sqlite:///a@b"]
)
def test_what_holds_no_user_for_a_server_is_left_as_it_is(address: str) -> None:
    assert use(address) == address
    assert "MLFLOW_TRACKING_USERNAME" not in os.environ


def test_what_is_cut_out_of_overrides_is_known_from_then_on() -> None:
    given = ["seed=1", f"tracking.uri='{ADDRESS}'"]
    assert overrides_without(given) == ["seed=1", "tracking.uri='http://127.0.0.1:9'"]
    assert redacted(f"refused: {SECRET}") == "refused: ***"


@pytest.mark.parametrize("written", ["S3cret-P%21w", "S3cret-P!w"])
def test_a_password_is_known_in_both_ways_of_writing_it(written: str) -> None:
    overrides_without([f"tracking.uri='http://bob:{written}@host'"])
    assert redacted("S3cret-P!w or S3cret-P%21w") == "*** or ***"


def test_a_password_is_known_as_soon_as_a_run_has_a_folder() -> None:
    overrides = ["tracking=server", f"tracking.uri='{ADDRESS}'"]
    RunDirectory.create(load(overrides), overrides).release()
    assert redacted(f"refused: {SECRET}") == "refused: ***"
    assert not holding(SECRET, Path.cwd())


def test_texts_are_found_in_nested_values_and_in_keys() -> None:
    value = {ADDRESS: [ADDRESS, (1, {"x": ADDRESS})], 2: None}
    left = "http://127.0.0.1:9"
    assert plainly(value) == {left: [left, [1, {"x": left}]], 2: None}


def test_both_streams_of_a_process_are_guarded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = {"stdout": io.StringIO(), "stderr": io.StringIO()}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    guard_output()
    guard_output()
    for name, stream in streams.items():
        guarded = getattr(sys, name)
        guarded.write(f"{ADDRESS}\nhalf")
        guarded.flush()
        guarded.flush()
        assert guarded.write(" a line\n") == len(" a line\n")
        assert stream.getvalue() == "http://127.0.0.1:9\nhalf a line\n"
        guarded.write(ADDRESS)
        guarded.flush()  # also what waits for the end of its line
        assert stream.getvalue().endswith("\nhttp://127.0.0.1:9")
        assert guarded._stream is stream
