"""Which images, and which files, a run was made with: its data.json, compared when it is resumed.

An image store is known by the checksums of its pixels and labels and by the names of its classes:
where it lies, and how its files are called, is recorded but not compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sseg_nase.config.compose import dataset_choice
from sseg_nase.config.groups.dataset import Closed
from sseg_nase.config.options import names_with
from sseg_nase.config.places import place_of
from sseg_nase.config.schema import Config
from sseg_nase.data.benchmarks.dealing import CLOSED
from sseg_nase.data.curriculum.render import DRAWING
from sseg_nase.data.store import ImageStore
from sseg_nase.errors import UserError
from sseg_nase.rundir.data import read_data
from sseg_nase.rundir.unreadable import UnreadableError
from sseg_nase.stages.evaluating import Task
from sseg_nase.stages.setup import images_of
from sseg_nase.stages.teaching import classifier_file
from sseg_nase.tracking.sink import Dataset
from sseg_nase.training import checkpoint

SCHEMA = 1
TRAINING = ("pretrain", "finetune")  # roles of images that weights are made from
TEACHERS = {"finetune.teacher": classifier_file, "ssl.teacher": checkpoint.file_of}
FILES = ("finetune.start", *TEACHERS, "backbone.weights")
RECORDED = ("source", "layout", "split", "image_size", "channels")
BLOCK = 1 << 20
MOST_NAMED = 5

Data = dict[str, Any]


def data_of(config: Config, tasks: Sequence[Task], *, pretrained: bool) -> Data:
    """What a pipeline or an evaluation with these `tasks` works with, as data.json has it.

    `images` by dataset and split, such as `digits/val`; `roles`: which of them serve for what;
    `drawn`: the levels whose images are drawn, by the version `drawing` of what draws them;
    `files` that the weights start from; `trained_before`: the images that those weights have seen,
    and `drawn_before` those that were drawn for them.
    """
    images: dict[str, Data] = {}
    roles: dict[str, list[str]] = {}

    def use(role: str, key: str, store: Callable[[], ImageStore]) -> None:
        if key not in images:
            images[key] = identity(store())
        roles.setdefault(role, []).append(key)

    def own(split: str) -> ImageStore:
        return images_of(config, config.dataset, split)

    for task in tasks:
        for role, key, store in task.stores():
            use(role, key, partial(_is, store))
    name = config.dataset.name
    if pretrained and "NATURAL" in config.curriculum.levels:
        natural = config.dataset.natural
        use("pretrain", f"{name}/{natural}", partial(own, natural))
    if config.task == "pipeline" and config.finetune.trains:
        use("finetune", f"{name}/train", partial(own, "train"))
        use("select", f"{name}/val", partial(own, "val"))
    drawn = [level for level in config.curriculum.levels if level != "NATURAL"]
    start = _data_of_start(config)
    return {
        "schema": SCHEMA,
        "images": images,
        "roles": roles,
        "drawn": drawn if pretrained else [],
        "drawing": DRAWING,
        "files": {key: found for key in FILES if (found := _file(config, key)) is not None},
        "trained_before": _distinct([*trained_on(start), *_seen_by_teachers(config)]),
        "drawn_before": drawings(start),
    }


def identity(store: ImageStore) -> Data:
    """What is recorded of a store. Two with the same `identity` hold the same labelled images."""
    manifest = store.manifest
    told = {"sha256": manifest["sha256"], "classes": list(store.class_names)}
    text = json.dumps(told, sort_keys=True)
    return {
        "identity": hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:32],
        "count": len(store),
        **told,
        **{key: manifest[key] for key in RECORDED if key in manifest},
    }


def datasets(data: Mapping[str, Any]) -> tuple[Dataset, ...]:
    """What a tracker is told of the images in data.json."""
    roles = data.get("roles") or {}
    return tuple(
        Dataset(
            name=key,
            digest=one["identity"],
            roles=", ".join(role for role, keys in roles.items() if key in keys),
            images=one["count"],
        )
        for key, one in (data.get("images") or {}).items()
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Return in words how images and files differ, by their key; those that both have count."""
    found = {}
    old_images, new_images = before.get("images") or {}, now["images"]
    for key in [key for key in new_images if key in old_images]:
        old, new = old_images[key], new_images[key]
        if old.get("identity") != new["identity"]:
            found[key] = _difference(old, new)
    old_files = before.get("files") or {}
    for key, new in now["files"].items():
        if key in old_files and old_files[key].get("sha256") != new["sha256"]:
            found[key] = f"{new['path']} is another file than {old_files[key].get('path')} was"
    drawings = [data.get("drawing", now.get("drawing")) for data in (before, now)]
    if before.get("drawn") and now.get("drawn") and drawings[0] != drawings[1]:
        found["drawn images"] = (
            f"those of {', '.join(now['drawn'])} were drawn by version {drawings[0]} of the "
            f"curriculum, and this sseg-nase has version {drawings[1]}"
        )
    return found


def changed_since(run: Path, config: Config, known: dict[str, Data]) -> dict[str, str]:
    """Return in words which images of the run in a folder are others now, by their key.

    `config` is how the run would be made now. A run of an older version, which recorded none, has
    no differences. `known` holds what was looked at, for further runs on the same images. Raises
    `UserError` where the images are not there any more, or data.json is damaged.
    """
    try:
        before = read_data(run)
    except UnreadableError as error:
        raise UserError(f"{error.path} is damaged ({error.reason})") from error
    images = {}
    for key in before.get("images") or {}:
        name, _, split = key.partition("/")
        dataset = config.dataset if name == config.dataset.name else dataset_choice(name)
        look = repr((dataset, split, config.paths, config.dataset.image_size))
        if look not in known:
            known[look] = identity(images_of(config, dataset, split))
        images[key] = known[look]
    drawn = before.get("drawn") or []
    return differences(before, {"images": images, "files": {}, "drawn": drawn, "drawing": DRAWING})


def refuse(resume: str | Path, found: Mapping[str, str], epochs: int) -> UserError:
    """Return the error for a resumed run whose data are not those that it was begun with."""
    since = f"those of epochs 1–{epochs}" if epochs > 1 else "those that the run was begun with"
    listed = "\n  ".join(f"{key}: {what}" for key, what in found.items())
    remedy = (
        "Bring back what was there, or name where it is (paths.data_dir, dataset.root, "
        "finetune.from, finetune.teacher, ssl.teacher, backbone.weights);"
    )
    if list(found) == ["drawn images"]:
        remedy = "Resume it with the version of sseg-nase that it was begun with;"
    return UserError(
        f"resume={resume}: the images or files are others than {since}:\n  {listed}\n"
        f"  {remedy} resume_overrides=true resumes with the other data, and the run then records "
        "both."
    )


def trained_on(data: Mapping[str, Any]) -> list[Data]:
    """The images that weights made with `data` have seen, each with its `key`."""
    images, roles = data.get("images") or {}, data.get("roles") or {}
    keys = [key for role in TRAINING for key in roles.get(role, ()) if key in images]
    own = [{"key": key, **images[key]} for key in dict.fromkeys(keys)]
    # A run that was resumed with other images has seen both.
    earlier = [one for part in data.get("earlier") or () for one in trained_on(part)]
    every = [*own, *earlier, *(data.get("trained_before") or ())]
    return _distinct(every)


def _distinct(images: Iterable[Data]) -> list[Data]:
    return list({(one["key"], one["identity"]): one for one in images}.values())


def overlaps(seen: Sequence[Mapping[str, Any]], data: Mapping[str, Any]) -> Iterator[str]:
    """Yield in words what of the evaluated images of `data` was trained on."""
    for key in data["roles"].get("evaluate", ()):
        evaluated, name = data["images"][key], key.partition("/")[0]
        # Its classes are meant to be those that were trained on.
        is_closed = name in names_with(Closed) or str(evaluated.get("layout")).endswith(CLOSED)
        for one in seen:
            if one["key"].partition("/")[0] != name:
                continue  # names mean nothing across data sets
            common = [name for name in evaluated["classes"] if name in set(one["classes"])]
            if one["sha256"]["images"] == evaluated["sha256"]["images"]:
                yield f"the {evaluated['count']} images of {key} were trained on: {one['key']}"
            elif common and not is_closed and _comparable_names(one, evaluated):
                named = ", ".join(common[:MOST_NAMED]) + (", …" if common[MOST_NAMED:] else "")
                yield (
                    f"{len(common)} classes of {key} have names of classes that were trained on "
                    f"({one['key']}): {named}"
                )


def changed_base(seen: Sequence[Mapping[str, Any]], data: Mapping[str, Any]) -> Iterator[str]:
    """Yield in words which splits of `data` hold other images than when they were trained on."""
    for key, now in data["images"].items():
        then = [one for one in seen if one["key"] == key]
        then = [one for one in then if one.get("image_size") == now.get("image_size")]
        if then and all(one["identity"] != now["identity"] for one in then):
            yield f"{key} is not what the weights were trained on: {_difference(then[-1], now)}"


def drawings(data: Mapping[str, Any]) -> list[Data]:
    """What weights made with `data` have seen of drawn images: levels, and the version of each."""
    parts = [data, *(data.get("earlier") or ())]
    own = [{key: one.get(key) for key in ("drawn", "drawing")} for one in parts if one.get("drawn")]
    found = [*own, *(data.get("drawn_before") or ())]
    return [one for number, one in enumerate(found) if one not in found[:number]]


def drawn_otherwise(data: Mapping[str, Any]) -> Iterator[str]:
    """Yield in words which drawn images the weights that `data` begins with saw of old versions."""
    for one in data.get("drawn_before") or ():
        if one["drawing"] not in (None, DRAWING):
            yield (
                f"the weights were trained on images of {', '.join(one['drawn'])} that version "
                f"{one['drawing']} of the curriculum drew, and this sseg-nase has version {DRAWING}"
            )


def in_results(data: Mapping[str, Any]) -> Data:
    """What results.json has of `data`: by dataset and split, without the names of the classes."""

    def brief(one: Mapping[str, Any]) -> Data:
        kept = ("identity", "count", "source", "image_size", "sha256")
        return {key: one[key] for key in kept if key in one} | {"classes": len(one["classes"])}

    evaluated = {key: brief(data["images"][key]) for key in data["roles"].get("evaluate", ())}
    trained = [{"key": one["key"], **brief(one)} for one in trained_on(data)]
    drawing = {"drawing": data["drawing"]} if data.get("drawn") else {}
    # Embedded for the mean that is taken off features (evaluation.normalize=cl2n).
    centred = {key: data["images"][key]["count"] for key in data["roles"].get("centre", ())}
    # Of a closed set: whose labels its nearest neighbours, or a linear probe, are taken from.
    compared = {key: data["images"][key]["count"] for key in data["roles"].get("compare", ())}
    more = {**drawing, **({"centred": centred} if centred else {})}
    more |= {"compared": compared} if compared else {}
    return {"evaluated": evaluated, "trained": trained, **more}


def _difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The first thing that differs, in the order in which a person would look for it."""
    before, now = old.get("classes") or [], new["classes"]
    gone, added = ([n for n in a if n not in set(b)] for a, b in ((before, now), (now, before)))
    parts = []
    if gone:
        parts.append(f"classes gone: {', '.join(map(str, gone[:MOST_NAMED]))}")
    if added:
        parts.append(f"new classes: {', '.join(map(str, added[:MOST_NAMED]))}")
    if old.get("count") != new["count"]:
        parts.append(f"{old.get('count')} images then, {new['count']} now")
    if not parts and before != now:
        parts.append("the classes have other names or another order")
    old_sums = old.get("sha256") or {}
    if not parts and old.get("image_size") != new.get("image_size"):
        parts.append(f"{old.get('image_size')} px then, {new.get('image_size')} px now")
    if not parts and old_sums.get("images") != new["sha256"]["images"]:
        parts.append(f"the same classes, but other pixels in its {new['count']} images")
    if not parts:
        parts.append("the same pixels, but other labels")
    if old.get("source") != new.get("source"):
        parts.append(f"read from {old.get('source')} then, from {new.get('source')} now")
    return "; ".join(parts)


def _is(store: ImageStore) -> ImageStore:
    return store


def _comparable_names(*stores: Mapping[str, Any]) -> bool:
    """Numbers from 0 on stand for classes without names."""
    names = [one["classes"] for one in stores]
    return not all(set(each) == {str(n) for n in range(len(each))} for each in names)


def _file(config: Config, key: str) -> Data | None:
    value = place_of(config, key)
    if value is None or (key == "finetune.start" and not config.finetune.trains):
        return None
    path = TEACHERS.get(key, checkpoint.file_of)(Path(value))
    return {"path": str(path), "sha256": _sha256(path)} if path.is_file() else None


def _data_of_start(config: Config) -> Mapping[str, Any]:
    """What the checkpoint was made with that this run begins with; nothing where there is none."""
    start = config.checkpoint if config.task == "evaluate" else config.finetune.start
    if start is None or (config.task == "pipeline" and not config.finetune.trains):
        return {}
    return checkpoint.load(checkpoint.file_of(Path(start).expanduser())).get("data") or {}


def _seen_by_teachers(config: Config) -> Iterator[Data]:
    """The images of the teachers that a run is distilled from: they were trained on, too."""
    for key, file_of in TEACHERS.items():
        value = place_of(config, key)
        if value is not None and config.task == "pipeline":
            yield from trained_on(checkpoint.load(file_of(Path(value))).get("data") or {})


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            found.update(block)
    return found.hexdigest()
