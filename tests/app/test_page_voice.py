"""The page's other halves in a real browser: text that is spoken, and a conversation, by models that sing and echo."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator
from typing import Any

import pytest

from .server import KEY, Server
from .test_dialogue import talk
from .test_speech import speaking

async_api = pytest.importorskip("playwright.async_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    pytest.mark.timeout(120),
    pytest.mark.xdist_group("browser"),
]


@contextlib.asynccontextmanager
async def page_of(server: Server) -> AsyncIterator[Any]:
    """The server's page, with the key given; Chromium's fake microphone beeps."""
    async with async_api.async_playwright() as playwright:
        options = ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
        options.append("--autoplay-policy=no-user-gesture-required")
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        page = await browser.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        await page.goto(server.http)
        await page.evaluate("key => localStorage.setItem('moshi-server-key', key)", KEY)
        await page.reload()
        yield page
        await browser.close()
        assert not problems


@pytest.mark.parametrize("kind", ["Py", "Tts"])
async def test_a_text_is_spoken_and_its_words_light_up(kind: str) -> None:
    async with speaking(kind=kind) as server, page_of(server) as page:
        voice = page.locator("#voice")
        await page.wait_for_function("() => document.getElementById('voice').options.length === 2")
        assert await voice.input_value() == "alba.wav"
        await async_api.expect(page.locator("nav button")).to_have_text(["Speak", "Status"], use_inner_text=True)
        await page.get_by_role("textbox", name="Text").fill("hello to all of you")
        await page.evaluate(
            """() => {
                window.lit = new Set();
                const look = () => {
                    for (const word of document.querySelectorAll('#spoken .now')) window.lit.add(word.textContent);
                    requestAnimationFrame(look);
                };
                look();
            }"""
        )
        await page.get_by_role("button", name="Speak", exact=True).last.click()
        await page.get_by_role("button", name="Stop").wait_for()
        await page.get_by_role("button", name="Stop").wait_for(state="hidden")
        assert await page.locator("#spoken .word").all_inner_texts() == ["hello", "to", "all", "of", "you"]
        assert (await page.locator("#first-sound").inner_text()).endswith(" ms")
        assert await page.evaluate("[...window.lit]") == ["hello", "to", "all", "of", "you"]
        assert await page.locator("#notice").is_hidden()
        assert server.engines[0].slots_used == 0


async def test_speech_that_cannot_be_is_said() -> None:
    async with speaking() as server, page_of(server) as page:
        await page.wait_for_function("() => document.getElementById('voice').options.length === 2")
        await page.get_by_role("button", name="Speak", exact=True).last.click()
        await page.get_by_text("Write something first.").wait_for()
        await page.evaluate("document.getElementById('voice').options[0].value = 'alva.wav'")
        await page.get_by_role("textbox", name="Text").fill("hello")
        await page.get_by_role("button", name="Speak", exact=True).last.click()
        await page.locator("#notice").filter(has_text="did you mean 'alba.wav'").wait_for()
        assert "4005" in await page.locator("#notice").inner_text()


async def test_a_conversation_by_the_browsers_own_codecs() -> None:
    async with talk() as server, page_of(server) as page:
        await async_api.expect(page.locator("nav button")).to_have_text(["Talk", "Status"], use_inner_text=True)
        await page.get_by_role("button", name="Start talking").click()
        await page.locator("#conversation").filter(has_text="well indeed, well").wait_for()
        # The echo of the fake microphone's beep.
        await page.wait_for_function("() => document.getElementById('reply-level').value > 0.3")
        await page.wait_for_function("() => document.getElementById('talk-level').value > 0.3")
        await page.get_by_role("button", name="Stop").click()
        await page.get_by_role("button", name="Start talking").wait_for()
        assert await page.locator("#notice").is_hidden()


async def test_a_conversation_for_which_there_is_no_room() -> None:
    async with talk(1) as server, server.connect("/api/chat") as first, page_of(server) as page:
        await first.recv()
        await page.get_by_role("button", name="Start talking").click()
        await page.get_by_text("Every place on this server is taken.").wait_for()
        await page.get_by_role("button", name="Start talking").wait_for()


async def test_a_conversation_with_a_wrong_key() -> None:
    async with talk() as server, page_of(server) as page:
        await page.evaluate("localStorage.setItem('moshi-server-key', 'wrong')")
        await page.get_by_role("button", name="Start talking").click()
        await page.get_by_text("The server refused the key").wait_for()
        await page.get_by_role("textbox", name="Key").fill(KEY)
        await page.keyboard.press("Enter")
        await page.get_by_role("button", name="Start talking").click()
        await page.locator("#conversation").filter(has_text="well indeed").wait_for()
