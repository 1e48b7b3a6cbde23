"""The published page in a real browser: the grid, a graph with its points, the regressions.

Needs Debian's packages `chromium` and `chromium-driver`, selenium and asv (`pip install '.[bench]'`), and
`npm`, which brings the scripts that asv's page takes from other hosts. Skipped where one is missing, but
not in CI.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "asv"
WALK = "bench_inputs.Walks.time_walk"
SWITCHES = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,1000",
)
#: data of the graphs on the page, as flot holds them
POINTS = "return $('#main-graph').data('plot').getData().map(series => series.data.filter(p => p[1] !== null).length)"


def needs(condition: object, what: str) -> None:
    if not condition:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"the page's test needs {what}")


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Folder of the page, published from the results that are kept, and its address."""
    for program, what in (
        ("chromedriver", "a browser: apt-get install chromium chromium-driver"),
        ("chromium", "a browser: apt-get install chromium chromium-driver"),
        ("npm", "npm: apt-get install npm"),
    ):
        needs(shutil.which(program), what)
    try:
        import asv  # noqa: F401
        import selenium  # noqa: F401
    except ImportError as error:
        needs(False, f"{error.name}: pip install '.[bench]'")
    needs((ROOT / ".git").exists(), "a clone: asv reads the history")
    from benchmarks.page import publish

    folder = tmp_path_factory.mktemp("page")
    publish(folder)
    handler = functools.partial(_Quiet, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="module")
def browser(page, tmp_path_factory):
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for switch in (*SWITCHES, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(switch)
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options, service)
    yield driver
    driver.quit()


def show(browser, address: str, condition: str):
    """Open a place of the page and wait until a condition in JavaScript holds."""
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(address)
    return WebDriverWait(browser, 30).until(lambda driver: driver.execute_script(condition))


def parameters_shown() -> set[str]:
    """Of the benchmark as it was when it last ran: results of other parameters are kept, but have no curve."""
    return set(json.loads((RESULTS / "benchmarks.json").read_text())[WALK]["params"][0])


def has_results(file: Path, shown: set[str]) -> bool:
    """Whether a commit could be built and measured."""
    results = json.loads(file.read_text())["results"].get(WALK)
    if not (results and results[0]):
        return False
    values, ((*parameters,), *_) = results[:2]
    return any(value and name in shown for value, name in zip(values, parameters, strict=True))


def screenshot(browser, name: str) -> None:
    folder = os.environ.get("SCREENSHOTS")
    if folder:
        browser.save_screenshot(str(Path(folder, f"{name}.png")))


@pytest.mark.slow
def test_the_grid_shows_the_benchmarks(page, browser):
    folder, address = page
    shown = show(browser, address, "return $('#summarygrid-display a').length")
    names = set(json.loads((folder / "index.json").read_text())["benchmarks"])
    assert WALK in names
    assert shown >= len(names)
    text = browser.execute_script("return $('#summarygrid-display').text()")
    assert "Walks.time_walk" in text
    severe = [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    # benchmarks that are not run over the history are in the grid without a curve
    assert not [message for message in severe if "/graphs/summary/" not in message]
    screenshot(browser, "grid")


@pytest.mark.slow
def test_a_graph_has_points_for_the_commits(page, browser):
    _, address = page
    points = show(browser, f"{address}#{WALK}?x-axis=commit", f"if ($('#main-graph').data('plot')) {{ {POINTS} }}")
    shown = parameters_shown()
    measured = {file.name[:8] for file in RESULTS.glob("*/*-*.json") if has_results(file, shown)}
    # asv follows the first parent of a merge
    command = ["git", "rev-list", "--first-parent", "HEAD"]
    history = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    expected = sum(commit[:8] in measured for commit in history.split())
    assert max(points) >= expected > 0
    screenshot(browser, "graph")


@pytest.mark.slow
def test_the_regressions_render(page, browser):
    _, address = page
    show(browser, f"{address}#/regressions", "return $('#regressions-body').text().trim().length > 0")
    assert "error" not in browser.current_url
    screenshot(browser, "regressions")


@pytest.fixture
def commands(monkeypatch):
    """What asv is asked, with nothing done, on a CPU that no kept results are of."""
    from benchmarks import page

    asked: list[tuple[str, ...]] = []
    about = {"system": "Linux x86_64", "target": "another", "cpu": "another CPU", "cores": 2}
    monkeypatch.setattr(page.machine, "describe", lambda: about)
    monkeypatch.setattr(page, "asv", lambda *arguments: asked.append(arguments))
    monkeypatch.setattr(page, "bring_scripts", lambda folder: True)
    return asked


def test_what_is_kept_is_published_without_a_word_on_this_machine(commands):
    from benchmarks import page

    assert page.main(["--no-run", "--no-preview"]) == 0
    assert [command[0] for command in commands] == ["publish"]


def test_another_machine_does_not_measure_under_a_kept_name(commands, capsys):
    from benchmarks import page

    assert page.main(["--no-preview"]) == 2
    assert commands == []
    assert capsys.readouterr().err.splitlines() == [
        f"{page.MACHINE} is another machine (arch znver4, not another, cpu AMD EPYC, not another CPU): "
        "choose a name for this one, --machine"
    ]
    assert page.main(["--no-preview", "--machine", "a-new-one"]) == 0
    assert [command[0] for command in commands] == ["machine", "run", "publish"]
