"""Say which feature and which user your LLM money goes to."""
