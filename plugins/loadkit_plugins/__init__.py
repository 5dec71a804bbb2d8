"""loadkit's own plugins, one module a concern, registered by entry point like anybody else's.

They use only what `loadkit` exports, and hold all of its opinions: the core has none.
"""
