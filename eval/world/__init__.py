"""The paper's tables and figures, in the embedded world."""
