"""Decoder layers through torch.compile: one graph for all layers, all batches and all checkpoints of an architecture.

On a GPU the element-wise operations of transformers' layers take longer than their products; compiled, they run fused.
Weights are inputs of the graph, so a checkpoint that is loaded into the module in place is what runs next. A layer compiles
whole or not at all, and raises where it does not (a choice that depends on values, code that cannot be traced, a graph
for each layer): the caller then runs it as it is.

Cost: seconds for the first batch of an architecture; the next process finds the kernels in the cache folder.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from evalengine.errors import UserError
from evalengine.files import cache_root
from evalengine.model.last_layer import LastLayer, decoder_layers

CHOICES = ("auto", "on", "off")
SMALLEST = 100_000_000  # parameters of a model for which `auto` compiles: smaller ones are scored before their layers are


def wanted(choice: str, device: torch.device) -> bool:
    """Whether layers are compiled: `auto` does so on a GPU, from SMALLEST parameters on.

    Raises UserError where "on" is not possible here.
    """
    if choice not in CHOICES:
        raise UserError(f"compile must be {', '.join(CHOICES[:-1])} or {CHOICES[-1]}, not {choice}")
    disabled = next((name for name in DISABLING if os.environ.get(name) == "1"), None)
    if choice != "on":
        return choice == "auto" and device.type == "cuda" and disabled is None
    if disabled is not None:
        raise UserError(f"--compile on, but {disabled}=1 is set: unset it, or leave --compile out")
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise UserError(
            f"--compile on needs a C++ compiler, and there is no {compiler}: install it (or name another in CXX), or leave"
            " --compile out"
        )
    return True


DISABLING = ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE")  # PyTorch's own switches, of now and of before


def keep_kernels() -> None:
    """Compiled kernels outlive the process, in folders of ours unless the user has named others or ours cannot be written."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    for name, folder in (("TORCHINDUCTOR_CACHE_DIR", "inductor"), ("TRITON_CACHE_DIR", "triton")):
        # PyTorch names its own folder, which the system may empty, when its compiler is imported.
        if os.environ.get(name, default_cache_dir()) == default_cache_dir():
            with contextlib.suppress(OSError):
                (cache_root() / folder).mkdir(parents=True, exist_ok=True)
                if os.access(cache_root() / folder, os.W_OK):
                    os.environ[name] = str(cache_root() / folder)


def start_workers() -> None:
    """PyTorch's processes that compile for a GPU take seconds to start: they do so while weights are read."""
    with contextlib.suppress(ImportError):  # not where every version has it
        from torch._inductor.async_compile import maybe_warm_pool

        maybe_warm_pool()


def obstacle(model: Any) -> str | None:
    """Why a model's layers cannot be compiled, where that is plain without trying."""
    layers = decoder_layers(model)
    if layers is None:
        return "its decoder layers are not in one list"
    if any("forward" in vars(layer) for layer in layers):
        return "their forward has been replaced"
    return None


class CompiledLayers:
    """The decoder layers of a model: compiled while `running`, else as they are.

    `architecture` is what models share whose layers are compiled once; `last_layer` what narrows the last one, if anything does.
    """

    def __init__(self, model: Any, architecture: str, last_layer: LastLayer | None) -> None:
        self.modules: list[nn.Module] = []
        self._run = function_of(architecture)
        self._running = False
        layers = decoder_layers(model)
        assert layers is not None
        for layer in layers:
            self._wrap(layer, last_layer if layer is layers[-1] else None)

    def _wrap(self, module: nn.Module, narrowed: LastLayer | None) -> None:
        whole = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not self._running:
                return whole(*args, **kwargs)
            return self._run(module, narrowed, None if narrowed is None else narrowed.rows, args, kwargs)

        module.forward = forward  # type: ignore[method-assign]
        self.modules.append(module)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Compiled inside of it. Raises what the compiler raises, NotImplementedError where no graph serves all layers."""
        import torch._dynamo
        from torch.fx.experimental import _config as shapes

        with (
            # A number of a layer (an epsilon) is a constant; lengths are not, and two that are equal in the first batch, or a
            # length that equals a width there, need not be so in the next one.
            torch._dynamo.config.patch(specialize_float=True),
            shapes.patch(use_duck_shape=False),  # type: ignore[attr-defined]
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", module=r"torch\._(dynamo|inductor)")
            self._running = True
            try:
                yield
            except Exception as error:
                if type(error).__name__ == "FailOnRecompileLimitHit":
                    raise NotImplementedError("no code serves all layers or all batches") from None
                raise
            finally:
                self._running = False

    def release(self) -> None:
        """Every module as it was."""
        for module in self.modules:
            del module.forward
        self.modules.clear()


@functools.cache
def function_of(architecture: str) -> Callable[..., Any]:
    """`_forward`, compiled for one architecture.

    What has been compiled hangs on a function's code, at most eight graphs (PyTorch's recompile_limit): each architecture has a
    copy, so that they do not use up each other's.
    """
    own = FunctionType(_forward.__code__.replace(), globals())
    function: Callable[..., Any] = torch.compile(own, dynamic=True, fullgraph=True)
    return function


def _forward(
    module: nn.Module,
    narrowed: LastLayer | None,
    rows_R: Tensor | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    if narrowed is not None:
        narrowed.rows = rows_R  # an argument: what is only found in an attribute would be compiled in
    return type(module).forward(module, *args, **kwargs)
