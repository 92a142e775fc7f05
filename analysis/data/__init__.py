"""From a store or a table of results to one array: items, cells (a checkpoint on a benchmark), panel; mixtures say what the
study's mixtures are made of, blocks which of them are compared, orders how many permutations that leaves."""
