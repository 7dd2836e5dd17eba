"""How fast operators and detectors are, and how much memory they take, beside others."""
