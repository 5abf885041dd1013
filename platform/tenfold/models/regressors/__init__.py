"""Networks that give a mean and a log-variance."""
