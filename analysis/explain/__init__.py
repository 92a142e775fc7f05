"""Why rankings survive fine-tuning, or do not: what the scores of single choices and items say beyond correlations.

choices              the store choice by choice; design says which checkpoints belong together
corners, item_level, quantities, exposed, doses    what explainers compute from, kept for all that need it
student, logistic, within, ranking      means, slopes and ranks with their errors
EXPLAINERS           (registry) each computes a table, shows it, and makes claims; means is what their tables share
findings             runs all explainers, writes their tables and reads them back
"""
