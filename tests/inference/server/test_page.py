"""The page that the server serves, in a real browser against the real server: with a tiny model, and with what the quickstart trained."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import processes
from tests.inference.server.browser import Browser
from tests.inference.server.conftest import KEY, Server
from tests.inference.server.known_texts import KnownTexts
from tests.inference.server.writing_page import OVER, fill, open_page, status, variants, write

pytestmark = pytest.mark.processes

PROMPT = "床前明月光，"


@pytest.fixture
def page(browser: Browser, served: Server) -> Browser:
    """Freshly opened, by somebody who was never here before and reads Chinese."""
    open_page(browser, served)
    return browser


def test_variants_are_the_servers_texts_with_their_probabilities(page: Browser, served: Server) -> None:
    variants(page, 2)
    found = write(page, prompt=PROMPT, length="30", seed="7")
    assert status(page) == "写好了。"
    body = {"model": served.name, "prompt": PROMPT, "max_tokens": 30, "temperature": 0.8, "top_p": 0.95, "n": 2, "seed": 7, "logprobs": 0}
    choices = served.ask(body)[1]["choices"]
    assert found == [choice["text"] for choice in choices]
    assert all(found)
    assert page.run("[...document.querySelectorAll('.opening')].map((one) => one.textContent)") == [PROMPT, PROMPT]
    # Tokens of one character are one stretch, whose probability is their product.
    for choice, shown in zip(choices, page.run("texts.map((text) => text.shown.map((part) => [part.text, part.p]))"), strict=True):
        facts = choice["logprobs"]
        starts = sorted({start for start in facts["text_offset"] if start < len(choice["text"])})
        assert [text for text, _ in shown] == [choice["text"][a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
        whole = sum(logprob for start, logprob in zip(facts["text_offset"], facts["token_logprobs"], strict=True) if start == starts[0])
        assert page.run(f"Math.log({shown[0][1]})") == pytest.approx(whole, abs=1e-3)  # bf16 is not used, sums are
    assert len(set(page.run("[...document.querySelectorAll('.t')].map((one) => one.className)"))) > 1
    assert "种子 7" in page.run("document.querySelector('article .foot').textContent")


def test_nothing_is_asked_of_another_host_and_the_browser_has_nothing_to_complain_about(page: Browser, served: Server) -> None:
    write(page, prompt=PROMPT, length="5")
    asked = {address.removeprefix(served.url) for address in page.requests if not address.startswith("data:")}
    assert asked - {"/v1/copied"} == {"/", "/v1/info", "/v1/completions"}
    assert page.complaints == []


def test_a_text_is_shown_as_it_grows_and_can_be_stopped(page: Browser, served: Server) -> None:
    variants(page, 4)
    fill(page, "prompt", PROMPT)
    fill(page, "length", "240")
    page.click("#write")
    page.wait("texts.length === 4 && texts[0].characters.length > 3")
    page.click("#stop")
    page.wait(OVER)
    assert status(page) == "停下了。"
    assert page.run("texts.every((text) => text.tokens.length < 240)")
    assert "中途停下" in page.run("document.querySelector('article .foot').textContent")
    # The server has noticed, and writes for others.
    assert write(page, prompt=PROMPT, length="3")


def test_what_is_copied_from_the_training_text_is_marked_and_counted(
    browser: Browser, start_server: Callable[..., Server], known_texts: KnownTexts
) -> None:
    server = start_server(model=known_texts.model, checkout=known_texts.checkout)
    open_page(browser, server)
    server.wait_for_corpus()  # It may have come up after the page.
    for known in (known_texts.whole, known_texts.part, known_texts.none):
        assert write(browser, prompt=known.prompt, length="240", temperature="0") == [known.rest]
        browser.wait("typeof texts[0].share === 'number'")
        assert not browser.run("document.querySelector('#mark-label').hidden")
        marked = browser.run("[...document.querySelectorAll('.body .copied')].map((one) => one.textContent).join('')")
        assert marked == known.copied
        percent = round(100 * len(known.copied) / len(known.rest))
        longest = f"，最长 {len(known.copied)} 字" if known.copied else ""
        assert browser.run("document.querySelector('.foot .share').textContent") == f"抄自原文 {percent}%{longest}"
    write(browser, prompt=known_texts.part.prompt, length="240", temperature="0")
    browser.wait("texts[0].spans.length")
    browser.run("texts[0].choose(texts[0].shown.findIndex((part) => part.span))")
    assert known_texts.part.source in browser.run("document.querySelector('.detail').textContent")
    underline = "getComputedStyle(document.querySelector('.body .copied')).textDecorationLine"
    assert browser.run(underline) == "underline"
    browser.click("#mark")
    assert browser.run(underline) == "none"
    server.stop()


def test_without_the_training_text_the_page_does_not_speak_of_it(browser: Browser, server: Server) -> None:
    open_page(browser, server)
    write(browser, prompt=PROMPT, length="40")
    assert browser.run("document.querySelector('#mark-label').hidden")
    assert "抄" not in browser.run("document.querySelector('.foot').textContent")
    assert f"{server.url}/v1/copied" not in browser.requests


def test_the_keyboard_suffices(page: Browser) -> None:
    page.run("document.querySelector('#prompt').focus()")
    page.write(PROMPT)
    fill(page, "length", "20")
    for _ in range(6):
        page.press("Tab")
    assert page.run("document.activeElement.id") == "write"
    page.press("Enter")
    page.wait(OVER)
    page.run("document.querySelector('.body').focus()")
    page.press("ArrowRight")
    page.press("ArrowRight")
    assert page.run("texts[0].chosen") == 1
    assert "%" in page.run("document.querySelector('.detail').textContent")


def test_every_control_has_a_name_in_both_languages_and_the_language_is_remembered(page: Browser, served: Server) -> None:
    nameless = (
        "[...document.querySelectorAll('input, textarea, button')].filter((one) =>"
        " !(one.labels?.length && one.labels[0].textContent.trim()) && !one.textContent.trim()).map((one) => one.id)"
    )
    assert page.run(nameless) == []
    assert page.run("document.documentElement.lang") == "zh"
    page.click("#language")
    assert page.run(nameless) == []
    assert page.run("document.querySelector('#write').textContent") == "Write on"
    page.open(served.url)
    page.wait(f"document.title.includes('{served.name}')")
    assert page.run("[document.documentElement.lang, document.title]") == ["en", f"Honglou · {served.name}"]
    keys = "(table) => Object.keys(table).sort().join()"
    assert page.run(f"({keys})(WORDS.zh)") == page.run(f"({keys})(WORDS.en)")


def contrast(page: Browser, ink: str, ground: str, tint: float = 0) -> float:
    """The ratio of WCAG 2.2 (https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio) of two colours; `tint` lies over the second."""
    probe = (
        "((value) => { const one = document.createElement('i'); one.style.color = value; document.body.append(one);"
        " const found = getComputedStyle(one).color; one.remove(); return found; })"
    )
    over = page.run(f"{probe}('var(--tint)')")
    first, second, third = (
        [int(part) for part in re.findall(r"\d+", value)[:3]]
        for value in (page.run(f"{probe}('var({ink})')"), page.run(f"{probe}('var({ground})')"), over)
    )
    second = [round(a * (1 - tint) + b * tint) for a, b in zip(second, third, strict=True)]
    light, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: list[int]) -> float:
    parts = [part / 255 / 12.92 if part / 255 <= 0.04045 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in colour]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def test_both_colour_schemes_can_be_read_and_the_switch_is_stronger_than_the_system(page: Browser, served: Server) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    grounds = {}
    for scheme in ("light", "dark"):
        page.prefer(scheme)
        grounds[scheme] = page.run(ground)
        pairs = [
            ("--ink", "--paper"),
            ("--ink", "--field"),
            ("--quiet", "--desk"),
            ("--quiet", "--paper"),
            ("--red", "--desk"),
            ("--red", "--paper"),
        ]
        low = {pair: contrast(page, *pair) for pair in [*pairs, ("--on-red", "--red"), ("--copied", "--paper")]}
        assert min(low.values()) >= 4.5, (scheme, low)
        # Text in the darkest shading.
        assert contrast(page, "--ink", "--paper", 0.37) >= 4.5
    assert grounds["light"] != grounds["dark"]
    page.click("#theme")
    assert page.run(ground) == grounds["light"]
    page.click("#theme")
    page.prefer("light")
    page.open(served.url)
    assert page.run(ground) == grounds["dark"]


@pytest.mark.parametrize("language", ["zh", "en"])
def test_on_a_phone_nothing_is_cut_off_or_too_small_to_hit(page: Browser, language: str) -> None:
    page.resize(360, 740)
    if language == "en":
        page.click("#language")
    write(page, prompt=PROMPT * 3, length="30")
    assert page.run("document.documentElement.scrollWidth") == 360
    wide = "[...document.querySelectorAll('body *')].filter((one) => one.getBoundingClientRect().right > 360.5).map((one) => one.outerHTML)"
    assert page.run(wide) == []
    # 24 pixels are WCAG 2.2's least (2.5.8); what is inside a label counts as the label.
    small = "[...document.querySelectorAll('button, textarea, input:not([type=range])')].map((one) => (one.closest('label') ?? one))"
    assert (
        page.run(f"{small}.filter((one) => one.offsetParent && one.getBoundingClientRect().height < 24).map((one) => one.outerHTML)") == []
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": " "}, "先写一个开头，模型才能接着写。"),
        ({"prompt": PROMPT, "length": "0"}, "长度要在 1 到 255 之间。"),
        ({"prompt": PROMPT, "seed": "1.5"}, "种子是不小于 0 的整数，也可以留空。"),
        ({"prompt": PROMPT * 8, "length": "250"}, "开头加上长度超过了模型的上限，请写短一些。"),
    ],
)
def test_a_mistake_is_told_in_words(page: Browser, settings: dict[str, str], message: str) -> None:
    for name, value in settings.items():
        fill(page, name, value)
    page.click("#write")
    page.wait("document.querySelector('#status').classList.contains('error')")
    assert status(page) == message
    assert not page.run("document.querySelector('#write').disabled")


@contextmanager
def others_writing(server: Server) -> Iterator[None]:
    """Three clients that want a text all the time, where one is written and one waits."""
    enough = threading.Event()
    body = {"model": server.name, "prompt": PROMPT, "max_tokens": 200}

    def ask() -> None:
        while not enough.is_set():
            server.ask(body, authorization=f"Bearer {KEY}")

    with ThreadPoolExecutor(3) as clients:
        asked = [clients.submit(ask) for _ in range(3)]
        try:
            yield
        finally:
            enough.set()
    for client in asked:
        client.result()


def test_a_key_is_asked_for_and_a_full_or_dead_server_is_told_in_words(
    browser: Browser, served: Server, start_server: Callable[..., Server], tmp_path: Path
) -> None:
    (tmp_path / "key").write_text(KEY, encoding="utf-8")
    server = start_server("--api-key-file", str(tmp_path / "key"), "--max-batch", "1", "--max-queue", "1", model=served.model)
    open_page(browser, server)
    browser.wait("!document.querySelector('#access').hidden")
    assert status(browser) == "这里要 API 密钥。请填写后再试。"
    browser.click("#key")
    browser.write(KEY)
    assert len(write(browser, prompt=PROMPT, length="3")) == 1
    with others_writing(server):

        def is_refused() -> bool:
            browser.click("#write")
            browser.wait("!document.querySelector('#write').disabled")
            return re.fullmatch(r"现在写的人太多，请 \d+ 秒后再试。", status(browser)) is not None

        processes.wait_until(is_refused, "a full server")
    # It counts down, and then says that it is time.
    browser.wait("document.querySelector('#status').textContent === '现在可以再试一次了。'")
    server.stop()
    browser.click("#write")
    browser.wait("document.querySelector('#status').textContent === '和服务器的连接断了。它还在运行吗？'")
