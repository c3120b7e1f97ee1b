"""The answer of a search, trained from scratch beside its rivals by a stand-in."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest
import yaml

from sseg_nase.config.compose import continued, load
from sseg_nase.config.schema import Config
from sseg_nase.errors import UserError
from sseg_nase.rundir.episodes import write_episodes
from sseg_nase.search import Budget, Candidate, Cost, Log, Objectives, Scored
from sseg_nase.search.strategies import Evolution
from sseg_nase.searches import jobs, parts
from sseg_nase.searches.answer import SAME_IMAGES, RandomArm, Trained, same_budget
from sseg_nase.searches.outcome import Outcome, outcome, outcome_lines
from sseg_nase.searches.parts import final_seeds, parts_of
from sseg_nase.searches.report import _from_scratch
from sseg_nase.searches.task import check_search
from sseg_nase.spaces import choices_space
from sseg_nase.sweeps.folder import JobFolder, SweepFolder
from tests.support.small_search import QUIET, searched

KEY, EPISODES = "digits/val/5w5s", 40
WIDTHS = "search.choices={backbone.channels: [[8,16],[16,32],[32,64]], ssl.temperature: [0.1,0.2]}"
MACS = {8: 133_120, 16: 405_504, 32: 1_400_832}  # of an image, as of the networks
SAME_AS_RANDOM = "random search has found the same"


def wide(config: Config) -> int:
    return int(config.backbone.channels[0])


def likes_middle(config: Config) -> float:
    """The accuracy: of a middle width and the lower temperature it is the highest."""
    return {8: 40.0, 16: 60.0, 32: 50.0}[wide(config)] - 20 * (config.ssl.temperature - 0.1)


class StandIn:
    """Performs a job as a run would: config.yaml, results.json, episodes.npz, status.json."""

    def __init__(self) -> None:
        self.performed: list[tuple[int, float, int, int, int]] = []
        self.accuracy: Callable[[Config], float] = likes_middle
        self.interrupts_at: int | None = None
        self.fails: Callable[[Config], bool] = lambda config: False

    def __call__(self, path: Path, number: int, launcher: str) -> None:
        job = SweepFolder(path).jobs[number]
        config = job.config
        about = (
            wide(config), config.ssl.temperature, config.seed, config.evaluation.seed,
            config.pretrain.images_per_epoch,
        )  # fmt: skip
        self.performed.append(about)
        status = "FAILED" if self.fails(config) else "FINISHED"
        self.finish(job, config, status)

    def finish(self, job: JobFolder, config: Config, status: str) -> None:
        run = job.path.parents[3] / "stand_in" / f"{job.path.parents[1].name}_{job.number}"
        job.note(run=str(run), started=1.0, ended=2.0, status=status, reason="it diverged")
        # Each training has its luck.
        own = np.random.default_rng([wide(config), config.seed])
        gain = self.accuracy(config) + own.normal(0, 0.5) + own.normal(0, 2, EPISODES)
        write_run(run, config, gain, status)


def write_run(
    run: Path, config: Config, gain: np.ndarray | float, status: str = "FINISHED"
) -> None:
    """Write what a run leaves, with episodes that are hard or easy alike for all."""
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(config)))
    hard = np.random.default_rng(config.evaluation.seed).normal(0, 8, EPISODES)
    accuracies = np.float32(gain + hard)
    write_episodes(run, {"last": {KEY: accuracies}})
    told = {"accuracy": float(np.float64(accuracies).mean()), "ci95": 1.0,
            "episodes": EPISODES, "method": "prototype", "transductive": False}  # fmt: skip
    results = {
        "fewshot": {KEY: told},
        "efficiency": {"params": 10 * wide(config), "macs": 100 * wide(config)},
        "training_macs": {"total": float(MACS[wide(config)] * config.pretrain.images_per_epoch)},
        "seconds": {"pretrain": 1.0},
        "images_seen": {"synthetic": config.pretrain.images_per_epoch},
    }
    (run / "results.json").write_text(json.dumps(results))
    (run / "status.json").write_text(json.dumps({"status": status}))


VARIED = ("backbone.channels", "ssl.temperature", "seed", "evaluation.seed",
          "pretrain.images_per_epoch")  # fmt: skip
COMPOSED: dict[tuple[str, ...], Config] = {}


def quick_load(overrides: Sequence[str], *further: Path, known: object = None) -> Config:
    """As `load`, but for what varies between jobs, which is put in place: composing takes long."""
    pairs = [(text.partition("=")[0], text) for text in overrides]
    base = tuple(text for key, text in pairs if key not in VARIED)
    if base not in COMPOSED:
        COMPOSED[base] = load(base, *further)
    config = COMPOSED[base]
    for key, text in pairs:
        if key in VARIED:
            *section, name = key.split(".")
            new = {name: yaml.safe_load(text.partition("=")[2])}
            if section:
                new = {section[0]: dataclasses.replace(getattr(config, section[0]), **new)}
            config = dataclasses.replace(config, **new)
    return config


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    found = StandIn()
    monkeypatch.setattr(jobs, "perform", found)
    monkeypatch.setattr(jobs, "load", quick_load)
    monkeypatch.setattr(parts, "load", quick_load)
    return found


QUICK = [o for o in QUIET if "final_seeds" not in o]


def begin(*given: str, choices: str = WIDTHS, candidates: int = 3) -> Path:
    tiny = ["pretrain.images_per_epoch=2048", "hardware.batch_size=128", "evolution=none"]
    budget = f"search.budget.candidates={candidates}"
    evolution = ["strategy=evolution", "strategy.population=2", "strategy.sample=2"]
    return searched(
        "task=search", choices, *QUICK, *tiny, "sparsity=none", *evolution, budget, *given
    )


def log_of(path: Path, name: str = "candidates.jsonl") -> Log:
    return Log.read(path / name)


def roles(path: Path) -> dict[str, list[int]]:
    told = json.loads((path / "answer.json").read_text())
    return {one["role"]: one["trainings"] for one in told["contenders"]}


def test_the_answer_is_trained_anew_beside_its_rivals_with_the_same_macs(
    stand_in: StandIn, capsys: pytest.CaptureFixture
) -> None:
    path = begin(candidates=4)  # with the two that random search begins with
    best, final = log_of(path).best(), log_of(path, "final.jsonl")
    assert best is not None
    arm = log_of(path, "random.jsonl")
    assert len(arm.told) == 4
    known = {c.asks for c in log_of(path).candidates}
    assert {one.candidate.asks for one in arm.told if one.cached} == known & {
        c.asks for c in arm.candidates
    }
    trained = roles(path)
    assert [len(numbers) for numbers in trained.values()] == [3] * len(trained)
    seeds = {one.candidate.fidelity["seed"] for one in final.told}
    assert seeds == {1, 2, 3}  # not 0, which all candidates had
    of_final = [each for each in stand_in.performed if each[2] > 0]
    assert len(of_final) == len(set(of_final)) == len(final.told)
    assert {each[3] for each in of_final} == {1}  # other episodes than those of the candidates
    assert {each[3] for each in stand_in.performed if each[2] == 0} == {0}
    # The largest network, 3.5 times as dear, sees so many fewer images, in whole batches.
    macs = {role: {final.result(n).cost.training_macs for n in ns} for role, ns in trained.items()}  # type: ignore[union-attr]
    (ours,), (theirs,) = macs["answer"], macs["largest"]
    assert abs(theirs - ours) <= 128 * MACS[32] / 2
    images = {each[0]: each[4] for each in of_final}
    assert images[16] == 2048
    assert images[32] == 640  # 593 would be exact
    said = capsys.readouterr().out
    assert "the search " in said
    assert "the answer minus the largest network" in said


@pytest.mark.parametrize(
    "moment",  # among the rivals; in random search; before its end
    [pytest.param(n, marks=pytest.mark.slow) for n in (-2, 3, 4)],
)
def test_killed_anywhere_nothing_is_trained_twice_and_the_answer_is_the_same(
    moment: int, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = begin()
    count, wanted = len(stand_in.performed), outcome_lines(outcome(whole))
    moment %= count
    finish = StandIn.finish
    stand_in.performed.clear()
    monkeypatch.setattr(StandIn, "finish", _stopping(finish, stand_in, moment))
    with pytest.raises(KeyboardInterrupt) as stopped:
        begin()
    path = Path(stopped.value.run_dir)  # type: ignore[attr-defined]
    monkeypatch.setattr(StandIn, "finish", finish)
    assert len(stand_in.performed) - 1 == moment
    searched(*continued([f"resume={path}"]), f"resume={path}")
    assert len(stand_in.performed) - 1 == count  # the one that was at work goes on
    for name in ("candidates.jsonl", "random.jsonl", "final.jsonl"):
        assert log_of(path, name).lines() == log_of(whole, name).lines()
    assert outcome_lines(outcome(path)) == wanted


def _stopping(finish: Callable, stand_in: StandIn, moment: int) -> Callable:
    def stop(self: StandIn, job: JobFolder, config: Config, status: str) -> None:
        if len(stand_in.performed) <= moment:
            finish(self, job, config, status)
            return
        import _thread

        _thread.interrupt_main()  # as Ctrl-C does while a job is at work
        job.note(started=1.0, ended=2.0, status="INTERRUPTED")

    return stop


def test_random_search_and_zero_seeds_need_no_arm(stand_in: StandIn) -> None:
    path = begin("search.final_seeds=0")
    assert len(stand_in.performed) == 3
    assert not (path / "answer.json").exists()
    assert outcome(path) is None
    plain = ["strategy=random", "strategy.population=null", "strategy.sample=null"]
    path = begin(*plain, "search.final_seeds=2")
    assert not (path / "random.jsonl").exists()
    found = outcome(path)
    assert found is not None
    assert "the strategy is random search itself" in found.notes
    assert list(found.seeds) == [1, 2]


LONGER = "search.final_overrides={pretrain.images_per_epoch: 8192}"


def test_what_is_trained_from_scratch_may_be_trained_for_longer(
    stand_in: StandIn, capsys: pytest.CaptureFixture
) -> None:
    path = begin(LONGER, "search.final_seeds=1", "report.at_end=true")
    found = outcome(path)
    assert found is not None
    of_candidates = {each[4] for each in stand_in.performed if each[2] == 0}
    of_final = {each[0]: each[4] for each in stand_in.performed if each[2] > 0}
    assert of_candidates == {2048}
    assert of_final[16] == 8192
    # By the macs of the networks, and not by what a candidate took: 8192 × 405504 / 1400832.
    assert of_final[32] == 19 * 128
    assert list(found.overrides) == ["pretrain.images_per_epoch=8192"]
    more = "with pretrain.images_per_epoch=8192, on other"
    assert f"trained from scratch with 1 seed, {more} episodes" in capsys.readouterr().out.replace(
        "\n", " "
    )
    text = (path / "report" / "report.md").read_text(encoding="utf-8").replace("\\", "")
    assert f"Each with 1 seed (1) that no candidate has had, {more}" in text

    # What has been trained is not mixed with what would be trained otherwise.
    given = [
        f"resume={path}",
        "resume_overrides=true",
        "search.final_overrides={pretrain.images_per_epoch: 4096}",
    ]
    with pytest.raises(UserError, match="of another search: overrides is"):
        searched(*continued(given), *given)


def test_a_fidelity_gives_way_to_what_the_trainings_from_scratch_are_given() -> None:
    rung = {"epochs": 2, "images": 512, "supernet_epochs": 3}
    assert Trained(frozenset()).fidelity(rung) == {"epochs": 2, "images": 512}
    assert Trained(frozenset({"pretrain.epochs"})).fidelity(rung) == {"images": 512}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{pretrain.epochz: 3}", "search.final_overrides: pretrain.epochz: there is no such key"),
        ("{pretrain.epochs: many}", "search.final_overrides: pretrain.epochs=many"),
        ("{pretrain.epochs: -1}", "search.final_overrides: pretrain.epochs=-1"),
        ("{seed: 3}", "search.final_overrides: seed is that of each training"),
        ("{evaluation.split: test}", "the test classes are for task=evaluate"),
        ("{evaluation.seed: 3}", "search.final_overrides: evaluation.seed gives episodes"),
        ("{ssl.temperature: 0.3}", "search.final_overrides: ssl.temperature is what the search"),
        ("{task: evaluate}", "search.final_overrides: task cannot be set, it is no setting"),
        ("{finetune.epochs: 3}", "finetune.epochs: it has no effect with finetune=none"),
        (
            "{pretrain.epochs: 3, ssl: none, finetune: linear}",
            "pretrain.epochs: it has no effect with ssl=none",
        ),
        ("{ssl: sim}", "search.final_overrides: ssl=sim"),
    ],
)
def test_overrides_of_the_trainings_from_scratch_are_checked_at_once(given: str, said: str) -> None:
    lines = ["task=search", WIDTHS, "evolution=none", "sparsity=none"]
    lines.append(f"search.final_overrides={given}")
    with pytest.raises(UserError) as refused:
        check_search(load(lines), lines)
    assert said in str(refused.value)


def test_overrides_of_no_trainings_are_refused() -> None:
    lines = ["task=search", WIDTHS, "evolution=none", "sparsity=none", LONGER]
    lines.append("search.final_seeds=0")
    with pytest.raises(UserError, match=r"has no effect, since nothing is trained from scratch"):
        check_search(load(lines), lines)


def told_of(folder: Path, gains: dict[str, list[float]], notes: Sequence[str] = ()) -> Outcome:
    """What is told of trainings from scratch, each of which has a run on disk."""
    config, numbers = load(), {}
    rng = np.random.default_rng(0)
    with Log.open(folder / "final.jsonl", Objectives({"accuracy": "max"})) as log:
        for role, means in gains.items():
            for seed, mean in enumerate(means, start=1):
                number, run = len(log.candidates), folder / f"{role} {seed}"
                write_run(run, config, mean + rng.normal(0, 2, EPISODES))
                log.ask([Candidate(number, {"x": role}, role, {"seed": seed})])
                log.tell(Scored(log.candidates[-1], {"accuracy": mean}, run=str(run)))
                numbers.setdefault(role, []).append(number)
    told = {
        "seeds": [1, 2, 3],
        "random_candidates": 9,
        "notes": list(notes),
        "contenders": [
            {"role": role, "candidate": None, "point": {"x": role}, "key": role, "trainings": each}
            for role, each in numbers.items()
        ],
    }
    (folder / "answer.json").write_text(json.dumps(told))
    found = outcome(folder)
    assert found is not None
    return found


OURS = [50.0, 50.3, 49.8]


@pytest.mark.parametrize(
    ("random", "largest", "verdict"),
    [
        (40.0, 41.0, "the search was worth it: its answer beats random search's answer and the"),
        (40.0, 50.0, "between its answer and the largest network there is no significant"),
        (49.9, 41.0, "between its answer and random search's answer there is no significant"),
        (60.0, 41.0, "the search was not worth it: random search's answer did better"),
        (None, 41.0, "its answer beats the largest network, but random search has found the same"),
        (None, None, "not shown to be worth it: random search has found the same"),
    ],
)
def test_the_verdict_follows_the_paired_differences(
    tmp_path: Path, random: float | None, largest: float | None, verdict: str
) -> None:
    luck = [0.2, -0.1, 0.3]
    means = {"random search": random, "largest": largest}
    gains = {k: [mean + by for by in luck] for k, mean in means.items() if mean is not None}
    notes = [SAME_AS_RANDOM] if random is None else []
    found = told_of(tmp_path, {"answer": OURS, **gains}, notes)
    assert verdict in found.verdict
    for one in found.comparisons:
        assert one.difference == pytest.approx(50 - float(means[one.role] or 0), abs=1.5)
        assert (one.seeds, one.episodes, one.over) == (3, EPISODES, "seeds and episodes")


@pytest.mark.parametrize("closed", [False, True])
def test_what_they_were_evaluated_on_is_said(tmp_path: Path, closed: bool) -> None:
    """Val images of a closed set are those that the answer was chosen by; episodes are others."""
    config = load(["dataset=cifar10", "evaluation=knn"] if closed else [])
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(dataclasses.asdict(config)))
    notes = [SAME_IMAGES] if closed else []
    found = told_of(tmp_path, {"answer": OURS, "largest": [41.0, 42.0, 41.5]}, notes)
    unit = "images" if closed else "episodes"
    assert [one.over for one in found.comparisons] == [f"seeds and {unit}"]
    said = "\n".join([outcome_lines(found)[0], *map(str, _from_scratch(found, None))])
    assert said.count("on other episodes of val than the candidates") == 2 * (not closed)
    assert said.count("on the images of val that the answer was chosen by") == 2 * closed
    assert said.count("saw as many images as cost the training MACs") == (not closed)
    assert ("'images'" in said) is closed


def test_of_two_rivals_the_p_values_are_holms(tmp_path: Path) -> None:
    near, far = [49.2, 49.9, 48.9], [48.5, 48.8, 48.0]
    both = told_of(tmp_path, {"answer": OURS, "random search": near, "largest": far})
    told, alone = json.loads((tmp_path / "answer.json").read_text()), []
    for role in ("random search", "largest"):
        kept = [one for one in told["contenders"] if one["role"] in ("answer", role)]
        (tmp_path / "answer.json").write_text(json.dumps({**told, "contenders": kept}))
        found = outcome(tmp_path)
        assert found is not None
        (one,) = found.comparisons
        alone.append(one.p)
    low, high = sorted(alone)
    adjusted = sorted(one.p for one in both.comparisons)
    assert adjusted == pytest.approx([2 * low, max(2 * low, high)])


def test_with_one_seed_the_test_is_over_episodes_and_other_episodes_do_not_pair(
    tmp_path: Path,
) -> None:
    found = told_of(tmp_path, {"answer": [50.0], "largest": [40.0]})
    (one,) = found.comparisons
    assert (one.seeds, one.over) == (1, "episodes")
    assert "±" not in outcome_lines(found)[1]
    config = tmp_path / "largest 1" / "config.yaml"
    text = config.read_text().replace("evaluation:", "evaluation:  # other episodes", 1)
    other = yaml.safe_load(text)
    other["evaluation"]["seed"] += 1
    config.write_text(yaml.safe_dump(other))
    found = outcome(tmp_path)
    assert found is not None
    assert found.comparisons == []
    assert "the largest network, seed 1: not evaluated on the same episodes" in found.notes


def test_a_goal_that_is_no_accuracy_is_not_tested_over_episodes(tmp_path: Path) -> None:
    told_of(tmp_path, {"answer": [50.0, 51.0], "largest": [40.0, 41.0]})
    log = tmp_path / "final.jsonl"
    log.write_text(log.read_text().replace('"max"', '"min"', 1))
    found = outcome(tmp_path)
    assert found is not None
    assert found.comparisons == []
    assert "accuracy, is no accuracy to be raised" in found.verdict


@pytest.mark.slow
def test_a_training_that_fails_is_told_and_left_out(stand_in: StandIn) -> None:
    """And of several goals the front is trained, too; all of it stands in the report."""
    stand_in.fails = lambda config: config.seed == 2
    path = begin("report.at_end=true", "search.objectives={accuracy: max, macs: min}")
    found = outcome(path)
    assert found is not None
    assert all(one.failed == 1 and set(one.scores) == {1, 3} for one in found.standings)
    assert all(one.seeds == 2 for one in found.comparisons)
    assert "1 failed" in "\n".join(outcome_lines(found))
    text = (path / "report" / "report.md").read_text(encoding="utf-8")
    assert "## Trained from scratch" in text
    told = json.loads((path / "report" / "report.json").read_text())["answer"]
    assert text.count(told["verdict"][1:]) == 1
    assert text.index(told["verdict"][1:]) < text.index("## The best")  # it stands first
    front = {one.candidate.number for one in log_of(path).front()}
    trained = {one["candidate"] for one in told["networks"] if one["role"] in ("answer", "front")}
    assert trained == front
    assert len(told["networks"][0]["runs"]) == 2


def test_where_no_choice_changes_the_network_there_is_no_largest(stand_in: StandIn) -> None:
    path = begin("backbone.channels=[8,16]", choices="search.choices={ssl.temperature: [0.1,0.2]}")
    found = outcome(path)
    assert found is not None
    assert any("there is no largest" in note for note in found.notes)
    assert SAME_AS_RANDOM in found.notes  # there are two points, and both were evaluated
    assert found.verdict.startswith("the search is not shown to be worth it: random search has")


def test_the_largest_network_is_within_the_caps_and_else_like_the_answer() -> None:
    given = ["task=search", WIDTHS, "evolution=none", "sparsity=none"]
    space = parts_of(load([*given, "search.caps={params: 6000}"]), given).space
    point = {"backbone.channels": "[8,16]", "ssl.temperature": 0.2}
    largest = space.largest("params", point)  # type: ignore[attr-defined]
    assert largest == {"backbone.channels": "[16,32]", "ssl.temperature": 0.2}


def test_seeds_are_new_ones_and_a_table_has_none() -> None:
    assert final_seeds(load(["task=search", WIDTHS, "seed=4"])) == [5, 6, 7]
    table = ["space=nb201", "evaluator=tabular", "evaluator.table=x.csv"]
    assert final_seeds(load(["task=search", *table])) == []
    assert final_seeds(load(["task=search", *table, "search.final_seeds=2"])) == [1, 2]


def test_random_search_does_not_depend_on_the_order_of_results() -> None:
    space = choices_space({"x": "uniform(0,1)"})
    arm = RandomArm(({"x": 0.5},), {"epochs": 3})
    one, other = (Log(Objectives({"accuracy": "max"})) for _ in range(2))
    for log in (one, other):
        log.ask(arm(space, log, 1, 0))
    one.tell(Scored(one.candidates[0], {"accuracy": 1.0}))
    assert arm(space, one, 1, 0)[0].point == arm(space, other, 1, 0)[0].point
    assert one.candidates[0].point == {"x": 0.5}
    assert one.candidates[0].fidelity == {"epochs": 3}


def test_what_a_model_has_chosen_from_random_points_is_no_random_point() -> None:
    """Else random search would begin with what the search has learnt."""
    from sseg_nase.search.strategies import GP

    space, log = choices_space({"x": "uniform(0,1)"}), Log(Objectives({"accuracy": "max"}))
    strategy, rng = GP(starts=3, pool=20, incumbents=2), Random(0)
    for _ in range(12):
        for one in strategy(space, log, 1, 0):
            log.ask([one])
            log.tell(Scored(one, {"accuracy": rng.random()}))
    assert [c.how for c in log.candidates[:3]] == ["random"] * 3
    assert "random" not in {c.how for c in log.candidates[3:]}


def test_random_search_has_the_budget_of_the_search() -> None:
    def log_with(*fidelities: dict[str, float]) -> Log:
        log = Log(Objectives({"accuracy": "max"}))
        for number, fidelity in enumerate(fidelities):
            log.ask([Candidate(number, {"x": number}, str(number), fidelity)])
            cost = Cost(1.0, 10.0, 100.0)
            log.tell(Scored(log.candidates[number], {"accuracy": 1.0}, cost))
        return log

    budget = Budget(candidates=2, seconds=60)
    assert same_budget(log_with({}, {}), budget) is budget
    whole = Budget(seconds=2)
    assert same_budget(log_with({}, {}), whole) is whole
    # Its strategy has ended before: random search has no more than it.
    assert same_budget(log_with({}, {}), Budget(candidates=3)) == Budget(training_macs=200.0)
    assert same_budget(log_with({}, {}), Budget(seconds=3)) == Budget(training_macs=200.0)
    assert same_budget(log_with({}, {}), Budget()) == Budget(candidates=2)
    over = log_with({"epochs": 1}, {"epochs": 1}, {"epochs": 3})
    assert same_budget(over, budget) == Budget(training_macs=300.0)
    assert Evolution() == Evolution()
