"""`evalengine.cluster`: the scoring loop and the study grid on many machines, through Ray.

connect.py reaches or starts a cluster; pool.py keeps workers alive as resources come and go; schedule.py says who does what
next; scoring.py is the driver of `score --ray` and `emulate --ray`, scorer.py the actor that it runs. `import ray` happens in
functions only. The trainer uses connect.py and pool.py too: they know nothing of scoring.
"""
