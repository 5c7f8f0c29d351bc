"""One recording, asked for in every way there is: each gives the same words, the right ones."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator

import msgpack
import numpy as np
import openai
import pytest
import websockets

from moshi_server.audio import read_audio
from moshi_server.cli.demo import API_KEY, running_worker, samples
from moshi_server.client import transcribe

RECORDING = next(path for path in samples() if path.suffix == ".wav")
WORDS = RECORDING.with_suffix(".txt").read_text().strip()
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_worker("demo") as address:
        yield address.replace("ws:", "http:")


def curl(*arguments: str) -> str:
    program = shutil.which("curl")
    if program is None:
        pytest.skip("curl is not installed")
    return subprocess.run([program, "-sSf", *arguments], capture_output=True, text=True, check=True, timeout=60).stdout


def test_our_client(url: str) -> None:
    assert transcribe(RECORDING, url, api_key=API_KEY).text == WORDS


def test_curl_of_upstreams_route(url: str) -> None:
    said = curl("-H", f"kyutai-api-key: {API_KEY}", "--data-binary", f"@{RECORDING}", f"{url}/api/asr-streaming")
    assert " ".join(event["text"] for event in json.loads(said) if event["type"] == "Word") == WORDS


def test_curl_of_openais_route(url: str) -> None:
    form = ("-F", f"file=@{RECORDING}", "-F", "model=whisper-1", "-F", "response_format=text")
    said = curl("-H", f"Authorization: Bearer {API_KEY}", *form, f"{url}/v1/audio/transcriptions")
    assert said.strip() == WORDS


def test_openais_client(url: str) -> None:
    with openai.OpenAI(api_key=API_KEY, base_url=f"{url}/v1") as api:
        assert api.audio.transcriptions.create(file=RECORDING, model="whisper-1").text == WORDS


async def test_a_websocket_by_hand(url: str) -> None:
    words: list[str] = []
    address = f"{url.replace('http:', 'ws:')}/api/asr-streaming?auth_id={API_KEY}"
    async with asyncio.timeout(60), websockets.connect(address) as socket:
        assert msgpack.unpackb(await socket.recv()) == {"type": "Ready"}
        pcm = np.pad(read_audio(RECORDING), (0, 24_000))
        for start in range(0, len(pcm), 1920):
            frame = {"type": "Audio", "pcm": pcm[start : start + 1920].tolist()}
            await socket.send(msgpack.packb(frame, use_single_float=True))
        await socket.send(msgpack.packb({"type": "Marker", "id": 7}))
        while (message := msgpack.unpackb(await socket.recv()))["type"] != "Marker":
            words += [message["text"]] if message["type"] == "Word" else []
    assert " ".join(words) == WORDS


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_browser(url: str) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(url)
        page.evaluate("key => localStorage.setItem('moshi-server-key', key)", API_KEY)
        page.get_by_role("button", name="Transcribe").wait_for()
        page.locator("#file").set_input_files(RECORDING)
        page.locator("#file-progress").wait_for()
        page.locator("#file-progress").wait_for(state="hidden")
        assert " ".join(page.locator("#transcript .word").all_inner_texts()) == WORDS
        browser.close()
