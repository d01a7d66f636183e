"""Look at a notebook in real JupyterLab: run all cells in headless Chromium, save full-page screenshots,
measure.

    python notebooks/screenshot.py notebooks/03_wqe_by_hand.py --out build/screenshots [--solved] [--nics 2]

A tool for whoever writes notebooks, no test. Leans on `rdmakit.course` and on JupyterLab, selenium, chromium
and chromedriver (``pip install jupyterlab selenium``; ``apt-get install chromium chromium-driver``). For the
light and the dark theme it saves ``NAME-light-0.png`` … in pieces short enough to view, and lists what a
reader would trip over: cells that raised, text that leaves its picture, output wider than its place. Exit
status 1 if there is any of these.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rdmakit.course.build import write
from rdmakit.course.execute import solved
from rdmakit.course.form import read, read_solutions
from rdmakit.emu.uverbs import preloaded

THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}
PIECE = 1400
CHROMIUM = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-extensions", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars", "--lang=en",
)  # fmt: skip

# Outputs wider than their place scroll sideways; text outside its picture or upon another text cannot be
# read.
MEASURE = """
const found = [];
document.querySelectorAll('.jp-OutputArea-output, .jp-MarkdownOutput').forEach(area => {
  if (area.scrollWidth > area.clientWidth + 2)
    found.push('wider than its place by ' + (area.scrollWidth - area.clientWidth) + ' px: ' + area.innerText.slice(0, 60));
  if (area.querySelector('.jp-mod-trusted pre .ansi-red-fg, [data-mime-type="application/vnd.jupyter.stderr"]'))
    found.push('stderr or traceback: ' + area.innerText.slice(0, 200));
});
document.querySelectorAll('.jp-OutputArea svg[aria-label]').forEach(svg => {
  const frame = svg.getBoundingClientRect();
  const texts = [...svg.querySelectorAll('text')].map(t => [t.getBoundingClientRect(), t.textContent]);
  texts.forEach(([a, name], i) => {
    if (a.left < frame.left - 1 || a.right > frame.right + 1 || a.bottom > frame.bottom + 1)
      found.push('text leaves its picture: ' + name);
    texts.slice(0, i).forEach(([b, other]) => {
      const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      if (across > 2 && down > 5) found.push('text upon text: ' + name + ' / ' + other);
    });
  });
});
return found;
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _settings(folder: Path, theme: str) -> None:
    """JupyterLab's settings for a quiet page on which every cell is rendered, also those that are off the
    screen."""
    wanted: dict[str, dict[str, Any]] = {
        "apputils-extension/themes": {"theme": theme},
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
        "notebook-extension/tracker": {"windowingMode": "none"},
    }
    for name, values in wanted.items():
        path = folder / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))


@contextlib.contextmanager
def jupyter_lab(folder: Path, scratch: Path, theme: str, given: Mapping[str, str]) -> Iterator[str]:
    """A JupyterLab server on ``folder``, reachable from this machine only and with a token; yields a URL with
    ``{}`` for the path. ``given``: the environment that it starts from."""
    port, token = _free_port(), secrets.token_hex(16)
    _settings(scratch / "settings", theme)
    here = str(Path(__file__).resolve().parent.parent)
    environment = {
        **given, "JUPYTERLAB_SETTINGS_DIR": str(scratch / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(scratch / "workspaces"),
        "JUPYTER_CONFIG_DIR": str(scratch / "config"), "JUPYTER_RUNTIME_DIR": str(scratch / "runtime"),
        "IPYTHONDIR": str(scratch / "ipython"), "PYTHONPATH": os.pathsep.join(filter(None, (here, given.get("PYTHONPATH")))),
    }  # fmt: skip
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser", "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}", "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={folder}", "--ServerApp.open_browser=False",
    ]  # fmt: skip
    log = scratch / "jupyterlab.log"
    with log.open("w") as sink:
        server = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=environment)
    try:
        base = f"http://127.0.0.1:{port}"
        limit = time.monotonic() + 60
        while True:
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"{base}/api?token={token}", timeout=2).close()
                break
            if server.poll() is not None or time.monotonic() > limit:
                raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield f"{base}/lab/tree/{{}}?reset&token={token}"
    finally:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(10)
        server.kill()
        server.wait()


@contextlib.contextmanager
def browser(scratch: Path, width: int) -> Iterator[Any]:
    """Headless Chromium under selenium, with a profile of its own."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for argument in (*CHROMIUM, f"--user-data-dir={scratch / 'profile'}", f"--window-size={width},1000"):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        yield driver
    finally:
        driver.quit()


def _wait(driver: Any, script: str, seconds: float, what: str) -> None:
    limit = time.monotonic() + seconds
    while not driver.execute_script(f"return {script}"):
        if time.monotonic() > limit:
            raise RuntimeError(f"waited {seconds:g} s for {what}")
        time.sleep(0.25)


def visit(driver: Any, url: str, seconds: float) -> list[str]:
    """Open the notebook, run all cells, wait until the kernel is idle; what a reader would trip over."""
    driver.get(url)
    _wait(
        driver,
        "!!window.jupyterapp && !!document.querySelector('.jp-Notebook .jp-Cell')",
        90,
        "JupyterLab to show the notebook",
    )
    kernel = "window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status"
    _wait(driver, f"{kernel} === 'idle'", 60, "the kernel to be ready")
    driver.execute_script("window.jupyterapp.commands.execute('application:toggle-left-area').catch(() => 0)")
    driver.execute_script(
        "window.finished = 0; window.jupyterapp.commands.execute('notebook:run-all-cells').finally(() => window.finished = 1)"
    )
    _wait(driver, "window.finished === 1", seconds, "all cells to run")
    time.sleep(1.0)
    errors = driver.execute_script(
        "return [...document.querySelectorAll('[data-mime-type=\"application/vnd.jupyter.error\"]')].map(e => 'raised: ' + e.innerText.slice(-300))"
    )
    return [*errors, *driver.execute_script(MEASURE)]


def photograph(driver: Any, stem: Path, width: int) -> list[Path]:
    """Screenshots of the whole notebook in pieces of `PIECE` px, the window being made as tall as the
    notebook."""
    script = "return Math.max(...[...document.querySelectorAll('.jp-WindowedPanel-outer')].map(e => e.scrollHeight)) + 140"
    height = min(int(driver.execute_script(script)), 16000)
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    time.sleep(0.5)
    # Running the cells has scrolled to the last one, and the taller window keeps that place.
    driver.execute_script(
        "document.querySelectorAll('.jp-WindowedPanel-outer, .jp-Notebook').forEach(e => { e.scrollTop = 0; })"
    )
    time.sleep(1.0)
    paths = []
    for number, top in enumerate(range(0, height, PIECE)):
        clip = {"x": 0, "y": top, "width": width, "height": min(PIECE, height - top), "scale": 1}
        shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
        paths.append(stem.with_name(f"{stem.name}-{number}.png"))
        paths[-1].write_bytes(base64.b64decode(shot["data"]))
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    return paths


def look(source: Path, out: Path, with_solutions: bool, width: int, seconds: float, nics: int = 0) -> int:
    """Screenshots of one notebook in both themes; the number of complaints."""
    book = read(source)
    if with_solutions:
        book = solved(book, read_solutions(source))
    out.mkdir(parents=True, exist_ok=True)
    count = 0
    for theme, name in THEMES.items():
        with tempfile.TemporaryDirectory(prefix="rdmakit-look-") as scratch_name:
            scratch = Path(scratch_name)
            folder = scratch / "notebooks"
            folder.mkdir()
            write(book, folder / f"{source.stem}.ipynb")
            given = preloaded(nics) if nics else contextlib.nullcontext(os.environ)  # as rdmakit connectx does
            with given as here, jupyter_lab(folder, scratch, name, here) as url, browser(scratch, width) as driver:
                found = visit(driver, url.format(f"{source.stem}.ipynb"), seconds)
                paths = photograph(driver, out / f"{source.stem}-{theme}", width)
        count += len(found)
        print(f"{source.stem} {theme}: {len(paths)} pictures in {out}, {len(found)} complaints", flush=True)
        for text in found:
            print(f"    {text}")
    return count


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("sources", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("build/screenshots"))
    parser.add_argument(
        "--solved", action="store_true", help="with the solutions in place of the blank exercises"
    )
    parser.add_argument(
        "--width", type=int, default=1180, help="of the browser window in px (default: 1180, a laptop's)"
    )
    parser.add_argument(
        "--seconds", type=float, default=120, help="for all cells of one notebook (default: 120)"
    )
    parser.add_argument("--nics", type=int, default=0, help="emulated NICs for the cells on real hardware (default: none)")
    options = parser.parse_args()
    return (
        1
        if sum(
            look(s.resolve(), options.out, options.solved, options.width, options.seconds, options.nics)
            for s in options.sources
        )
        else 0
    )


if __name__ == "__main__":
    sys.exit(main())
