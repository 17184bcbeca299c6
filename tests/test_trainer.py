import pytest
import torch

from gpt.trainer import choose

SETTINGS = dict(
    accelerator="cpu",
    devices="1",
    precision="auto",
    compile=None,
    max_steps=100,
    val_check_interval=10,
    log_every_n_steps=10,
    gradient_clip_val=1.0,
    accumulate_grad_batches=1,
    strategy="auto",
)


def chosen(monkeypatch, flops=0.0, bf16=False, compiler=True, **changes):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": bf16})
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/c++" if compiler else None)
    settings, line = choose(SETTINGS | changes, flops)
    return settings["precision"], settings["compile"], line


def test_a_cpu_without_bfloat16_stays_in_float32_uncompiled(monkeypatch):
    precision, compiled, line = chosen(monkeypatch, flops=1e15)
    assert (precision, compiled) == ("32-true", False)
    assert line == "precision 32-true: no bfloat16 in hardware; not compiled: gains nothing in float32 on a CPU"


def test_a_cpu_with_bfloat16_uses_it_and_compiles_long_runs(monkeypatch):
    assert chosen(monkeypatch, flops=1e15, bf16=True)[:2] == ("bf16-mixed", True)
    assert chosen(monkeypatch, flops=1e9, bf16=True)[2].endswith("not compiled: too short a run to repay it")
    assert chosen(monkeypatch, flops=1e15, bf16=True, compiler=False)[2].endswith("not compiled: no C++ compiler")
    # 100 steps of 2 batches each
    assert chosen(monkeypatch, flops=1.6e11, bf16=True, accumulate_grad_batches=2)[1]


@pytest.mark.parametrize(("precision", "compiled"), [("32-true", True), ("bf16-mixed", False)])
def test_what_is_asked_for_is_kept(monkeypatch, precision, compiled):
    assert chosen(monkeypatch, bf16=precision == "32-true", precision=precision, compile=compiled) == (precision, compiled, "")
