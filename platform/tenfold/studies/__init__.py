"""Hyperparameter studies: search spaces, trial records, reports; ``tenfold.studies.run`` runs them on Ray Tune."""
