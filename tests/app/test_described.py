"""The API's own description, held against the server by schemathesis, which makes requests from it."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from .server import KEY, Server, serve
from .test_speech import speaking

SCHEMATHESIS = shutil.which("schemathesis", path=str(Path(sys.executable).parent)) or shutil.which("schemathesis")
pytestmark = [
    pytest.mark.skipif(SCHEMATHESIS is None, reason="schemathesis is not installed"),
    pytest.mark.timeout(200),
]


async def examined(server: Server, folder: Path, *, left_out: str) -> None:
    assert SCHEMATHESIS is not None
    process = await asyncio.create_subprocess_exec(
        SCHEMATHESIS, "run", f"{server.http}/api/openapi.json", "-n", "25", "-H", f"kyutai-api-key: {KEY}",
        "--exclude-checks", left_out, "--seed", "1",
        cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()


async def test_speech_to_text_as_it_is_described(tmp_path: Path) -> None:
    async with serve() as server:
        paths = (await server.get("/api/openapi.json")).json()["paths"]
        assert {"/api/asr-streaming", "/v1/audio/transcriptions", "/v1/models", "/api/status"} <= set(paths)
        # Not all bytes are audio, and no schema can say which are.
        await examined(server, tmp_path, left_out="positive_data_acceptance")


async def test_text_to_speech_as_it_is_described(tmp_path: Path) -> None:
    async with speaking() as server:
        description: dict[str, Any] = (await server.get("/api/openapi.json")).json()
        assert {"/api/tts_streaming", "/v1/audio/speech"} <= set(description["paths"])
        assert "kyutai-api-key" in str(description["components"]["securitySchemes"])
        # Which voices and models there are, and what cannot be combined, is not in the schema.
        await examined(server, tmp_path, left_out="positive_data_acceptance")
