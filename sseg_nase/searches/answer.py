"""The answer of a search, trained from scratch beside random search's and the largest network.

A candidate's score is the best of many noisy ones. What the search answers is therefore trained
from scratch, with seeds and on episodes of val that no candidate has had; so is what random search
finds with the same budget, and the largest network under the caps. Both rivals get the training
macs of the answer: a network of twice the macs sees half of the images. All have the overrides of
`search.final_overrides`, such as more epochs than a candidate.

Everything is in logs beside that of the search, so it is resumed as the search is:

    random.jsonl   the candidates of random search
    final.jsonl    the trainings from scratch: a point at a fidelity with a seed
    answer.json    which points these are, and why
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from sseg_nase.config.commands import override
from sseg_nase.config.compose import beside_hydra, load, stored
from sseg_nase.config.explain import listed
from sseg_nase.config.groups.strategy import OwnStrategy
from sseg_nase.config.places import key_of
from sseg_nase.config.schema import Config
from sseg_nase.config.validation import without_effect
from sseg_nase.errors import UserError
from sseg_nase.files import write_json
from sseg_nase.rundir.names import CONFIG
from sseg_nase.search import Budget, Candidate, Cost, Inherited, Log, Objectives, Scored, search
from sseg_nase.search.loop import Evaluator, Strategy
from sseg_nase.search.strategies import Screened
from sseg_nase.search.strategies.ask import Ask
from sseg_nase.searches.analysis import fullest
from sseg_nase.searches.jobs import FIDELITY_KEYS, Jobs, of_jobs
from sseg_nase.searches.oneshot import EPOCHS
from sseg_nase.searches.parts import GOALS, Counted, Parts, final_seeds
from sseg_nase.searches.progress import said_of
from sseg_nase.spaces import Families, NetworkSpace
from sseg_nase.spaces.choice import Point
from sseg_nase.spaces.overrides import mistakes, written
from sseg_nase.spaces.space import Space

RANDOM, FINAL, ANSWER = "random.jsonl", "final.jsonl", "answer.json"
MOST_OF_FRONT = 5  # networks of the front that are trained, its ends among them
BEST, FRONT, OF_RANDOM, LARGEST = "answer", "front", "random search", "largest"

# What all trainings from scratch have alike, so that results can be told apart and compared.
OF_RESULTS = {
    "seed": "is that of each training, counted from the search's (search.final_seeds)",
    "evaluation.seed": "gives episodes that no candidate has had",
    "evaluation.split": "is that of the search, and the test classes are for task=evaluate",
}

# Notes with which a search has gained nothing over what needs none.
SAME_IMAGES = "macs are made equal in pretraining alone: all see as many images"
SAME = ("random search has found the same", "the answer is the largest network under the caps")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Contender:
    """A point that is trained from scratch, and in which `role`.

    `number`: of the candidate in the log it is from, None for the largest network.
    """

    role: str
    point: Point
    key: str
    number: int | None
    fidelity: Mapping[str, float]

    def candidates(self, seeds: Sequence[int]) -> list[tuple[Contender, dict[str, float]]]:
        """Return the fidelity of each of its trainings."""
        return [(self, {**self.fidelity, "seed": seed}) for seed in seeds]


def find_answer(
    folder: Path, config: Config, parts: Parts, log: Log, evaluator: Evaluator, jobs: Jobs, say: Say
) -> None:
    """Train the answer and its rivals from scratch, or resume that; see the module.

    `evaluator` is that of the search, `jobs` performs the trainings.
    """
    seeds, best = final_seeds(config), log.best(fullest(log))
    if best is None or not seeds:
        return
    notes: list[str] = []
    arm = _random_arm(folder, config, parts, log, evaluator, say)
    more = final_overrides(config)
    performed = jobs.of("final", [override("evaluation.seed", config.evaluation.seed + 1), *more])
    trained = Trained(frozenset(config.search.final_overrides))
    wanted = _ours(log, best, trained)
    about = {"of": "trainings from scratch"} | ({"overrides": more} if more else {})
    with Log.open(folder / FINAL, _objectives(log), about) as final:
        _train(final, wanted, seeds, parts.space, performed, say)
        wanted += _rivals(best, log, arm, parts.space, final, seeds, performed, trained, notes)
        _train(final, wanted, seeds, parts.space, performed, say)
        trainings = {
            index: [
                candidate.number
                for _, fidelity in one.candidates(seeds)
                if (candidate := final.find(one.key, fidelity)) is not None
            ]
            for index, one in enumerate(wanted)
        }
    write_json(
        folder / ANSWER,
        {
            "schema": 1,
            "seeds": seeds,
            "evaluation_seed": config.evaluation.seed + 1,
            "overrides": more,
            "random_candidates": len(arm.told),
            "contenders": [
                {
                    "role": one.role,
                    "candidate": one.number,
                    "point": dict(one.point),
                    "key": one.key,
                    "trainings": trainings[index],
                }
                for index, one in enumerate(wanted)
            ],
            "notes": notes,
        },
    )


@dataclass(frozen=True)
class Trained:
    """How trainings from scratch differ from candidates: in keys that they are all given."""

    given: frozenset[str]

    def fidelity(self, candidates: Mapping[str, float]) -> dict[str, float]:
        """That of a candidate, as far as a run has it and it is not given otherwise."""
        return {n: v for n, v in of_runs(candidates).items() if FIDELITY_KEYS[n] not in self.given}


def final_overrides(config: Config) -> list[str]:
    """What the trainings from scratch have beside what candidates have."""
    return [written(key, value) for key, value in config.search.final_overrides.items()]


def check_answer(
    config: Config, space: Space, overrides: Sequence[str], further: Sequence[Path] = ()
) -> None:
    """Raise `UserError` for `search.final_overrides` that no training from scratch could have."""
    given = config.search.final_overrides
    if not given:
        return
    key = "search.final_overrides"
    if not final_seeds(config):
        raise UserError(
            f"{override(key, given)}: it has no effect, since nothing is trained from scratch; add "
            "search.final_seeds=3, or leave it out."
        )
    point = space.overrides(space.sample(Random(0)))  # type: ignore[attr-defined]
    chosen = {key_of(text) for text in point}
    wrong = list[str]()
    for name, value in given.items():
        if name in chosen:
            wrong.append(f"{key}: {name} is what the search chooses; leave it out.")
        elif name in OF_RESULTS:
            wrong.append(f"{key}: {name} {OF_RESULTS[name]}; leave it out.")
        else:
            wrong += mistakes(key, "be set", name, [value])
    if wrong:
        raise UserError(listed(wrong))
    base = of_jobs(overrides)
    with beside_hydra():
        try:
            load([*base, *point, "task=pipeline"], *further)
        except UserError:  # this point is no run, whatever is added
            return
        try:
            found = load([*base, *final_overrides(config), *point, "task=pipeline"], *further)
        except UserError as error:
            raise UserError(f"{key}: {error}") from error
    if idle := without_effect(found, given):
        raise UserError(listed([f"{key}: {said}" for said in idle]))


# -- random search -----------------------------------------------------------------------------


@dataclass(frozen=True)
class RandomArm:
    """Random search at one fidelity, which begins with `known` points, drawn at random before.

    What it draws follows from the seed and the number of the candidate alone: with several slots
    the order in which results come makes no difference.
    """

    known: tuple[Point, ...]
    fidelity: Mapping[str, float]

    def __call__(self, space: Space, log: Log, count: int, seed: int) -> list[Candidate]:
        """Return the next candidates."""
        ask = Ask(space, log, seed, self.fidelity)
        ask.rng = Random(f"{seed} random arm {len(log.candidates)}")
        for point in self.known:
            if len(ask) == count:
                break
            ask.suggest(point, "random")
        return ask.fill(count)


def _random_arm(
    folder: Path, config: Config, parts: Parts, log: Log, evaluator: Evaluator, say: Say
) -> Log:
    """Return the log of random search with the search's budget; the search's own where it is one.

    What the search has measured at the same fidelity is not measured again: it counts with what it
    has cost.
    """
    if config.strategy.name == "random" and not isinstance(parts.strategy, Screened):
        return log
    fidelity = of_runs(fullest(log))
    known: dict[tuple[str, str], Scored] = {
        one.candidate.asks: one for one in log.told if dict(one.candidate.fidelity) == fidelity
    }
    drawn: list[Point] = []
    own = isinstance(config.strategy, OwnStrategy)
    if not own and not isinstance(parts.strategy, Screened):
        # What a strategy has drawn at random is a sample; what it has chosen is none.
        drawn = [s.candidate.point for s in known.values() if s.candidate.how == "random"]
    about = {key: parts.about[key] for key in ("space", "choices", "caps", "seed")}
    with Log.open(folder / RANDOM, _objectives(log), about) as arm:
        before = len(arm.told)
        if before == 0:
            say("random search with the same budget, for comparison")

        def told(result: Scored) -> None:
            if not result.cached:
                best = arm.best(fidelity)
                say(f"random search: {said_of(result, arm.objectives, best, parts.space)}")

        search(
            parts.space,
            RandomArm(tuple(drawn), fidelity),
            evaluator.of("random") if isinstance(evaluator, Jobs | Inherited) else evaluator,
            arm,
            same_budget(log, parts.budget),
            seed=config.seed,
            at_once=config.search.at_once,
            cache=known,
            told=told,
        )
    return arm


def same_budget(log: Log, budget: Budget) -> Budget:
    """Return the budget of random search: that of the search.

    It is what was spent where the search has ended before its budget, or was over fidelities, whose
    candidates are not equally dear.
    """
    fidelities = [candidate.fidelity for candidate in log.candidates]
    if all(each == fidelities[0] and EPOCHS not in each for each in fidelities):
        if budget.endless:
            return Budget(candidates=len(log.candidates))
        if budget.left(log, 1) == 0:
            return budget
    spent = log.spent
    for name in ("training_macs", "images", "seconds"):
        if getattr(spent, name) > 0:
            return Budget(**{name: getattr(spent, name)})
    return Budget(candidates=len(log.candidates))


# -- what is trained ---------------------------------------------------------------------------


def _ours(log: Log, best: Scored, trained: Trained) -> list[Contender]:
    """The answer, and of several goals the front."""
    found = [_contender(BEST, best, trained)]
    if len(log.objectives.goals) > 1:
        others = log.front(best.candidate.fidelity)
        found += [_contender(FRONT, one, trained) for one in _thinned(others) if one is not best]
    return found


def _thinned(front: list[Scored]) -> list[Scored]:
    if len(front) <= MOST_OF_FRONT:
        return front
    step = (len(front) - 1) / (MOST_OF_FRONT - 1)
    return [front[round(at * step)] for at in range(MOST_OF_FRONT)]


def _contender(role: str, one: Scored, trained: Trained) -> Contender:
    candidate = one.candidate
    fidelity = trained.fidelity(candidate.fidelity)
    return Contender(role, candidate.point, candidate.key, candidate.number, fidelity)


def of_runs(fidelity: Mapping[str, float]) -> dict[str, float]:
    """Return that part of a fidelity that a run has: a supernet's epochs are no run's."""
    return {name: value for name, value in fidelity.items() if name in FIDELITY_KEYS}


def _objectives(log: Log) -> Objectives:
    """What runs are compared by: where a supernet was trained, no goal but that of runs."""
    supernet = any(EPOCHS in candidate.fidelity for candidate in log.candidates)
    return Objectives(GOALS) if supernet else log.objectives


def _rivals(
    best: Scored,
    log: Log,
    arm: Log,
    space: Space,
    final: Log,
    seeds: Sequence[int],
    jobs: Jobs,
    trained: Trained,
    notes: list[str],
) -> list[Contender]:
    """Random search's answer and the largest network, with the training macs of the answer."""
    fidelity, found = of_runs(best.candidate.fidelity), list[Contender]()
    answer = _contender(BEST, best, trained)
    asked = [final.find(answer.key, each) for _, each in answer.candidates(seeds)]
    results = [final.result(one.number) for one in asked if one is not None]
    ours = next((r for r in results if r is not None and r.error is None), None)
    if ours is None:
        notes.append("no training of the answer has ended well: there is nothing to compare with")
        return []

    def at_equal_macs(contender: Contender, candidate: Scored | None) -> Contender:
        measured = None if trained.given else candidate  # which was trained as the answer is
        return _at_equal_macs(contender, measured, ours, space, jobs, notes)

    rival = arm.best(fidelity)
    if arm is log:
        notes.append("the strategy is random search itself")
    elif rival is None:
        notes.append("no candidate of random search has a score within the caps")
    elif rival.candidate.key == best.candidate.key:
        notes.append(SAME[0])
    else:
        found.append(at_equal_macs(_contender(OF_RANDOM, rival, trained), rival))
    largest = _largest(space, best.candidate.point)
    if largest is None:
        notes.append("what is searched does not change what a network costs: there is no largest")
        return found
    key = space.key(largest)
    if key == best.candidate.key:
        notes.append(SAME[1])
        return found
    contender = Contender(LARGEST, largest, key, None, answer.fidelity)
    known = (
        each.result(candidate.number)
        for each in (log, arm)
        if (candidate := each.find(key, fidelity)) is not None
    )
    scored = next((one for one in known if one is not None), None)
    found.append(at_equal_macs(contender, scored))
    return found


def _largest(space: Space, like: Point) -> Point | None:
    """The largest network under the caps, in all else like the answer; None where all are alike."""
    name = "macs" if "macs" in space.caps and "params" not in space.caps else "params"
    if isinstance(space, NetworkSpace):
        found = space.largest(name)
        return space.trained_like(found, like) if isinstance(space, Families) else found
    return space.largest(name, like) if isinstance(space, Counted) else None


def _at_equal_macs(
    rival: Contender,
    measured: Scored | None,
    ours: Scored,
    space: Space,
    jobs: Jobs,
    notes: list[str],
) -> Contender:
    """Return the rival with as many images as cost the training macs of the answer's training.

    What a training of the rival costs is known from `measured`, a candidate with its point that
    was trained as the answer is, else from the macs of both networks.
    """
    asked = Candidate(0, rival.point, rival.key, rival.fidelity)
    try:
        config = jobs.config_of(asked)
    except UserError:  # said where it is trained
        return rival
    if not config.ssl.trains or config.pretrain.epochs == 0 or config.finetune.trains:
        notes.extend([SAME_IMAGES] if SAME_IMAGES not in notes else [])
        return rival
    share = _share(rival, measured, ours, space)
    if share is None:
        notes.append(f"{rival.role}: what its training costs is not known: it sees as many images")
        return rival
    hardware = stored(Path(str(ours.run)) / CONFIG).hardware
    batch = (hardware.batch_size or 1) * (hardware.gradient_accumulation_steps or 1)
    images = max(1, round(config.pretrain.images_per_epoch * share / batch)) * batch
    return replace(rival, fidelity={**rival.fidelity, "images": images})


def _share(rival: Contender, measured: Scored | None, ours: Scored, space: Space) -> float | None:
    """The training macs of the answer as a share of those of the rival on as many images."""
    if measured is not None and measured.cost.training_macs > 0 < ours.cost.training_macs:
        return ours.cost.training_macs / measured.cost.training_macs
    costs = [space.costs(point).get("macs", 0) for point in (ours.candidate.point, rival.point)]
    return costs[0] / costs[1] if min(costs) > 0 else None


def _train(
    final: Log,
    contenders: Sequence[Contender],
    seeds: Sequence[int],
    space: Space,
    jobs: Jobs,
    say: Say,
) -> None:
    """Train what has not been trained yet."""
    wanted = [each for one in contenders for each in one.candidates(seeds)]
    roles = {one.key: one.role for one in reversed(contenders)}

    def missing(space: Space, log: Log, count: int, seed: int) -> list[Candidate]:
        ask = Ask(space, log, seed)
        for one, fidelity in wanted:
            ask.suggest(one.point, one.role, fidelity=fidelity)
        return ask.candidates

    strategy: Strategy = missing
    search(
        space,
        strategy,
        jobs,
        final,
        Budget(candidates=len(final.candidates) + len(wanted)),
        at_once=len(wanted),
        told=lambda result: say(
            f"{roles.get(result.candidate.key, result.candidate.how)}, from scratch: "
            f"{said_of(result, final.objectives, None, space)}"
        ),
    )


def spent_of(folder: Path) -> Cost:
    """Return what the trainings beside the search have cost, those that were known aside."""
    total = Cost()
    for name in (RANDOM, FINAL):
        if (folder / name).exists():
            told: Sequence[Any] = Log.read(folder / name).told
            total = sum((one.cost for one in told if not one.cached), total)
    return total
