"""Labelled statistics in every column of weights (groups), differences of them on the same resamples (contrasts), columns from
resampled items (item_bootstrap), tests by inverting intervals (inverting), and the rows of tables that come of them (tables)."""
