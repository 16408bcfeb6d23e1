"""Distances between distributions: the arithmetic on small numbers, and the figure of llama-perplexity."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from assay import paths
from assay.errors import InputError
from assay.inputs.bases import EMBEDDED, find_base
from assay.inputs.toolchain import find_toolchain
from assay.measures.divergence import Compared, compare_until_clear, loss_enters_at, share_lost, summarise_divergence
from assay.workers.distribution import compared, from_greedy
from assay.workers.logits import of_gguf
from assay.workers.sequences import Sequence, within

PROSE = "8c1bc7c63b31e2c3616dc33fb148c4519fe5928e7d17c86be596965b13fdd059"
"""sha256 of the probes, joined by line breaks."""
MEAN_KL = 0.046064
"""Mean KLD of the embedded base in Q4_K_M against F16 on the probes, by llama-perplexity (0c1e57098), in nats."""


def sequence(name: str, kl: list[float], right: list[bool] | None = None, kind: str = "task") -> Compared:
    count = len(kl)
    return Compared(
        name=name,
        kind=kind,
        kl=np.array(kl, dtype=np.float32),
        agrees=np.array(right or [True] * count),
        right=np.array(right or [True] * count),
        reference_right=np.ones(count, dtype=bool),
        loss=np.array(kl, dtype=np.float32) + 1,
        reference_loss=np.ones(count, dtype=np.float32),
    )


def test_a_model_against_itself_is_at_no_distance_and_against_a_flat_one_at_the_entropy_lost() -> None:
    import torch

    one = Sequence(name="s", kind="text", ids=[0, 1, 2, 3], scored=[0, 1, 2])
    logits = torch.tensor([[0.0, 5.0, 0.0, 0.0], [0.0, 0.0, 5.0, 0.0], [5.0, 0.0, 0.0, 0.0]])
    reference = torch.log_softmax(logits, dim=-1)
    same = compared(one, reference, logits)
    assert same.kl.max() == 0
    assert same.right.tolist() == [True, True, False]
    flat = compared(one, reference, torch.zeros(3, 4))
    p = reference.exp()[0]
    assert flat.kl[0] == pytest.approx(float((p * (p.log() + np.log(4))).sum()), rel=1e-5)
    assert flat.loss[0] == pytest.approx(np.log(4), rel=1e-5)


def test_a_padded_vocabulary_is_compared_without_its_padding() -> None:
    import torch

    one = Sequence(name="s", kind="text", ids=[0, 1], scored=[0])
    reference = torch.log_softmax(torch.tensor([[1.0, 2.0, -30.0]]), dim=-1)
    assert compared(one, reference, torch.tensor([[1.0, 2.0]])).kl[0] == pytest.approx(0, abs=1e-6)


def test_of_many_answers_as_many_are_measured_as_memory_holds_and_every_text() -> None:
    def made(kind: str, count: int) -> list[Sequence]:
        return [Sequence(name=f"{kind} {at}", kind=kind, ids=[0] * 11, scored=list(range(10))) for at in range(count)]

    few, many = made("task", 9), made("task", 1000)
    assert within(few + made("text", 2), 200) == made("text", 2) + few
    kept = within(many + made("text", 2), 200)
    assert [one.name for one in kept] == ["text 0", "text 1", *(f"task {at}" for at in range(0, 1000, 56))]
    assert sum(len(one.scored) for one in kept) <= 200
    assert within(made("text", 3), 10) == made("text", 3)


@pytest.mark.parametrize(("kl", "compared"), [(1e-5, [[9, 5, 1]]), (0.2, [[9, 5, 1], [0, 2, 3, 4, 6, 7, 8]])])
def test_what_is_clearly_exact_after_a_few_sequences_is_not_fed_the_others(
    kl: float, compared: list[list[int]]
) -> None:
    asked: list[list[int]] = []

    def compare(places: list[int]) -> list[Compared]:
        asked.append(places)
        return [sequence(str(at), [kl] * 5) for at in places]

    told = compare_until_clear(compare, list(range(10)), 5e-4)
    assert asked == compared
    assert [one.name for one in told] == [str(at) for part in compared for at in part]


def test_a_summary_counts_tokens_and_draws_sequences() -> None:
    told = summarise_divergence([sequence("a", [0.1] * 10), sequence("b", [0.3] * 30, [True] * 15 + [False] * 15)])
    assert told.kl_mean == pytest.approx(0.25)
    assert told.kl_mean_interval == pytest.approx((0.1, 0.3))
    assert (told.flips_to_wrong, told.flips_to_right) == (15, 0)
    assert told.top1_agreement == pytest.approx(25 / 40)
    assert told.perplexity_ratio == pytest.approx(np.exp(0.25), rel=1e-4)
    with pytest.raises(InputError, match="No sequence"):
        summarise_divergence([])


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """200 samples of 25 sequences with a mean KL of 0.5: about 95 % of the intervals hold it; fewer as n is small."""
    random, held = np.random.default_rng(1), 0
    for trial in range(200):
        rows = [sequence(str(at), (random.gamma(2, 0.25) + random.normal(0, 0.01, 20)).tolist()) for at in range(25)]
        low, high = summarise_divergence(rows, seed=trial).kl_mean_interval
        held += low <= 0.5 <= high
    assert 178 <= held <= 199


def test_a_fine_tune_is_lost_when_deployment_moves_it_as_far_as_training_did() -> None:
    base = [sequence(str(at), [1.0] * 10) for at in range(9)]
    for moved, share in ((0.05, 0.05), (1.0, 1.0)):
        told = share_lost([sequence(str(at), [moved] * 10) for at in range(9)], base)
        assert told.share_lost == pytest.approx(share, rel=1e-4)
    assert share_lost(base, [sequence(str(at), [0.0] * 10) for at in range(9)]).share_lost is None
    with pytest.raises(InputError, match="No answer"):
        share_lost(base, [sequence("other", [1.0])])


def test_the_stage_that_adds_most_is_where_the_loss_enters() -> None:
    assert loss_enters_at({"merged": 1e-4, "nf4": 0.4, "f16": 1.1e-4, "q4": 0.06}) == "q4"
    assert loss_enters_at({"merged": 1e-4, "f16": 0.2, "q4": 0.26}) == "f16"
    assert loss_enters_at({"merged": 0.3, "f16": 0.3, "q4": 0.36}) == "merged"
    assert loss_enters_at({"nf4": 0.4}) is None
    runtimes = {"merged": 1e-4, "f16": 2e-4, "q4": 0.06, "llama_cli": 0.0601, "llama_cpp_python": 0.5}
    assert loss_enters_at(runtimes) == "llama_cpp_python"


class Pieces:
    """A tokenizer of five pieces."""

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [["Go", "od", "Good", "Bad", "!"][at] for at in ids]


@pytest.mark.parametrize(
    ("said", "gap", "off"),
    [(4, 0.0, 0), (3, 1.5, 1), (0, 0.0, 0)],
    ids=["its first choice", "another", "the same text, cut otherwise"],
)
def test_what_a_runtime_says_is_held_against_the_files_first_choice(said: int, gap: float, off: int) -> None:
    import torch

    first = {4: 4, 3: 4, 0: 2}[said]
    rows = torch.zeros(2, 5)
    rows[0, 1], rows[1, first], rows[1, said] = 9.0, 3.0, 3.0 if said == first else 0.0
    one = Sequence(name="p", kind="answer", ids=[0, 1, said], scored=[0, 1])
    told = from_greedy(lambda sequences: iter([rows]), [one], Pieces())
    assert (told.nats_from_greedy, told.tokens_not_greedy) == (gap, off)
    assert (told.answers, told.answer_tokens) == (1, 2)


@pytest.fixture(scope="module")
def ggufs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The embedded base as F16 and as Q4_K_M."""
    folder, tools = tmp_path_factory.mktemp("ggufs"), find_toolchain()
    f16, q4 = folder / "f16.gguf", folder / "q4.gguf"
    script = [sys.executable, str(tools.source / "convert_hf_to_gguf.py"), str(find_base(EMBEDDED).path)]
    env = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    subprocess.run([*script, "--outtype", "f16", "--outfile", str(f16)], check=True, capture_output=True, env=env)
    subprocess.run([str(tools.bin / "llama-quantize"), str(f16), str(q4), "Q4_K_M"], check=True, capture_output=True)
    return f16, q4


@pytest.mark.slow(seconds=40)
@pytest.mark.needs_toolchain
def test_the_mean_kl_agrees_with_llama_perplexity_to_two_percent(ggufs: tuple[Path, Path]) -> None:
    """llama-perplexity of the pinned commit computed MEAN_KL on these two files and this prose, once.

    Its command: `--ctx-size 512 --file PROSE --kl-divergence-base FILE`, with the F16 file, then with the Q4_K_M file
    and `--kl-divergence`. The build has the tool as the target `llama-perplexity`.
    """
    import torch
    from transformers import AutoTokenizer

    prose = "\n".join(file.read_text(encoding="utf-8") for file in sorted((paths.GATES / "probes").glob("*.txt")))
    assert hashlib.sha256(prose.encode()).hexdigest() == PROSE, "the probes changed: measure MEAN_KL again"
    (f16, q4), tools = ggufs, find_toolchain()
    tokenizer: Any = AutoTokenizer.from_pretrained(find_base(EMBEDDED).path)
    ids = tokenizer(prose)["input_ids"]
    # llama-perplexity feeds windows of 512 tokens and scores the second half of each.
    windows = [
        Sequence(name=str(at), kind="text", ids=ids[at : at + 512], scored=list(range(256, 511)))
        for at in range(0, len(ids) - 511, 512)
    ]
    assert len(windows) >= 3
    reference = [torch.log_softmax(rows, dim=-1) for rows in of_gguf(tools, f16, 512)(windows)]
    rows = zip(windows, reference, of_gguf(tools, q4, 512)(windows), strict=True)
    assert summarise_divergence([compared(*row) for row in rows]).kl_mean == pytest.approx(MEAN_KL, rel=0.02)
