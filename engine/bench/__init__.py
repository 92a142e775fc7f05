"""`evalengine bench TARGET`: how fast, against what a user would take instead, as ratios measured in one run.

    harness.py      measurements in turns, medians, fresh processes, rows of a table, the result as a table or JSON
    inputs.py       random models, tokenizers and items to measure on
    synthetic.py    score stores of any size, written by the scoring loop with a backend that answers at once
    kernels.py      the kernels against PyTorch, Liger and cut-cross-entropy (kernel_contenders.py)
    engine.py       the scoring loop against lm-evaluation-harness
    vllm.py         the vLLM backend against vLLM's own scoring
    lm_eval.py      lm-evaluation-harness with this engine inside against its own model (local_tasks.py runs its tasks)
    commands.py     `evalengine score` as a process against lm-eval's, and where its seconds go (stopwatch.py)
    bootstrap.py    the bootstrap against scipy and NumPy
    training.py     the trainer against plain_loop.py
    ray.py          two workers against one process
    scale.py        cost against the number of checkpoints

A target is a module that makes inputs, lists its contenders as functions and hands them to the harness. Its `run(quick=False,
...)` returns a `harness.Result`; the parameters of `run` are the options that the target takes. To add one: write the module
and name it in TARGETS. Nothing heavy is imported here.
"""

TARGETS = ("kernels", "engine", "bootstrap", "training", "lm-eval", "vllm", "ray", "scale", "commands")
