"""A room per paper: maths, recipe, predictor."""
