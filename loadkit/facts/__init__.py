"""What plugins know: the request, the checkpoint, the machine, the topology and the library.

Facts are read once by the core, frozen, and plain data, so that every rule can be tested by building them.
"""
