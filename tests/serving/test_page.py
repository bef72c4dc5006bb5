"""The page in a real browser, with the network cut off."""

import json
import re
import shutil
from pathlib import Path

import live
import pytest
from support import ROOT

sync_api = pytest.importorskip("playwright.sync_api", reason="the package playwright is missing")

PAGE = ROOT / "gpt_jax" / "serving" / "page.html"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")
PATIENCE_MS = 60_000  # Until a test fails; the first text compiles programs.


def test_the_page_is_small_and_names_no_other_address():
    text = PAGE.read_text(encoding="utf-8")
    assert len(text.encode()) < 80_000
    assert set(re.findall(r"(?:https?:)?//[\w.]+\w\.\w+", text)) == {
        "http://www.w3.org"
    }  # SVG's name.
    assert not re.search(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"'](?!data:)", text)


@pytest.fixture(scope="module")
def browser():
    arguments = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser):
    """Opens the page. At the end, it must have asked only its server, and logged no error."""
    contexts, asked, faults = [], [], []

    def call(url, run="small", allowed=(), **options):
        context = browser.new_context(**({"viewport": {"width": 1200, "height": 900}} | options))
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("request", lambda request: asked.append((request.url, url)))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: note(message, allowed))
        page.goto(f"{url}/#{run}")
        return page

    def note(message, allowed):
        if message.type == "error" and not any(word in message.text for word in allowed):
            faults.append(message.text)

    yield call
    for context in contexts:
        context.close()
    assert faults == []
    assert [address for address, url in asked if not address.startswith((url, "data:"))] == []


def bars(page):
    return page.locator("#next .bar").all_inner_texts()


def wait_for_bars(page, before=None):
    """The bars, once they are others than before."""
    page.wait_for_function(
        "before => { const bars = [...document.querySelectorAll('#next .bar')];"
        " const now = bars.map(bar => bar.innerText); return now.length && "
        "JSON.stringify(now) !== JSON.stringify(before); }",
        arg=before,
    )
    return bars(page)


def draw(page, n=40):
    page.fill("#max_tokens", str(n))
    page.click("#draw")
    wait_until_drawn(page)


def wait_until_drawn(page):
    page.wait_for_selector("#tokens[aria-busy=false]:has(.drawn)")


def text_of(page):
    return page.evaluate("state.tokens.map(token => token.text).join('')")


@needs_chromium
def test_the_bars_follow_the_typing(open_page, url, model):
    page = open_page(url)
    first = wait_for_bars(page)
    page.fill("#text", "")
    page.locator("#text").press_sequentially("The kin")
    second = wait_for_bars(page, first)
    page.wait_for_function("() => document.querySelector('#next-place').innerText.includes('kin')")
    assert len(second) == 12
    likeliest = model.next_token("The kin")[0][0]
    assert bars(page)[0].splitlines()[0] == likeliest


@needs_chromium
def test_temperature_top_k_and_top_p_change_the_bars(open_page, url):
    page = open_page(url)
    before = wait_for_bars(page)
    page.fill("#top_k", "0")
    page.fill("#temperature", "2")
    warm = wait_for_bars(page, before)
    page.fill("#temperature", "0")
    assert "100 %" in wait_for_bars(page, warm)[0]
    page.fill("#temperature", "1")
    page.fill("#top_k", "3")
    assert page.locator("#next .bar:not(.cut)").count() == 3
    page.fill("#top_k", "0")
    page.fill("#top_p", "0.05")
    assert page.locator("#next .bar:not(.cut)").count() == 1


@needs_chromium
def test_a_bar_adds_its_token_to_the_text(open_page, url):
    page = open_page(url)
    before = wait_for_bars(page)
    text = page.input_value("#text")
    page.locator("#next .bar").nth(1).click()
    added = page.input_value("#text").removeprefix(text)
    assert before[1].startswith(added.replace(" ", "␣").replace("\n", "↵"))
    wait_for_bars(page, before)


@needs_chromium
def test_a_continuation_is_the_text_of_its_seed(open_page, url, model):
    page = open_page(url)
    wait_for_bars(page)
    page.fill("#text", "The king")
    page.fill("#seed", "5")
    draw(page)
    options = {"temperature": 0.8, "top_k": 40, "top_p": 1.0}
    assert text_of(page) == model.generate("The king", seed=5, max_new_tokens=40, **options)
    page.click("#keep")
    assert page.input_value("#text") == text_of(page)


@needs_chromium
def test_a_text_can_be_stopped(open_page, url):
    page = open_page(url)
    wait_for_bars(page)
    page.fill("#max_tokens", "16384")
    page.click("#draw")
    page.wait_for_selector("#tokens .drawn")
    page.click("#stop")
    wait_until_drawn(page)
    assert len(text_of(page)) < 16_384
    assert page.locator(".problem").count() == 0
    draw(page, 10)  # The slot is free again.


@needs_chromium
def test_a_token_shows_its_probability_when_pointed_at(open_page, url, model):
    page = open_page(url)
    wait_for_bars(page)
    page.fill("#text", "The")
    page.wait_for_function("() => state.tokens.length === 3")
    page.hover("#tokens [data-index='2']")
    p = dict(model.next_token("Th"))["e"]
    tip = page.inner_text("#tip")
    shown = float(re.search(r"was ([\d.]+) % likely", tip)[1])
    assert shown == pytest.approx(100 * p, abs=0.6)
    assert page.locator("#tip .bar").count() == 5
    assert (
        page.evaluate(
            "getComputedStyle(document.querySelector('[data-index=\"2\"]')).backgroundColor"
        )
        != "rgba(0, 0, 0, 0)"
    )


@needs_chromium
def test_attention_has_a_map_for_every_head_and_tells_what_a_head_reads(open_page, url, model):
    page = open_page(url)
    page.wait_for_selector("#attention #map")
    assert page.locator("#attention .maps button").count() == 4
    page.locator("#attention .maps button").nth(3).click()
    assert "layer 2, head 2" in page.inner_text("#head-name")
    maps = model.attention(page.input_value("#text"))
    share = 100 * maps[1, 1, 1:, 0].mean()
    told = page.inner_text("#cell")
    assert float(re.search(r"([\d.]+) % from the first", told)[1]) == pytest.approx(share, abs=1)
    assert "Look for" in page.inner_text("#attention")


@needs_chromium
def test_runs_can_be_switched(open_page, url):
    page = open_page(url)
    before = wait_for_bars(page)
    page.select_option("#runs", "bytes")
    page.fill("#text", "é漢")
    wait_for_bars(page, before)
    page.wait_for_function(
        "() => document.querySelector('#facts').innerText.includes('1 layers, 2 heads')"
    )
    page.wait_for_function(
        "() => document.querySelectorAll('#attention .maps button').length === 2"
    )
    draw(page, 12)
    assert text_of(page).startswith("é") or "\ufffd" in text_of(page)


@needs_chromium
def test_the_page_works_with_the_keyboard_alone(open_page, url):
    page = open_page(url)
    wait_for_bars(page)

    def tab_to(id_):
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.id") == id_:
                return
        raise AssertionError(f"Tab does not reach {id_}")

    tab_to("text")
    page.keyboard.press("Control+A")
    page.keyboard.type("The king")
    tab_to("temperature")
    page.keyboard.press("ArrowRight")
    tab_to("max_tokens")
    page.keyboard.press("Control+A")
    page.keyboard.type("20")
    page.keyboard.press("Control+Enter")
    wait_until_drawn(page)
    assert len(text_of(page)) == 28
    tab_to("tokens")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("#tokens .chosen", "data-index") == "1"
    assert "likely" in page.inner_text("#tip")
    page.keyboard.press("Escape")
    assert page.is_hidden("#tip")


@needs_chromium
def test_a_narrow_screen_needs_no_scrolling_sideways(open_page, url):
    page = open_page(url, viewport={"width": 360, "height": 740})
    page.wait_for_selector("#attention #map")
    draw(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    tops = [
        page.locator(place).bounding_box()["y"]
        for place in ("#text", "#next", "#tokens", "#map", "#curve")
    ]
    assert tops == sorted(tops)


@needs_chromium
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_color_scheme(open_page, url, scheme):
    page = open_page(url, color_scheme=scheme)
    wait_for_bars(page)
    text, ground = (
        sum(
            map(
                int,
                re.findall(r"\d+", page.evaluate(f"getComputedStyle(document.body).{name}"))[:3],
            )
        )
        for name in ("color", "backgroundColor")
    )
    assert (text < ground) == (scheme == "light")
    assert abs(text - ground) > 450


@needs_chromium
def test_a_tuned_run_can_be_talked_to(open_page, url):
    page = open_page(url, run="chat")
    page.fill("#max_tokens", "60")
    page.fill("#say-text", "The king is")
    page.keyboard.press("Enter")
    page.wait_for_selector("#send:enabled")
    page.wait_for_function("() => document.querySelectorAll('#talk li').length === 2")
    assert page.locator("#talk li").first.inner_text() == "The king is"
    answer = page.evaluate("state.talk[1].content")
    assert answer and "e " not in answer
    page.click("#tab-text")
    assert page.is_visible("#text")
    page.click("#tab-talk")
    page.click("#forget")
    assert "Say something to it" in page.inner_text("#talk")


@needs_chromium
def test_an_unknown_character_is_named(open_page, url):
    page = open_page(url, allowed=["400"])
    wait_for_bars(page)
    page.fill("#text", "漢")
    page.wait_for_selector("#text-problem .problem")
    assert "'漢' (U+6F22)" in page.inner_text("#text-problem")
    page.fill("#text", "The")
    page.wait_for_selector("#text-problem .problem", state="detached")


@needs_chromium
def test_a_key_is_asked_for_where_the_server_needs_one(open_page, runs):
    with live.server(runs, key="secret") as url:
        page = open_page(url, allowed=["401"])
        page.fill("#key-text", "wrong")
        page.keyboard.press("Enter")
        page.wait_for_function("() => !document.querySelector('#key').hidden")
        page.fill("#key-text", "secret")
        page.keyboard.press("Enter")
        wait_for_bars(page)
        assert page.is_hidden("#key")


@needs_chromium
def test_a_server_that_is_gone_is_told_and_can_be_tried_again(open_page, runs):
    with live.server(runs) as url:
        page = open_page(url, allowed=["ERR_CONNECTION_REFUSED"])
        wait_for_bars(page)
    page.fill("#text", "The")
    page.wait_for_selector("#text-problem .problem")
    assert "does not answer" in page.inner_text("#text-problem")
    assert page.locator("#text-problem button").inner_text() == "Try again"


@needs_chromium
def test_a_server_without_runs_says_what_to_do(open_page, tmp_path):
    with live.server(tmp_path) as url:
        page = open_page(url)
        page.wait_for_selector("#trouble .empty")
        assert "Train one" in page.inner_text("#trouble")


@needs_chromium
def test_a_damaged_run_is_told(open_page, runs, tmp_path):
    shutil.copytree(runs / "small", tmp_path / "small")
    (tmp_path / "small" / "config.json").write_text("{")
    with live.server(tmp_path) as url:
        page = open_page(url)
        page.wait_for_selector("#text-problem .problem")
        assert "config.json cannot be read" in page.inner_text("#text-problem")


@needs_chromium
def test_the_curve_and_the_samples_follow_a_run_that_trains(open_page, runs, tmp_path):
    run = shutil.copytree(runs / "small", tmp_path / "small")
    for path in (run / "samples").glob("*"):
        path.unlink()
    with live.server(tmp_path) as url:
        page = open_page(url)
        page.wait_for_selector("#curve svg")
        assert "no sample yet" in page.inner_text("#samples")
        write_progress(run, 9999, "A new sample.")
        page.wait_for_function("() => document.querySelector('#live').innerText.includes('9,999')")
        assert "training" in page.inner_text("#live")
        assert "A new sample." in page.inner_text("#samples")
        assert "0.125" in page.inner_text("#curve")


def write_progress(run: Path, step: int, sample: str) -> None:
    """What a run writes while it trains."""
    (run / "samples").mkdir(exist_ok=True)
    (run / "samples" / f"{step}.txt").write_text(sample)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "train/loss": 0.5, "val/loss": 0.125}) + "\n")
