"""The OpenAI client: one patch point, its streams, its usage blocks, and the explicit tracker.

`patch` and `tracker` import `openai`; nothing imports them before they are asked for.
"""
