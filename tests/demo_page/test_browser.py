"""The page of a Space, served by its own process and driven in a real browser without a window."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from semidetr_hf.data.coco import CocoSource
from semidetr_hf.data.digits import DigitsPaths
from semidetr_hf.demo_page.found import Detector, Found, choose, detect, open_detector, table, to_json
from semidetr_hf.deployment.space import write_space

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (the extra `dev`)")
pytest.importorskip("gradio", reason="gradio is not installed (the extra `demo`)")
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
PATIENCE = 200  # seconds for the server to start, on a busy machine


class Served(NamedTuple):
    """A running page: its address, and the file that what its process says goes to."""

    address: str
    log: Path


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, run_folder: Path) -> Iterator[Served]:
    """The page of a run, as the app.py of a Space serves it."""
    folder = tmp_path_factory.mktemp("space")
    space = write_space(folder / "space", str(run_folder))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"GRADIO_SERVER_PORT": str(port), "GRADIO_TEMP_DIR": str(folder / "gradio"), "OMP_NUM_THREADS": "1"}
    log = folder / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "app.py"], cwd=space, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        address = f"http://127.0.0.1:{port}/"
        wait_for(lambda: process.poll() is not None or answers(address), PATIENCE)
        assert process.poll() is None, log.read_text()
        yield Served(address, log)
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, served: Served) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.downloads = tmp_path_factory.mktemp("downloads")
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(driver.downloads)})
    set_width(driver, 1200)
    driver.get(served.address)
    wait_for(lambda: one(driver, "#threshold input[type=range]") and one(driver, "input[type=file]"))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def detector(run_folder: Path) -> Detector:
    return open_detector(run_folder / "best", "cpu")


@pytest.fixture(scope="module")
def picture(digits: DigitsPaths) -> Path:
    return Path(CocoSource(digits.val_json).path(0))


@pytest.fixture(scope="module")
def found(detector: Detector, picture: Path) -> Found:
    return detect(detector, picture)


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Return what the condition returns once it holds."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"did not happen within {seconds} s"
        time.sleep(0.2)
    return value


def one(browser: Any, selector: str) -> Any:
    return next(iter(browser.find_elements("css selector", selector)), None)


def set_width(browser: Any, width: int) -> None:
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )


def source(browser: Any, selector: str) -> str:
    """Return the address of a picture; empty while there is none."""
    picture = one(browser, f"{selector} img")
    return picture.get_attribute("src") if picture is not None else ""


def shows(browser: Any, found: Found, chosen: Found) -> bool:
    expected = f"{len(chosen)} of {len(found)} detections with a score above 0.05 are shown."
    return bool(one(browser, "#summary").text == expected)


def slide(browser: Any, selector: str, steps: int) -> None:
    from selenium.webdriver.common.keys import Keys

    key = Keys.ARROW_RIGHT if steps > 0 else Keys.ARROW_LEFT
    one(browser, f"{selector} input[type=range]").send_keys(key * abs(steps))


def upload(browser: Any, picture: Path) -> None:
    one(browser, "input[type=file]").send_keys(str(picture))


def save_json(browser: Any) -> str:
    file = browser.downloads / "detections.json"
    file.unlink(missing_ok=True)
    one(browser, "#download").click()
    wait_for(file.is_file)
    return file.read_text(encoding="utf-8")


def test_upload_threshold_nms_classes_table_and_json(
    browser: Any, served: Served, detector: Detector, picture: Path, found: Found
) -> None:
    """One visit: what the page shows after every step is what the detector of the same folder finds."""
    upload(browser, picture)
    at_first = choose(found, threshold=0.3, nms=True)
    wait_for(lambda: shows(browser, found, at_first))
    drawn = wait_for(lambda: source(browser, "#drawn"))

    slide(browser, "#threshold", 25)
    higher = choose(found, threshold=0.55, nms=True)
    wait_for(lambda: shows(browser, found, higher))
    wait_for(lambda: source(browser, "#drawn") != drawn)

    one(browser, "#nms input").click()
    with_duplicates = choose(found, threshold=0.55, nms=False)
    wait_for(lambda: shows(browser, found, with_duplicates))
    assert 0 < len(higher) < min(len(at_first), len(with_duplicates))

    label = int(higher.class_labels[0])
    choose_class(browser, detector.names[label])
    of_class = choose(found, threshold=0.55, nms=False, labels=[label])
    wait_for(lambda: shows(browser, found, of_class))
    assert 0 < len(of_class) < len(with_duplicates)
    expected = table(of_class, detector.names)
    # The table draws only the rows that are on the screen.
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", one(browser, "#rows"))
    wait_for(lambda: f"{expected[0][1]:g}" in one(browser, "#rows").text.split())
    assert {f"{value:g}" for row in expected[:3] for value in row[1:]} <= set(one(browser, "#rows").text.split())

    assert json.loads(save_json(browser)) == json.loads(to_json(of_class, detector.names))


def choose_class(browser: Any, name: str) -> None:
    from selenium.webdriver.common.keys import Keys

    one(browser, "#classes input").click()
    one(browser, "#classes input").send_keys(name, Keys.ENTER)


def test_pseudo_labels_stand_beside_what_the_student_finds(browser: Any) -> None:
    tabs = browser.find_elements("css selector", "button[role=tab]")
    next(tab for tab in tabs if tab.text == "Pseudo-labels").click()
    wait_for(lambda: len(visible(browser, ".teacher img")) == len(visible(browser, ".student img")) == 4)
    before = [picture.get_attribute("src") for picture in visible(browser, ".student img")]
    teachers = [picture.get_attribute("src") for picture in visible(browser, ".teacher img")]
    slide(browser, "#student-threshold", 30)
    wait_for(lambda: [picture.get_attribute("src") for picture in visible(browser, ".student img")] != before)
    assert [picture.get_attribute("src") for picture in visible(browser, ".teacher img")] == teachers


def visible(browser: Any, selector: str) -> list[Any]:
    return [part for part in browser.find_elements("css selector", selector) if part.is_displayed()]


@pytest.mark.parametrize("width", [360, 1200])
def test_nothing_sticks_out(browser: Any, width: int) -> None:
    set_width(browser, width)
    wait_for(lambda: browser.execute_script("return window.innerWidth") == width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_nothing_failed_and_nothing_came_from_outside(browser: Any, served: Served) -> None:
    """After the whole visit."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [
        event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
    ]
    assert served.address in requests  # that requests are seen at all
    own = (served.address, "data:", f"blob:{served.address}")
    assert [url[:80] for url in requests if not url.startswith(own)] == []
    assert [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert "Traceback" not in served.log.read_text()
