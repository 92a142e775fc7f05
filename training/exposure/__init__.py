"""How often, and how similarly, a benchmark's items stand in the training text.

words.py    text to the numbers of the items' own words    grams.py    the items' n-grams
ngrams.py   their counts in documents                      counting.py sources, streamed once in parallel
expose.py   the counts as rows                             table.py    exposure.arrow, written and read
similarity.py and the kinds that it knows: bm25.py, embedding.py, dsir.py
"""
