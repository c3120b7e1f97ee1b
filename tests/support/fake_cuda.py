"""CUDA without a GPU: tensors that say they lie on `cuda:0` over real numbers on the CPU.

    with fake_cuda() as fake:
        trainer.fit()
    assert not fake.waits

Inside, the program finds a CUDA device, takes its CUDA paths and computes what a CPU computes.

What it sees: operations on tensors of both devices, a CPU tensor indexed by a CUDA one, NumPy asked
for a CUDA tensor, a random generator of the wrong device, values of one device put into a tensor of
the other: each raises `MixedDevicesError`, or the error that CUDA gives. It counts by place what
makes the host wait for the device (`Fake.waits`): numbers that are read, sizes that depend on
values, copies that are not of page-locked memory or not asked to be asynchronous.

What it cannot see: kernels of CUDA (their results, their launches, their speed), the order of
streams, how much memory is taken, float16 as a GPU computes it, graphs and compiled code, threads
(a mode of torch belongs to the thread that entered it), more than one device. Fused and foreach
optimizers run as on a CPU. `Module.to` makes new parameters here, where torch keeps the objects.
"""

from __future__ import annotations

import sys
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.optim import Optimizer, optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
GIBIBYTE = 2**30
NAME = "none (fake CUDA on a CPU)"
PACKAGE = f"{Path('sseg_nase')}/"


class MixedDevicesError(RuntimeError):
    """What CUDA refuses, because tensors lie on two devices."""


@dataclass
class Fake:
    """What was seen.

    `waits`: how often the host waited for the device, by kind and place (`read
    training/loop.py:_report`). `copies`: all copies between the devices, awaited or not, alike.
    `memory_fraction`: the cap that the allocator was given.
    """

    waits: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    memory_fraction: float | None = None
    free: int = 8 * GIBIBYTE
    total: int = 12 * GIBIBYTE

    def __post_init__(self) -> None:
        # Held, so that no other tensor gets the address of what was page-locked.
        self._locked: dict[int, torch.UntypedStorage] = {}

    def wait(self, kind: str) -> None:
        """Count one."""
        self.waits[f"{kind} {place()}"] += 1

    def lock(self, tensor: Tensor) -> Tensor:
        """Let the memory of `tensor` be page-locked."""
        storage = tensor.untyped_storage()
        if storage.nbytes():
            self._locked[storage.data_ptr()] = storage
        return tensor

    def locked(self, tensor: Tensor) -> bool:
        """Whether a copy from or to this CPU tensor needs no wait."""
        storage = tensor.untyped_storage()
        return storage.nbytes() == 0 or storage.data_ptr() in self._locked


def place() -> str:
    """The innermost place in the package that is at work, else in whatever calls torch."""
    frame = sys._getframe(1)
    outside = ""
    while frame is not None:
        name = frame.f_code.co_filename
        if PACKAGE in name and "site-packages" not in name:
            return f"{name.rpartition(PACKAGE)[2]}:{frame.f_code.co_name}"
        if not outside and name != __file__ and "/torch/" not in name and "<" not in name:
            outside = f"{Path(name).name}:{frame.f_code.co_name}"
        frame = frame.f_back
    return outside


# -- tensors ---------------------------------------------------------------------------------------


class OnCuda(Tensor):
    """Says that it lies on CUDA. To torch's C++ it is a CPU tensor, so that autograd works."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnCuda:
        wrapper = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            inner.stride(),
            inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device="cpu",
            requires_grad=False,
        )
        wrapper.inner = inner
        return wrapper

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, kinds: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return _state().dispatch(func, args, kwargs or {})

    def record_stream(self, stream: Any) -> None:
        """Streams have no order here."""

    def __repr__(self, *_: Any, **__: Any) -> str:
        return f"OnCuda({self.inner!r})"

    def untyped_storage(self) -> torch.UntypedStorage:
        """Its size and address; nothing is to read it."""
        return self.inner.untyped_storage()

    def __deepcopy__(self, memo: dict[int, Any]) -> OnCuda:
        if id(self) in memo:
            return memo[id(self)]
        if not self.is_leaf:
            raise RuntimeError("Only Tensors created explicitly by the user can be deep-copied")
        copied: Any = OnCuda(self.inner.detach().clone())
        if isinstance(self, nn.Parameter):
            copied = nn.Parameter(copied, self.requires_grad)
        else:
            copied.requires_grad_(self.requires_grad)
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        return saved_on_cuda, (self.inner.detach(),)


_loading_to_cuda = False


def saved_on_cuda(inner: Tensor) -> Tensor:
    """What `torch.load` makes of a tensor that lay on CUDA: where it is told to put it."""
    return OnCuda(inner) if _loading_to_cuda else inner


torch.serialization.add_safe_globals([saved_on_cuda])


def is_cuda(device: Any) -> bool:
    """Whether a device, as torch takes one, is a CUDA device."""
    if device is None:
        return False
    return isinstance(device, int) or torch.device(device).type == "cuda"


# -- operations ------------------------------------------------------------------------------------

INDEXED = (aten.index.Tensor, aten._unsafe_index.Tensor)
INDEX_PUT = (
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index_put.default,
)
READS = (aten._local_scalar_dense.default, aten.equal.default, aten._linalg_check_errors.default)
SIZED = (
    aten.nonzero.default,
    aten._unique2.default,
    aten._unique.default,
    aten.unique_dim.default,
    aten.unique_consecutive.default,
    aten.masked_select.default,
    aten.bincount.default,
)


@lru_cache(maxsize=4096)
def _written(func: Any) -> tuple[tuple[int, str], ...]:
    """Position and name of the arguments that an operation writes to."""
    arguments = func._schema.arguments
    return tuple(
        (i, a.name) for i, a in enumerate(arguments) if a.alias_info and a.alias_info.is_write
    )


@lru_cache(maxsize=4096)
def _strict(func: Any) -> bool:
    """Whether an operation refuses even a single number of the CPU among CUDA tensors."""
    name = func._schema.name.removeprefix("aten::")
    return name in ("cat", "stack") or name.startswith("_fused_")


class _State:
    """The devices of what torch's operations are given, and of what they give."""

    def __init__(self, fake: Fake) -> None:
        self.fake = fake
        # Inside of an operation on CUDA tensors C++ makes more of them, "on the CPU".
        self.inside = [False]
        self.leaving = 0  # an explicit way to the CPU

    @contextmanager
    def within(self, inside: bool) -> Iterator[None]:
        self.inside.append(inside)
        try:
            yield
        finally:
            self.inside.pop()

    def dispatch(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        tensors = list(_tensors((*args, *kwargs.values())))
        ours = [t for t in tensors if isinstance(t, OnCuda)]
        plain = [t for t in tensors if not isinstance(t, OnCuda)]
        device, kwargs = kwargs.get("device"), dict(kwargs)
        on = bool(ours)
        if func is aten._to_copy.default:
            on = self._copied(args[0], kwargs)
        elif is_cuda(device) or (device is not None and not tensors and self.inside[-1]):
            kwargs["device"], on = CPU, True
        elif func is aten.copy_.default:
            on = self._copied_into(*args, **kwargs)
        elif func in INDEXED or func in INDEX_PUT:
            on = self._indexed(func, *args, **kwargs)
        elif ours:
            if any(t.dim() for t in plain) or (plain and _strict(func)):
                raise MixedDevicesError(f"{func} of CUDA and CPU tensors in {place()}")
            if plain:
                self._check_written(func, args, kwargs)
            self._count(func, args, kwargs)
        if on:
            _check_generator(func, args, kwargs)
        back = {id(t.inner): t for t in ours}

        def wrapped(value: Any) -> Any:
            if not isinstance(value, Tensor) or isinstance(value, OnCuda):
                return value
            return back[id(value)] if id(value) in back else OnCuda(value) if on else value

        bare = {name: _mapped(_bare, value) for name, value in kwargs.items()}
        found = func(*_mapped(_bare, args), **bare)
        return _mapped(wrapped, found)

    def _copied(self, source: Tensor, kwargs: dict[str, Any]) -> bool:
        """Whether `_to_copy` gives a CUDA tensor; `kwargs` become those of the numbers."""
        device, asynchronous = kwargs.pop("device", None), kwargs.get("non_blocking", False)
        kwargs.pop("pin_memory", None)
        before = isinstance(source, OnCuda)
        after = before
        if device is not None and (is_cuda(device) or not before or self.leaving):
            after = is_cuda(device)
        if before != after:
            self._count_copy(source, None, asynchronous)
        return after

    def _copied_into(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> bool:
        if isinstance(target, OnCuda) != isinstance(source, OnCuda):
            self._count_copy(source, target, non_blocking)
        return isinstance(target, OnCuda)

    def _count_copy(self, source: Tensor, target: Tensor | None, asynchronous: bool) -> None:
        if isinstance(source, OnCuda):
            free = asynchronous and target is not None and self.fake.locked(target)
            kind = "read"
        else:
            free, kind = asynchronous and self.fake.locked(source), "send"
        self.fake.copies[f"{kind} {place()}"] += 1
        if not free:
            self.fake.wait(kind)

    def _indexed(
        self, func: Any, indexed: Tensor, indices: Any, values: Any = None, *_: Any, **__: Any
    ) -> bool:
        """CPU indices into CUDA tensors are sent there, the reverse is an error."""
        on, given = isinstance(indexed, OnCuda), [i for i in indices if isinstance(i, Tensor)]
        ours = [i for i in given if isinstance(i, OnCuda)]
        if not on and ours:
            raise MixedDevicesError(f"{func} of a CPU tensor by a CUDA one in {place()}")
        if isinstance(values, Tensor) and isinstance(values, OnCuda) != on and values.dim():
            raise MixedDevicesError(f"{func} of values of another device in {place()}")
        if on and len(ours) < len(given):
            self.fake.wait("send")
        filled = func in INDEX_PUT and isinstance(values, Tensor) and values.numel() == 1
        if any(i.dtype in (torch.bool, torch.uint8) for i in ours) and not filled:
            self.fake.wait("size")
        return on

    def _check_written(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        for position, name in _written(func):
            target = args[position] if position < len(args) else kwargs.get(name)
            if not all(isinstance(t, OnCuda) for t in _tensors((target,))):
                raise MixedDevicesError(f"{func} writes to the CPU from CUDA in {place()}")

    def _count(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if func in READS:
            self.fake.wait("read")
        repeated = func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None
        if func in SIZED or repeated:
            self.fake.wait("size")


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Those among values and lists of values; torch's own tree functions take far longer."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """`value` with `function` of its tensors, in lists of lists too."""
    if isinstance(value, Tensor):
        return function(value)
    if type(value) in (list, tuple):
        return type(value)([_mapped(function, each) for each in value])
    return value


def _bare(value: Any) -> Any:
    return value.inner if isinstance(value, OnCuda) else value


def _check_generator(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Generator) and value.device.type != "cuda":
            raise MixedDevicesError(
                f"Expected a 'cuda' device type for generator but found 'cpu' ({func} in {place()})"
            )


class _Dispatch(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # which would load the compiler

    def __init__(self, state: _State) -> None:
        super().__init__()
        self.state = state

    def __torch_dispatch__(
        self, func: Any, kinds: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        return self.state.dispatch(func, args, kwargs or {})


# -- functions -------------------------------------------------------------------------------------

MADE_OF_VALUES = (torch.tensor, torch.as_tensor, torch.asarray, torch.scalar_tensor)
TO_NUMPY = (Tensor.numpy, Tensor.__array__, Tensor.__dlpack__)


class _Functions(TorchFunctionMode):
    """What C++ would decide by the device that it sees, and so must be decided before it."""

    def __init__(self, state: _State) -> None:
        super().__init__()
        self.state = state

    def __torch_function__(
        self, func: Any, kinds: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        special = SPECIAL.get(func)
        if special is not None:
            found = special(self, *args, **kwargs)
            if found is not NotImplemented:
                return found
        locked = kwargs.pop("pin_memory", False)
        ours = any(isinstance(t, OnCuda) for t in _tensors((*args, *kwargs.values())))
        if is_cuda(kwargs.get("device")) and func is not torch._C._nn._parse_to:
            _check_generator(func, args, kwargs)
            if func in MADE_OF_VALUES:
                self.state.fake.wait("send")
            with self.state.within(True):
                made = func(*args, **{**kwargs, "device": CPU})
            return _mapped(_on_cuda, made)
        with self.state.within(ours):
            found = func(*args, **kwargs)
        return self.state.fake.lock(found) if locked else found

    def to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`Tensor.to`, in all its forms."""
        device, dtype = kwargs.get("device"), kwargs.get("dtype")
        flags = []
        for value in args:
            if isinstance(value, Tensor):
                device, dtype = value.device, value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif isinstance(value, bool):
                flags.append(value)
            elif value is not None:
                device = value
        non_blocking, copy = (
            kwargs.get(name, flags[i] if i < len(flags) else False)
            for i, name in enumerate(("non_blocking", "copy"))
        )
        layout = kwargs.get("memory_format")
        stays = device is None or is_cuda(device) == isinstance(tensor, OnCuda)
        same = dtype in (None, tensor.dtype) and not copy
        laid = layout in (None, torch.preserve_format) or tensor.is_contiguous(memory_format=layout)
        if stays and same and laid:
            return tensor
        given = {"dtype": dtype, "memory_format": layout}
        if device is not None:
            given |= {"device": torch.device(device), "non_blocking": non_blocking}
        self.state.leaving += 1
        try:
            return aten._to_copy(tensor, **{k: v for k, v in given.items() if v is not None})
        finally:
            self.state.leaving -= 1

    def cpu(self, tensor: Tensor, **kwargs: Any) -> Tensor:
        """`Tensor.cpu`."""
        return self.to(tensor, CPU, **kwargs)

    def cuda(self, tensor: Tensor, device: Any = None, non_blocking: bool = False) -> Tensor:
        """`Tensor.cuda`."""
        return self.to(tensor, CUDA, non_blocking=non_blocking)

    def tolist(self, tensor: Tensor) -> Any:
        """`Tensor.tolist`: one wait, however many numbers."""
        if not isinstance(tensor, OnCuda):
            return NotImplemented
        self.state.fake.wait("read")
        return tensor.inner.tolist()

    def no_numpy(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        """NumPy's way to a tensor's memory."""
        if isinstance(tensor, OnCuda):
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the "
                f"tensor to host memory first. (in {place()})"
            )
        return NotImplemented

    def new_tensor(self, tensor: Tensor, values: Any, **kwargs: Any) -> Any:
        """`Tensor.new_tensor`: values of the host, which are sent."""
        if not isinstance(tensor, OnCuda):
            return NotImplemented
        self.state.fake.wait("send")
        return OnCuda(torch.tensor(values, dtype=kwargs.get("dtype", tensor.dtype)))

    def pin_memory(self, tensor: Tensor, *_: Any) -> Tensor:
        """`Tensor.pin_memory`."""
        if isinstance(tensor, OnCuda):
            raise MixedDevicesError(
                f"cannot pin a CUDA tensor: only dense CPU tensors in {place()}"
            )
        return self.state.fake.lock(tensor.clone())

    def is_pinned(self, tensor: Tensor, *_: Any) -> bool:
        """`Tensor.is_pinned`."""
        return not isinstance(tensor, OnCuda) and self.state.fake.locked(tensor)

    def get_device(self, tensor: Tensor) -> int:
        """`Tensor.get_device`."""
        return 0 if isinstance(tensor, OnCuda) else -1

    def backward(
        self,
        tensor: Tensor,
        gradient: Any = None,
        retain_graph: bool | None = None,
        create_graph: bool = False,
        inputs: Any = None,
    ) -> Any:
        """`Tensor.backward`, with this mode for what Python computes in it."""
        with self, self.state.within(isinstance(tensor, OnCuda)):
            torch.autograd.backward(tensor, gradient, retain_graph, create_graph, inputs=inputs)


def _on_cuda(value: Any) -> Any:
    return OnCuda(value) if isinstance(value, Tensor) and not isinstance(value, OnCuda) else value


SPECIAL: Mapping[Any, Callable[..., Any]] = {
    Tensor.to: _Functions.to,
    Tensor.cpu: _Functions.cpu,
    Tensor.cuda: _Functions.cuda,
    Tensor.tolist: _Functions.tolist,
    Tensor.new_tensor: _Functions.new_tensor,
    Tensor.pin_memory: _Functions.pin_memory,
    Tensor.is_pinned: _Functions.is_pinned,
    Tensor.get_device: _Functions.get_device,
    Tensor.backward: _Functions.backward,
    **dict.fromkeys(TO_NUMPY, _Functions.no_numpy),
}


# -- torch.cuda and its neighbours -----------------------------------------------------------------


class _Event:
    def __init__(self, *_: Any, **__: Any) -> None:
        self.fake = _state().fake

    def record(self, *_: Any) -> None:
        """Streams have no order here."""

    def wait(self, *_: Any) -> None:
        """Of one stream for another: the host goes on."""

    def query(self) -> bool:
        """All is done at once here."""
        return True

    def synchronize(self) -> None:
        """The host waits."""
        self.fake.wait("synchronize")

    def elapsed_time(self, other: _Event) -> float:
        """In ms."""
        return 1.0


class _Stream:
    def __init__(self, device: Any = CUDA, **_: Any) -> None:
        self.device = CUDA if device is None else torch.device(device)

    def wait_stream(self, stream: _Stream) -> None:
        """Of one stream for another: the host goes on."""

    def wait_event(self, event: _Event) -> None:
        """Of a stream for an event: the host goes on."""

    def record_event(self, event: _Event | None = None) -> _Event:
        """What has been asked for so far."""
        return event or _Event()

    def synchronize(self) -> None:
        """The host waits."""
        _state().fake.wait("synchronize")


def _cuda_functions(fake: Fake) -> dict[str, Any]:
    stream = _Stream()
    card = types.SimpleNamespace(
        name=NAME, total_memory=fake.total, major=8, minor=6, multi_processor_count=28
    )

    def set_fraction(fraction: float, device: int | None = None) -> None:
        assert device is None or isinstance(device, int)  # torch wants no device without an index
        fake.memory_fraction = fraction

    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_name": lambda device=None: NAME,
        "get_device_capability": lambda device=None: (8, 6),
        "get_device_properties": lambda device=None: card,
        "is_bf16_supported": lambda *_, **__: True,
        "is_current_stream_capturing": lambda: False,
        "mem_get_info": lambda device=None: (fake.free, fake.total),
        "memory_allocated": lambda device=None: 0,
        "memory_reserved": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0,
        "max_memory_reserved": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "empty_cache": lambda: None,
        "set_per_process_memory_fraction": set_fraction,
        "synchronize": lambda device=None: fake.wait("synchronize"),
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda device="cuda": torch.get_rng_state(),
        "set_rng_state": lambda state, device="cuda": None,
        "Stream": _Stream,
        "Event": _Event,
        "stream": lambda stream: nullcontext(),
        "current_stream": lambda device=None: stream,
        "default_stream": lambda device=None: stream,
    }


class _Autocast(torch.autocast):
    """Of CUDA: that of the CPU, which decides for what C++ sees."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu" if device_type == "cuda" else device_type, *args, **kwargs)


def _of_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(device_type, ...)`, asked about the CPU when it is asked about CUDA."""

    def asked(device_type: str = "cpu", *args: Any) -> Any:
        return function("cpu" if device_type == "cuda" else device_type, *args)

    return asked


def _apply(
    self: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True
) -> nn.Module:
    """`nn.Module._apply`: torch would put the new numbers into the old objects in C++."""
    done: dict[nn.Parameter, nn.Parameter] = {}
    for module in self.modules() if recurse else [self]:
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if parameter not in done:
                with torch.no_grad():
                    moved = function(parameter)
                same = moved is parameter
                new = parameter if same else nn.Parameter(moved, parameter.requires_grad)
                if parameter.grad is not None and not same:
                    with torch.no_grad():
                        new.grad = function(parameter.grad)
                done[parameter] = new
            module._parameters[name] = done[parameter]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = function(buffer)
    return self


def _grouped(group: Callable[..., Any]) -> Callable[..., Any]:
    """How optimizers sort tensors by device, which C++ would call the CPU."""

    def grouped(tensors: Any, with_indices: bool = False) -> Any:
        found = group(tensors, with_indices)
        return {
            (CUDA if isinstance(lists[0][0], OnCuda) else device, dtype): (lists, indices)
            for (device, dtype), (lists, indices) in found.items()
        }

    return grouped


def _load(load: Callable[..., Any]) -> Callable[..., Any]:
    def loaded(file: Any, map_location: Any = None, **kwargs: Any) -> Any:
        global _loading_to_cuda
        _loading_to_cuda = map_location is None or is_cuda(map_location)
        try:
            return load(file, map_location=CPU, **kwargs)
        finally:
            _loading_to_cuda = False

    return loaded


def _fabric(kind: Any) -> Any:
    """Fabric for a single CUDA device: one for the CPU that says it is on CUDA."""

    from lightning_fabric.plugins import MixedPrecision

    class FakeFabric(kind):
        def __init__(self, *, accelerator: str, precision: Any, plugins: Any, **more: Any) -> None:
            fake = accelerator == "cuda"
            if fake and precision == "16-mixed":  # Fabric takes another one on a CPU
                plugins, precision = [plugins, MixedPrecision(precision, "cuda")], None
            where = "cpu" if fake else accelerator
            super().__init__(accelerator=where, precision=precision, plugins=plugins, **more)
            if fake:
                self._accelerator.setup_device = lambda device: None
                self._strategy._root_device = CUDA

    return FakeFabric


GROUP = "_group_tensors_by_device_and_dtype"
_STATES: list[_State] = []


def _state() -> _State:
    return _STATES[-1]


@contextmanager
def fake_cuda(**memory: int) -> Iterator[Fake]:
    """Inside, this thread finds a CUDA device; everything is as before at the end.

    `memory`: `free` and `total` bytes of the device, 8 and 12 GiB unless they are given.
    """
    from sseg_nase.data.views import gpu
    from sseg_nase.training import fabric

    fake = Fake(**memory)
    state = _State(fake)
    with ExitStack() as stack:
        for name, function in _cuda_functions(fake).items():
            stack.enter_context(patch.object(torch.cuda, name, function))
        for module, name, new in (
            (torch, "autocast", _Autocast),
            (torch.amp, "autocast", _Autocast),
            (torch.amp.autocast_mode, "autocast", _Autocast),
            (torch, "is_autocast_enabled", _of_cpu(torch.is_autocast_enabled)),
            (torch, "get_autocast_dtype", _of_cpu(torch.get_autocast_dtype)),
            (torch, "inference_mode", _no_grad),  # its tensors would be no part of what follows
            (torch, "load", _load(torch.load)),
            (nn.Module, "_apply", _apply),
            (optimizer, GROUP, _grouped(getattr(optimizer, GROUP))),
            (fabric, "Fabric", _fabric(fabric.Fabric)),
            (gpu, "kernels_work", lambda device, size: False),  # there is no device to run them
        ):
            stack.enter_context(patch.object(module, name, new))
        health = "_accelerator_graph_capture_health_check"  # asks C++, in newer torch
        if hasattr(Optimizer, health):
            stack.enter_context(patch.object(Optimizer, health, lambda self: None))
        _STATES.append(state)
        stack.callback(_STATES.pop)
        stack.enter_context(_Functions(state))
        stack.enter_context(_Dispatch(state))
        yield fake


def _no_grad(mode: bool = True) -> Any:
    return torch.no_grad() if mode else nullcontext()
