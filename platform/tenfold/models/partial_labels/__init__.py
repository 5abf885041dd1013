"""Training on multi-label pictures of which only some labels are known: losses, label matrix, record, one recipe."""
