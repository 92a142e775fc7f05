"""The compact trainer: mixtures of text to Hugging Face checkpoints, pretrained and fine-tuned.

study.py     a study file, typed        prepare.py   tokenizer, token shards, conversations: made once
runner.py    which runs, and where      workers.py   worker processes; ray_workers.py the same on a cluster
job.py       one run, and its hash      stages.py    a run: pretrained, fine-tuned or preferring, exported
loop.py      the optimiser loop, resumable at any step
rows.py      mixed rows of documents    packed.py    rows of conversations
model.py     the decoder                export.py    Hugging Face directories
plan.py      what a study will cost
"""
