"""report.html: it says what a folder holds, runs nothing from it, and loads nothing from anywhere."""

import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import report
from gpt.cli.html_report import command, write_report
from gpt.cli.pictures import our_style
from gpt.cli.svg import inline_svg
from gpt.settings import UserError

figures = pytest.importorskip("matplotlib.figure", reason="extra plot is not installed")
VOID = {"meta", "br", "img", "link", "input", "hr"}
HOSTILE = "</pre></script><script>alert(1)</script><img src=x onerror=alert(1)>"


class Page(HTMLParser):
    """Checks that each tag is closed, and gathers tags, attributes and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.attributes if key == name]


def read_page(path: Path) -> Page:
    """A page, after a look at what no page may have."""
    page = Page(path)
    assert not {"script", "img", "link", "iframe", "object", "base"} & set(page.tags)
    assert "http:" not in page.source
    assert "https:" not in page.source
    assert page.values("src") == []
    assert all(target.startswith(("./", "#", "data:image/png;base64,")) for target in page.values("href"))
    assert not [key for key, _ in page.attributes if key.startswith("on")]
    assert len(page.values("id")) == len(set(page.values("id")))
    assert page.source.count("url(") == page.source.count("url(#")
    return page


def test_page_of_a_run(trained, capsys):
    result = json.loads((trained / "result.json").read_text())
    report.main([str(trained)])
    assert capsys.readouterr().out == f"{trained / 'report.html'}\n"
    page = read_page(trained / "report.html")
    for said in (f"{result['final_val_loss']:.4f}", f"{result['parameters']:,}", "max_steps: 4", "trainer.max_steps=4"):
        assert said in page.text
    assert f"step 4, val loss {result['final_val_loss']:.4f}" in page.text  # of a sample
    assert "ROMEO" in page.text
    assert page.tags.count("svg") == 1 + 2  # the curves, and the attention of two layers

    about = json.loads((trained / "run.json").read_text())
    (trained / "run.json").write_text(json.dumps(about | {"command": ["train.py", HOSTILE], "versions": {HOSTILE: HOSTILE}}))
    (trained / "sample.txt").write_text(HOSTILE)
    shutil.rmtree(trained / "checkpoints")
    page = read_page(write_report(trained))
    assert page.text.count(HOSTILE) == 1 + 2 + 1
    assert "no such file" in page.text  # instead of attention
    assert page.tags.count("svg") == 1
    (trained / "result.json").unlink()
    with pytest.raises(UserError, match="not finished"):
        write_report(trained)


def test_page_of_a_sweep(trained, tmp_path):
    sweep = tmp_path / "<b>&sweep"
    name = "<img onerror=alert(1)> 'x'"
    for run, lr in (("lr=0.1", "lr: 0.1"), (name, "lr: 0.2")):
        shutil.copytree(trained, sweep / run, ignore=shutil.ignore_patterns("*.ckpt", "report.html"))
        config = sweep / run / "config.yaml"
        before = config.read_text()
        after = "\n".join(f"  {lr}" if line.startswith("  lr:") else line for line in before.splitlines())
        assert after != before
        config.write_text(after)
    (sweep / "broken").mkdir()
    (sweep / "broken" / "error.txt").write_text(HOSTILE)
    page = read_page(write_report(sweep))
    assert page.tags.count("svg") == 2
    assert page.tags.count("tr") >= 3
    assert "0.1, 0.2" in page.text
    assert f"broken: {HOSTILE}" in page.text
    links = [target for target in page.values("href") if target.startswith("./")]
    assert sorted(links) == ["./%3Cimg%20onerror%3Dalert%281%29%3E%20%27x%27/", "./lr%3D0.1/"]


@pytest.mark.parametrize(
    ("words", "is_shown"),
    [
        (["scripts/train.py", "seed=2"], True),
        (["-c", "import os"], False),
        (["-m", "x.py"], False),
        ("train.py", False),
        ([], False),
    ],
)
def test_only_a_training_command_is_offered_for_pasting(words, is_shown):
    assert ("<pre" in command({"command": words})) is is_shown


def test_picture_takes_on_the_colours_of_the_page_and_no_tag_from_a_name():
    figure = figures.Figure()
    figure.subplots().plot([1, 2], [1, 2], color="black", label=f"{HOSTILE}\0")
    figure.legend()
    with our_style():
        svg = inline_svg(figure, "first", f'"{HOSTILE}')
    assert "<script" not in svg
    assert "<img" not in svg
    assert "stroke: currentColor" in svg
    assert "#000000" not in svg
    assert all(name.startswith("first-") for name in re.findall(r'(?:\bid="|url\(#|href="#)([^")]*)', svg))


def test_mistakes_are_one_line(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no finished run"):
        report.main([str(tmp_path)])
    for name in ("matplotlib", "matplotlib.style"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=r"pip install -e \"\.\[plot\]\""):
        report.main([str(tmp_path)])
    with pytest.raises(ImportError):
        write_report(tmp_path)
