"""The questions asked of a study.

Each file of the registry ends in `PROTOCOL = Protocol(...)`: it computes a table, shows it, and says what may be claimed. The
others are parts of one: transfer_table, transfer_tests, verdicts and scatter of transfer; true_decisions and true_regret of
decisions.
"""
