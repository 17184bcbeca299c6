import pytest
import torch

from gpt.machine import choose_compilation, choose_precision, device_type, has_compiler


@pytest.mark.parametrize("capability", ["avx512_bf16", "amx_bf16"])
def test_cpu_with_bfloat16_uses_it(monkeypatch, capability):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True})
    assert choose_precision("cpu") == ("bf16-mixed", "precision bf16-mixed: the hardware computes bfloat16")


def test_cpu_without_bfloat16_stays_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert choose_precision("cpu") == ("32-true", "precision 32-true: no bfloat16 in hardware")
    assert choose_precision("mps")[0] == "32-true"


def test_only_long_runs_in_bfloat16_are_compiled(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/c++")
    assert choose_compilation("cpu", "bf16-mixed", 1e15, False) == (True, "compiled: the run is long")
    assert (
        choose_compilation("cpu", "bf16-mixed", 1e9, False)[1]
        == "not compiled: the run is too short to repay it"
    )
    assert (
        choose_compilation("cpu", "32-true", 1e15, False)[1]
        == "not compiled: it gains nothing in float32 on a CPU"
    )
    assert choose_compilation("cuda", "bf16-mixed", 1e16, False)[0]
    assert (
        choose_compilation("mps", "32-true", 1e16, False)[1]
        == "not compiled: it was not tried on this device"
    )


def test_models_with_many_masks_are_not_compiled_on_a_cpu(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: "/usr/bin/c++")
    assert choose_compilation("cpu", "bf16-mixed", 1e15, True)[1].startswith(
        "not compiled: masks of ReLU or of dropout"
    )
    assert choose_compilation("cuda", "bf16-mixed", 1e16, True)[0]


def test_without_a_compiler_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not has_compiler("cpu")
    assert not has_compiler("cuda")
    assert choose_compilation("cpu", "bf16-mixed", 1e15, False) == (
        False,
        "not compiled: there is no C++ compiler",
    )
    assert choose_compilation("cuda", "bf16-mixed", 1e16, False) == (
        False,
        "not compiled: there is no C compiler",
    )


@pytest.mark.parametrize(
    ("installed", "device"), [("gcc", "cuda"), ("my-cc", "cuda"), ("g++", "cpu"), ("my-cxx", "cpu")]
)
def test_compiler_of_another_language_is_not_enough(monkeypatch, installed, device):
    monkeypatch.setattr("shutil.which", lambda name: name if name == installed else None)
    monkeypatch.setattr("sys.platform", "linux")
    for variable, name in (("CC", "my-cc"), ("CXX", "my-cxx")):
        if installed == name:
            monkeypatch.setenv(variable, name)
        else:
            monkeypatch.delenv(variable, raising=False)
    assert has_compiler(device)
    assert not has_compiler("cpu" if device == "cuda" else "cuda")


def test_device_type():
    assert device_type("cpu") == "cpu"
    if not torch.accelerator.is_available():
        assert device_type("auto") == "cpu"
