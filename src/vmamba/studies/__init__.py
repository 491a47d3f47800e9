"""Studies that train models of their own to answer a question."""
