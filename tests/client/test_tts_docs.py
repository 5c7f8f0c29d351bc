"""The page on text to speech: its example runs, its curl line works, and every message is read and written as shown."""

from __future__ import annotations

import ast
import asyncio
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from moshi_server.app.speech import Format, StreamQuery
from moshi_server.app.synthesis import PostQuery
from moshi_server.auth import Authenticator
from moshi_server.events import Audio, Error, OggOpus, Ready, SpokenWord, Text, Voice
from moshi_server.protocol import tts_client

from ..app.test_speech import speaking

PAGE = (Path(__file__).parents[2] / "docs" / "tts.md").read_text(encoding="utf-8")
KEY = "public_token"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


async def test_the_example_runs(tmp_path: Path) -> None:
    (code,) = blocks("python")
    used = """
async def tokens():
    for piece in ("Good mor", "ning, you."):
        yield piece

print([word.text for word in asyncio.run(answer(tokens())).words])
"""
    async with speaking(auth=Authenticator([KEY])) as server:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-W", "error", "-c", (code + used).replace("127.0.0.1:8080", f"127.0.0.1:{server.port}"),
            cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, err.decode()) == (0, "")
    first, second = map(ast.literal_eval, out.decode().splitlines())
    assert [word for word, _, _ in first] == ["Good", "morning."]
    assert second == ["Good", "morning,", "you."]
    assert (tmp_path / "morning.wav").stat().st_size > 44


async def test_the_curl_line_works() -> None:
    (line,) = blocks("sh")
    words = shlex.split(line)
    name, value = words[words.index("-H") + 1].split(": ")
    body = words[words.index("--data") + 1]
    path = next(word for word in words if ":8080" in word).partition(":8080")[2]
    async with speaking(auth=Authenticator([KEY])) as server:
        # As curl sends it, which calls its data a form.
        headers = {name: value, "content-type": "application/x-www-form-urlencoded"}
        answer = await server.post(body, path, headers=headers)
    assert answer.status_code == 200
    assert answer.content[:4] == b"RIFF"


def messages(heading: str) -> list[dict[str, object]]:
    section = PAGE.partition(f"### {heading}\n")[2].partition("\n#")[0]
    shown = re.findall(r"^\| `(\{.*?\})` \|", section, re.MULTILINE)
    return [json.loads(re.sub(r"(, )?\.\.\.", "", text)) for text in shown]


@pytest.mark.parametrize(
    ("heading", "kinds"),
    [
        ("From the client", [Text("x"), Voice(None), None]),
        ("From the server", [Ready(), Audio(None), OggOpus(b""), SpokenWord("x", 0, 0), Error("x")]),
    ],
)
def test_messages_are_as_shown(heading: str, kinds: list[object]) -> None:
    fields = {
        Text: ["type", "text"],
        Voice: ["type", "embeddings", "shape"],
        Ready: ["type"],
        Audio: ["type", "pcm"],
        OggOpus: ["type", "data"],
        SpokenWord: ["type", "text", "start_s", "stop_s"],
        Error: ["type", "message"],
        type(None): ["type"],  # Eos
    }
    assert [list(message) for message in messages(heading)] == [fields[type(kind)] for kind in kinds]


def test_the_servers_messages_are_read_as_shown() -> None:
    import msgpack

    events = [tts_client.decode(msgpack.packb(message)) for message in messages("From the server")]
    assert isinstance(events[2], OggOpus)
    assert events[2].data == b"Og"
    assert events[3] == SpokenWord("morning.", 0.64, 1.04)
    assert events[4] == Error("no free channels")


def test_the_query_is_described_whole() -> None:
    table = PAGE.partition("### The query\n")[2].partition("\n\nUnknown")[0]
    shown = set(re.findall(r"`([a-z_]+)(?:=1)?`", "\n".join(row.split("|")[1] for row in table.splitlines() if row)))
    assert shown == set(StreamQuery.model_fields) | {"auth_id"}
    for name in Format:
        assert f"`{name}`" in table
    for name in PostQuery.model_fields:
        assert name in PAGE
