"""What a person does with the server's page."""

from __future__ import annotations

import json

from tests.inference.server.browser import Browser
from tests.inference.server.conftest import Server

OVER = "document.querySelectorAll('article').length && !document.querySelector('[aria-busy=true]')"


def open_page(browser: Browser, server: Server) -> None:
    browser.resize(1280, 900)
    browser.prefer("light")
    browser.open(server.url)
    browser.run("localStorage.clear()")
    browser.requests.clear()
    browser.complaints.clear()
    browser.open(server.url)
    browser.wait("document.querySelector('#model').textContent !== '' || document.querySelector('#status').textContent !== ''")


def fill(page: Browser, name: str, value: str) -> None:
    page.run(f"document.querySelector('#{name}').value = {json.dumps(value)}")


def variants(page: Browser, number: int) -> None:
    page.click(f"#variants label:nth-child({number})")


def write(page: Browser, **settings: str) -> list[str]:
    """Fill in, press the button, and wait: the texts, without the opening."""
    for name, value in settings.items():
        fill(page, name, value)
    page.click("#write")
    page.wait(f"{OVER} && !document.querySelector('#write').disabled")
    return texts(page)


def texts(page: Browser) -> list[str]:
    found: list[str] = page.run(
        "[...document.querySelectorAll('.body')].map((body) => body.textContent.slice(body.firstChild.textContent.length))"
    )
    return found


def status(page: Browser) -> str:
    return str(page.run("document.querySelector('#status').textContent"))
