"""lm-evaluation-harness in both directions: `model` lets it run on this engine, `tasks` scores its tasks into the store.

evalengine lm-eval --model evalengine --model_args pretrained=DIR,backend=vllm --tasks arc_easy
"""
