"""A GPU box over SSH: the connection, what is shipped to it, and the worker that runs there."""
