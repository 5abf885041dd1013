"""Methods, one package per paper: maths, settings, recipe, predictor, evaluation, figures."""
