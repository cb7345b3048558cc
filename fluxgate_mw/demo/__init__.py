"""The parts of `fluxgate demo`: a loopback model provider, two web apps that call it, visitors, and the judge.

The apps use the public interface only. The provider knows nothing of our tracking: what it writes down by itself is
the witness that the store is compared with.
"""
