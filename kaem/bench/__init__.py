"""How fast samplers are: what is measured, what may be said of it, and how it is written down.

Two ways to measure. `local`: one caller, whole calls, contestants interleaved in one run (`engines`, `worker`).
`open_loop`: a server under requests that come when they come, whether or not it keeps up (`arrivals`, `remote`).
Both end in the same record (`record`), shown by `tables` and `page`, and compared with an earlier one by `compare`.
"""
