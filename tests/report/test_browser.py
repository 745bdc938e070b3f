"""The report in a real browser, without a window: Chromium, driven through its own driver."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_folders import made_detections, run_config, write_run
from small_runs import forget_accelerator

from semidetr_hf.data.digits import DigitsPaths
from semidetr_hf.report import kept
from semidetr_hf.report.page import write_report
from semidetr_hf.training.evaluation import Detections

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (the extra `dev`)")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None or DRIVER is None,
        reason="there is no Chromium with its driver (Debian: apt-get install chromium chromium-driver)",
    ),
]
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic"]
FLAGS += ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, digits: DigitsPaths) -> Path:
    """A report of a run whose kept network has found two of three boxes or so."""

    def detect_all(model, processor, source, **_):
        return Detections(made_detections(source), source.coco_ground_truth())

    config = run_config(tmp_path_factory.mktemp("browser") / "run", digits)
    folder = write_run(config)
    baseline = [{"step": 4, "loss": 5.0}, {"step": 4, "student/ap": 0.15, "student/ap50": 0.3, "student/ap75": 0.1}]
    write_run(run_config(folder / "supervised", digits), baseline, networks=())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "detect_all", detect_all)
        path = write_report(folder, num_pictures=2, progress=False)
    forget_accelerator()
    return path


@pytest.fixture
def opened(browser: Any, report: Path) -> Any:
    show(browser, report, width=1200)
    return browser


def show(browser: Any, report: Path, *, width: int, scheme: str = "light") -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(report.as_uri())


def sizes(browser: Any, selector: str) -> list[list[float]]:
    script = "return [...document.querySelectorAll(arguments[0])].map(e => e.getBoundingClientRect())"
    return [[box["width"], box["height"]] for box in browser.execute_script(script, selector)]


def shown_curves(browser: Any) -> list[str]:
    script = """return [...document.querySelectorAll('#precision .curve')]
        .filter(curve => getComputedStyle(curve).display !== 'none').map(curve => curve.dataset.line)"""
    return browser.execute_script(script)


def test_nothing_is_fetched_and_nothing_fails(browser: Any, report: Path) -> None:
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    show(browser, report, width=1200)
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [
        event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
    ]
    assert report.as_uri() in requests  # that requests are seen at all
    assert [url[:80] for url in requests if not url.startswith("data:") and url != report.as_uri()] == []
    assert browser.get_log("browser") == []


def test_curves_bars_and_pictures_are_there(opened: Any) -> None:
    curves = sizes(opened, "#curves .curve")
    assert len(curves) >= 8 and all(width + height > 0 for width, height in curves)
    bars = sizes(opened, "#classes .bar .value")
    assert len(bars) == 10 and sum(width > 0 for width, _ in bars) >= 5
    assert all(height > 5 for _, height in bars)
    pictures = sizes(opened, ".photo image")
    assert len(pictures) == 2 * 2 + 2 + 2 and all(width > 100 and height > 100 for width, height in pictures)
    decoded = opened.execute_async_script(
        """const done = arguments[0], images = [...document.querySelectorAll('.photo image')].map(image => {
            const copy = new Image();
            copy.src = image.getAttribute('href');
            return copy.decode().then(() => copy.width);
        });
        Promise.all(images).then(done, error => done(String(error)))"""
    )
    assert decoded == [64] * 8
    for kind in ("truth", "right", "wrong", "found"):
        boxes = sizes(opened, f".photo .box.{kind} .edge")
        assert boxes and all(width > 0 and height > 0 for width, height in boxes), kind


def test_the_stages_are_marked_in_every_curve(opened: Any) -> None:
    plots = opened.execute_script("return document.querySelectorAll('#curves .plot').length")
    for stage in ("burn-in", "one-to-many", "one-to-one"):
        bands = sizes(opened, f"#curves .plot .band-{stage}")
        assert len(bands) == plots > 0 and all(width > 50 for width, _ in bands)
    colors = opened.execute_script(
        """return [...document.querySelector('#curves .plot').querySelectorAll('.band')]
            .map(band => getComputedStyle(band).fill)"""
    )
    assert len(set(colors)) == 3


def test_another_class_shows_another_curve(opened: Any) -> None:
    from selenium.webdriver.support.ui import Select

    assert shown_curves(opened) == ["0", "1"]
    select = Select(opened.find_element("css selector", "#precision select"))
    select.select_by_index(2)
    assert shown_curves(opened) == ["0", "3"]
    chosen = opened.find_element("id", "chosen-class").text
    assert chosen == select.first_selected_option.text and "AP50" in chosen


def test_the_score_threshold_changes_the_confusions(opened: Any) -> None:
    cells = "return [...document.querySelectorAll('.matrix tbody td')].map(cell => Number(cell.textContent))"
    before = opened.execute_script(cells)
    opened.execute_script(
        """const slider = document.querySelector('#confusions input'); slider.value = slider.max;
        slider.dispatchEvent(new Event('input'))"""
    )
    after = opened.execute_script(cells)
    # At 0.95 nothing is found: the same boxes are all in the last column.
    assert len(after) == len(before) == 11 * 11
    assert sum(after) == sum(after[10::11]) == sum(before)
    assert opened.find_element("css selector", "#confusions output").text == "0.95"
    assert "0.000" in opened.find_element("css selector", "#confusions .note").text


def test_values_are_told_on_hover_and_by_keys(opened: Any) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    plot, tip = opened.find_element("css selector", "#curves .plot"), opened.find_element("id", "tip")
    assert not tip.is_displayed()
    opened.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", plot)
    ActionChains(opened).move_to_element_with_offset(plot, plot.rect["width"] // 2 - 12, 0).perform()
    assert tip.is_displayed() and tip.text.splitlines() == ["6", "teacher: 0.3", "student: 0.2"]
    ActionChains(opened).move_to_element(opened.find_element("css selector", "#curves h2")).perform()
    assert not tip.is_displayed()
    opened.execute_script("arguments[0].focus()", plot)
    for expected in (["2", "teacher: 0.05", "student: 0.1"], ["4", "supervised: 0.15"]):
        ActionChains(opened).send_keys(Keys.ARROW_RIGHT).perform()
        assert tip.text.splitlines() == expected


@pytest.mark.parametrize("width", [360, 768, 1200])
def test_nothing_sticks_out_and_no_text_of_a_chart_is_cut(browser: Any, report: Path, width: int) -> None:
    show(browser, report, width=width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    cut = browser.execute_script(
        """return [...document.querySelectorAll('.plot text')].filter(text => {
            const box = text.getBBox(), frame = text.ownerSVGElement.viewBox.baseVal;
            return box.x < 0 || box.y < 0 || box.x + box.width > frame.width || box.y + box.height > frame.height;
        }).map(text => text.textContent)"""
    )
    assert cut == []
    texts = sizes(browser, ".plot .tick")
    assert min(height for _, height in texts) > 9  # pixels, to be read on a phone


def test_the_page_does_not_move_while_it_loads(opened: Any) -> None:
    shifts = opened.execute_async_script(
        """const done = arguments[0];
        new PerformanceObserver(list => done(list.getEntries().map(entry => entry.value)))
            .observe({type: 'layout-shift', buffered: true});
        setTimeout(() => done([]), 500)"""
    )
    assert sum(shifts) < 0.01


def test_dark_and_light_are_readable(browser: Any, report: Path) -> None:
    for scheme in ("light", "dark"):
        show(browser, report, width=1200, scheme=scheme)
        ground, text, faint = browser.execute_script(
            """const style = (selector) => getComputedStyle(document.querySelector(selector));
            return [style('body').backgroundColor, style('body').color, style('.note').color]"""
        )
        assert (luminance(ground) > 0.5) == (scheme == "light")
        assert min(contrast(ground, text), contrast(ground, faint)) > 4.5  # WCAG 2, level AA
        cells = browser.execute_script(
            """return [...document.querySelectorAll('.matrix tbody td')]
                .map(cell => [getComputedStyle(cell).backgroundColor, getComputedStyle(cell).color])"""
        )
        assert len(set(map(tuple, cells))) > 1 and min(contrast(*colors) for colors in cells) > 4.5


def test_everything_drawn_is_also_said_in_words(opened: Any) -> None:
    unnamed = opened.execute_script(
        """return [...document.querySelectorAll('svg')].filter(
            svg => !svg.getAttribute('aria-label') && svg.getAttribute('aria-hidden') !== 'true').length"""
    )
    assert unnamed == 0


def luminance(color: str) -> float:
    """Return the relative luminance of `rgb(r, g, b)` or `color(srgb r g b)`. Source: WCAG 2."""
    numbers = [float(number) for number in re.findall(r"[\d.]+", color)][:3]
    shares = numbers if color.startswith("color(srgb") else [number / 255 for number in numbers]
    linear = [share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in shares]
    return sum(weight * share for weight, share in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(first: str, second: str) -> float:
    dark, bright = sorted((luminance(first), luminance(second)))
    return (bright + 0.05) / (dark + 0.05)
