"""Slow, readable float64 references of every optimizer, written from the papers' equations.

One class a method, one object a parameter: `Oracle(weight, **settings)`, then `oracle.step(gradient, lr)` per update;
`oracle.weight` is the parameter after the updates so far. Nothing here imports the package under test, and nothing
here is fast: quantities are formed as the equations write them.

Passing `dtype=torch.float32` runs the same equations in single precision. The distance between the two runs measures
how much a method amplifies rounding on one problem, which is what the tests use to set their limits.
"""
