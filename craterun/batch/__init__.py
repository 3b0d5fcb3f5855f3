"""Many containers from a stream of requests: `runner.Batch`, in a `craterun.Supervisor`.

A request is a line of JSON (`job`), and so is what became of it (`results`). With a ledger
(`ledger`), a batch that was killed goes on where it was.
"""
