"""The loopback Hub as a fixture: the real client, pointed at it, online for these tests only.

The other tests run with HF_HUB_OFFLINE=1, which huggingface_hub reads when it is imported, as it does HF_ENDPOINT. So
the client's constants are patched while a test uses `hub`, and a process of its own gets `environment(hub, …)`.
"""

import os
import sys
import types

import pytest

from tests.hub.server import HubServer

TOKEN = "hf_loopback_me"


@pytest.fixture(scope="session")
def hub_server():
    server = HubServer()
    yield server
    server.close()


@pytest.fixture
def hub(hub_server, tmp_path, monkeypatch):
    """An empty Hub where the user `me` is logged in, an empty cache, and a client that does not sleep between tries."""
    import huggingface_hub.hf_api
    from huggingface_hub import close_session, constants
    from huggingface_hub.utils import _http

    hub_server.reset()
    for name, value in {
        "ENDPOINT": hub_server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub_server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "HF_HUB_CACHE": str(tmp_path / "hub-cache"),
        "HF_TOKEN_PATH": str(tmp_path / "no-token"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", hub_server.url)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_MUSCALING_CACHE", str(tmp_path / "cache"))
    clock = types.SimpleNamespace(**{k: getattr(_http.time, k) for k in ("time", "monotonic", "perf_counter")})
    clock.sleep = lambda seconds: None
    monkeypatch.setattr(_http, "time", clock)
    monkeypatch.setattr("hf_muscaling.hub.client.WAITS", (0.0, 0.0, 0.0))
    if "datasets" in sys.modules:
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", hub_server.url)
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    close_session()
    yield hub_server
    close_session()


@pytest.fixture
def no_pictures(monkeypatch):
    """Cards without drawing, for tests of other things: a figure takes a second."""
    monkeypatch.setattr("hf_muscaling.hub.laws._figure", lambda *_: None)
    monkeypatch.setattr("hf_muscaling.hub.cards.png", lambda figure: b"\x89PNG")
    monkeypatch.setattr("hf_muscaling.plotting.plot_loss_curves", lambda *_, **__: None)


def environment(hub: HubServer, home: os.PathLike[str] | str, **changes: str) -> dict[str, str]:
    """The environment of a fresh process that talks to the loopback Hub, with caches of its own."""
    own = {
        "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home),
        "HF_TOKEN": TOKEN, "HF_UPDATE_DOWNLOAD_COUNTS": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_MUSCALING_CACHE": f"{home}/muscaling",
        "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    return os.environ | own | changes
