"""The compact trainer: mixtures of text to Hugging Face checkpoints, pretrained and fine-tuned.

study.py     a study file, typed        prepare.py   tokenizer, token shards, conversations: made once
runner.py    which runs, in workers     stages.py    one run: pretrain or fine-tune, then export
rows.py      mixed, packed rows         loop.py      the optimiser loop, resumable at any step
model.py     the decoder                export.py    Hugging Face Llama directories
"""
