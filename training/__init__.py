"""The compact trainer: mixtures of text to Hugging Face checkpoints, pretrained and fine-tuned.

study.py     a study file, typed        prepare.py   tokenizer, token shards, conversations: made once
runner.py    which runs, and where      workers.py   worker processes; ray_workers.py the same on a cluster
job.py       one run, and its hash      stages.py    a run: pretrained, fine-tuned or preferring, exported
plan.py      what a study will cost     arms.py      the same conversations, changed

data/        what is trained on         decoder/     the model, and Hugging Face directories of it
fitting/     the optimiser's loop       selection/   conversations that a pretrained model chooses
exposure/    how often and how similarly the benchmarks' items stand in the sources
"""
