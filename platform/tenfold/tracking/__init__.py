"""MLflow tracking: runs, logged bundles, model registry. Only this package imports MLflow."""
