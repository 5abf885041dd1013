"""How the two small foundation models that are shipped are trained: on printed characters, never on handwriting."""
