"""The pages on protocols and first steps: every Python example runs, every message is read and written as shown."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import sys
from pathlib import Path

import msgpack
import pytest

from moshi_server.app.closing import CloseCode, closing_for
from moshi_server.audio import wav_bytes
from moshi_server.auth import CODES, Authenticator
from moshi_server.cli.configs import shipped
from moshi_server.client import closing
from moshi_server.errors import MoshiServerError
from moshi_server.protocol import asr, asr_client

from ..app.server import serve
from ..fakes import say

DOCS = Path(__file__).parents[2] / "docs"
PROTOCOLS = (DOCS / "protocols.md").read_text(encoding="utf-8")
TUTORIAL = (DOCS / "tutorial.md").read_text(encoding="utf-8")
CLIENT = (DOCS / "client.md").read_text(encoding="utf-8")
KEY = "public_token"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", blocks(PROTOCOLS, "python") + blocks(TUTORIAL, "python") + blocks(CLIENT, "python"))
async def test_each_example_runs(code, tmp_path):
    (tmp_path / "talk.wav").write_bytes(wav_bytes(say(11, 12, 999, 3, 3)))
    async with serve(auth=Authenticator([KEY])) as server:
        assert "127.0.0.1:8080" in code
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "error", "-c", code.replace("127.0.0.1:8080", f"127.0.0.1:{server.port}"),
            cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, err.decode()) == (0, "")
    if "talk.wav" in code:
        assert "<11><12>" in out.decode() or "invalid_key" in out.decode()


async def test_the_curl_line_posts_a_file(tmp_path):
    (line,) = blocks(PROTOCOLS, "sh")
    words = shlex.split(line)
    name, value = words[words.index("-H") + 1].split(": ")
    async with serve(auth=Authenticator([KEY])) as server:
        answer = await server.post(
            wav_bytes(say(11, 12, 999, 3, 3)), words[-1].partition(":8080")[2], headers={name: value}
        )
    assert answer.status_code == 200
    example = json.loads(blocks(PROTOCOLS, "json")[1])
    assert [(item["type"], sorted(item)) for item in answer.json()] == [
        (item["type"], sorted(item)) for item in example
    ]


@pytest.mark.parametrize("line", "".join(blocks(PROTOCOLS, "hex")).splitlines())
def test_the_bytes_are_those_of_the_message(line):
    text, _, digits = line.partition("}  ")
    message, data = json.loads(text + "}"), bytes.fromhex(digits)
    assert msgpack.unpackb(data) == message
    if message["type"] in ("Ready", "Word"):
        event = asr_client.decode(data)
        assert event is not None
        assert asr.encode(event) == data
    else:
        assert asr_client.encode(asr.decode(data)) == data


@pytest.mark.parametrize("message", re.findall(r"^\| `(\{\"type\".*?\})` \|", PROTOCOLS, re.MULTILINE))
def test_each_message_of_the_tables_is_of_the_protocol(message):
    fields = json.loads(message.replace('b"..."', "[1, 2]"))
    data = msgpack.packb(fields, use_single_float=True)
    from_client = fields["type"] in ("Audio", "OggOpus", "Init")
    assert (asr.decode(data) if from_client else asr_client.decode(data)) is not None
    if not from_client:
        event = asr_client.decode(data)
        assert event is not None
        assert msgpack.unpackb(asr.encode(event)) == fields


def test_every_message_type_is_shown():
    shown = set(re.findall(r'"type": "(\w+)"', PROTOCOLS))
    both, server = {"Audio", "OggOpus", "Marker", "Flush"}, {"Ready", "Word", "EndWord", "Step", "Error"}
    assert shown == both | server | {"Init", "Turn", "GoingAway"}


def test_close_codes_and_errors_are_those_of_the_server_and_the_sdk():
    rows = re.findall(r"^\| (\d{4}) \| .* \| `(\w+)` \|$", PROTOCOLS, re.MULTILINE)
    assert {int(code) for code, _ in rows} == set(CloseCode) - {CloseCode.NORMAL, CloseCode.LOST, CloseCode.NO_STATUS}
    for code, name in rows:
        error = closing.error_of_close(int(code), "why")
        assert type(error).__name__ == name
        assert str(error) == "why"
        assert isinstance(error, MoshiServerError)
        if code != "1002":  # which the server never tells by one of the client's own error types
            assert closing_for(error).code == int(code)


def test_the_codes_of_refusals_are_all_named():
    assert all(f"`{code}`" in PROTOCOLS for code in CODES)


def test_configurations_that_the_tutorial_names_are_shipped():
    named = re.findall(r"(?:--config|configs) ([\w.-]+)", TUTORIAL) + re.findall(r"`(config-[\w-]+)`", TUTORIAL)
    assert named
    assert set(named) <= set(shipped())


@pytest.mark.parametrize("page", [PROTOCOLS, TUTORIAL, CLIENT])
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([\w./-]+\.md)\)", page):
        assert (DOCS / target).is_file(), target
