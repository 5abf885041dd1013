"""From multi-label data with missing labels to a bundle, with positive map scores boosted."""

from tenfold.engine.run import Outcome, Run
from tenfold.engine.settings import JobConfig
from tenfold.methods.boostlu.predictor import boosted_classifier
from tenfold.models.partial_labels import explanations, training

evaluate = training.evaluate
compare = explanations.compare


def train(job: JobConfig, run: Run) -> Outcome:
    """Train a boosted classifier with the scheme of ``job.method``; ``partial_labels.training`` has the steps."""
    return training.train(job, run, boosted_classifier)
