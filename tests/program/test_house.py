"""What a run's files are called, and where tests are.

Which room may import which is held by import-linter (pyproject.toml), in `make lint`.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from sseg_nase.config.ablations import ablations
from sseg_nase.config.groups.backbone import BackboneConfig
from sseg_nase.config.groups.dataset import DatasetConfig
from sseg_nase.config.groups.evaluation import CLOSED_SETS, EvaluationConfig, MethodConfig
from sseg_nase.config.groups.evaluator import EvaluatorConfig
from sseg_nase.config.groups.finetune import FinetuneConfig
from sseg_nase.config.groups.optimizer import OptimizerConfig
from sseg_nase.config.groups.ssl import SSLConfig
from sseg_nase.config.groups.tracking import TrackingConfig
from sseg_nase.config.options import options_of
from sseg_nase.config.schema import Config
from sseg_nase.provenance import PACKAGE
from sseg_nase.rundir import names, status

# config/ stands below the room of a run's files; conf/config.yaml is no file of a run.
BELOW = ("config/ablations.py", "config/compose.py", "config/conf_files.py")
FILES = sorted(PACKAGE.rglob("*.py"))
# Words of the past, with those that say it; in comments, docstrings and messages.
WORDS = {
    "upon": "on",
    "gone on with": "resumed",
    "goes on with": "resumes",
    "fared": "did",
    "put to use": "used",
    "anew": "again, from scratch",
    "left away": "left out",
}
# Names of modules that said nothing of what is inside.
MODULES = {"late", "seen", "free", "official", "by_hand", "starting", "judging", "native"}
# Parts of words of the past, in names as well, and where they stay: what users and files have.
STEMS = {"judg": "evaluate, accuracy, decide"}
KEPT = {
    "CHANGELOG.md": {"judge", "judged_by"},
    "sseg_nase/__init__.py": {"judge"},  # the alias of `evaluate`
    "sseg_nase/config/groups/finetune.py": {"judged_by"},  # the alias of `evaluated_by`
    "sseg_nase/oneshot/training.py": {"judged"},  # a random stream is derived from it
    "sseg_nase/reporting/comparison.py": {"judged_by"},  # a column of comparison.csv
    "sseg_nase/reporting/comparison_tables.py": {"judged_by"},
    "tests/program/test_api.py": {"judge"},
    "tests/program/test_from_outside.py": {"judged_by"},
}
TEXTS = {".py", ".ipynb", ".md", ".sh", ".yaml", ".html", ".js", ".css"}
ELSEWHERE = [
    *PACKAGE.parent.glob("*.md"),
    *PACKAGE.parent.glob("docs/**/*.md"),
    *PACKAGE.parent.glob("conf/**/*.yaml"),
]


def test_the_files_of_a_run_have_one_room() -> None:
    # Who spells a name out reads or writes the file past its reader and its writer.
    files = {v for v in vars(names).values() if isinstance(v, str) and re.search(r"\w\.\w+$", v)}
    files -= {names.__file__, names.__doc__, names.__name__}
    assert {"config.yaml", "events.jsonl", "episodes.npz"} <= files
    spelled = re.compile("|".join(re.escape(f'"{name}"') for name in sorted(files)))
    found = {
        path.relative_to(PACKAGE).as_posix(): spelled.findall(path.read_text(encoding="utf-8"))
        for path in PACKAGE.rglob("*.py")
    }
    rooms = {name for name, hits in found.items() if hits}
    assert rooms == {"rundir/names.py", *BELOW}


def test_how_a_run_ends_is_said_in_one_place() -> None:
    assigned = re.compile(rf"^(?:\w+, )*(?:{'|'.join(status.ENDS)})\b.* = ", re.MULTILINE)
    found = [
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if assigned.search(path.read_text(encoding="utf-8"))
    ]
    assert found == ["rundir/status.py"]


@cache
def parsed(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


def strings(path: Path) -> Iterator[str]:
    """Every string of a module but docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in parsed(path)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in parsed(path):
        text = isinstance(node, ast.Constant) and isinstance(node.value, str)
        if text and id(node) not in docstrings:
            yield node.value


def test_only_operators_name_their_kinds() -> None:
    """What a kind is called, coded and verified by is asked of `kinds`, so that a new one is one
    file."""
    named = {
        f"{path.relative_to(PACKAGE)}: {text}"
        for path in FILES
        for text in strings(path)
        if text in ("GROW", "WIDEN", "PRUNE", "CHOOSE")
        and path.parent != PACKAGE / "nets" / "mutations"
    }
    assert named == set()


def test_no_option_is_asserted_to_have_a_value() -> None:
    """`filled` says which key has none, and that it was to be fitted or asked for before."""
    sections = {*Config.__dataclass_fields__, "config", "options", "usual", "asked"}

    def of_options(node: ast.expr) -> bool:
        names = set()
        while isinstance(node, ast.Attribute):
            node = node.value
            names.add(node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", ""))
        return not sections.isdisjoint(names)

    found = [
        f"{path.relative_to(PACKAGE)}: {ast.unparse(node.test)}"
        for path in FILES
        for node in parsed(path)
        if isinstance(node, ast.Assert)
        and isinstance(node.test, ast.Compare)
        and isinstance(node.test.ops[0], ast.IsNot)
        and of_options(node.test.left)
    ]
    assert found == []


NAMED = (
    *(SSLConfig, FinetuneConfig, MethodConfig, BackboneConfig, DatasetConfig, EvaluatorConfig),
    *(OptimizerConfig, TrackingConfig),
)
# Words that are names of options, and elsewhere something else.
OTHER_MEANINGS = {
    "none": "nothing, of heads, operations of a cell, titles, normalisation",
    "folder": "a directory: keys of data, the kind of a view, dataset.split_by",
    "csv": "a file's ending",
    "digits": "the variant of EMNIST",
    "cifar100": "of whose classes CIFAR-FS consists",
    "mlp": "learned heads of fine-tuning, and a predictor of searches",
    "cnn": "families as choices of a search space, as the points in its log name them",
    **dict.fromkeys(("densenet", "efficientnet", "enhanced_mlp"), "the same"),
    **dict.fromkeys(("mobilenet", "shufflenetv2"), "the same"),
    "evolvable": "what checkpoints and architecture.json of older versions call chains",
    "searched": "what checkpoints and architecture.json call networks of a space",
    "ridge": "a predictor of searches",
    "classifier": "how results.json says that a closed set was evaluated",
    "classification": "the sections of results.json of closed sets",
    "run": "a run of the program, and the keys and columns that name one",
    "own": "the settings of stages of fine-tuning",
    "mlflow": "a package",
}
# Choices of a search space, as the points in its log name them.
POINTS = {"sseg_nase.spaces.families": {"adam", "adamw", "sgd"}}


def test_a_method_a_data_set_and_a_family_are_named_where_they_are_defined_alone() -> None:
    """In the module of the option, and of what it is made by: a new one is added there alone."""
    homes: dict[str, set[str]] = {name: set() for name in ablations()}
    homes |= {name: {EvaluationConfig.__module__} for name in CLOSED_SETS}
    for kind in NAMED:
        for name, cls in options_of(kind).items():
            makers = (getattr(cls, key, "") for key in ("made_by", "reader", "described_by"))
            of = {cls.__module__, *(each.partition(":")[0] for each in makers if each)}
            homes.setdefault(name, set()).update(of)
    named: dict[str, set[str]] = {}
    for path in FILES:
        module = ".".join(("sseg_nase", *path.relative_to(PACKAGE).with_suffix("").parts))
        for text in homes.keys() & set(strings(path)) - POINTS.get(module, set()):
            # The modules of a family that is a package are one.
            if not any(module == f"{home}.__init__" or module == home for home in homes[text]):
                named.setdefault(text, set()).add(module)
    assert {name: sorted(named[name]) for name in named.keys() - OTHER_MEANINGS} == {}
    assert named.keys() >= OTHER_MEANINGS.keys()


TESTS = Path(__file__).parents[1]
# Folders of tests/unit that are no package of the program.
ALSO_TESTED = {"benchmarks", "cuda", "launchers"}


def test_every_test_is_where_its_subject_says() -> None:
    """Whole runs in `program`, each package in `unit`; what tests share is in `support`."""
    files = {path.relative_to(TESTS) for path in TESTS.rglob("*.py")}
    tests = {path for path in files if path.name.startswith("test_")}
    unit = {path.parts[1] for path in tests if path.parts[0] == "unit" and len(path.parts) > 2}
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert {path.parts[0] for path in tests} == {"unit", "program"}
    assert unit - packages == ALSO_TESTED
    others = {path for path in files - tests if path.parts[0] != "support"}
    assert {path.name for path in others} == {"__init__.py", "conftest.py"}


def prose(path: Path) -> str:
    """The comments and strings of a module; of another file all of it."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return text
    # From Python 3.12 on the text of an f-string is a token of its own.
    said = (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", None))
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return "\n".join(token.string for token in tokens if token.type in said)


def test_words_are_those_of_the_field() -> None:
    banned = re.compile(rf"\b(?:{'|'.join(WORDS)})\b".replace(" ", r"\s+"))
    found = {
        f"{path.relative_to(PACKAGE.parent)}: {word!r}; say {WORDS[' '.join(word.split())]!r}"
        for path in (*FILES, *ELSEWHERE)
        if banned.search(path.read_text(encoding="utf-8"))
        for word in banned.findall(prose(path))
    }
    assert found == set()


def test_words_of_the_past_are_in_no_name() -> None:
    root = PACKAGE.parent
    stems = re.compile(rf"\w*(?:{'|'.join(STEMS)})\w*", re.IGNORECASE)
    folders = ("sseg_nase", "tests", "benchmarks", "bench", "launchers", "notebooks")
    files = [p for name in folders for p in (root / name).rglob("*.*") if p.suffix in TEXTS]
    found = {
        path.relative_to(root).as_posix(): words
        for path in (*files, *ELSEWHERE)
        if path != Path(__file__)
        and (words := set(stems.findall(path.read_text(encoding="utf-8"))))
    }
    assert found == KEPT, f"say: {STEMS}"


def test_modules_are_named_after_what_is_inside() -> None:
    assert {path.stem for path in FILES} & MODULES == set()


def test_slow_variants_are_tests(lost_variants: list[str]) -> None:
    assert lost_variants == [], "take them out of tests/slow_variants.txt, or write their new names"
