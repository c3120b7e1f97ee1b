"""`hardware`: what the machine gives. Filled in by `sseg_nase.hardware.profiles`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Optional, Union

from sseg_nase.config.options import Checked, group, option, register


@register("hardware", "auto", "cpu", "rtx3050", "rtx3060")
@group("hardware")
@dataclass(frozen=True)
class HardwareConfig(Checked):
    """Profiles of machines. `None` and `auto` are filled in when the run starts."""

    name: str
    accelerator: Annotated[str, option(choices=("auto", "cpu", "cuda"))]
    devices: Annotated[int, option(least=1)]
    batch_size: Annotated[Optional[int], option(least=2)]
    gradient_accumulation_steps: Annotated[Optional[int], option(least=1)]
    accumulate: Annotated[str, option(choices=("auto", "plain", "exact"))]
    precision: Annotated[str, option(choices=("auto", "32-true", "16-mixed", "bf16-mixed"))]
    num_workers: Annotated[Optional[int], option(least=0)]
    max_memory_gb: Annotated[Optional[float], option(above=0)]
    gradient_checkpointing: bool
    channels_last: bool
    compile: Annotated[Union[bool, str], option(choices=(True, False, "auto"))]
    cuda_graphs: bool
    deterministic: bool
    threads: Annotated[Optional[int], option(least=1)]
