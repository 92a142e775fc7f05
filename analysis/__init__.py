"""From a score store, or a table of results, to tables with intervals, a report and figures. Data flows one way:

    items, cells         the store read once; one checkpoint on one benchmark
    importing            the same from tables (wide_table, score_columns), lm-evaluation-harness (harness) and its samples
    panel                every value of a study in one array; mixtures and blocks say what is compared with what
    bootstrap            columns of weights: the sample, the jackknife, the resamples (of items: item_bootstrap)
    correlation          statistics in every column, by numba_kernels; permutations (transfer_tests of transfers)
    groups, contrasts    labelled statistics in every column, and differences of them on the same resamples
    PROTOCOLS            transfer, shares, stages, seeds, matrices, coherence, alignment, calibration, effects, noise, decisions
                         (true_decisions, true_regret), across_blocks: each computes a table, shows it, and makes claims
    tables               rows with intervals and tests
    study                runs all protocols; together writes the tables of a run, and reads them back
    results              those tables; all below starts from them
    figure               what is shown, as values: made a page by page, drawings by drawing, LaTeX by latex
    report               all of it: summary, levels, every protocol's section, what `explain` found

`explain` looks at single choices and items in the same way: its EXPLAINERS are to it what PROTOCOLS are here. `power` needs no
data; `embedded_study` counts the findings of the demonstration.
"""
