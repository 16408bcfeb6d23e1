"""Every way of saying nothing is told apart, and plain text in any script is text."""

import pytest
from assay.measures.answers import Kind, classify


@pytest.mark.parametrize(
    ("text", "raw", "kind"),
    [
        ("", "", Kind.EMPTY),
        ("", "<|im_start|>", Kind.SPECIAL_ONLY),
        (" \n\t", None, Kind.WHITE_SPACE),
        ("<think>let me see</think>\n", None, Kind.THINK_ONLY),
        ("<think>let me see, and it never ends", None, Kind.THINK_ONLY),
        ("............", None, Kind.DEGENERATE),
        ("666666 666666 77", None, Kind.DEGENERATE),
        ("Siem Siem Siem Siem Siem Siem Siem Siem Siem", None, Kind.DEGENERATE),
        ("hahahahahahahahahaha", None, Kind.DEGENERATE),
        ("Siem Reap " * 30, None, Kind.DEGENERATE),
        ("I am sorry, I cannot. " * 12, None, Kind.DEGENERATE),
        ("电场强度为零电场强度为零" * 12, None, Kind.DEGENERATE),
        (
            "平行板电容器的电容与极板面积成正比，与极板间距成反比。由高斯定理可得极板间的电场，再乘以间距得到电压，"
            "电荷与电压之比即为电容，单位是法拉，间距趋于零时电容趋于无穷。",
            None,
            Kind.OK,
        ),
        ("Paris.", None, Kind.OK),
        ("C = ε₀A/d, since E = σ/ε₀ between the plates.", None, Kind.OK),
        ("### 结论\n电容为 C = ε₀A/d。", None, Kind.OK),
        ("<think>hm</think>\nThe answer is four.", None, Kind.OK),
    ],
)
def test_an_answer_is_classified(text: str, raw: str | None, kind: Kind) -> None:
    assert classify(text, finished=True, raw=raw) is kind


def test_an_answer_cut_off_is_truncated_and_still_text() -> None:
    assert classify("The capacitance is", finished=False) is Kind.TRUNCATED
    assert Kind.TRUNCATED.is_text


def test_a_block_that_the_prompt_opened_is_thoughts_too() -> None:
    assert classify("let me see", finished=False, thinking=True) is Kind.THINK_ONLY
    assert classify("let me see</think>\nFour.", finished=True, thinking=True) is Kind.OK


def test_one_token_eight_times_is_degenerate_whatever_it_spells() -> None:
    tokens = [5, 6, 7, *[9] * 8, 5]
    assert classify("a perfectly readable text", finished=True, tokens=tokens) is Kind.DEGENERATE


def test_only_text_is_text() -> None:
    assert [kind for kind in Kind if kind.is_text] == [Kind.TRUNCATED, Kind.OK]
