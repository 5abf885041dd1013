"""Training of the two shipped small foundation models, on printed characters and never on handwriting."""
