"""The embedded engine's detokenizer, stop scanner and sampler against closed forms."""

from __future__ import annotations

import math
import random

import pytest
import torch

from llmops.engines.embedded.detokenize import StopScanner, TextStream
from llmops.engines.embedded.sampling import Sampling, logprobs_of, make_generator, pick_tokens
from tests.tiny import build_tokenizer

TOKENIZER = build_tokenizer(512)


def pieces(ids: list[int], prompt: tuple[int, ...] = ()) -> list[str]:
    stream = TextStream(TOKENIZER, prompt, skip_special_tokens=True)
    return [*(stream.push(token) for token in ids), stream.flush()]


def test_joined_pieces_of_any_bytes_equal_decoding_all_of_them():
    chance = random.Random(0)
    for _ in range(300):
        ids = [chance.choice([chance.randrange(258), *"é🙂日".encode()]) for _ in range(chance.randrange(30))]
        assert "".join(pieces(ids)) == TOKENIZER.decode(ids, skip_special_tokens=True)


def test_no_piece_holds_half_a_character():
    text = "naïve 日本語 🙂👩‍👩‍👧 ok"
    got = pieces(list(text.encode()))
    assert "".join(got) == text
    assert not any("\ufffd" in piece for piece in got)
    assert got[: len("na")] == ["n", "a"]


def test_an_unfinished_character_at_the_end_appears_once_as_a_replacement():
    assert pieces(list("a🙂".encode())[:-1]) == ["a", "", "", "", "\ufffd"]


def test_the_prompt_is_context_and_never_part_of_the_answer():
    prompt = tuple("日本".encode())
    assert "".join(pieces(list(b" ok"), prompt)) == " ok"
    cut = prompt[:-1]
    assert "".join(pieces([*prompt[-1:], *b"ok"], cut)).endswith("ok")


def scanned(text: str, stops: list[str], chance: random.Random) -> tuple[list[str], str | None]:
    scanner = StopScanner(stops)
    sent, at = [], 0
    while at < len(text) and scanner.found is None:
        step = chance.randrange(1, 4)
        sent.append(scanner.push(text[at : at + step]))
        at += step
    if scanner.found is None:
        sent.append(scanner.flush())
    return sent, scanner.found


def test_stop_strings_cut_where_the_first_one_begins_however_the_text_is_cut():
    chance = random.Random(1)
    for _ in range(2000):
        text = "".join(chance.choice("ab") for _ in range(chance.randrange(20)))
        stop = "".join(chance.choice("ab") for _ in range(chance.randrange(1, 5)))
        sent, found = scanned(text, [stop], chance)
        assert "".join(sent) == text.split(stop)[0]
        assert found == (stop if stop in text else None)


def test_no_piece_reveals_the_beginning_of_a_stop_string_that_completes():
    sent, found = scanned("say STOP now", ["STOP"], random.Random(2))
    assert ("".join(sent), found) == ("say ", "STOP")


def frequencies(sampling: Sampling, logits: torch.Tensor, n_draws: int) -> list[float]:
    generator = make_generator(7, torch.device("cpu"))
    counts = [0] * logits.numel()
    for _ in range(n_draws):
        counts[pick_tokens(logits.unsqueeze(0), [sampling], [generator])[0]] += 1
    return [count / n_draws for count in counts]


PROBS = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])


@pytest.mark.parametrize(
    ("sampling", "wanted"),
    [
        (Sampling(1), [0.4, 0.3, 0.15, 0.1, 0.05]),
        (Sampling(1, top_k=2), [4 / 7, 3 / 7, 0, 0, 0]),
        (Sampling(1, top_p=0.75), [0.4 / 0.85, 0.3 / 0.85, 0.15 / 0.85, 0, 0]),
        (Sampling(1, top_p=0.01), [1, 0, 0, 0, 0]),
        (Sampling(1, min_p=0.3), [0.4 / 0.85, 0.3 / 0.85, 0.15 / 0.85, 0, 0]),
        (Sampling(1, temperature=0.5), [p * p / 0.285 for p in (0.4, 0.3, 0.15, 0.1, 0.05)]),
        (Sampling(1, temperature=0.0), [1, 0, 0, 0, 0]),
    ],
)
def test_draws_follow_the_closed_form_distribution(sampling, wanted):
    n_draws = 4000
    for got, p in zip(frequencies(sampling, PROBS.log(), n_draws), wanted, strict=True):
        assert abs(got - p) <= 4 * math.sqrt(p * (1 - p) / n_draws)


def test_logprobs_are_the_log_softmax_and_tops_are_ordered():
    logits = PROBS.log() + 3.0
    (scored,) = logprobs_of(logits.unsqueeze(0), [3], 2)
    assert scored.logprob == pytest.approx(math.log(0.1), abs=1e-6)
    assert [token for token, _ in scored.top] == [0, 1]
    assert [value for _, value in scored.top] == pytest.approx([math.log(0.4), math.log(0.3)], abs=1e-6)
