"""Evaluation of p2e: what its claims are measured with. Built on p2e; part of a checkout, not of the wheel."""
