"""From files to models and back.

A file is read (`reading`, on `pickles` and `stored`), its entry names are translated (`names`), what it holds is
recognised (`recognition`, with the description in `info`), and its tensors go into a model (`loading`). `saving` writes
files, `download` fetches them, `integrity` looks for damage.
"""
