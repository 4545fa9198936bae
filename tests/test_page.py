"""The page as a person uses it, in a headless Chromium: ``make test-page`` runs this.

The pictures go to ``output/page``.
"""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from scene_site import scene_server

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "output" / "page"
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)

pytestmark = [
    pytest.mark.skipif("REGIONDH_TEST_PAGE" not in os.environ, reason="make test-page runs it"),
    pytest.mark.skipif(
        BROWSER is None,
        reason="there is no Chromium: install it (on Debian: chromium-headless-shell), or name it "
        "in CHROMIUM",
    ),
]

DESKTOP, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with (
        pytest.MonkeyPatch.context() as patch,
        scene_server(tmp_path_factory.mktemp("page"), patch) as site,
    ):
        PICTURES.mkdir(parents=True, exist_ok=True)
        yield site


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
        browser = playwright.chromium.launch(executable_path=BROWSER, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, site):
    """A function that opens the site in a browser of its own; an error in a page is a failure."""
    contexts, problems = [], []

    def open_page(path="/", viewport=DESKTOP, **options):
        contexts.append(browser.new_context(viewport=viewport, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on(
            "console",
            lambda message: problems.append(message.text) if message.type == "error" else None,
        )
        page.goto(site.url + path)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [one for one in problems if not re.search("status of 4(10|22)", one)] == []


def picture(page, name):
    page.wait_for_function(
        "() => [...document.querySelectorAll('.frame img')].filter(x => {"
        "const y = x.getBoundingClientRect(); return y.bottom > 0 && y.top < innerHeight})"
        ".every(x => x.classList.contains('there'))"
    )
    page.wait_for_timeout(250)  # until pictures have faded in
    page.screenshot(path=PICTURES / f"{name}.png")


def answered(page):
    """Wait until the answers of the present query are there."""
    page.wait_for_function(
        "() => document.querySelector('.results')?.dataset.shown === location.search"
    )


def choose(page, number):
    """Click an object where no other one lies on it, and wait for its answers."""
    box = page.locator(f'.stage .box[data-key="object-{number}"]')
    box.scroll_into_view_if_needed()
    point = box.evaluate(
        "node => { const r = node.getBoundingClientRect();"
        "for (let i = 1; i < 40; i++) for (let j = 1; j < 40; j++) {"
        "  const [x, y] = [r.left + r.width * i / 40, r.top + r.height * j / 40];"
        "  if (document.elementFromPoint(x, y) === node) return [x, y]; } }"
    )
    page.mouse.click(*point)
    page.wait_for_function("n => location.search.includes(`object=${n}`)", arg=number)
    answered(page)
    return box


def files(page):
    """The files of the answers that are shown, in their order."""
    return page.eval_on_selector_all(
        ".answer:visible > a:first-child", "all => all.map(x => x.title)"
    )


def upload(page, site):
    page.set_input_files("#file", site.upload)
    page.wait_for_url(re.compile(r"upload="))
    answered(page)


def first_photo(page):
    page.click(".photos .card a >> nth=0")
    page.wait_for_selector(".stage .box")
    answered(page)


def test_upload_click_drag_and_all_of_these(open_page, site):
    page = open_page()
    page.wait_for_selector(".photos .card img.there")
    picture(page, "collection")
    assert page.locator(".photos .card").count() >= 60
    upload(page, site)
    whole = files(page)
    boxes = page.locator(".stage .box")
    assert boxes.count() == len(site.objects)
    picture(page, "upload")

    # A click on an object changes the answers; all that are the same show its class.
    first = choose(page, 1)
    assert first.get_attribute("aria-pressed") == "true"
    one = files(page)
    assert one
    assert one != whole
    names = page.locator(".band.same .name").all_inner_texts()
    assert set(names) == {site.objects[0]}
    assert page.locator(".band.same .mark").count() == len(names)
    picture(page, "object")

    # Dragging draws a box, which is no click on what lies below.
    stage = page.locator(".stage").bounding_box()
    width, height = site.size
    x1, y1, x2, y2 = (float(v) for v in site.boxes[1])

    def to(x, y):
        return stage["x"] + x / width * stage["width"], stage["y"] + y / height * stage["height"]

    page.mouse.move(*to(x1, y1))
    page.mouse.down()
    page.mouse.move(*to((x1 + x2) / 2, (y1 + y2) / 2), steps=3)
    page.mouse.move(*to(x2, y2), steps=3)
    page.mouse.up()
    page.wait_for_url(re.compile(r"box=[\d,]+$"))
    answered(page)
    assert "object=" not in page.url
    drawn = [float(v) for v in page.url.rpartition("box=")[2].split(",")]
    assert np.allclose(drawn, site.boxes[1], atol=3)
    names = page.locator(".band.same .name").all_inner_texts()
    assert set(names) == {site.objects[1]}
    picture(page, "box")

    # A second object at once.
    page.get_by_role("button", name="All of these").click()
    choose(page, 1)
    assert page.locator(".chosen-list li").count() == 2
    assert page.locator(".answer >> nth=0 >> .mark").count() == 2
    picture(page, "both")

    # Taking one back, by its chip.
    page.get_by_role("button", name="Remove your box").click()
    page.wait_for_url(re.compile(r"object=1$"))


def test_back_forward_and_a_link_for_others(open_page, site):
    page = open_page()
    upload(page, site)
    uploaded = page.url
    choose(page, 2)
    shown = files(page)
    address = page.url
    page.go_back()
    page.wait_for_url(uploaded)
    answered(page)
    page.go_forward()
    page.wait_for_url(address)
    answered(page)
    assert files(page) == shown

    other = open_page(address.removeprefix(site.url))  # another browser, with nothing stored
    answered(other)
    assert files(other) == shown
    assert other.locator('.stage .box[data-key="object-2"]').get_attribute("aria-pressed") == "true"

    for one in list(site.search.uploads._uploads):
        site.search.uploads.remove(one)
    expired = open_page(address.removeprefix(site.url))
    expired.get_by_role("heading", name="This uploaded photo has expired").wait_for()
    picture(expired, "expired")


def test_each_answer_leads_on_and_the_place_in_a_list_is_kept(open_page, site):
    page = open_page()
    page.wait_for_selector(".photos .card img.there")
    page.evaluate("scrollTo(0, 1500)")
    page.wait_for_timeout(300)
    before = page.evaluate("scrollY")
    page.locator(".photos .card a").nth(40).click()
    page.wait_for_selector(".stage .box")
    answered(page)
    assert page.evaluate("scrollY") == 0
    choose(page, 1)
    before_url = page.url
    page.locator(".answer > a").first.click()
    page.wait_for_function("address => location.href !== address", arg=before_url)
    page.wait_for_selector('.stage .box[aria-pressed="true"]')
    answered(page)
    for _ in range(3):
        page.go_back()
    page.wait_for_selector(".photos .card")
    page.wait_for_function("y => Math.abs(scrollY - y) < 5", arg=before)


def test_by_keyboard_alone(open_page, site):
    page = open_page()
    page.wait_for_selector(".photos .card img.there")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.locator(".photos .card a").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(".stage .box")
    answered(page)
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('.stage .box')"):
            break
    label = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert re.fullmatch(r"\w+, \d+ % sure, object \d+", label)
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"object="))
    answered(page)
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    page.get_by_role("status").get_by_text(re.compile("the same")).wait_for(state="attached")
    page.keyboard.press("Escape")
    page.wait_for_function("() => !location.search.includes('object')")

    # A box without a mouse.
    page.get_by_role("button", name="Draw a box").focus()
    page.keyboard.press("Enter")
    for key in ("ArrowLeft", "ArrowUp", "Shift+ArrowRight", "Shift+ArrowDown"):
        page.keyboard.press(key)
    picture(page, "keyboard")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"box=\d+,\d+,\d+,\d+$"))
    answered(page)


def test_phone(open_page, site):
    page = open_page(viewport=PHONE, has_touch=True, is_mobile=True, device_scale_factor=2)
    page.wait_for_selector(".photos .card img.there")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    picture(page, "phone_collection")
    page.locator(".photos .card a").nth(1).tap()
    page.wait_for_selector(".stage .box")
    page.locator('.stage .box[data-key="object-1"]').tap()
    page.wait_for_url(re.compile(r"object=1"))
    answered(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    picture(page, "phone_object")


def test_class_filter_slider_and_far_answers(open_page, site):
    page = open_page()
    first_photo(page)
    choose(page, 1)
    near = len(files(page))
    page.get_by_role("button", name="Show the nearest others").click()
    assert len(files(page)) > near
    assert page.get_by_role("heading", name="Probably nothing").is_visible()
    # The place in a long list is kept, also behind the button.
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.wait_for_timeout(600)
    before = page.evaluate("scrollY")
    assert before > 300
    page.evaluate("[...document.querySelectorAll('.answer > a:first-child')].at(-1).click()")
    page.wait_for_function("() => scrollY === 0")
    answered(page)
    page.go_back()
    answered(page)
    page.wait_for_function("y => Math.abs(scrollY - y) < 5", arg=before)
    assert page.get_by_role("heading", name="Probably nothing").is_visible()

    page.locator("#blend").evaluate(
        "node => { node.value = 4; node.dispatchEvent(new Event('change')); }"
    )
    page.wait_for_url(re.compile(r"blend=1"))
    page.get_by_text("scene ").first.wait_for()
    page.locator("#class-filter").select_option("star")
    page.wait_for_url(re.compile(r"class=star"))
    page.wait_for_function(
        "() => [...document.querySelectorAll('.answer .name')].every(x => x.textContent === 'star')"
    )


def test_groups_dark_and_a_file_that_is_no_photo(open_page, site, tmp_path):
    page = open_page("/?view=groups", color_scheme="dark")
    page.wait_for_selector(".group img.there, .empty")
    picture(page, "groups_dark")
    page.get_by_role("link", name="Copies").click()
    page.get_by_role("heading", name="There are no copies").wait_for()
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no photo")
    with page.expect_response(re.compile("/api/uploads")) as sent:
        page.set_input_files("#file", bad)
    assert sent.value.status == 422
    page.get_by_role("alert").get_by_text("the image").wait_for()
    bad.write_bytes(b"x" * 300_001)
    page.set_input_files("#file", bad)
    page.get_by_text("larger than 0.3 MB").wait_for()


def test_nothing_jumps_on_a_slow_network(open_page, site):
    page = open_page()
    page.route("**/thumbnail", lambda route: (page.wait_for_timeout(30), route.continue_()))
    first_photo(page)
    page.evaluate(
        "window.shift = 0; new PerformanceObserver(list => list.getEntries().forEach("
        "x => { if (!x.hadRecentInput) shift += x.value; }))"
        ".observe({ type: 'layout-shift', buffered: true })"
    )
    choose(page, 1)
    page.wait_for_timeout(800)
    assert page.evaluate("shift") < 0.05


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(open_page, site, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(color_scheme=scheme, reduced_motion="reduce")
    page.wait_for_selector(".photos .card img.there")
    found = [axe.run(page)]
    first_photo(page)
    choose(page, 1)
    picture(page, f"object_{scheme}")
    found.append(axe.run(page))
    problems = [
        f"{one['id']}: {one['help']}: {[node['html'][:120] for node in one['nodes'][:3]]}"
        for result in found
        for one in result.response["violations"]
        if one["impact"] in ("serious", "critical")
    ]
    assert problems == []
