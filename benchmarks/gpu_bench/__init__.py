"""The rooms of `benchmarks/gpu.py`.

`plan` says what is measured and `steps` in which order; `conduct` runs each step in a process of its own (`children`)
and keeps its rows (`record`). Within that process `scans`, `baseline` and `models` measure. `goals` judges the rows,
`report` writes them.
"""
