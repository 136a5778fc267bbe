"""Sweep: one recipe over ratios, policies and seeds, what each setting costs, and a report of both.

After ``adapt``, whose runs it makes; nothing depends on it but the command line. ``isolate`` gives each run a process
of its own, ``plan`` says which runs there are and which are done, ``run`` runs what is left and has costs measured.
"""
