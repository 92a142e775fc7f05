"""A small study on a small embedded world, shared by the trainer's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from tiny_study import STUDY

from evalengine.benchmarks import world
from evalengine.training.data import tokenizer as tokenizers
from evalengine.training.data.sources import text_documents
from evalengine.training.data.tokenizer import Tokenizer


@pytest.fixture(autouse=True, scope="session")
def quick_workers(forked_workers: None) -> None:
    pass


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder: the embedded world with few words and items."""
    folder = tmp_path_factory.mktemp("world")
    world.write(folder, seed=1, items=4, train_items=6, words=6000, chats=60)
    return folder


@pytest.fixture(scope="session")
def tokenizer(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    texts = [*text_documents(data / "corpora/web_a.txt"), *text_documents(data / "corpora/code.txt")]
    return tokenizers.train(texts, 512, tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def write_study(tmp_path: Path):
    """Writes the small study with changes: keys are paths such as `scales.S.pretrain.lr`."""

    def write(**changes: object) -> Path:
        raw = yaml.safe_load(yaml.safe_dump(STUDY))
        for path, value in changes.items():
            *parents, last = path.replace("__", ".").split(".")
            place = raw
            for parent in parents:
                place = place[parent]
            place[last] = value
        file = tmp_path / "study.yaml"
        file.write_text(yaml.safe_dump(raw))
        return file

    return write
