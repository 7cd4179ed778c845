"""How much memory a run needs, said before any of it is used.

`passes` knows the shapes of a run's passes, `weights` what the weights come to; `trace` runs the base's own code
without numbers and counts what is alive; `estimate` adds it all up, `bound` is an upper bound without any of that, and
`advice` says what to change; `heap` keeps a CPU's heap from holding twice that. Constants that no structure tells are
in `constants`, measured by bench/memory.py.
"""
