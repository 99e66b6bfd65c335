"""``Gate`` against a plain model of it: never too many inside, the most urgent first, nobody forgotten."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncgen.engine.gate import Gate
from asyncgen.errors import EngineClosed, EngineFull

steps = st.lists(
    st.one_of(
        st.tuples(st.just("enter"), st.integers(-3, 3)),
        st.tuples(st.just("leave"), st.just(0)),
        st.tuples(st.just("cancel"), st.integers(0, 20)),
        st.tuples(st.just("leave and cancel"), st.integers(0, 20)),
        st.tuples(st.just("try"), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 4), steps, st.booleans())
def test_against_a_plain_model(limit: int, chosen: list[tuple[str, int]], closes: bool) -> None:
    async def main() -> None:
        gate = Gate(limit)
        inside: list[int] = []
        waiting: dict[int, tuple[tuple[int, int], asyncio.Task[None]]] = {}

        async def come(number: int, urgency: tuple[int, int]) -> None:
            await gate.enter(urgency, wait=True)
            inside.append(number)

        async def settle() -> None:
            for _ in range(4):
                await asyncio.sleep(0)
            for number in [number for number in waiting if number in inside]:
                del waiting[number]

        for number, (what, value) in enumerate(chosen):
            expected = min(waiting, key=lambda each: waiting[each][0], default=None)
            if what == "enter":
                waiting[number] = ((-value, number), asyncio.create_task(come(number, (-value, number))))
                await settle()
                assert (number in inside) == (len(inside) <= limit and number not in waiting)
            elif what in ("leave", "leave and cancel") and inside:
                inside.pop()
                gate.leave()
                if what == "leave and cancel" and expected is not None:  # at the moment in which it is let in
                    waiting.pop(expected)[1].cancel()
                await settle()
                assert what == "leave and cancel" or expected is None or expected in inside
            elif what == "cancel" and waiting:
                waiting.pop(list(waiting)[value % len(waiting)])[1].cancel()
                await settle()
            elif what == "try":
                if len(inside) < limit:
                    await gate.enter((0, number), wait=False)
                    inside.append(number)
                else:
                    with pytest.raises(EngineFull, match=f"at most {limit} may"):
                        await gate.enter((0, number), wait=False)
            assert gate.inside == len(inside) <= limit
            assert gate.waiting == len(waiting)
            assert not waiting or len(inside) == limit, "nobody waits while there is room"
        if closes:
            gate.close(lambda: EngineClosed("the engine is closed"))
            done = await asyncio.gather(*(task for _, task in waiting.values()), return_exceptions=True)
            assert all(isinstance(each, EngineClosed) for each in done)
            with pytest.raises(EngineClosed):
                await gate.enter((0, -1), wait=True)
        for _, task in waiting.values():
            task.cancel()
        await asyncio.gather(*(task for _, task in waiting.values()), return_exceptions=True)

    asyncio.run(main())
