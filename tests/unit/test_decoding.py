import math

import pytest
import torch

from poiesis.errors import ConfigError
from poiesis.rng import Noise
from poiesis.sampling.decoding import (
    Decoding,
    autoregress,
    choose,
    filter_logits,
    min_p,
    penalize,
    prompt_lists,
    top_k,
    top_p,
)
from poiesis.sampling.streaming import StopStrings, TextStream

# Five tokens whose probabilities are written out, so that every filter can be done by hand.
P = torch.tensor([[0.1, 0.4, 0.05, 0.3, 0.15]], dtype=torch.float64)
LOGITS = P.log().float()


def probabilities(logits):
    return logits.double().softmax(-1)[0]


def expect(logits, kept):
    wanted = torch.zeros(5, dtype=torch.float64)
    for index in kept:
        wanted[index] = P[0, index]
    torch.testing.assert_close(probabilities(logits), wanted / wanted.sum(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("k", "kept"), [(1, [1]), (2, [1, 3]), (3, [1, 3, 4]), (0, range(5))])
def test_top_k(k, kept):
    expect(top_k(LOGITS, k), kept)


@pytest.mark.parametrize(
    ("p", "kept"),
    [(0.3, [1]), (0.41, [1, 3]), (0.7, [1, 3]), (0.71, [1, 3, 4]), (0.96, range(5)), (1, range(5))],
)
def test_top_p_keeps_the_token_that_crosses(p, kept):
    expect(top_p(LOGITS, p), kept)


@pytest.mark.parametrize(
    ("m", "kept"), [(0.0, range(5)), (0.3, [1, 3, 4]), (0.7, [1, 3]), (1, [1])]
)
def test_min_p(m, kept):
    expect(min_p(LOGITS, m), kept)


def test_temperature_raises_probabilities_to_a_power():
    wanted = P[0] ** 2 / (P[0] ** 2).sum()
    got = probabilities(filter_logits(LOGITS, Decoding(temperature=0.5)))
    torch.testing.assert_close(got, wanted, atol=1e-6, rtol=0)


def test_penalty_lowers_seen_tokens_of_either_sign():
    logits = torch.tensor([[2.0, -2.0, 3.0]])
    seen = torch.tensor([[True, True, False]])
    assert penalize(logits, seen, 2.0).tolist() == [[1.0, -4.0, 3.0]]


def test_order_is_temperature_then_top_k_then_top_p_then_min_p():
    # At temperature 1/2: p² ∝ .01 .16 .0025 .09 .0225. After top-3 the two largest hold .917 of
    # what is left, enough for top-p .91; without top-3 they hold .877 and a third is needed.
    both = Decoding(temperature=0.5, top_k=3, top_p=0.91)
    kept = probabilities(filter_logits(LOGITS, both)) > 0
    assert kept.tolist() == [False, True, False, True, False]
    alone = Decoding(temperature=0.5, top_p=0.91)
    assert (probabilities(filter_logits(LOGITS, alone)) > 0).tolist() == [
        False,
        True,
        False,
        True,
        True,
    ]
    # Min-p 0.5 against squared probabilities (.09 / .16 = .5625 stays, .0225 / .16 goes).
    assert (
        probabilities(filter_logits(LOGITS, Decoding(temperature=0.5, min_p=0.5))) > 0
    ).sum() == 2


def test_penalty_acts_before_temperature_and_greedy():
    seen = torch.tensor([[False, True, False, False, False]])
    options = Decoding(temperature=0, repetition_penalty=2.0)
    # log .4 = -.92 doubles to -1.83, below log .3 = -1.20.
    assert choose(LOGITS, torch.zeros(1), options, seen).item() == 3
    assert choose(LOGITS, torch.zeros(1), options).item() == 1


def test_choose_inverts_the_cumulative_distribution():
    # Cumulative: .1 .5 .55 .85 1.
    uniforms = torch.tensor([0.0, 0.09, 0.11, 0.49, 0.51, 0.56, 0.84, 0.86, 1 - 2**-24])
    rows = LOGITS.expand(len(uniforms), -1)
    assert choose(rows, uniforms, Decoding()).tolist() == [0, 0, 1, 1, 2, 3, 3, 4, 4]


def test_choose_frequencies_match_the_filtered_distribution():
    n = 4000
    uniforms = (torch.arange(n) + 0.5) / n
    options = Decoding(top_k=3)
    drawn = choose(LOGITS.expand(n, -1), uniforms, options)
    share = torch.bincount(drawn, minlength=5).double() / n
    torch.testing.assert_close(share, probabilities(top_k(LOGITS, 3)), atol=1e-3, rtol=0)


def test_a_removed_token_is_never_drawn_even_at_the_ends():
    logits = torch.tensor([[-math.inf, 0.0, -math.inf]]).expand(2, -1)
    assert choose(logits, torch.tensor([0.0, 1 - 2**-24]), Decoding()).tolist() == [1, 1]


def test_low_temperature_does_not_overflow():
    assert (
        choose(torch.tensor([[1e4, -1e4]]), torch.tensor([0.999]), Decoding(temperature=1e-4)) == 0
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
    ],
)
def test_bounds(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=name):
        Decoding(**wrong)


def test_prompt_tokens_are_checked():
    with pytest.raises(ConfigError, match="prompt token 7"):
        prompt_lists([[1, 7]], 5)


class Chain:
    """A model without weights: the next token's distribution depends on the last one alone."""

    table = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3], [0.1, 0.1, 0.8]]).log()

    def __init__(self):
        self.fed = []

    def __call__(self, new):
        self.fed.append(new.shape[1])
        return self.table[new[:, -1]]


def test_rows_do_not_depend_on_their_neighbours():
    prompts = [[0], [1, 2, 0, 1], [2, 2], [0, 1, 2, 0, 1, 2]]
    together = autoregress(Chain(), prompts, Noise(3, range(4)), Decoding(), length=300)
    for row, prompt in enumerate(prompts):
        alone = autoregress(Chain(), [prompt], Noise(3, [row]), Decoding(), length=300)
        assert alone[0] == together[row]
        assert len(alone[0]) == 300


def test_a_longer_text_begins_with_the_shorter_one():
    short, long = (
        autoregress(Chain(), [[0]], Noise(1, [0]), Decoding(), length=n)[0] for n in (40, 600)
    )
    assert long[:40] == short


def test_the_chain_is_sampled_with_its_own_frequencies():
    # The table's stationary distribution, solved by hand.
    stationary = torch.tensor([15.0, 13.0, 42.0], dtype=torch.float64) / 70
    rows = autoregress(Chain(), [[0]] * 64, Noise(0, range(64)), Decoding(), length=200)
    share = torch.bincount(torch.tensor(rows)[:, 20:].flatten(), minlength=3).double()
    torch.testing.assert_close(share / share.sum(), stationary, atol=0.02, rtol=0)


def test_stop_ends_a_row_after_its_token_and_streams_in_order():
    heard = {0: [], 1: []}
    rows = autoregress(
        Chain(),
        [[0], [1, 1]],
        Noise(0, range(2)),
        Decoding(),
        length=50,
        stop=lambda row, token: row == 0 and token == 2,
        on_token=lambda row, token: heard[row].append(token),
    )
    assert rows[0].count(2) == 1 and rows[0][-1] == 2
    assert len(rows[1]) == 50
    assert rows == [heard[0], heard[1]]


def test_the_loop_ends_when_every_row_has():
    chain = Chain()
    autoregress(chain, [[0]], Noise(0, [0]), Decoding(), length=1000, stop=lambda row, token: True)
    assert chain.fed == [1]


TEXT = "naïve 日本 🙂 end\n"


def byte_decode(tokens):
    return bytes(tokens)


def lossy_decode(tokens):
    return bytes(tokens).decode("utf-8", "replace")


@pytest.mark.parametrize("decode", [byte_decode, lossy_decode])
def test_text_stream_never_shows_half_a_character(decode):
    stream = TextStream(decode)
    pieces = [stream.push(byte) for byte in TEXT.encode()]
    assert "".join(pieces) + stream.flush() == TEXT
    assert not any("\ufffd" in piece for piece in pieces)
    assert pieces[:4] == ["n", "a", "", "ï"]


def test_text_stream_with_a_decoder_that_joins_words():
    words = ["to", "be", "or"]
    stream = TextStream(lambda tokens: " ".join(words[t] for t in tokens))
    assert [stream.push(t) for t in (0, 1, 2, 0)] == ["to", " be", " or", " to"]


@pytest.mark.parametrize("decode", [byte_decode, lossy_decode])
def test_text_stream_shows_an_unfinished_end_as_replacement(decode):
    stream = TextStream(decode)
    assert "".join(map(stream.push, "a🙂".encode()[:-1])) + stream.flush() == "a\ufffd"


def run_stop(stop, tokens, decode):
    stops = StopStrings(stop, decode)
    pieces = []
    for token in tokens:
        pieces.append(stops.push(token))
        if stops.stopped:
            break
    return "".join(pieces) + stops.flush(), stops.stopped


@pytest.mark.parametrize(
    ("stop", "text"),
    [
        (["本 "], "naïve 日"),
        (["zzz", "🙂 e"], "naïve 日本 "),
        (["end", "日本"], "naïve "),
        (["nothing"], TEXT),
        ([], TEXT),
    ],
)
@pytest.mark.parametrize("decode", [byte_decode, lossy_decode])
def test_stop_strings_across_tokens_and_bytes(stop, text, decode):
    assert run_stop(stop, TEXT.encode(), decode) == (text, text != TEXT)


def test_stop_string_inside_one_token_and_across_two():
    words = ["Hello", "END", "EN", "D.", "x"]

    def decode(tokens):
        return "".join(words[t] for t in tokens)

    assert run_stop(["ND"], [0, 1, 4], decode) == ("HelloE", True)
    assert run_stop(["END"], [0, 2, 3], decode) == ("Hello", True)
    assert run_stop(["END"], [0, 2, 4], decode) == ("HelloENx", False)
    assert run_stop(["END"], [0, 2], decode) == ("HelloEN", False)


def test_stop_strings_with_a_self_overlapping_beginning():
    assert run_stop(["aab"], [0, 0, 0, 1], lambda ts: "".join("ab"[t] for t in ts)) == ("a", True)


def test_empty_stop_string_is_refused():
    with pytest.raises(ConfigError, match="empty"):
        StopStrings([""], byte_decode)
