"""`task=ui`: the page is served by Streamlit, in this process, until it is interrupted."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from sseg_nase.config.schema import Config
from sseg_nase.errors import UserError

SETTINGS = "SSEG_NASE_PAGE"  # how the page is told; in the environment others cannot read it
PAGE = Path(__file__).with_name("page.py")
MB_PER_GB = 1000


@dataclass(frozen=True)
class Settings:
    """What the page is served with. `token`: who opens it has to know it."""

    output_dir: str
    data_dir: str
    cache_dir: str
    config_dirs: list[str]
    upload_gb: float
    token: str

    @classmethod
    def given(cls) -> Settings:
        """Those that this process was started with."""
        return cls(**json.loads(os.environ[SETTINGS]))


def serve(config: Config, say: Callable[[str], None], *further: Path) -> int:
    """Serve the page; `further` are config folders beside `conf/`. Raises `UserError`."""
    if importlib.util.find_spec("streamlit") is None:
        raise UserError(
            "task=ui: the page needs Streamlit. Install it with: pip install 'sseg-nase[ui]'"
        )
    ui = config.ui
    _check_free(ui.address, ui.port)
    settings = Settings(
        output_dir=str(Path(config.paths.output_dir).expanduser().absolute()),
        data_dir=str(Path(config.paths.data_dir).expanduser().absolute()),
        cache_dir=str(Path(config.paths.cache_dir).expanduser().absolute()),
        config_dirs=[str(folder) for folder in further],
        upload_gb=ui.upload_gb,
        token=secrets.token_urlsafe(16),
    )
    host = f"[{ui.address}]" if ":" in ui.address else ui.address
    # Not by `say`, which leaves tokens out of what it says.
    print(f"http://{host}:{ui.port}/?token={settings.token}", flush=True)
    say("this address is the page, until Ctrl-C; what it starts goes on without it")
    if ui.remote:
        say("ui.remote=true: whoever has this address starts programs as you; it is not encrypted")
    flags = {
        "server.address": ui.address,
        "server.port": ui.port,
        "server.headless": "true",
        "server.enableCORS": "true",
        "server.enableXsrfProtection": "true",
        "server.maxUploadSize": max(1, round(ui.upload_gb * MB_PER_GB)),
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
        "global.developmentMode": "false",
        "client.showErrorDetails": "stacktrace",
        "logger.hideWelcomeMessage": "true",
    }
    given = [f"--{key}={value}" for key, value in flags.items()]
    os.environ[SETTINGS] = json.dumps(asdict(settings))
    os.execv(sys.executable, [sys.executable, "-m", "streamlit", "run", str(PAGE), *given])


def _check_free(address: str, port: int) -> None:
    """Refuse an address that is not this machine's, and a port that is taken."""
    try:
        (family, kind, _, _, where), *_ = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)
        with socket.socket(family, kind) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind(where)
    except OSError as error:
        raise UserError(
            f"ui.address={address} ui.port={port}: the page cannot be served there "
            f"({error.strerror}). Choose another port, such as ui.port={port % 65535 + 1}."
        ) from error
