"""The server behind ``craterun serve``: one supervisor, and warm processes for commands.

`frames` is what goes over the socket, in a form that the client writes without any import; `hello`
is the server's strict reading of it, `specs` how a worker writes down what it asks the server for.
`listener` owns the socket, `workers` the processes that run commands, `server` brings them
together, `started` knows what it has started, and `ending` stops containers at its end. What a
session of ``run`` is, the command line says (`cli.sessions`). A command with many containers stays
in its worker and borrows the supervisor for them (`borrowing`, `lending`).
"""
