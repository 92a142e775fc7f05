"""`--backend vllm`: scoring inside vLLM, out of tree, with nothing of vLLM patched.

    plugin.py     registers a scoring variant of a causal model (vLLM's plug-in entry point), only when asked
    pooler.py     the variant's pooler: one fused call of `target_logprobs` for all requests of an engine step
    scheduler.py  a scheduler that never lets a prefix-cache hit swallow a row that must be scored
    worker.py     swaps weights inside the workers, packed copies included
    requests.py   sequences -> as few requests as possible, ordered so that shared prefixes meet warm blocks
    engine.py     starts, asks and ends engines, and turns their errors into sentences
    backend.py    `VllmBackend`: one warm engine for all checkpoints of an architecture

vLLM is imported by none of these but where an engine is started, so `import evalengine.vllm` is cheap.
"""

SUPPORTED = ((0, 20), (0, 34))  # versions from, to (exclusive), whose hooks are these
TASK = "classify"  # the pooling task whose requests read the prefix cache, in every model runner
SCORER = "fused scorer"  # what notes call the scoring variant
FIRST = "first"  # what a request calls its first scored row
