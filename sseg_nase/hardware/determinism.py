"""CUDA that gives the same numbers run after run (`hardware.deterministic=true`)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from sseg_nase.config.schema import Config
from sseg_nase.errors import UserError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
FIXED = (":4096:8", ":16:8")  # workspaces with which cuBLAS repeats its results, says NVIDIA
KEY = "hardware.deterministic=true"


@contextmanager
def deterministic(asked: bool) -> Iterator[None]:
    """Context manager: torch takes the same algorithms at every run, where that is `asked` for.

    cuDNN chooses by rule and not by time, cuBLAS gets a workspace of fixed size, and torch refuses
    what it has no deterministic algorithm for: `explain_refused` says of the error what to change.
    To be entered before the first matrix product on CUDA in a process, since cuBLAS asks for its
    workspace once. Everything is as before at the end. Raises `UserError` where the environment
    asks cuBLAS for something else.
    """
    if not asked:
        yield
        return
    import torch  # here, so that reading a config does not cost it

    if (given := os.environ.get(WORKSPACE)) not in (None, *FIXED):
        raise UserError(
            f"{WORKSPACE}={given}: with {KEY} cuBLAS needs {' or '.join(FIXED)}. Unset the "
            "variable: the run then sets it."
        )
    with ExitStack() as before:
        if given is None:
            os.environ[WORKSPACE] = FIXED[0]
            before.callback(os.environ.pop, WORKSPACE, None)
        mode = torch.get_deterministic_debug_mode()
        before.callback(torch.set_deterministic_debug_mode, mode)
        torch.use_deterministic_algorithms(True)
        cudnn, utilities = torch.backends.cudnn, torch.utils.deterministic
        _set(before, cudnn, "deterministic", True)
        _set(before, cudnn, "benchmark", False)
        # What is not written is not read here, and to fill it takes a kernel for every tensor.
        _set(before, utilities, "fill_uninitialized_memory", False)
        yield


def _set(before: ExitStack, module: Any, name: str, value: bool) -> None:
    before.callback(setattr, module, name, getattr(module, name))
    setattr(module, name, value)


def explain_refused(error: BaseException, config: Config) -> str | None:
    """Return what to change where torch refused an operation; None for any other error."""
    if not config.hardware.deterministic or not isinstance(error, RuntimeError):
        return None
    refused = re.search(r"(\S+) does not have a deterministic implementation", str(error))
    if refused is None:
        return None
    of = f"backbone={config.backbone.name}, ssl={config.ssl.name}"
    if config.finetune.trains:
        methods = config.finetune.sequence or [config.finetune.name]
        of += f", finetune={' and '.join(methods)}"
    return (
        f"{KEY}: torch has no deterministic '{refused[1]}' on {config.hardware.accelerator}, which "
        f"this run needs ({of}). Use hardware.deterministic=false, with which results of one card "
        "differ in the last digits from run to run, or another of these, or hardware=cpu."
    )
