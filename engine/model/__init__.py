"""Running a model in PyTorch: weights and a plan -> log-likelihoods.

torch_backend scores a checkpoint in the best proven way; lockstep several over the same batches. forward has the ways: packed,
padded, alone. proof finds which of them are exact for a configuration, tried on its small twin. tree_attention, last_layer and
compiled make the packed way fast; gathered_attention, attention_operator and device_batch are their parts.
"""
