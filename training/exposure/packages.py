"""The packages of the extra `exposure`, loaded when they are used."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

from evalengine.errors import UserError

OF_KIND = {"bm25": "bm25s", "embedding": "wordllama"}


def load(kind: str) -> Any:
    """The package that similarity of this kind needs."""
    name = OF_KIND[kind]
    root, guard = logging.getLogger(), logging.NullHandler()
    root.addHandler(guard)  # wordllama would give the root logger a handler of its own
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"similarity {kind} needs the package {name}: pip install 'evalengine[exposure]'"
        ) from None
    finally:
        root.removeHandler(guard)


def wordllama_model() -> Any:
    """The model of 256 dimensions whose weights and tokenizer the wheel holds; nothing is downloaded.

    The wheel keeps the tokenizer in a folder where the package looks for a cached download, and not for its own files.
    """
    package = load("embedding")
    try:
        return package.WordLlama.load(cache_dir=Path(package.__file__).parent, disable_download=True)
    except FileNotFoundError as error:
        raise UserError(f"wordllama lacks its files ({error}): pip install 'evalengine[exposure]'") from None
