"""Several engines behind one address: a front that takes calls, and replicas on Ray Serve that answer them.

`front` guards, limits and logs, and asks again where a replica is lost. `replica` is what one process has. `router`
chooses whom to ask, `cluster` starts them all. Only the last two want Ray.
"""
