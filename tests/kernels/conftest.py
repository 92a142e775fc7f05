"""Kernel tests run on the GPU where there is one, else in Triton's interpreter on the CPU (tests/conftest.py)."""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest
import torch

from evalengine.kernels.target_logprobs import vectorised

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def _mend_interpreter() -> None:
    """Two gaps in the interpreter of Triton 3.5: it takes int() of one-element arrays, which NumPy 2.4
    refuses, and it multiplies bfloat16 matrices as the integers that hold their bits."""
    import numpy as np
    import triton.language as tl
    import triton.runtime.interpreter as interpreter

    patch_tensor = interpreter._patch_lang_tensor

    def patch(tensor: Any, *scope: Any) -> None:
        patch_tensor(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.item())

    dot = interpreter.InterpreterBuilder.create_dot

    def widen(x: Any) -> Any:
        if x.dtype != tl.bfloat16:
            return x
        return interpreter.TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return dot(self, widen(a), widen(b), *rest)

    interpreter._patch_lang_tensor = patch
    interpreter.InterpreterBuilder.create_dot = create_dot


if INTERPRETED:
    _mend_interpreter()


@pytest.fixture(scope="session")
def device() -> str:
    """Where Triton kernels run: "cuda", or "cpu" in the interpreter."""
    if not INTERPRETED and not torch.cuda.is_available():
        pytest.skip("Triton kernels need a CUDA device or TRITON_INTERPRET=1")
    return "cpu" if INTERPRETED else "cuda"


@pytest.fixture(params=["vectors", "plain"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both CPU paths, where this CPU has the vector instructions of the first."""
    if request.param == "vectors" and (torch.cuda.is_available() or not vectorised(torch.float32)):
        pytest.skip("no AVX-512 here")
    if request.param == "plain":
        without_vectors(monkeypatch)
    return str(request.param)


def without_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the plain path. Both modules are imported before either is patched: the second one imports `vectorised` from the
    first, and would keep the patched one for the rest of the process."""
    names = ("target_logprobs", "emulated_logprobs")
    for module in [importlib.import_module(f"evalengine.kernels.{name}") for name in names]:
        monkeypatch.setattr(module, "vectorised", lambda dtype: False)
