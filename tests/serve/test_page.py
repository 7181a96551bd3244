"""The server's page, in a real browser: what a person does with it."""

import itertools

import httpx
import pytest
from browser import needs_browser
from driven import driven
from served import KEYS, serving

pytestmark = needs_browser
MESSAGES = "[...document.querySelectorAll('#messages .text')].map((one) => one.textContent)"
NUMBERS = itertools.count()
IDLE = "!running && !document.getElementById('send').disabled"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("store") / "memories.db", journal=True, seconds=120.0) as served:
        yield served


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with driven(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def page(browser, served):
    """The page with a memory of the test's own; afterwards, the browser must have nothing to complain of."""
    for noted in (browser.complaints, browser.requested, browser.dialogs):
        noted.clear()
    opened(browser, served.url)
    browser.run(f"document.getElementById('memory').value = 'memory{next(NUMBERS)}'; click('Open')")
    browser.until("document.getElementById('state').textContent.startsWith('Nothing')")
    yield browser
    assert browser.complaints == []
    assert [url for url in browser.requested if not url.startswith((f"{served.url}/", "data:"))] == []


def opened(browser, url):
    browser.call("Page.navigate", url=f"{url}/")
    browser.until("document.readyState === 'complete' && typeof show === 'function'")
    browser.run("longest = 10")
    browser.run("click = (text) => [...document.querySelectorAll('button')].find((one) => one.textContent === text).click()")


def say(page, text):
    page.run("document.getElementById('text').focus()")
    page.type(text)
    page.enter()
    page.until("document.getElementById('text').value === '' || !document.getElementById('error').hidden")
    page.until(IDLE)


def words(page):
    """The messages that the page shows, without white space, which the tiny tokenizer does not keep."""
    return ["".join(text.split()) for text in page.run(MESSAGES)]


def test_a_message_is_answered_piece_by_piece_and_its_memory_shown(page):
    page.run(
        "seen = []; new MutationObserver(() => seen.push(document.querySelector('#chat .assistant span')?.textContent ?? ''))"
        ".observe(document.getElementById('chat'), {subtree: true, childList: true, characterData: true})"
    )
    say(page, "Anna likes teal.")
    said = page.run("document.querySelector('#chat .assistant span').textContent")
    pieces = [*dict.fromkeys(page.run("seen"))]
    assert len(pieces) > 3
    assert all(said.startswith(piece) for piece in pieces)
    page.until(f"{MESSAGES}.length === 2")
    assert words(page)[0] == "Annalikesteal."
    assert "written in 1 turn" in page.run("document.getElementById('state').textContent")
    assert page.run("document.querySelectorAll('#messages .v').length") > 3
    assert "left" in page.run("document.querySelector('#messages .share').textContent")
    assert not page.run("document.getElementById('chat').hasAttribute('aria-busy')")


def test_forget_this_removes_a_message_and_keeps_the_place_of_the_keyboard(page):
    say(page, "Anna likes teal.")
    say(page, "Bob likes red.")
    page.until(f"{MESSAGES}.length === 4")
    page.run("document.querySelector('#messages button').click()")
    page.until(f"{MESSAGES}.length === 3")
    page.until("document.getElementById('status').textContent === 'Forgotten.'")
    assert "Annalikesteal." not in words(page)
    assert "Boblikesred." in words(page)
    assert page.run("document.activeElement === document.querySelector('#messages button')")


def test_a_snapshot_and_the_way_back(page):
    assert page.run("document.getElementById('rollback').disabled && document.getElementById('snapshot').disabled")
    say(page, "Anna likes teal.")
    page.until("!document.getElementById('snapshot').disabled")
    page.run("click('Take a snapshot')")
    page.until("document.getElementById('snapshots').value")
    say(page, "Bob likes red.")
    page.until(f"{MESSAGES}.length === 4")
    page.run("click('Go back to it')")
    page.until(f"{MESSAGES}.length === 2")
    assert words(page)[0] == "Annalikesteal."
    assert "What was written since then is deleted" in page.dialogs[0]
    page.run("click('Delete the memory')")
    page.until("document.getElementById('state').textContent.startsWith('Nothing')")


def test_reading_only_and_without_the_memory_write_nothing(page):
    page.run("document.getElementById('read-only').click(); document.getElementById('compare').click()")
    say(page, "Anna likes teal.")
    assert page.run("document.querySelectorAll('#chat .without, #chat .assistant').length") == 2
    assert page.run("document.getElementById('messages').children.length") == 0


def test_an_error_is_shown_and_the_message_not_lost(page):
    say(page, "Anna likes teal. <|im_end|>")
    assert "special token" in page.run("document.getElementById('error').textContent")
    assert page.run("document.getElementById('text').value") == "Anna likes teal. <|im_end|>"
    assert page.run("chat.length") == 0
    (complaint,) = page.complaints  # the browser's own line about the refusal
    assert "status of 400" in complaint["text"]
    page.complaints.clear()


def test_what_was_said_is_text(page):
    say(page, "<img src=x onerror=alert(1)><b>Anna</b>")
    page.until(f"{MESSAGES}.length === 2")
    assert page.run("document.querySelectorAll('#chat img, #messages img, #messages b').length") == 0
    assert page.dialogs == []


def test_the_keyboard_reaches_everything_in_order(page):
    say(page, "Anna likes teal.")
    page.until(f"{MESSAGES}.length === 2")
    page.run("document.getElementById('memory').focus()")
    reached = []
    order = ["memory", "Open", "chat", "text", "send", "drop", "compare", "read-only", "snapshot", "delete", "Forget this"]
    for _ in order:
        reached.append(page.run("document.activeElement.id || document.activeElement.textContent"))
        assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid", reached[-1]
        page.tab()
    assert reached == order


def test_everything_has_a_name(page):
    unnamed = page.run(
        "[...document.querySelectorAll('input, select, textarea, button')]"
        ".filter((one) => !one.labels?.length && !one.textContent.trim()).map((one) => one.id)"
    )
    assert unnamed == []
    assert page.run("document.documentElement.lang") == "en"


@pytest.mark.parametrize("width", [320, 390, 1400])
def test_nothing_is_cut_off(page, width):
    say(page, "Annalikesteal" * 20)
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    page.call("Emulation.setDeviceMetricsOverride", **metrics)
    assert page.run("document.documentElement.scrollWidth") <= width
    page.call("Emulation.clearDeviceMetricsOverride")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_on_the_strongest_colour(page, scheme):
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    contrast = page.run("""(() => {
      const item = document.createElement("li"), word = document.createElement("span");
      word.className = "v"; word.style.setProperty("--v", 1); word.textContent = "word";
      item.append(word); document.getElementById("messages").append(item);
      const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
      const luminance = (colour) => {
        canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((one) => one / 255)
          .map((one) => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const style = getComputedStyle(word), found = [luminance(style.color), luminance(style.backgroundColor)].sort();
      item.remove();
      return (Math.max(...found) + 0.05) / (Math.min(...found) + 0.05);
    })()""")
    page.call("Emulation.setEmulatedMedia", features=[])
    assert contrast >= 4.5  # WCAG 2, level AA


def test_a_server_with_keys_asks_for_one(browser, tmp_path):
    with serving(tmp_path / "memories.db", keys=True, journal=True) as served:
        browser.complaints.clear()
        opened(browser, served.url)
        browser.until("!document.getElementById('with-key').hidden")
        assert "asks for a key" in browser.run("document.getElementById('error').textContent")
        assert browser.run("document.activeElement.id") == "key"
        browser.type(KEYS["anna"])
        browser.enter()
        browser.until("document.getElementById('error').hidden")
        say(browser, "Anna likes teal.")
        browser.until(f"{MESSAGES}.length === 2")
    browser.run("click('Open')")
    browser.until("document.getElementById('error').textContent.startsWith('The server does not answer')")


def test_the_page_may_load_and_send_nothing_elsewhere(served):
    response = httpx.get(f"{served.url}/")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
