"""MLflow: runs, logged bundles, the registry of models. Only this folder imports it."""
