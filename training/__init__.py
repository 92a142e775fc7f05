"""The compact trainer: mixtures of text to Hugging Face checkpoints, pretrained and fine-tuned.

study.py     a study file, typed        prepare.py   tokenizer, token shards, conversations: made once
runner.py    which runs, and where      workers.py   worker processes; ray_workers.py the same on a cluster
stages.py    one run: train and export  loop.py      the optimiser loop, resumable at any step
rows.py      mixed, packed rows         model.py     the decoder
export.py    Hugging Face directories   plan.py      what a study will cost
"""
