"""What a person sees in TensorBoard, through a real browser. Its screenshots stay in outputs/screenshots/."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ROOT, TINY

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api", reason="extra browser is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIET += ["--disable-component-update", "--disable-sync"]
SCREENSHOTS = ROOT / "outputs" / "screenshots"


@pytest.fixture
def sweep(call, text) -> Path:
    given = ["model.n_head=1,2", "model.context_length=8,16", "trainer.max_steps=4", "trainer.val_check_interval=2"]
    code, _, err = call("-m", *TINY, *given, "callbacks.attention.text=ROMEO", f"data.path={text}")
    assert code == 0, err
    return next(Path("outputs/sweeps").iterdir())


@pytest.fixture
def board(sweep) -> Iterator[str]:
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(sweep), "--host", "localhost", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        yield next(found[1] for line in process.stderr if (found := re.search(r"(http://localhost:\d+/)", line)))
        process.terminate()


def test_a_sweep_in_tensorboard(sweep, board):
    results = {path.parent.name: json.loads(path.read_text()) for path in sweep.glob("*/result.json")}
    assert len(results) == 4
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(60_000)
        see = playwright.expect
        see.set_options(timeout=60_000)

        def show(place: str) -> None:
            page.goto("about:blank")  # or only the fragment would change, and old cards stay
            page.goto(board + place)

        show("?tagFilter=%5Eval%2Floss&smoothing=0#timeseries")
        card = page.locator("scalar-card").first
        for run, result in results.items():  # the table below the curves, at the last step
            see(card).to_contain_text(run)
            see(card).to_contain_text(f"{result['final_val_loss']:.5g}")
        page.screenshot(path=SCREENSHOTS / "curves.png")

        show("#text")
        line = max((sweep / next(iter(results)) / "sample.txt").read_text().split(), key=len)  # it knows no words yet
        see(page.get_by_text("sample/temperature 0.8/text_summary").first).to_be_visible()
        see(page.locator("tf-text-loader pre").filter(has_text=line).first).to_be_visible()

        show("#images")
        picture = page.locator("tf-image-loader img").first
        see(picture).to_be_visible()
        assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 200

        show("#hparams")
        cells = page.locator("vaadin-grid-cell-content")
        for result in results.values():
            see(cells.filter(has_text=f"{result['best_val_loss']:.5g}").first).to_be_visible()
        shown = set(cells.all_inner_texts())
        assert {"model.n_head", "model.context_length", "val/best_bits_per_char", "16.000"} <= shown
        assert "trainer.max_steps" not in shown  # which does not vary
        page.get_by_text("PARALLEL COORDINATES VIEW").click()
        see(page.locator("tf-hparams-parallel-coords-plot svg").first).to_be_visible()
        page.screenshot(path=SCREENSHOTS / "hparams.png")
        browser.close()
