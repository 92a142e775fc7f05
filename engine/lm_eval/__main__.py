"""lm-evaluation-harness's own command line, with the model `evalengine` registered."""

from evalengine.lm_eval.model import register
from lm_eval.__main__ import cli_evaluate

register()
cli_evaluate()
