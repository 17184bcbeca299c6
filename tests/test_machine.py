import pytest
import torch

from gpt.machine import choose_compilation, choose_precision, device_type, has_compiler

BFLOAT16 = ("bf16-mixed", "precision bf16-mixed: the hardware computes bfloat16")
FLOAT32 = ("32-true", "precision 32-true: no bfloat16 in hardware")


HARDWARE = [("cpu", "avx512_bf16", BFLOAT16), ("cpu", "amx_bf16", BFLOAT16)]
HARDWARE += [("cpu", "avx2", FLOAT32), ("mps", "avx2", FLOAT32)]


@pytest.mark.parametrize(("device", "capability", "chosen"), HARDWARE)
def test_bfloat16_is_used_where_the_hardware_computes_it(monkeypatch, device, capability, chosen):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True})
    assert choose_precision(device) == chosen


RUNS = [
    ("cpu", "bf16-mixed", 1e15, False, "compiled: the run is long"),
    ("cuda", "bf16-mixed", 1e16, True, "compiled: the run is long"),
    ("cpu", "bf16-mixed", 1e9, False, "not compiled: the run is too short to repay it"),
    ("cpu", "32-true", 1e15, False, "not compiled: it gains nothing in float32 on a CPU"),
    ("cpu", "bf16-mixed", 1e15, True, "not compiled: masks of ReLU or of dropout on attention weights"),
    ("mps", "32-true", 1e16, False, "not compiled: it was not tried on this device"),
]


@pytest.mark.parametrize(("device", "precision", "flops", "has_masks", "reason"), RUNS)
def test_long_runs_are_compiled_where_it_gains(monkeypatch, device, precision, flops, has_masks, reason):
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/c++")
    decided, why = choose_compilation(device, precision, flops, has_masks)
    assert decided is (reason == "compiled: the run is long")
    assert why.startswith(reason)


COMPILERS = {"gcc": "cuda", "my-cc": "cuda", "g++": "cpu", "my-cxx": "cpu"}


@pytest.mark.parametrize(("installed", "device"), COMPILERS.items())
def test_compiler_of_another_language_is_not_enough(monkeypatch, installed, device):
    monkeypatch.setattr("shutil.which", lambda name: name if name == installed else None)
    monkeypatch.setattr("sys.platform", "linux")
    for variable, name in (("CC", "my-cc"), ("CXX", "my-cxx")):
        if installed == name:
            monkeypatch.setenv(variable, name)
        else:
            monkeypatch.delenv(variable, raising=False)
    other, language = ("cpu", "C++") if device == "cuda" else ("cuda", "C")
    assert has_compiler(device)
    assert not has_compiler(other)
    reason = f"not compiled: there is no {language} compiler"
    assert choose_compilation(other, "bf16-mixed", 1e16, False) == (False, reason)


def test_device_type():
    assert device_type("cpu") == "cpu"
    if not torch.accelerator.is_available():
        assert device_type("auto") == "cpu"
