"""The page of a model, in a real browser without a network: it computes what the model computes."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import export_html
from conftest import ARCHITECTURES, ROOT, make_model
from gpt.checkpoint import load
from gpt.errors import UserError
from gpt.generate import generate_text
from gpt.interop.bpe import BPETokenizer
from gpt.interop.page import render
from gpt.model import GPT, attention_weights
from gpt.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api", reason="extra browser is not installed")
missing = "no chromium on this machine: apt-get install chromium"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=missing)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
QUIET += ["--disable-background-networking", "--disable-component-update"]
TEXT = "ROMEO: But soft, what light?\nJULIET: O me.\n"
CHAR = CharTokenizer.from_text(TEXT)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)


@pytest.fixture
def visit(browser, tmp_path) -> Iterator[Callable]:
    """Open the page of a model. In the end, it may have asked for nothing but itself, and made no error."""
    context = browser.new_context(offline=True)
    requests: list[str] = []
    errors: list[str] = []
    path = tmp_path / "play.html"

    def visit(model: GPT, tokenizer: Tokenizer = CHAR, prompt: str = "ROMEO:", **facts: str):
        path.write_text(render(model, tokenizer, "A <title>", facts, prompt), encoding="utf-8")
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(path.as_uri())
        return page

    yield visit
    context.close()
    assert (errors, set(requests)) == ([], {path.as_uri()})


def in_float16(arch: str = "modern", tokenizer: Tokenizer = CHAR, **changes) -> GPT:
    """A model with larger weights, which float16 holds exactly, so that the page has the same ones."""
    model = make_model(arch, vocab_size=len(tokenizer), **changes)
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.1)
        parameter.data = parameter.data.half().float()
    return model.eval()


def write(page, prompt: str | None, length: int, temperature: float = 0.0) -> str:
    """What the page writes after a prompt, or after the one that it has."""
    if prompt is not None:
        page.fill("#prompt", prompt)
    page.fill("#length", str(length))
    page.evaluate(f"document.getElementById('temperature').value = {temperature}")
    page.click("#go")
    page.wait_for_function("document.getElementById('stop').disabled")
    return page.text_content("#text")


ABLATIONS = {path.stem: dict(OmegaConf.load(path)) for path in sorted(ROOT.glob("conf/ablation/*.yaml"))}
CASES = [(arch, {}, CHAR) for arch in ARCHITECTURES] + [("modern", {}, ByteTokenizer())]
CASES += [("modern", changes, CHAR) for changes in ABLATIONS.values() if changes]


@pytest.mark.parametrize(("arch", "changes", "tokenizer"), CASES)
def test_page_computes_the_same_logits_far_beyond_the_context(arch, changes, tokenizer, visit):
    model, ids = in_float16(arch, tokenizer, **changes), torch.randint(len(tokenizer), (16 + 200,))
    many = "ids => ids.slice(16).map((_, n) => Array.from(window.gpt.logits(ids.slice(0, n + 17))))"
    found = torch.tensor(visit(model, tokenizer).evaluate(many, ids.tolist()))
    with torch.no_grad():
        expected = model(ids.unfold(0, 16, 1)[1:])[:, -1]
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_weights_that_are_rounded_change_the_logits_little(visit):
    model, ids = make_model("modern", vocab_size=len(CHAR), n_embd=64), torch.randint(len(CHAR), (16,))
    found = torch.tensor(visit(model).evaluate("ids => Array.from(window.gpt.logits(ids))", ids.tolist()))
    torch.testing.assert_close(found, model(ids[None])[0, -1].detach(), atol=2e-3, rtol=0)


def test_greedy_text_and_attention_are_those_of_the_model(arch, visit):
    """Through the page's own buttons, and past the end of the context, where the later half is read again."""
    model, ids = in_float16(arch), torch.randint(len(CHAR), (16,))
    page = visit(model)
    assert write(page, "ROMEO:", 60) == generate_text(model, CHAR, "ROMEO:", 60, temperature=0)
    rows = page.evaluate("ids => window.gpt.attention(ids).map(layer => Array.from(layer))", ids.tolist())
    found = torch.tensor(rows).view(2, 2, 16)  # layers, heads, positions
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 2))
    expected = attention_weights(model, ids[None])[:, 0, :, -1]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_seed_decides_and_text_continues_from_a_click_until_undo(visit):
    page = visit(in_float16())
    before = write(page, "ROMEO", 40, temperature=1)
    assert write(page, "ROMEO", 40, temperature=1) == before
    page.locator("#text span").nth(20).click()
    page.wait_for_function("document.getElementById('stop').disabled")
    after = page.text_content("#text")
    assert (after[:21], len(after)) == (before[:21], 21 + 40)
    assert after[:45] != before
    page.click("#undo")
    assert page.text_content("#text") == before
    page.fill("#seed", "2")
    assert write(page, "ROMEO", 40, temperature=1) != before


def test_expectation_and_surprise_of_a_character(visit):
    model = in_float16()
    page = visit(model)
    write(page, "ROMEO:", 5)
    page.focus("#text")
    page.keyboard.press("ArrowLeft")
    text = page.text_content("#text")
    with torch.no_grad():
        probabilities = model(CHAR.encode(text[:-1])[None])[0, -1].softmax(-1)
    found = probabilities[CHAR.encode(text[-1])].item()
    assert f"{100 * found:.1f} %" in page.text_content("#surprise")
    likeliest = [f"{100 * p:.1f} %" for p in probabilities.topk(10).values.tolist()]
    shown = page.locator("#expected li").all_text_contents()
    assert [line[-len(p) :] for line, p in zip(shown, likeliest, strict=True)] == likeliest
    page.check("[value=surprise]")
    colour = page.locator("#text span").last.evaluate("span => span.style.backgroundColor")
    assert colour.startswith("rgb")


TEXTS = [TEXT, "it's 42 tïmes\n\n  the  café 🙂!", "</script><b>&amp;", "\u202eabc\ufeff", "a" * 300]


@pytest.mark.parametrize("kind", ["byte", "bpe"])
def test_encoding_and_decoding_are_those_of_the_tokenizer(kind, visit):
    bpe = BPETokenizer.from_parts([TEXT * 9 + "the café times </script>"], 320)
    tokenizer = bpe if kind == "bpe" else ByteTokenizer()
    page = visit(make_model(vocab_size=len(tokenizer)), tokenizer)
    for text in TEXTS:
        ids = tokenizer.encode(text).tolist()
        assert page.evaluate("text => window.gpt.encode(text)", text) == ids
        assert page.evaluate("ids => window.gpt.decode(ids)", ids) == text


def test_hostile_vocabulary_title_and_prompt_are_shown_as_text(visit):
    hostile = "</script><script>document.title='taken'</script>\"'`$&{}\\\u2028\u202e🙂\n"
    tokenizer, command = CharTokenizer.from_text(hostile), f"<img src=x onerror=alert(1)>{hostile}"
    page = visit(make_model(vocab_size=len(tokenizer)), tokenizer, hostile, command=command)
    assert page.input_value("#prompt") == hostile
    assert write(page, hostile, 5).startswith(hostile)
    assert page.title() == "A <title>"
    assert page.locator("#text script, #facts img").count() == 0


def test_unknown_characters_are_named_and_a_million_can_be_pasted(visit):
    page = visit(make_model(vocab_size=len(CHAR)))
    before = write(page, "ROMEO:", 5)
    page.fill("#prompt", "ROMEO π🙂")
    page.click("#go")
    assert "“π” “🙂” not among the" in page.text_content("#message")
    assert page.text_content("#text") == before  # nothing is lost
    text = (TEXT * 24_000)[: 2**20]
    page.evaluate("text => (document.getElementById('prompt').value = text)", text)
    written = write(page, None, 10)
    assert len(written) < 10_000
    assert written[:-10].endswith(text[-100:])


def test_script_writes_the_page_of_a_run(trained, tmp_path, capsys, browser):
    out = tmp_path / "play.html"
    export_html.main([str(trained), "--out", str(out)])
    assert f"{out}: " in capsys.readouterr().out
    page = browser.new_page()
    page.goto(out.as_uri())
    result = json.loads((trained / "result.json").read_text())
    facts = page.inner_text("#facts")
    assert f"{result['parameters']:,}" in facts
    assert f"{result['best_val_loss']:.4f} nats per character" in facts
    assert " data.path=text.txt" in facts
    assert str(tmp_path) not in facts
    page.wait_for_function("document.getElementById('status').textContent.startsWith('The text has 500')")
    expected = generate_text(*load(trained)[:2], "ROMEO:\n", 500, seed=1)
    assert page.text_content("#text") == expected  # it opens with a text, at which one can point
    page.locator("#text span").nth(100).hover()
    assert "bits of surprise" in page.text_content("#surprise")
    assert "Click" in page.inner_text("#play")
    assert "Tap" not in page.inner_text("#play")
    phone = browser.new_page(has_touch=True, is_mobile=True)
    phone.goto(out.as_uri())
    assert "Tap" in phone.inner_text("#play")
    assert "Click" not in phone.inner_text("#play")
    for opened in (page, phone):
        opened.close()


def test_what_cannot_become_a_page_is_refused(trained, tmp_path):
    out = [str(trained), "--out", str(tmp_path / "play")]
    with pytest.raises(UserError, match=r"--out = .*: a browser would not show it"):
        export_html.main([*out[:-1], out[-1] + ".txt"])
    with pytest.raises(UserError, match="not among the"):
        export_html.main([*out[:-1], out[-1] + ".html", "--prompt", "π"])
    model = make_model(vocab_size=len(CHAR))
    model.head.weight.data[0, 0] = 1e5
    with pytest.raises(UserError, match="not finite in float16"):
        render(model, CHAR, "", {}, "")
    assert not list(tmp_path.glob("play.*"))


# What a person sees in TensorBoard. Its screenshots stay in outputs/screenshots/


SCREENSHOTS = ROOT / "outputs" / "screenshots"


@pytest.fixture
def outputs(succeed) -> Path:
    """A sweep, and two runs that have little in common with it."""
    common = ["trainer.max_steps=4", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1"]
    common += ["callbacks.attention.text=ROMEO"]
    succeed("-m", *common, "model.n_head=1,2")
    succeed(*common, "model/arch=gpt1", "hydra.run.dir=outputs/gpt1")
    succeed(*common, "data.tokenizer=byte", "optimizer=adamw", "seed=7", "hydra.run.dir=outputs/bytes")
    return Path("outputs").resolve()


@pytest.fixture
def board(outputs) -> Iterator[str]:
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(outputs)]
    command += ["--host", "localhost", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        found = (re.search(r"(http://localhost:\d+/)", line) for line in process.stderr)
        yield next(filter(None, found))[1]
        process.terminate()


def test_runs_of_different_kinds_in_tensorboard(outputs, board, browser):
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
