"""What is trained on: documents (sources), tokenised once (tokenizer, shards) and mixed (rows); conversations and preferences, packed
into rows (packed); how much of the benchmarks they hold (contamination)."""
