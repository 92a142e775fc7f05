"""Results that exist already: tables (wide_table, score_columns), lm-evaluation-harness's and lighteval's results (harness) and
samples, brought together in one file (imported). spellings names benchmarks, benchmark_info is what a user says of them."""
