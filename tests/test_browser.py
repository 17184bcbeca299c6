"""What a person sees in TensorBoard, through a real browser. Its screenshots stay in outputs/screenshots/."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_page import browser, playwright, pytestmark  # noqa: F401 - a fixture, and where to skip

from conftest import ROOT, TINY

SCREENSHOTS = ROOT / "outputs" / "screenshots"


@pytest.fixture
def outputs(call, text) -> Path:
    """A sweep, and two runs that have little in common with it."""
    common = [*TINY, "trainer.max_steps=4", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1"]
    common += ["callbacks.attention.text=ROMEO", f"data.path={text}"]
    for given in (
        ["-m", *common, "model.n_head=1,2"],
        [*common, "model/arch=gpt1", "hydra.run.dir=outputs/gpt1"],
        [*common, "data.tokenizer=byte", "optimizer=adamw", "seed=7", "hydra.run.dir=outputs/bytes"],
    ):
        code, _, err = call(*given)
        assert code == 0, err
    return Path("outputs").resolve()


@pytest.fixture
def board(outputs) -> Iterator[str]:
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(outputs)]
    command += ["--host", "localhost", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        found = (re.search(r"(http://localhost:\d+/)", line) for line in process.stderr)
        yield next(filter(None, found))[1]
        process.terminate()


def test_runs_of_different_kinds_in_tensorboard(outputs, board, browser):  # noqa: F811
    results = {path.parent: json.loads(path.read_text()) for path in outputs.glob("**/result.json")}
    found = {str(folder.relative_to(outputs)): result for folder, result in results.items()}
    assert len(found) == 4
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.set_default_timeout(60_000)
    see = playwright.expect
    see.set_options(timeout=60_000)

    def show(place: str) -> None:
        page.goto("about:blank")  # or only the fragment would change, and old cards stay
        page.goto(board + place)

    show("?smoothing=0#timeseries")
    see(page.locator("mat-toolbar, .group-title").filter(has_text="loss").first).to_be_visible()
    card = page.locator("scalar-card").first  # nothing comes before it, and its table names its lines
    see(card).to_contain_text("loss")
    card.get_by_label("Expand Table").or_(card.locator(".expand-button")).first.click()
    for run, result in found.items():
        see(card).to_contain_text(f"{run}/train")
        see(card).to_contain_text(f"{result['final_val_loss']:.5g}")
    page.screenshot(path=SCREENSHOTS / "curves.png")

    show("#text")
    line = max((outputs / next(iter(found)) / "sample.txt").read_text().split(), key=len)
    see(page.get_by_text("sample/temperature 0.8/text_summary").first).to_be_visible()
    see(page.locator("tf-text-loader pre").filter(has_text=line).first).to_be_visible()

    show("#images")
    picture = page.locator("tf-image-loader img").first
    see(picture).to_be_visible()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 200

    show("#hparams")
    cells = page.locator("vaadin-grid-cell-content")
    for run in found:
        see(cells.filter(has_text=f"{run}/best").first).to_be_visible()
    assert {"arch", "val/best_bits_per_char"} <= set(cells.all_inner_texts())
    for name in ("optimizer", "model.n_head", "optimizer.muon_lr", "data.tokenizer", "seed"):
        see(page.get_by_text(name, exact=True).first).to_be_visible()
    assert page.get_by_text("val/loss", exact=True).count() == 0  # it does not compare between tokenizers
    page.get_by_text("PARALLEL COORDINATES VIEW").click()
    see(page.locator("tf-hparams-parallel-coords-plot svg").first).to_be_visible()
    page.screenshot(path=SCREENSHOTS / "hparams.png")
    page.close()
