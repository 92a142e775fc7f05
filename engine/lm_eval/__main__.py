"""lm-evaluation-harness's own command line, with the model `evalengine` registered."""

from lm_eval.__main__ import cli_evaluate

from evalengine.lm_eval.model import register

register()
cli_evaluate()
