"""The page in a real browser: a recording as its microphone, the embedded model behind it, the right words on it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moshi_server.audio import read_audio, write_wav
from moshi_server.cli.demo import API_KEY, running_worker, samples

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
    pytest.mark.timeout(240),
    pytest.mark.xdist_group("browser"),
]

SPOKEN = next(path for path in samples() if path.suffix == ".wav")
WORDS = SPOKEN.with_suffix(".txt").read_text().strip()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_worker("demo") as address:
        yield address.replace("ws:", "http:")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    microphone = tmp_path_factory.mktemp("microphone") / "spoken.wav"
    # A pause first, while the page gets ready, and one after, so that the last word is complete.
    write_wav(microphone, np.pad(read_audio(SPOKEN), (24_000, 48_000)))
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--use-fake-ui-for-media-stream",
                "--use-fake-device-for-media-stream",
                f"--use-file-for-fake-audio-capture={microphone}%noloop",
            ],
        )
        yield running
        running.close()


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    context = browser.new_context(base_url=url, permissions=["microphone"])
    opened = context.new_page()
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.goto("/")
    opened.get_by_role("button", name="Transcribe").wait_for()
    yield opened
    context.close()
    assert not problems


def give_key(page: Any, key: str = API_KEY) -> None:
    page.get_by_role("button", name="Key").click()
    page.get_by_role("textbox", name="Key").fill(key)
    page.keyboard.press("Enter")


def words(page: Any) -> str:
    return " ".join(page.locator("#transcript .word").all_inner_texts())


def wait_for_words(page: Any, text: str, seconds: float = 60) -> None:
    try:
        page.wait_for_function(
            """text => {
                const words = [...document.querySelectorAll('#transcript .word')];
                return words.map((word) => word.innerText).join(' ') === text;
            }""",
            arg=text,
            timeout=seconds * 1000,
        )
    except sync_api.TimeoutError:
        assert words(page) == text  # says which words were there instead
        raise


def test_the_microphone_gives_the_right_words(page: Any) -> None:
    give_key(page)
    page.get_by_role("button", name="Start the microphone").click()
    wait_for_words(page, WORDS)
    assert page.locator("#latency").inner_text().endswith(" ms")
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Start the microphone").wait_for()
    assert page.locator("#notice").is_hidden()
    assert words(page) == WORDS
    first = page.locator("#transcript .word").first.get_attribute("title")
    assert " to " in first
    assert float(first.split(" to ")[0]) > 0.5
    assert re.fullmatch(r"0:0\d\.\d", page.locator("#transcript time").first.inner_text())


def test_what_is_said_before_there_is_a_place_is_heard(page: Any) -> None:
    page.evaluate(
        """() => {
            window.WebSocket = class extends WebSocket {
                set onmessage(take) { // Ready comes two seconds later, when half of it was said
                    super.onmessage = (event) => { super.onmessage = take; setTimeout(take, 2000, event); };
                }
            };
        }"""
    )
    give_key(page)
    page.get_by_role("button", name="Start the microphone").click()
    wait_for_words(page, WORDS)


def test_the_microphone_through_the_audio_graph_where_tracks_cannot_be_read(page: Any) -> None:
    page.evaluate("delete window.MediaStreamTrackProcessor")
    frames = page.evaluate(
        """async () => {
            const { microphone } = await import("/audio.js");
            const frames = [];
            await new Promise((done) => {
                const stop = microphone((frame) => {
                    frames.push([frame.length, Math.max(...frame)]);
                    if (frames.length === 45) stop.then((stop) => stop()).then(done);
                });
            });
            return frames;
        }"""
    )
    assert {length for length, _ in frames} == {1920}
    assert max(peak for _, peak in frames[:8]) < 0.01  # the pause
    assert max(peak for _, peak in frames) > 0.1


@pytest.mark.parametrize("rate", [8000, 16000, 24000, 44100, 48000, 192000])
def test_any_rate_becomes_24_khz_and_nothing_folds_over(page: Any, rate: int) -> None:
    def heard(frequency: int) -> np.ndarray:
        samples = page.evaluate(
            """async ([rate, frequency]) => {
                const { Framer } = await import("/resample.js");
                const frames = [];
                const framer = new Framer(rate, (frame) => frames.push(...frame));
                const turn = (2 * Math.PI * frequency) / rate;
                const tone = Float32Array.from({ length: rate }, (_, i) => Math.sin(turn * i));
                for (let at = 0, size = 1; at < tone.length; at += size, size = (size * 7) % 997) {
                    framer.push(tone.subarray(at, at + size));
                }
                return frames;
            }""",
            [rate, frequency],
        )
        return np.array(samples)

    tone = heard(1000)
    assert 23_000 < len(tone) <= 24_000
    expected = np.sin(2 * np.pi * 1000 * np.arange(len(tone)) / 24_000)
    assert np.abs(tone - expected)[200:].max() < 2e-3
    if rate > 30_000:
        assert np.abs(heard(14_000))[200:].max() < 2e-3


@pytest.mark.parametrize("name", [path.name for path in samples()])
def test_a_chosen_file_gives_the_right_words(page: Any, name: str) -> None:
    path = next(path for path in samples() if path.name == name)
    give_key(page)
    page.locator("#file").set_input_files(path)
    wait_for_words(page, path.with_suffix(".txt").read_text().strip())


def test_a_dropped_file_is_saved_as_subtitles(page: Any, tmp_path: Path) -> None:
    give_key(page)
    dropped = page.evaluate_handle(
        """bytes => {
            const files = new DataTransfer();
            files.items.add(new File([new Uint8Array(bytes)], "spoken.wav", { type: "audio/wav" }));
            return files;
        }""",
        list(SPOKEN.read_bytes()),
    )
    page.dispatch_event("body", "drop", {"dataTransfer": dropped})
    wait_for_words(page, WORDS)
    page.locator("#file-progress").wait_for(state="hidden")
    for name, sign in (("Text", ""), ("SRT", ","), ("VTT", ".")):
        with page.expect_download() as download:
            page.get_by_role("button", name=name, exact=True).click()
        saved = Path(download.value.path()).read_text()
        assert WORDS in saved.replace("\n", " ")
        assert ("-->" in saved) == bool(sign)
    page.get_by_role("button", name="Clear").click()
    assert words(page) == ""


def test_a_file_that_is_no_audio_is_told_so(page: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no sound at all")
    page.locator("#file").set_input_files(tmp_path / "notes.txt")
    page.get_by_text("notes.txt holds no audio that this browser can decode.").wait_for()


def test_a_wrong_key_is_said_and_asked_for_again(page: Any) -> None:
    give_key(page, "wrong")
    page.locator("#file").set_input_files(SPOKEN)
    page.get_by_text("The server refused the key").wait_for()
    page.get_by_role("textbox", name="Key").fill(API_KEY)
    page.keyboard.press("Enter")
    page.locator("#file").set_input_files(SPOKEN)
    wait_for_words(page, WORDS)
    page.reload()  # the key is remembered
    page.locator("#file").set_input_files(SPOKEN)
    wait_for_words(page, WORDS)


def test_only_what_is_served_is_shown_and_keys_reach_everything(page: Any) -> None:
    sync_api.expect(page.locator("nav button")).to_have_text(["Transcribe", "Status"], use_inner_text=True)
    page.locator("nav button").last.focus()
    page.keyboard.press("Enter")
    page.get_by_role("cell", name="BatchedAsr").wait_for()
    assert page.locator("#transcript").is_hidden()


def test_the_server_goes_and_comes_back(browser: Any) -> None:
    context = browser.new_context(permissions=["microphone"])
    page = context.new_page()
    with running_worker("demo") as address:
        page.goto(address.replace("ws:", "http:"))
        give_key(page)
        page.get_by_role("button", name="Start the microphone").click()
        page.get_by_role("button", name="Stop").wait_for()
    page.locator("#notice").filter(has_text="server").wait_for(timeout=60_000)
    page.get_by_role("button", name="Start the microphone").click()
    page.get_by_text("The server does not answer.").wait_for()
    page.get_by_role("button", name="Start the microphone").wait_for()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1200])
def test_it_fits_a_phone_and_a_desk(browser: Any, url: str, scheme: str, width: int) -> None:
    context = browser.new_context(base_url=url, color_scheme=scheme, viewport={"width": width, "height": 740})
    page = context.new_page()
    page.goto("/")
    page.get_by_role("button", name="Transcribe").wait_for()
    for tab in page.locator("nav button").all():
        tab.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(ground.removeprefix("rgb(").split(",")[0])
    assert (red < 100) == (scheme == "dark")
    context.close()
