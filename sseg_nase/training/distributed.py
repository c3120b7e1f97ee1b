"""More than one device: the processes, and what makes their steps equal to one process's step.

The process of the command line is rank 0; `workers` starts the others, and all of them form one
process group. Every rank takes an equal share of the batch. With `gather_rows` for losses over the
whole batch, `synchronizing` for BN, and DDP's average of the gradients over the ranks, a step
equals the step of one process on the whole batch.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from sseg_nase.errors import UserError
from sseg_nase.ssl.objectives import at_least_float32

if TYPE_CHECKING:
    from sseg_nase.training.fabric import Fabric

HOST = "127.0.0.1"
# Objects and flags on the CPU go through gloo, so that they never wait for a GPU.
BACKENDS: Mapping[str, str] = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
TIMEOUT = timedelta(minutes=30)  # of one exchange: ranks may wait while rank 0 decides alone
PATIENCE_S = 60.0  # between the ends of two ranks that have nothing more to do
GRACE_S = 5.0  # until a worker that has broken an exchange has said why
READY, DONE, END = "ready", "done", "end"

T = TypeVar("T")


class WorkerError(RuntimeError):
    """Another rank failed. The message holds its traceback."""


@dataclass(frozen=True)
class _Failure:
    """What a worker says before it dies. `at` is on the clock that all processes share."""

    rank: int
    error: str
    trace: str
    mistake: bool  # a UserError
    at: float

    def exception(self) -> Exception:
        if self.mistake:
            return UserError(self.error)
        return WorkerError(f"rank {self.rank} failed: {self.error}\n{self.trace}")


@dataclass(frozen=True)
class _Post:
    """What a new process has to know to become a rank."""

    rank: int
    devices: int
    accelerator: str
    port: int
    threads: int
    timeout: timedelta


@dataclass(frozen=True)
class _Worker:
    rank: int
    process: BaseProcess
    pipe: Connection

    def hear(self, seconds: float | None) -> str | _Failure | None:
        """Its next message, a failure when it is gone, None when `seconds` have passed."""
        connection.wait([self.pipe, self.process.sentinel], seconds)
        try:
            if self.pipe.poll():
                return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(GRACE_S)
        if self.process.is_alive():
            return None
        why = f"its process ended with exit code {self.process.exitcode}"
        if self.process.exitcode == -signal.SIGKILL:
            why += " (killed, often for want of memory)"
        return _Failure(self.rank, why, "", False, time.monotonic())


# -- processes -------------------------------------------------------------------------------------


@contextmanager
def workers(
    function: Callable[..., Any],
    *args: Any,
    devices: int,
    accelerator: str = "cpu",
    timeout: timedelta = TIMEOUT,
) -> Iterator[None]:
    """Be rank 0 of `devices` processes; the others call `function(rank, *args)`.

    `function` must be importable by its name and `args` picklable. Inside, the process group
    stands and a Fabric with DDP joins it (`build_fabric`). Torch's threads are divided among the
    processes. At the end this waits for the others; when the body raises they are killed. The
    environment, the threads and the group are then as they were before. One device: nothing
    happens.

    Workers leave signals to rank 0 (a terminal and Slurm send them to every process) and die with
    it.

    Raises `WorkerError` with the traceback of the worker that failed first, or `UserError` when it
    was the user's mistake; rank 0 learns of it in its next exchange with the others.
    """
    if devices == 1:
        yield
        return
    assert not dist.is_initialized(), "one group at a time"
    payload = pickle.dumps((function, args))
    threads = torch.get_num_threads()
    share = max(1, threads // devices)
    with _environment(0, devices, share):
        store = dist.TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
        others: list[_Worker] = []
        try:
            for rank in range(1, devices):
                post = _Post(rank, devices, accelerator, store.port, share, timeout)
                others.append(_start(post, payload))
            for worker in others:
                _expect(worker, READY, None)
            torch.set_num_threads(share)
            _join(0, devices, accelerator, store, timeout)
            yield
            for worker in others:
                _expect(worker, DONE, PATIENCE_S)
            for worker in others:
                worker.pipe.send(END)
        except BaseException as error:
            failures = _failures(others) if _peer_lost(error) else []
            for worker in others:
                worker.process.kill()
            if failures:
                raise min(failures, key=lambda failure: failure.at).exception() from error
            raise
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
            for worker in others:
                _end(worker)
            torch.set_num_threads(threads)


def build_fabric(accelerator: str, devices: int, precision: Any) -> Fabric:
    """A launched Fabric: with DDP in the group of `workers`, or for a single device.

    16-mixed is float16 with a gradient scaler on every device.
    """
    # Here, because it takes as long to load as torch.
    from sseg_nase.training.fabric import Fabric, LightningEnvironment, MixedPrecision

    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # the run says what it says
    plugins: list[Any] = [LightningEnvironment()]  # also under Slurm, whose tasks are not ours
    if precision == "16-mixed":
        # By itself Fabric takes bfloat16 for it on a CPU, and no gradient scaler.
        plugins.append(MixedPrecision(precision, accelerator))
        precision = None
    assert devices == 1 or dist.is_initialized(), "Fabric would start processes of its own"
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices,
        precision=precision,
        strategy="auto" if devices == 1 else "ddp",
        plugins=plugins,
    )
    fabric.launch()
    return fabric


def _start(post: _Post, payload: bytes) -> _Worker:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_serve, args=(post, payload, theirs), name=f"sseg-nase rank {post.rank}"
    )
    process.start()
    theirs.close()  # so that its end is seen here
    return _Worker(post.rank, process, ours)


def _serve(post: _Post, payload: bytes, pipe: Connection) -> None:
    """The life of a worker."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        function, args = pickle.loads(payload)
        torch.set_num_threads(post.threads)
        with _environment(post.rank, post.devices, post.threads):
            pipe.send(READY)
            store = dist.TCPStore(HOST, post.port, is_master=False)
            _join(post.rank, post.devices, post.accelerator, store, post.timeout)
            function(post.rank, *args)
            pipe.send(DONE)
            pipe.recv()  # whoever leaves the group first breaks it for those who still exchange
            dist.destroy_process_group()
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
        mistake = isinstance(error, UserError)
        failure = _Failure(
            post.rank,
            str(error) if mistake else said,
            traceback.format_exc(),
            mistake,
            time.monotonic(),
        )
        with suppress(OSError):  # rank 0 is gone, too
            pipe.send(failure)
        os._exit(1)  # closes the connections at once: the others wait in an exchange with us


def _die_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _join(rank: int, devices: int, accelerator: str, store: dist.Store, timeout: timedelta) -> None:
    if accelerator == "cuda":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        BACKENDS[accelerator], store=store, rank=rank, world_size=devices, timeout=timeout
    )


def _expect(worker: _Worker, message: str, seconds: float | None) -> None:
    heard = worker.hear(seconds)
    if isinstance(heard, _Failure):
        raise heard.exception()
    if heard is None:
        raise WorkerError(f"rank {worker.rank} was not {message} in time; rank 0 waits no longer")
    assert heard == message, heard


def _peer_lost(error: BaseException) -> bool:
    """Whether `error` may be the mere consequence of another rank's end."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "/gloo/" in str(error)
    )


def _failures(others: list[_Worker]) -> list[_Failure]:
    """What the workers that fail have to say."""
    until = time.monotonic() + GRACE_S
    heard = (worker.hear(max(0.0, until - time.monotonic())) for worker in others)
    return [message for message in heard if isinstance(message, _Failure)]


def _end(worker: _Worker) -> None:
    worker.process.join(GRACE_S)
    worker.process.kill()
    worker.process.join()
    worker.process.close()
    worker.pipe.close()


@contextmanager
def _environment(rank: int, devices: int, threads: int) -> Iterator[None]:
    """Tell Fabric that processes exist, libraries who they are; undone at the end."""
    values = {
        "LOCAL_RANK": str(rank),  # its presence tells Fabric not to start processes
        "RANK": str(rank),
        "WORLD_SIZE": str(devices),
        "NODE_RANK": "0",
        "OMP_NUM_THREADS": str(threads),  # read by the libraries of processes that start
        "GLOO_SOCKET_IFNAME": next(
            name for _, name in socket.if_nameindex() if name.startswith("lo")
        ),
    }
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


# -- values ----------------------------------------------------------------------------------------


def ranks() -> int:
    """How many processes work together: 1 without a group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def same_everywhere(value: T) -> T:
    """Return rank 0's `value` (anything picklable) on every rank. All ranks must call it."""
    if ranks() == 1:
        return value
    holder = [value]
    dist.broadcast_object_list(holder, src=0, device=torch.device("cpu"))
    return holder[0]


def any_rank(flag: bool) -> bool:
    """Return on every rank whether `flag` is true on any. All ranks must call it."""
    if ranks() == 1:
        return flag
    flags = torch.tensor(flag, dtype=torch.uint8)
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def average_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Replace tensors of one type by their mean over the ranks, in place: the same on all of them.

    All ranks must call it with tensors of the same shapes.
    """
    if ranks() == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    flat /= ranks()
    sizes = [tensor.numel() for tensor in tensors]
    for tensor, mean in zip(tensors, flat.split(sizes), strict=True):
        tensor.copy_(mean.view_as(tensor))


def gather_rows(x: Tensor) -> Tensor:
    """Every rank's `[B, ...]`, in rank order: `[ranks · B, ...]`, differentiable.

    B must be the same on all ranks. The backward pass sums the gradients of all ranks: when every
    rank computes the same loss from the gathered rows, DDP's average over the ranks is the gradient
    of that loss. Exchanges at least float32.
    """
    if ranks() == 1:
        return x
    rows = at_least_float32(x) if x.is_floating_point() else x
    gathered: Tensor = _GatherRows.apply(rows)
    return gathered.to(x.dtype)


class _GatherRows(torch.autograd.Function):
    # Torch's own differentiable collectives are deprecated, and warn.

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return _all_gather(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(ranks())[dist.get_rank()]


def _all_gather(x: Tensor) -> Tensor:
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(ranks())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


# -- batch normalisation ---------------------------------------------------------------------------

# Not a context variable: on CUDA, gradient checkpointing runs blocks again in another thread.
_synchronizing = False


@contextmanager
def synchronizing() -> Iterator[None]:
    """Context manager: BN layers that train normalise over the batches of all ranks.

    Must hold the backward pass, too, because gradient checkpointing runs blocks again there. All
    ranks must run the same layers in the same order.
    """
    global _synchronizing
    before, _synchronizing = _synchronizing, True
    try:
        yield
    finally:
        _synchronizing = before


def synchronize_batch_norm(module: nn.Module) -> None:
    """Let the BN layers of `module` follow `synchronizing`, in place.

    Same parameters, buffers and names; outside of `synchronizing` they are plain BN. Layers that
    are built later need another call.
    """
    for part in module.modules():
        if type(part) in SYNCHRONIZED:
            assert isinstance(part, _BatchNorm)
            assert part.affine, "without weights"
            assert part.track_running_stats, "without running statistics"
            part.__class__ = SYNCHRONIZED[type(part)]


class _SynchronizedBatchNorm(_BatchNorm):
    """BN over the batches of all ranks. Torch's own SyncBatchNorm refuses the CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """`[B, C, ...]` → `[B, C, ...]`; B must be the same on all ranks."""
        if not (_synchronizing and self.training and ranks() > 1):
            return super().forward(input)
        self._check_input_dim(input)
        y, mean, var = _NormalizeOverRanks.apply(input, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self._track(mean, var, ranks() * input.numel() // input.shape[1])
        return y

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: int) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        share = self.momentum
        if self.num_batches_tracked is not None:  # None while a block is run again
            self.num_batches_tracked.add_(1)
            if share is None:  # the mean over all batches
                share = 1.0 / self.num_batches_tracked.item()
        assert share is not None
        unbiased = var * (count / (count - 1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), share)


class SynchronizedBatchNorm1d(_SynchronizedBatchNorm, nn.BatchNorm1d):
    """`nn.BatchNorm1d` that follows `synchronizing`."""


class SynchronizedBatchNorm2d(_SynchronizedBatchNorm, nn.BatchNorm2d):
    """`nn.BatchNorm2d` that follows `synchronizing`."""


SYNCHRONIZED: Mapping[type[nn.Module], type[_SynchronizedBatchNorm]] = {
    nn.BatchNorm1d: SynchronizedBatchNorm1d,
    nn.BatchNorm2d: SynchronizedBatchNorm2d,
}


class _NormalizeOverRanks(torch.autograd.Function):
    """y = γ · (x − μ) / √(σ² + ε) + β with μ, σ² (biased) over all ranks; also gives μ and σ².

    The gradient of x is that of the sum of all ranks' losses, as DDP's average needs it; γ and β
    get this rank's, like any parameter under DDP. One exchange forward, one backward. Statistics
    are at least float32.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        var, mean = torch.var_mean(at_least_float32(x), _batch_axes(x), correction=0)
        means, variances = _all_gather(torch.stack((mean, var))[None]).unbind(1)
        mean = means.mean(0)
        var = variances.mean(0) + means.var(0, correction=0)  # equal batches: equal shares
        γ, β = at_least_float32(weight), at_least_float32(bias)
        y = F.batch_norm(x, mean, var, γ, β, training=False, eps=eps)
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(var + eps))
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: Tensor, *unused: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, scale = ctx.saved_tensors
        dy = at_least_float32(gradient)
        normal = (at_least_float32(x) - _per_channel(mean, x)) * _per_channel(scale, x)
        axes = _batch_axes(x)
        own = torch.stack((dy.sum(axes), (dy * normal).sum(axes)))
        total = own.clone()
        dist.all_reduce(total)
        total /= ranks() * x.numel() // x.shape[1]
        dy_mean, projection = (_per_channel(v, x) for v in total)
        dx = (dy - dy_mean - normal * projection) * _per_channel(scale * weight, x)
        return dx.to(x.dtype), own[1].to(weight.dtype), own[0].to(weight.dtype), None


def _batch_axes(x: Tensor) -> list[int]:
    return [0, *range(2, x.dim())]


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *[1] * (x.dim() - 2))
