"""Training recipe of BoostLU: that of Large Loss with a boosted head."""

from tenfold.engine.run import Outcome, Run
from tenfold.engine.settings import JobConfig
from tenfold.methods.boostlu.predictor import boosted_classifier
from tenfold.methods.large_loss import recipe as large_loss

evaluate = large_loss.evaluate
compare = large_loss.compare


def train(job: JobConfig, run: Run) -> Outcome:
    """Train a boosted classifier with the scheme of ``job.method``, by the recipe of Large Loss."""
    return large_loss.train(job, run, boosted_classifier)
