"""The commands of `p2e`, a few lines each over the library; importing them loads nothing heavy."""
