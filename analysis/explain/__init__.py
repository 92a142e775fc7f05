"""Why rankings survive fine-tuning, or do not: what the scores of single choices and items say beyond correlations.

`choices` reads the store; `design` says which checkpoints belong together; each explainer is a file that makes one table
with its section of the report (`explainer.Explainer`), listed in `registry`; `explain` runs them all. Correlations and
verdicts are the package above.
"""
