"""The Ray Serve deployment: what it is asked to be; with Ray installed two replicas are started and spoken to."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from moshi_server.cli.configs import shipped
from moshi_server.cli.demo import API_KEY, samples
from moshi_server.config import load_config
from moshi_server.errors import ConfigError

pytest.importorskip("ray", reason="ray is not installed (the extra [ray])")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what Ray does at its import is deprecated in pydantic
    import ray
    from ray import serve

    from moshi_server.ray_serve import application, streams_of

from .app.server import free_port

pytestmark = pytest.mark.filterwarnings("ignore")


def test_a_wrong_argument_is_named() -> None:
    with pytest.raises(ConfigError, match="replicas"):
        application({"config": "demo", "replicas": "2"})


def test_the_size_of_a_replica_is_the_configuration_s(tmp_path: Path) -> None:
    assert streams_of(load_config(shipped()["demo"])) == 16
    file = tmp_path / "auto.toml"
    file.write_text(shipped()["demo"].read_text().replace("batch_size = 16", 'batch_size = "auto"'))
    with pytest.raises(ConfigError, match="auto"):
        streams_of(load_config(file))


@pytest.fixture
def url() -> Iterator[str]:
    port = free_port()
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(application({"min_replicas": 2, "max_replicas": 2}), name="speech")
        yield f"ws://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_replicas_hear_a_recording(url: str) -> None:
    from moshi_server.client import transcribe

    spoken = next(path for path in samples() if path.suffix == ".wav")
    words = [word.text for word in transcribe(spoken, url, api_key=API_KEY, timeout=60).words]
    assert words == spoken.with_suffix(".txt").read_text().split()
