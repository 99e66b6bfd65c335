"""The decoder with fixed shapes says what the plain one says, whatever is queued, read late, begun or ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncgen.backends.slots.gpu.check import check_fixed
from asyncgen.backends.slots.gpu.kinds import MOST
from asyncgen.backends.slots.gpu.recording import WARM_UPS
from asyncgen.records import Sampling
from tests.backends.slots.gpu.stage import FixedStage
from tests.backends.slots.play import Part, Stage
from tests.backends.slots.test_sameness import PARTS, PREFIXES, SAMPLINGS, solo, subject
from tests.backends.slots.tiny import random_ids

Act = tuple[list[int], int, int | None]


@st.composite
def plays(draw: st.DrawFn) -> tuple[int, int, int, list[Act]]:
    """Slots, packed tokens, steps of a group; then what is admitted together, how many groups of steps pass, and which
    row is taken away after them.
    """
    slots, largest = draw(st.integers(2, 9)), draw(st.integers(1, 4))
    groups: list[list[int]] = []
    for index in draw(st.permutations(range(len(PARTS))))[: draw(st.integers(2, len(PARTS)))]:
        if groups and PARTS[groups[-1][0]].prefix == PARTS[index].prefix and len(groups[-1]) < min(largest, slots):
            groups[-1].append(index)
        else:
            groups.append([index])
    acts = [(group, draw(st.integers(0, 6)), draw(st.none() | st.sampled_from(group))) for group in groups]
    return slots, draw(st.sampled_from([64, 128])), draw(st.integers(1, 5)), acts


def played(stage: FixedStage, acts: Sequence[Act]) -> set[int]:
    """Those taken away."""
    gone = set()
    for group, steps, leaves in acts:
        rest = [PARTS[index] for index in group]
        while rest:
            many = next((count for count in range(len(rest), 0, -1) if stage.fits(rest[:count])), 0)
            if not many:
                stage.step()
                continue
            stage.admit(rest[:many])
            rest = rest[many:]
        for _ in range(steps):
            if stage.decoder.live:
                stage.step()
        if leaves is not None and leaves in [seat.row.prompt.index for seat in stage.decoder.seats]:
            stage.remove(leaves)
            gone.add(leaves)
    stage.finish()
    return gone


def same(stage: FixedStage, name: str, index: int) -> bool:
    """Whether the row said what it says alone to the plain decoder, as far as it came."""
    said, alone = stage.said[index], solo(name, index)
    scores = zip(stage.logprobs[index], alone.logprobs[: len(said)], strict=True)
    close = all(mine == other or (mine is not None and abs(mine - (other or 0)) < 1e-3) for mine, other in scores)
    return said == alone.tokens[: len(said)] and close


@pytest.mark.parametrize("name", ["grouped", "groups of seven", "odd sizes, gelu"])
@given(acted=plays())
@settings(deadline=None, max_examples=3)
@torch.inference_mode()
def test_it_says_what_the_plain_decoder_says(name: str, acted: tuple[int, int, int, list[Act]]) -> None:
    slots, width, steps, acts = acted
    stage = FixedStage(*subject(name), slots, width=width, steps=steps)
    gone = played(stage, acts)
    begun = {index for group, _, _ in acts for index in group}
    assert not [index for index in begun if not same(stage, name, index)]
    assert all(len(stage.said[index]) == PARTS[index].count for index in begun - gone)
    assert sorted([*stage.ended, *gone]) == sorted(begun), "each row ends once"
    decoder = stage.decoder
    assert (decoder.live, decoder.free, decoder.room) == (0, slots, 96)
    assert len(decoder._kinds.recorded) <= MOST + 1


@given(ends=st.sets(st.integers(0, 299), min_size=1, max_size=40), steps=st.integers(1, 5))
@settings(deadline=None, max_examples=4)
@torch.inference_mode()
def test_a_row_ends_with_the_text(ends: set[int], steps: int) -> None:
    stage = FixedStage(*subject("grouped"), 4, steps=steps, eos_ids=frozenset(ends))
    played(stage, [([index], 1, None) for index in range(8)])
    for index in range(8):
        tokens = solo("grouped", index).tokens
        end = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
        assert stage.said[index] == tokens[:end]


@torch.inference_mode()
def test_the_device_alone_ends_rows_and_writes_nothing_more() -> None:
    """The host may look late: nothing of a row that has ended changes any more, and no page of it."""
    stage = FixedStage(*subject("grouped"), 4, steps=1)
    stage.admit([Part(0, random_ids(60, 1), 3), Part(1, random_ids(60, 2), 30)])
    decoder, state = stage.decoder, stage.decoder._state
    stage.step()  # and reads nothing yet
    needs = next(iter(decoder._kinds.recorded))
    decoder._passes.step(needs)
    pools = [pool for pair in decoder._passes._pools for pool in pair]
    before = [pool.nan_to_num() for pool in pools]
    kept = [each.clone() for each in (state.lengths, state.drawn)]
    assert state.drawn[:2].tolist() == [3, 3]
    for _ in range(3):
        state.line.fill_(1)
        decoder._passes.step(needs)
    assert state.live.tolist() == [False, True, False, False, False]
    for was, now in zip(kept, (state.lengths, state.drawn), strict=True):
        assert was[0] == now[0]
        assert was[1] + 3 == now[1]
    changed = {
        page
        for was, now in zip(before, pools, strict=True)
        for page in range(len(was))
        if not torch.equal(was[page], now[page].nan_to_num())
    }
    other = next(seat for seat in decoder.seats if seat.row.prompt.index == 1)
    assert changed - {0} <= set(other.pages)
    assert changed - {0}


@torch.inference_mode()
def test_a_long_prompt_and_a_long_prefix_come_in_chunks() -> None:
    name = "grouped"
    own, prefix = random_ids(200, 5), random_ids(150, 6)
    part = Part(0, own, 12, prefix, Sampling(0.0))
    plain = Stage(*subject(name), 4)
    plain.admit([part])
    plain.finish()
    stage = FixedStage(*subject(name), 3, width=64)
    stage.admit([Part(1, random_ids(9, 7), 20, PREFIXES[3])])
    stage.step()
    stage.admit([part])
    stage.finish()
    assert stage.said[0] == plain.heard[0].tokens


@torch.inference_mode()
def test_prefixes_come_and_go_and_their_pages_are_used_again() -> None:
    name = "grouped"
    stage = FixedStage(*subject(name), 4)
    decoder = stage.decoder
    for turn in range(12):
        index = turn % 4 + 4 * (turn % 3)
        if PARTS[index].prefix:
            stage.admit([PARTS[index]])
            stage.finish()
            assert same(stage, name, index)
            for prefix in stage._prefixes.values():
                decoder.forget(prefix)
            stage._prefixes.clear()
    assert len(decoder._free_prefix_pages) == 12
    assert sorted(decoder._free_prefixes) == list(range(5))


@torch.inference_mode()
def test_after_a_reset_it_begins_anew() -> None:
    stage = FixedStage(*subject("grouped"), 4, steps=2)
    stage.admit([PARTS[0]])
    stage.step()
    stage.admit([PARTS[1]])
    stage.step()
    stage.decoder.reset()
    assert (stage.decoder.live, stage.decoder.room) == (0, 96)
    for index in (5, 13, 1):  # with prefixes: those that were computed stay
        stage.admit([PARTS[index]])
        stage.finish()
        assert same(stage, "grouped", index)
    stage.decoder.clear()
    assert len(stage.decoder._free_prefix_pages) == 12


@torch.inference_mode()
def test_logits_that_are_not_finite_end_their_row_alone() -> None:
    loaded, layers = subject("grouped")
    weights = loaded.model.get_input_embeddings().weight
    kept = weights[299].clone()
    stage = FixedStage(loaded, layers, 4)
    try:
        weights[299] = torch.nan
        stage.admit([Part(0, (5, 299, 7), 9), PARTS[12]])
        stage.finish()
    finally:
        weights[299] = kept
    assert stage.said[0] == []
    assert sorted(stage.ended) == [0, 12]
    assert same(stage, "grouped", 12)


@torch.inference_mode()
def test_many_kinds_of_sampling_share_passes() -> None:
    """Each kind is recorded once, which takes memory and time; beyond a few, one does for all."""
    stage = FixedStage(*subject("grouped"), 4)
    for number in range(MOST + 4):
        sampling = Sampling(1.0, top_k=1 << number if number else 0, min_p=0.01 * number, logprobs=number % 2 == 0)
        stage.admit([Part(number, random_ids(5, number), 3, sampling=sampling)])
        stage.finish()
    assert len(stage.decoder._kinds.recorded) <= MOST + 2
    assert len(SAMPLINGS) == 7


@pytest.mark.parametrize("place", [0, 1, 3])
@torch.inference_mode()
def test_the_check_at_the_start_ends_where_a_text_ends(place: int) -> None:
    """Its rows may meet the end of text like any other, and the device ends them then."""
    loaded, layers = subject("grouped")
    ids = random_ids(256, 20)
    first = FixedStage(loaded, layers, 4)
    first.admit([Part(0, ids[-62:], 5)])
    first.finish()
    stage = FixedStage(loaded, layers, 4, eos_ids=frozenset({first.said[0][place]}))
    check_fixed(stage.decoder, loaded.model, ids, 256)
    assert stage.decoder.live == 0


@torch.inference_mode()
def test_a_row_that_only_the_device_ended_is_an_error_and_no_endless_wait() -> None:
    stage = FixedStage(*subject("grouped"), 4)
    stage.admit([PARTS[0]])
    stage.decoder._state.limits[:] = 2
    with pytest.raises(RuntimeError, match="ended on the device"):
        stage.finish()


@torch.inference_mode()
def test_what_a_penalty_takes_later_is_known_before() -> None:
    """It comes out of memory that was set aside."""
    stage = FixedStage(*subject("grouped"), 4)
    decoder = stage.decoder
    told = decoder.penalty_bytes
    stage.admit([Part(0, random_ids(5, 1), 3, sampling=Sampling(0.9, repetition_penalty=1.3))])
    state, sampler = decoder._state, decoder._sampler
    assert state.seen is not None
    assert told == state.seen.nbytes + sampler.buffers["penalised"].nbytes
    assert decoder.penalty_bytes == 0


class Rehearsing:
    """Calls each pass before it is used, as capturing does."""

    def record(self, name: str, call: Callable[[], None]) -> Callable[[], object]:
        del name
        for _ in range(WARM_UPS):
            call()
        return call


@pytest.mark.parametrize("steps", [1, 2])
@torch.inference_mode()
def test_no_row_notices_that_a_pass_is_recorded(steps: int) -> None:
    """In mid-run, for a row that is sampled in a way of its own: penalties go on counting the right tokens."""
    stage = FixedStage(*subject("grouped"), 4, steps=steps)
    stage.decoder._kinds._recorder = Rehearsing()
    penalised = [index for index, part in enumerate(PARTS) if part.sampling.repetition_penalty != 1]
    for index in (*penalised[:2], 1, 2, *penalised[2:4], 3, 4):
        while not stage.fits([PARTS[index]]):
            stage.step()
        stage.admit([PARTS[index]])
        stage.step()
    stage.finish()
    assert all(same(stage, "grouped", index) for index in stage.said)
    assert len(stage.decoder._kinds.recorded) > 2
