"""What to run: items and a tokenizer -> packed batches, whatever runs them.

tokenizer loads one, and sees what it does to a text; chat asks through its template; encoding turns items into token sequences by
the reference's rule; plans keeps them for every checkpoint that shares a tokenizer; packing lays them out over a token trie.
"""
