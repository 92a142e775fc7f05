"""Statistics of plain arrays: resamples and intervals (bootstrap), correlations and tests (correlation, on numba_kernels), a
correlation without noise (latent), errors of calibration (calibration_error), what a statistic can be (ranges); threads."""
