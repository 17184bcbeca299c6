from dataclasses import dataclass

import pytest

from gpt.settings import UserError, build, did_you_mean, user_errors


@dataclass(frozen=True)
class Sizes:
    width: int
    rate: float
    wide: bool
    name: str | None
    pair: tuple[float, float]

    def __post_init__(self):
        if self.width < 1:
            raise ValueError(f"width = {self.width}: too small; set more")


GOOD = dict(width=3, rate=0.5, wide=True, name=None, pair=[1, 2])


def test_builds_and_converts():
    made = build(Sizes, GOOD | {"width": 1e3, "rate": 2, "name": 7}, "size")
    assert made == Sizes(width=1000, rate=2.0, wide=True, name="7", pair=(1.0, 2.0))
    assert type(made.width) is int


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 1.5}, "size.width = 1.5: not a whole number"),
        ({"width": "abc"}, "size.width = abc: not a whole number"),
        ({"width": True}, "size.width = True: not a whole number"),
        ({"width": float("inf")}, "size.width = inf: not a whole number"),
        ({"width": None}, "size.width = None: not a whole number"),
        ({"width": 0}, "size.width = 0: too small; set more"),
        ({"rate": float("nan")}, "size.rate = nan: not a finite number"),
        ({"rate": "fast"}, "size.rate = fast: not a finite number"),
        ({"wide": 1}, "size.wide = 1: not true or false"),
        ({"pair": [1]}, "size.pair = [1]: not a list of 2"),
        ({"pair": [1, "x"]}, "size.pair = x: not a finite number"),
        ({"widht": 3}, "size.widht = 3: no such setting; did you mean size.width?"),
    ],
)
def test_refuses_by_name(change, message):
    with pytest.raises(UserError) as caught:
        build(Sizes, GOOD | change, "size")
    assert str(caught.value).startswith(message)


def test_refuses_what_is_missing():
    with pytest.raises(UserError, match=r"size\.rate = \(missing\)"):
        build(Sizes, {key: value for key, value in GOOD.items() if key != "rate"}, "size")


def test_did_you_mean():
    assert did_you_mean("n_haed", ["n_head", "n_layer"]) == "did you mean n_head?"
    assert did_you_mean("xyz", ["b", "a"]) == "choose one of a, b"


def test_user_errors_end_in_one_line_and_exit_code_2(capsys):
    with pytest.raises(SystemExit) as stop, user_errors():
        raise UserError("a = b: c; d")
    assert stop.value.code == 2
    assert capsys.readouterr() == ("", "error: a = b: c; d\n")
