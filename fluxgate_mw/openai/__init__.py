"""The OpenAI client: one patch point, its streams, its usage blocks, and the explicit tracker.

`patch` and `tracker`, and what they alone use, import `openai`; nothing imports them before they are asked for.
"""
