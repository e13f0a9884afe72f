"""When training is said to have gone wrong: rules on the numbers of health checks.

A rule looks at one check, at most comparing it with those before, and says what is wrong in it. It
is an alarm once two checks in a row say so. Everything here is a function of the checks alone, so
a resumed run comes to the same verdicts. What the numbers are is told in `monitors`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from poiesis.training.monitors import Null

__all__ = ["RULES", "Alarm", "Check", "Rule", "judge", "wrong"]

FAIL = 0.5
"""Share of what real data reach, or of the best so far, below which something is lost."""
GRACE = 500
"""Steps of a stage that are for leaving the state that networks are initialised in: until then the
samples of the healthiest model are all alike, and its discriminator tells them all."""
SEPARATE = 0.001
"""Chance of a generated sample to look more real than a real one (1/2 where they are equal), below
which the discriminator has won: with 512 of each, half a real one on average."""
OVERFIT = 0.5
"""Share of the way from training data to generated ones at which the discriminator puts held-out
data, above which it knows the training data by heart."""
SURE = 4.0
"""Standard errors beyond which a difference is no chance, also among thousands of checks."""
STILL = 2.0**-23
"""Relative change of weights that float32 can't hold."""
ADAM = 1e-8
"""Root mean square of gradients below which Adam's epsilon swallows them."""
PROGRESS = 0.05
"""Share of what real data reach that a number must rise by in half of a stage to be getting better:
samples that wander from one kind to the next have better and worse moments."""
GROWTH = 2.0
"""Factor of a layer's largest singular value from one check to the next."""

Numbers = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Check:
    """The numbers of one health check. since: its step counted from the start of its stage."""

    step: int
    since: int
    values: Numbers


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """What went wrong. since: the first step at which a check showed it."""

    name: str
    step: int
    since: int
    seen: str
    helps: str

    @property
    def sentence(self) -> str:
        """One sentence for the user."""
        return (
            f"step {self.step}: {self.name}: {self.seen}, since step {self.since}; "
            f"what helps: {self.helps}"
        )


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One thing that can go wrong.

    wrong: takes the check, those before it in the stage and the nulls; returns what it sees, or ""
    where all is well. helps: what usually does.
    """

    name: str
    wrong: Callable[[Check, Sequence[Check], Mapping[str, Null]], str]
    helps: str


def wrong(checks: Sequence[Check], nulls: Mapping[str, Null]) -> list[str]:
    """Return the names of the rules that the last check breaks."""
    return [rule.name for rule in RULES if rule.wrong(checks[-1], checks[:-1], nulls)]


def judge(checks: Sequence[Check], nulls: Mapping[str, Null]) -> list[Alarm]:
    """Return the alarms of the last check: rules that it breaks and the one before it broke first.

    checks: those of one stage, in order.
    """
    alarms = []
    for rule in RULES:
        said = [rule.wrong(checks[k], checks[:k], nulls) if k >= 0 else "" for k in _last(checks)]
        if said[-1] and said[-2] and not said[-3]:
            step, since = checks[-1].step, checks[-2].step
            alarms.append(
                Alarm(name=rule.name, step=step, since=since, seen=said[-1], helps=rule.helps)
            )
    return alarms


def _last(checks: Sequence[Check]) -> range:
    return range(len(checks) - 3, len(checks))


def _share(check: Check, nulls: Mapping[str, Null], name: str) -> float:
    """Return a number over what real data have in its place; NaN where it was not measured."""
    if name not in nulls:
        return math.nan
    return check.values.get(name, math.nan) / nulls[name].mean


def _improves(check: Check, before: Sequence[Check], nulls: Mapping[str, Null]) -> bool:
    """Return whether the samples are better in the second half of the stage's checks so far.

    In any of three numbers, at their best beyond chance and as they usually are noticeably. True
    where there are too few to tell.
    """
    checks = [*before, check]
    first, second = checks[: len(checks) // 2], checks[len(checks) // 2 :]
    if len(first) < 2:
        return True
    return any(
        _best(second, name) > _best(first, name) + SURE * nulls[name].sd
        and _usual(second, name) > _usual(first, name) + PROGRESS * nulls[name].mean
        for name in ("vendi", "recall", "coverage")
        if name in nulls
    )


def _usual(checks: Sequence[Check], name: str) -> float:
    known = [c.values[name] for c in checks if not math.isnan(c.values.get(name, math.nan))]
    return statistics.median(known) if known else 0.0


def _best(checks: Sequence[Check], name: str) -> float:
    return max((c.values[name] for c in checks if c.values.get(name, 0) > 0), default=0.0)


def _fewer(check: Check, before: Sequence[Check], nulls: Mapping[str, Null]) -> bool:
    """Return whether the samples reach less than half of the data and don't get better.

    Samples that are more varied in their values than any real ones are noise, which is not it: a
    model that begins with noise is on its way.
    """
    if "variety" not in nulls or check.since < GRACE:
        return False
    noise = nulls["variety"].mean + SURE * nulls["variety"].sd
    reached = _share(check, nulls, "recall") < FAIL and check.values["variety"] <= noise
    return reached and not _improves(check, before, nulls)


def _collapse(check: Check, before: Sequence[Check], nulls: Mapping[str, Null]) -> str:
    """Samples of some kinds only: fewer than half of those there were, or with no way to more."""
    repeat = all(_share(check, nulls, name) < FAIL for name in ("vendi", "variety"))
    recall = _share(check, nulls, "recall")
    best = _best([c for c in before if c.since >= GRACE], "vendi")
    fallen = repeat and recall < FAIL and check.values["vendi"] < FAIL * best
    if check.since < GRACE or not (fallen or _fewer(check, before, nulls)):
        return ""
    if not repeat:
        return (
            f"{check.values['recall']:.0%} of the data lie among the samples, of which real ones "
            f"would reach {nulls['recall'].mean:.0%}, and it gets no better; kinds that make up "
            f"{check.values['lost']:.0%} of it are drawn less than half as often as they should be"
        )
    has, real = check.values["vendi"], nulls["vendi"].mean
    seen = f"the samples are as varied as {has:.1f} different ones, real data as {real:.1f}"
    support = _share(check, nulls, "support")
    if support < FAIL:
        seen += f", and two of them are near each other {1 / support:.2g} times as often"
    return seen


def _worse(check: Check, before: Sequence[Check], nulls: Mapping[str, Null]) -> str:
    """What the samples reached once, as much as half of what real data reach, is half lost."""
    if "coverage" not in nulls or check.since < GRACE:
        return ""
    now, best = check.values.get("coverage", math.nan), _best(before, "coverage")
    if best < FAIL * nulls["coverage"].mean or not now < FAIL * best:
        return ""
    return f"{now:.0%} of the data have a sample next to them, after {best:.0%} at their best"


def _won(check: Check, before: Sequence[Check], nulls: Mapping[str, Null]) -> str:
    """The discriminator tells everything apart, and the samples get no better."""
    fooled = check.values.get("fooled", math.nan)
    if not fooled < SEPARATE or check.since < GRACE or _improves(check, before, nulls):
        return ""
    return (
        f"a generated sample looks more real to it than a real one in {fooled:.2%} of pairs, and "
        "the samples get no better"
    )


def _overfit(check: Check, before: Sequence[Check], nulls: Mapping[str, Null]) -> str:
    values = check.values
    share, sigmas = values.get("overfit", math.nan), values.get("overfit_sigmas", math.nan)
    if not (share > OVERFIT and sigmas > SURE):
        return ""
    return (
        f"to the discriminator held-out data are {share:.0%} of the way from training data to "
        f"generated ones (r_t {values.get('r_t', math.nan):.2f})"
    )


def _still(check: Check, before: Sequence[Check], nulls: Mapping[str, Null]) -> str:
    still = [
        name.removesuffix("_moved")
        for name, value in check.values.items()
        if name.endswith("_moved") and value < STILL
    ]
    faint = [
        name.removesuffix("_gradient")
        for name, value in check.values.items()
        if name.endswith("_gradient") and value < ADAM
    ]
    if still:
        return f"the weights of {', '.join(still)} do not move"
    return f"the gradients of {', '.join(faint)} have vanished" if faint else ""


def _explode(check: Check, before: Sequence[Check], nulls: Mapping[str, Null]) -> str:
    if not before or check.since < GRACE:
        return ""
    for name, value in check.values.items():
        last = before[-1].values.get(name, math.nan)
        if name.endswith("_stretch") and value > GROWTH * last:
            network = name.removesuffix("_stretch")
            return (
                f"a layer of {network} stretches its input {value:.3g} times, {last:.3g} at the "
                "check before"
            )
    return ""


def _skipped(check: Check, before: Sequence[Check], nulls: Mapping[str, Null]) -> str:
    last = before[-1].values.get("bad_steps", 0.0) if before else 0.0
    new = check.values.get("bad_steps", 0.0) - last
    return f"{new:.0f} steps since the last check had gradients that are not finite" if new else ""


RULES = (
    Rule(
        name="collapse",
        wrong=_collapse,
        helps="another seed, a lower learning rate, a gradient penalty (wgan-gp, r3gan), "
        "BatchNorm in the generator, a larger batch; of a VAE a smaller weight of the KL",
    ),
    Rule(
        name="samples got worse",
        wrong=_worse,
        helps="an earlier checkpoint, a lower learning rate, averaged weights (--model.ema 0.999)",
    ),
    Rule(
        name="discriminator too strong",
        wrong=_won,
        helps="a lower --model.discriminator-lr, a gradient penalty, instance noise, a smaller "
        "discriminator",
    ),
    Rule(
        name="discriminator overfits",
        wrong=_overfit,
        helps="more data, augmentation of what the discriminator sees (--model.augment ada), a "
        "smaller discriminator",
    ),
    Rule(
        name="standstill",
        wrong=_still,
        helps="a higher learning rate, the non-saturating loss, a weaker discriminator",
    ),
    Rule(
        name="weights explode",
        wrong=_explode,
        helps="a lower learning rate, --train.clip 1, spectral normalisation",
    ),
    Rule(
        name="steps skipped",
        wrong=_skipped,
        helps="a lower learning rate, --train.clip 1, --train.precision fp32",
    ),
)
