"""Sweep: one recipe over ratios, policies and seeds, what each setting costs, and a report of both.

After ``adapt``, whose runs it makes; nothing depends on it but the command line. ``isolate`` gives each run a process
of its own, ``plan`` says which runs there are and which are done, ``costs`` has every setting measured, ``run`` does
what is left, ``command`` is what the command line calls.
"""
