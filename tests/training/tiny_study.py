"""The study that the trainer's tests run: two mixtures, one scale, four checkpoints, a few seconds."""

import sys

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
TORCHRUN += ["-m", "evalengine", "train"]
STUDY = {
    "name": "tiny",
    "seed": 3,
    "threads": 1,
    "tokenizer": {"vocab": 512, "sample_mb": 1},
    "sources": {"web": {"path": "corpora/web_a.txt"}, "code": {"path": "corpora/code.txt"}},
    "mixtures": {"m1": {"web": 0.75, "code": 0.25}, "m2": {"web": 0.25, "code": 0.75}},
    "scales": {
        "S": {
            "d_model": 32,
            "layers": 2,
            "heads": 1,
            "head_dim": 32,
            "ffn": 64,
            "context": 64,
            "pretrain": {"tokens": 5120, "lr": 0.01, "batch_rows": 4},
            "sft": {"epochs": 1, "lr": 0.003, "batch_examples": 8},
        }
    },
    "sft": {"data": [{"path": "sft.jsonl", "limit": 40}]},
}
