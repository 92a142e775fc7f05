"""How often, and how similarly, a benchmark's items stand in the training text.

words.py    text to the numbers of the items' own words    ngrams.py   the items' n-grams, and their counts in documents
counting.py sources, streamed once in parallel             table.py    exposure.arrow, written and read
similarity.py and the kinds that it knows: bm25.py, embedding.py, dsir.py
"""
