"""From a score store, or a table of results, to tables with intervals, a report and figures. Data flows one way:

    data, importing      a store, or results that exist, read once into one array
    statistics           of plain arrays: resamples, intervals, correlations, tests
    estimates            labelled statistics in every column of weights, their differences, rows with intervals
    protocols            PROTOCOLS: transfer, stages, alignment, ...; each computes a table, shows it, and makes claims
    study                runs all protocols; together writes the tables of a run, and reads them back
    results              those tables; all below starts from them
    figure, claims       what is shown and said, as values
    explain              EXPLAINERS look at single choices and items in the same way
    report               all of it as one page, figures and LaTeX

`power` needs no data; `embedded_study` counts the findings of the demonstration; `coverage` and `contrast_coverage` simulate.
"""
