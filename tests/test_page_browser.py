"""The page in a real browser: from disk, offline, read by mouse, by keyboard, on a
phone, in the dark, and by axe.
"""

import os
import shutil
from dataclasses import replace

import pytest

from batchline.bench.report import RunReport, two_runs
from batchline.bench.report.render import html as page
from batchline.bench.store import run_json
from batchline.bench.verdicts import across_runs
from tests.pages import everything, hostile, timed
from tests.test_compare import stored as compared_run

pytest.importorskip(
    "plotly", reason="plotly.js comes with plotly, which is not installed"
)
playwright = pytest.importorskip(
    "playwright.sync_api", reason="`make test-page` installs Playwright and runs these"
)
axe_playwright = pytest.importorskip(
    "axe_playwright_python.sync_playwright",
    reason="axe-core comes with axe-playwright-python, which is not installed",
)
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None and "BATCHLINE_BROWSER" not in os.environ,
    reason="there is no Chromium here",
)

_TIMEOUT_MS = 30_000  # a busy machine takes seconds to read plotly.js
PHONE = {"width": 375, "height": 812}
LATENCY = "[data-op=bmm] [data-quantity=latency]"


@pytest.fixture(scope="module")
def browser():
    assert (
        CHROMIUM
    ), "there is no Chromium in the PATH: install one (on Debian: apt-get install chromium)"
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The pages as files, by what they are of."""
    lines = (
        timed(variant, batch, launch_s + 1e-7 * batch)
        for variant, launch_s in (("torch_bmm", 1e-6), ("fast", 5e-7))
        for batch in (1, 3, 8, 33, 256)
    )
    runs = {
        "everything": everything(),
        "hostile": hostile(),
        "lines": replace(everything(), records=tuple(lines)),
    }
    return {
        name: page.write(RunReport(run), tmp_path_factory.mktemp(name))
        for name, run in runs.items()
    }


@pytest.fixture
def opened(browser, files):
    """Opens a page, its plots drawn; at the end nothing may have been asked for, nor
    gone wrong.
    """
    contexts, asked, wrong = [], [], []

    def open_(name="everything", wait=True, before="", **options):
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.on("request", lambda request: asked.append(request.url))
        tab.on(
            "console",
            lambda message: (
                wrong.append(message.text)
                if message.type in ("error", "warning")
                else None
            ),
        )
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on(
            "dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss())
        )
        tab.add_init_script(before)
        tab.set_default_timeout(_TIMEOUT_MS)
        tab.goto(files[name].as_uri())
        if wait:
            draw(tab.locator(LATENCY))
        return tab

    yield open_
    for context in contexts:
        context.close()
    assert (
        all(url.startswith("file:") and url.endswith("/index.html") for url in asked)
        and not wrong
    ), (asked, wrong)


def draw(figure):
    """A plot is drawn as soon as it is near the window."""
    figure.scroll_into_view_if_needed()
    figure.locator(".main-svg").first.wait_for()


def draw_all(tab):
    for figure in tab.locator("figure").all():
        draw(figure)


def curves(tab, figure=LATENCY):
    """The names of the curves that a plot has points of."""
    return tab.eval_on_selector(
        f"{figure} .plot",
        "box => box.data.filter(one => one.hovertext).map(one => one.name)",
    )


def test_every_plot_is_drawn(opened):
    tab = opened()
    draw_all(tab)
    assert (
        tab.locator("figure").count()
        == tab.locator("figure .plot > .plot-container").count()
        > 8
    )
    assert tab.locator("#trouble").is_hidden()


def test_pointing_at_a_point_tells_what_was_measured(opened):
    tab = opened()
    tab.locator(f"{LATENCY} .points path").first.hover(force=True)
    said = tab.locator(f"{LATENCY} .hoverlayer").text_content()
    for words in (
        "torch_bmm, B = 1",
        "median 1.12 µs, known to ±2.0%",
        "quartiles",
        "9 samples of 2 calls",
        "of the launch ceiling",
    ):
        assert words in said


def test_a_variant_can_be_taken_out_and_put_back(opened):
    tab = opened()
    assert curves(tab) == ["torch_bmm", "fast"]
    box = tab.get_by_role("checkbox", name="torch_bmm")
    box.uncheck()
    assert (
        curves(tab) == ["fast"] == curves(tab, "[data-op=bmm] [data-quantity=memory]")
    )
    box.check()
    assert curves(tab) == ["torch_bmm", "fast"]


def test_another_scenario_shows_its_curves_and_its_table(opened):
    tab = opened()
    assert (
        tab.locator("[data-problem]:visible h3").first.inner_text()
        == "tiny_16 · float32"
    )
    tab.get_by_label("Scenario").select_option("tiny_32")
    tab.get_by_label("Data type").select_option("float16")
    assert tab.locator("[data-problem]:visible").count() == 1 and curves(tab) == [
        "fast"
    ]
    assert (
        tab.locator("[data-problem]:visible h3").first.inner_text()
        == "tiny_32 · float16"
    )
    tab.get_by_label("Scenario").select_option("tiny_16")  # which has no float16
    assert (
        tab.locator("[data-problem]:visible h3").first.inner_text()
        == "tiny_16 · float32"
    )


def test_axes_are_logarithmic_or_linear(opened):
    tab = opened()
    axes = f"document.querySelector('{LATENCY} .plot')._fullLayout"
    assert [tab.evaluate(f"{axes}.{axis}.type") for axis in ("xaxis", "yaxis")] == [
        "log",
        "log",
    ]
    assert "10 µs" in tab.locator(f"{LATENCY} .yaxislayer-above").text_content()
    tab.get_by_label("latency and memory").uncheck()
    assert [tab.evaluate(f"{axes}.{axis}.type") for axis in ("xaxis", "yaxis")] == [
        "log",
        "linear",
    ]
    tab.get_by_label("batch", exact=True).uncheck()
    assert tab.evaluate(f"{axes}.xaxis.type") == "linear"


def test_arrow_keys_read_the_points(opened):
    tab = opened()
    plot = tab.locator(f"{LATENCY} .plot")
    plot.focus()
    plot.press("ArrowRight")
    assert tab.locator("#said").inner_text().startswith("torch_bmm, B = 1, median")
    plot.press("ArrowDown")
    plot.press("ArrowRight")
    assert tab.locator("#said").inner_text().startswith("fast, B = 16, median")
    playwright.expect(tab.locator(f"{LATENCY} .hoverlayer")).to_contain_text(
        "fast, B = 16"
    )


@pytest.mark.parametrize("name", ["everything", "hostile"])
def test_a_phone_does_not_scroll_sideways(opened, name):
    tab = opened(name, viewport=PHONE)
    draw_all(tab)
    tab.evaluate(
        "document.querySelectorAll('details').forEach(part => { part.open = true; })"
    )
    assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


@pytest.mark.parametrize("viewport", [PHONE, {"width": 1280, "height": 800}])
def test_a_devices_long_name_widens_no_page_of_two_runs(browser, tmp_path, viewport):
    runs = (
        compared_run(machine={"device_name": name * 40}) for name in ("long", "LONG")
    )
    path = tmp_path / "two.html"
    two = two_runs.document(across_runs.compare(*map(run_json.parse, runs)))
    path.write_text(page.render_plain(two), encoding="utf-8")
    tab = browser.new_page(viewport=viewport)
    tab.goto(path.as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_serious(opened, scheme):
    tab = opened(color_scheme=scheme)
    draw_all(tab)
    tab.evaluate(
        "document.querySelectorAll('details').forEach(part => { part.open = true; })"
    )
    violations = axe_playwright.Axe().run(tab).response["violations"]
    assert not [
        (one["id"], one["nodes"][0]["html"])
        for one in violations
        if one["impact"] in ("serious", "critical")
    ]


def test_plots_follow_the_colours_of_the_page(opened):
    tab = opened(color_scheme="light")
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
        playwright.expect(tab.locator(f"{LATENCY} .main-svg").first).to_have_css(
            "background-color", paper
        )


def test_print_has_light_plots_that_fit_and_puts_them_back(opened):
    tab = opened(color_scheme="dark")
    background = f"getComputedStyle(document.querySelector('{LATENCY} .main-svg')).backgroundColor"
    dark = tab.evaluate(background)
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.evaluate(background) == "rgb(255, 255, 255)"
    assert tab.locator(f"{LATENCY} .main-svg").first.bounding_box()["width"] == 640
    assert (
        tab.locator("figure .plot > .plot-container").count()
        == tab.locator("figure").count()
    )
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.evaluate(background) == dark


def test_a_name_is_text_in_the_plots_too(opened):
    tab = opened("hostile")
    tab.get_by_label("Scenario").select_option(index=1)
    tab.locator(f"{LATENCY} .points path").first.hover(force=True)
    assert (
        "<b>bold</b> <script>alert"
        in tab.locator(f"{LATENCY} .hoverlayer").text_content()
    )
    draw_all(tab)
    assert (
        "<script>alert"
        in tab.get_by_role("group", name="Variants", exact=True).inner_text()
    )


def test_a_browser_that_is_too_old_says_so_and_keeps_the_tables(opened):
    tab = opened(wait=False, before="delete window.DecompressionStream")
    tab.locator("#trouble").wait_for()
    assert (
        "tables" in tab.locator("#trouble").inner_text()
        and tab.locator("table:visible").count() > 3
    )


def test_without_javascript_every_table_is_there(opened):
    tab = opened(wait=False, java_script_enabled=False)
    assert (
        tab.locator("[data-problem]:visible").count() == 3
        and tab.locator("form.controls").is_hidden()
        and tab.locator("form.filter").is_hidden()
    )


CELL = "#bmm/tiny_32/float16/B8"


def marked(tab, figure=LATENCY):
    """What a plot has marked over the batch."""
    return tab.eval_on_selector(
        f"{figure} .plot", "box => box.layout.annotations.map(one => one.text)"
    )


def test_a_cell_of_the_map_opens_its_plots_and_figures(opened):
    tab = opened(wait=False)
    tab.locator(f'.map a[href="{CELL}"]').click()
    draw(tab.locator(LATENCY))
    assert tab.url.endswith(f"index.html{CELL}")
    assert tab.get_by_label("Scenario").input_value() == "tiny_32"
    assert curves(tab) == ["fast"] and marked(tab) == ["B = 8"]
    row = tab.locator("tr:target")
    assert row.is_visible() and row.locator("th").inner_text() == "8"
    assert tab.evaluate("document.activeElement.textContent") == "bmm"
    tab.get_by_label("Scenario").select_option("tiny_16")
    assert marked(tab) == []


def test_the_law_is_drawn_with_its_curve(opened):
    tab = opened("lines")
    laws = f"document.querySelector('{LATENCY} .plot').data.filter(one => one.line.width === 1)"
    assert tab.evaluate(f"{laws}.length") == 2
    tab.get_by_role("checkbox", name="torch_bmm").uncheck()
    assert tab.evaluate(f"{laws}.length") == 1


def test_a_link_that_was_sent_opens_there(browser, files):
    tab = browser.new_page()
    tab.goto(files["everything"].as_uri() + "#bmm/tiny_32/float32")
    draw(tab.locator(LATENCY))
    assert tab.locator("[data-problem]:visible h3").first.inner_text() == (
        "tiny_32 · float32"
    )
    tab.evaluate(f"location.hash = '{CELL}'")
    playwright.expect(tab.locator("tr:target")).to_be_visible()
    tab.close()


def test_a_name_with_markup_is_a_link_that_opens(opened):
    tab = opened("hostile", wait=False)
    tab.locator(".map tbody tr", has_text="bold").locator("td a").first.click()
    draw(tab.locator(LATENCY))
    assert "bold" in tab.locator("[data-problem]:visible h3").first.inner_text()
    assert tab.locator("tr:target").is_visible()


def test_the_map_is_searched_and_filtered_by_the_keyboard(opened):
    tab = opened(wait=False)
    rows = tab.locator(".map tbody tr:visible")
    assert rows.count() == 3 and tab.get_by_label("Op", exact=True).count() == 0
    tab.get_by_label("Search").press_sequentially("tiny_32 FAST")
    assert rows.count() == 2
    assert tab.locator(".filter output").inner_text() == "2 of 3 problems"
    tab.get_by_label("Dtype").select_option("float16")
    assert rows.count() == 1 and "float16" in rows.first.inner_text()
    tab.get_by_label("Search").fill("nothing like it")
    assert rows.count() == 0
    tab.get_by_label("Search").fill("")
    tab.locator(".map tbody tr:visible th a").focus()
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    assert tab.url.endswith("#bmm/tiny_32/float16/B4")


def test_on_a_phone_each_row_of_the_map_is_a_card(opened):
    tab = opened(wait=False, viewport=PHONE)
    first = tab.locator(".map tbody tr").first
    assert "B = 16" in first.locator("td:visible .batch").nth(2).evaluate(
        "one => getComputedStyle(one, '::before').content.slice(1, -1) + one.innerText"
    )
    name, cell = first.locator("th").bounding_box(), first.locator("td a").first
    assert cell.bounding_box()["y"] >= name["y"] + name["height"]
    assert first.locator(".gap").first.is_hidden()
    assert tab.locator(".map thead").is_hidden()
