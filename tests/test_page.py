"""The page of a model, in a real browser that has no network: it computes what the model computes, whatever it is given."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import export_html
from conftest import ARCHITECTURES, ROOT, make_model
from gpt.extras.bpe import BPETokenizer
from gpt.extras.page import render
from gpt.generate import generate
from gpt.model import GPT, attention_weights
from gpt.settings import UserError
from gpt.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
playwright = pytest.importorskip("playwright.sync_api", reason="extra browser is not installed")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt-get install chromium")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
TEXT = "ROMEO: But soft, what light?\nJULIET: O me.\n"
ABLATIONS = {path.stem: dict(OmegaConf.load(path)) for path in sorted((ROOT / "conf" / "ablation").glob("*.yaml"))}
CHAR = CharTokenizer.from_text(TEXT)


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)


@pytest.fixture
def visit(browser, tmp_path) -> Iterator[Callable]:
    """Open the page of a model. In the end, nothing but this file may have been asked for, and no error have occurred."""
    context = browser.new_context(offline=True)
    requests: list[str] = []
    errors: list[str] = []

    def visit(model: GPT, tokenizer: Tokenizer, prompt: str = "ROMEO:", **facts: str):
        path = tmp_path / "play.html"
        path.write_text(render(model, tokenizer, "A <title>", facts, prompt), encoding="utf-8")
        page = context.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(path.as_uri())
        assert set(requests) == {path.as_uri()}
        return page

    yield visit
    context.close()
    assert not errors
    assert len(set(requests)) <= 1


def in_float16(model: GPT) -> GPT:
    """The model with larger weights, which float16 holds exactly, so that the page has the same ones."""
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


VARIANTS = {arch: (arch, {}) for arch in ARCHITECTURES} | {
    f"without {name}": ("modern", change) for name, change in ABLATIONS.items() if change
}


CASES = [(name, "char") for name in VARIANTS] + [(name, "byte") for name in ARCHITECTURES]


@pytest.mark.parametrize(("variant", "kind"), CASES)
def test_page_computes_the_same_logits_far_beyond_the_context(variant, kind, visit):
    (arch, changes), tokenizer = VARIANTS[variant], CHAR if kind == "char" else ByteTokenizer()
    model = in_float16(make_model(arch, vocab_size=len(tokenizer), **changes))
    ids = torch.randint(len(tokenizer), (16 + 200,))
    page = visit(model, tokenizer)
    many = "ids => ids.slice(16).map((_, n) => Array.from(window.gpt.logits(ids.slice(0, n + 17))))"
    found = torch.tensor(page.evaluate(many, ids.tolist()))
    with torch.no_grad():
        expected = model(ids.unfold(0, 16, 1)[1:])[:, -1]
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_weights_that_are_rounded_change_the_logits_little(visit):
    model = make_model("modern", vocab_size=len(CHAR), n_embd=64)
    ids = torch.randint(len(CHAR), (16,))
    found = torch.tensor(visit(model, CHAR).evaluate("ids => Array.from(window.gpt.logits(ids))", ids.tolist()))
    with torch.no_grad():
        torch.testing.assert_close(found, model(ids[None])[0, -1], atol=2e-3, rtol=0)


def test_greedy_text_is_that_of_generate(arch, visit):
    """Through the page's own buttons, and past the end of the context, where the later half is read anew."""
    model = in_float16(make_model(arch, vocab_size=len(CHAR)))
    expected = CHAR.decode(int(i) for i in generate(model, CHAR.encode("ROMEO:")[None], 60, temperature=0))
    page = visit(model, CHAR)
    assert write(page, "ROMEO:", 60) == "ROMEO:" + expected
    assert page.evaluate("window.gpt.decode(window.gpt.generate(window.gpt.encode('ROMEO:'), 60))") == expected


def test_attention_is_that_of_the_model(arch, visit):
    model = in_float16(make_model(arch, vocab_size=len(CHAR)))
    ids = torch.randint(len(CHAR), (16,))
    rows = visit(model, CHAR).evaluate("ids => window.gpt.attention(ids).map(layer => Array.from(layer))", ids.tolist())
    found = torch.tensor(rows).view(2, 2, 16)  # layers, heads, positions
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 2))
    torch.testing.assert_close(found, attention_weights(model, ids[None])[:, 0, :, -1], atol=1e-5, rtol=1e-5)


def test_same_seed_writes_the_same_text(visit):
    page = visit(in_float16(make_model(vocab_size=len(CHAR))), CHAR)
    first = write(page, "O", 40, temperature=1)
    assert write(page, "O", 40, temperature=1) == first
    page.fill("#seed", "2")
    assert write(page, "O", 40, temperature=1) != first


def test_text_goes_on_from_a_click_and_undo_brings_it_back(visit):
    page = visit(in_float16(make_model(vocab_size=len(CHAR))), CHAR)
    before = write(page, "ROMEO", 40, temperature=1)
    page.locator("#text span").nth(20).click()
    page.wait_for_function("document.getElementById('stop').disabled")
    after = page.text_content("#text")
    assert (after[:21], len(after)) == (before[:21], 21 + 40)
    assert after[:45] != before
    page.click("#undo")
    assert page.text_content("#text") == before


def test_expectation_and_surprise_of_a_character(visit):
    model = in_float16(make_model(vocab_size=len(CHAR)))
    page = visit(model, CHAR)
    write(page, "ROMEO:", 5)
    page.focus("#text")
    page.keyboard.press("ArrowLeft")
    text = page.text_content("#text")
    with torch.no_grad():
        probabilities = model(CHAR.encode(text[:-1])[None])[0, -1].softmax(-1)
    assert f"{100 * probabilities[CHAR.encode(text[-1])].item():.1f} %" in page.text_content("#surprise")
    likeliest = [f"{100 * p:.1f} %" for p in probabilities.topk(10).values.tolist()]
    shown = page.locator("#expected li").all_text_contents()
    assert [line[-len(p) :] for line, p in zip(shown, likeliest, strict=True)] == likeliest
    page.check("[value=surprise]")
    assert page.locator("#text span").last.evaluate("span => span.style.backgroundColor").startswith("rgb")


@pytest.mark.parametrize("tokenizer", ["byte", "bpe"])
@pytest.mark.parametrize("text", [TEXT, "it's 42 tïmes\n\n  the  café 🙂!", "</script><b>&amp;", "\u202eabc\ufeff", "a" * 300])
def test_encoding_and_decoding_are_those_of_the_tokenizer(tokenizer, text, visit):
    ours = ByteTokenizer() if tokenizer == "byte" else BPETokenizer.from_parts([TEXT * 9 + "the café times </script>"], 320)
    page = visit(make_model(vocab_size=len(ours)), ours)
    ids = ours.encode(text).tolist()
    assert page.evaluate("text => window.gpt.encode(text)", text) == ids
    assert page.evaluate("ids => window.gpt.decode(ids)", ids) == text


def test_hostile_vocabulary_title_and_prompt_are_shown_as_text(visit):
    hostile = "</script><script>document.title='taken'</script>\"'`$&{}\\\u2028\u202e🙂\n"
    tokenizer = CharTokenizer.from_text(hostile)
    page = visit(make_model(vocab_size=len(tokenizer)), tokenizer, hostile, command=f"<img src=x onerror=alert(1)>{hostile}")
    assert page.input_value("#prompt") == hostile
    assert write(page, hostile, 5).startswith(hostile)
    assert page.title() == "A <title>"
    assert page.locator("#text script, #facts img").count() == 0


def test_unknown_characters_are_named_and_nothing_is_lost(visit):
    page = visit(make_model(vocab_size=len(CHAR)), CHAR)
    before = write(page, "ROMEO:", 5)
    page.fill("#prompt", "ROMEO π🙂")
    page.click("#go")
    assert "“π” “🙂” not among the" in page.text_content("#message")
    assert page.text_content("#text") == before


def test_a_million_characters_can_be_pasted(visit):
    page = visit(make_model(vocab_size=len(CHAR)), CHAR)
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
    result = json.loads((Path(trained) / "result.json").read_text())
    facts = page.inner_text("#facts")
    assert f"{result['parameters']:,}" in facts
    assert f"{result['best_val_loss']:.4f} nats per character" in facts
    assert "trained by" in facts
    assert str(tmp_path) not in facts
    page.close()


def test_what_cannot_become_a_page_is_refused(trained, tmp_path):
    with pytest.raises(UserError, match=r"--out = .*: a browser would not show it"):
        export_html.main([str(trained), "--out", str(tmp_path / "play.txt")])
    with pytest.raises(UserError, match="not among the"):
        export_html.main([str(trained), "--out", str(tmp_path / "play.html"), "--prompt", "π"])
    model = make_model(vocab_size=len(CHAR))
    model.head.weight.data[0, 0] = 1e5
    with pytest.raises(UserError, match="not finite in float16"):
        render(model, CHAR, "", {}, "")
    assert not list(tmp_path.glob("play.*"))
