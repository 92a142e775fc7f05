"""What is trained on.

Documents (sources) are tokenised once (tokenizer, shards) and mixed (rows); conversations and preferences are packed into rows
(packed). contamination says how much of the benchmarks they hold.
"""
