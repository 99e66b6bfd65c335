"""Why a run ends before it has its stories, in words: each error with what there is to do about it."""

from __future__ import annotations

from asyncgen.config import Config
from asyncgen.errors import SourcesEnded, TooManyFailures, TooManyRejections
from asyncgen.metrics import Metrics
from asyncgen.ordering import HOPELESS_AFTER, Ordering

__all__ = ["failing", "failures", "hopeless", "too_few_prompts", "used_up", "worry"]

_OF_SERVERS = ("refused", "server")
_MEND_AND_BEGIN_ANEW = (
    "look at the rejected file; mend the template, the model or the validation, then run again: no story was accepted "
    "yet, so it begins anew"
)
_MEND = (
    "look at the rejected file; raise max_rejection_rate to go on all the same; a mended template, model or validation "
    "needs another output_path, for stories are there already"
)


def worry(ordering: Ordering, metrics: Metrics) -> str:
    """That the run may be hopeless, long before it stops for that."""
    end = f"; the run stops at {ordering.stops_at} of {HOPELESS_AFTER}" if ordering.stops_at else ""
    return f"{ordering.summary()}, most for: {_most_frequent(metrics)}{end}"


def hopeless(ordering: Ordering, metrics: Metrics, config: Config) -> TooManyRejections:
    """More than ``max_rejection_rate`` of the last prompts were rejected."""
    return TooManyRejections(
        f"{ordering.summary()} (max_rejection_rate is {config.max_rejection_rate}); "
        f"most frequent reasons: {_most_frequent(metrics)}",
        hint=_MEND if ordering.accepted else _MEND_AND_BEGIN_ANEW,
    )


def failing(ordering: Ordering, metrics: Metrics) -> TooManyFailures:
    """Most of the last prompts ended with errors instead of texts."""
    return TooManyFailures(
        failures(ordering, metrics),
        hint="what was decided is on disk; mend the cause, and the same run goes on from there",
    )


def used_up(failures: str) -> TooManyFailures:
    """The same, where no more prompts come."""
    return TooManyFailures(
        failures,
        hint="the prompts are used up: mend the cause and give another output_path, or add prompts to go on with",
    )


def too_few_prompts(prompts: int, accepted: int, config: Config) -> SourcesEnded:
    """Sources that end before the goal."""
    return SourcesEnded(
        f"the sources ended after {prompts} prompts: {accepted} of {config.num_stories} stories accepted",
        hint="add prompts to the source, or lower num_stories",
    )


def failures(ordering: Ordering, metrics: Metrics) -> str:
    """How many prompts failed, and why."""
    return f"{ordering.failures()}; most frequent reasons: {_most_frequent(metrics)}"


def _most_frequent(metrics: Metrics) -> str:
    """With the last words of a server, if it is the one that refuses: nobody else knows them."""
    found = metrics.reasons.most_common(3)
    words = metrics.last_reasons[found[0][0]] if found and found[0][0] in _OF_SERVERS else ""
    return (", ".join(f"{reason} ({count})" for reason, count in found) or "none") + (words and f"; the last: {words}")
