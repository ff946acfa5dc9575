"""The parameter server: who holds what, who may go on when, how a worker pushes and pulls; the engine comes from outside.

Workers and servers are joined by a `Remote` alone, a function that begins a call there. So everything here runs in one
process too, with threads for workers.
"""
